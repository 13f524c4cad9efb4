"""How fast the software is, measured: `python -m benchmarks --help`, explained in docs/performance.md.

`cases.py` says what is measured, `ours.py` drives the project's own trainers and `others.py` what a user would use
instead, each in a process of its own (`worker.py`) that `measure.py` asks in turn; `tables.py` and `figure.py` show
what came out.
"""
