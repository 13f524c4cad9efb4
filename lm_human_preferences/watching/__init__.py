"""What can be wrong with a run: the checks of each stage, and the doctor that makes them.

Imports runs and the rooms before it. Begin with `checks_policy.py`: each check has its limits right above it.
`doctor.py` makes the checks while a run goes on and afterwards; `doctor_page.py` writes docs/doctor.md.
"""
