"""The command line, and what it offers besides the stages: evaluate, sweep, sample, plan and the others.

May import every other room and the stages. Begin with `command_line.py`.
"""
