"""Waiting for what another process works on; tests/commands/test_members.py has the locks themselves."""

import sys
from pathlib import Path

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.runs import locks
from lm_human_preferences.runs.locks import Busy, patiently


def test_sigterm_can_end_the_waiting(tmp_path: Path, monkeypatch):
    """While an exception is handled a program is taken to be ending, and SIGTERM changes nothing."""
    handled, answers = [], iter([Busy(tmp_path), "done"])
    monkeypatch.setattr(locks, "wait_for", lambda folder, world: handled.append((folder, sys.exception())))

    def work() -> str:
        answer = next(answers)
        if isinstance(answer, Busy):
            raise answer
        return str(answer)

    assert patiently(work, World()) == "done" and handled == [(tmp_path, None)]
