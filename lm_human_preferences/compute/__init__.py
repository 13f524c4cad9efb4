"""The one place that knows ranks, devices and precision: process groups, DDP and FSDP, bfloat16, optimizers.

Imports foundation. Begin with `distributed.py` (`World`) and `precision.py`; `torchrun.py` (restarts, who speaks first)
and `hardware.py` (what a run's record says of the machine) can wait.
"""
