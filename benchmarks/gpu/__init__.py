"""Is it right on a GPU, how fast, and what a run comes to: `python -m benchmarks.gpu`, one command of a few minutes.

`right.py`, `fast.py` and `real.py` hold the parts of the three sections. `parts.py` says what a part is and what it may
use; `__main__.py` gives them to a process of their own, one after the other, and prints the table.
"""
