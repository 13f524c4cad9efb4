"""What can be wrong with a run: the checks of each stage, and the doctor that asks them.

Imports runs and the rooms before it. Begin with `checks.py`.
"""
