"""A run: its folder and parameters, metrics and trackers, checkpoints, stopping, and how many rows fit in memory.

Imports learning and the rooms before it. Begin with `folder.py`.
"""
