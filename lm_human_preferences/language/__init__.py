"""GPT-2 and its encoding, written by hand: forward passes, sampling, log-probabilities, model folders. Knows nothing of
preferences.

Imports foundation and compute. Begin with `gpt2.py`.
"""
