"""The methods alone: policy, reward model, scoring, PPO, DPO, ILQL and others. Nothing here knows runs, files of labels
or the command line.

Imports data and the rooms before it. Begin with `ppo.py`: the paper's formulas as pure functions.
"""
