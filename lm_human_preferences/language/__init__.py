"""GPT-2 and its encoding, written by hand: forward passes, sampling, log-probabilities, model folders. Knows nothing of
preferences.

Imports foundation and compute. Begin with `plain.py`, GPT-2 on one page; `gpt2.py` computes the same, faster.
"""
