"""How good, by whom, how sure: judges and people's ratings, evaluation, intervals, calibration, measures of text.

Imports learning and the rooms before it. Begin with `judges.py`: anything that scores a response is one of these.
"""
