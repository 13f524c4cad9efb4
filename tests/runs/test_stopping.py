"""The signal that a run remembers arrives at any moment, also in the middle of a line that is being written.

tests/stages/test_faults.py has signals that reach a rank twice, and runs that are stopped.
"""

import io
import os
import signal
import sys

import pytest

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.runs.stopping import StopRequest

SAYS = "\nSIGTERM: finishing this step and saving; once more stops at once\n"


class Interrupted(io.FileIO):
    """A file whose first write is interrupted by SIGTERM, as one to a full pipe may be."""

    def write(self, data) -> int | None:
        if b"step" in bytes(data):
            signal.raise_signal(signal.SIGTERM)
        return super().write(data)


def test_a_signal_in_the_middle_of_a_line_is_remembered(monkeypatch, tmp_path):
    """A progress bar writes to standard error, and so does the signal's handler."""
    raw = Interrupted(tmp_path / "stderr", "w")
    stderr = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    with StopRequest(World()) as stop:
        print("step 3 of 5", file=sys.stderr)
        assert stop.asked and stop.agreed()
    stderr.close()
    assert (tmp_path / "stderr").read_text() == SAYS + "step 3 of 5\n"


@pytest.mark.parametrize("closed", [True, False], ids=["closed in Python", "closed by the shell"])
def test_nobody_is_told_where_standard_error_is_closed(monkeypatch, tmp_path, closed):
    """Another file has its number then, of a checkpoint perhaps, and must not be written to."""
    stderr = (tmp_path / "stderr").open("w")
    number = stderr.fileno()
    monkeypatch.setattr(sys, "stderr", stderr if closed else None)
    stderr.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    assert other == number
    with StopRequest(World()) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""


def test_a_pipe_that_nobody_reads_ends_no_run(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stderr = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stderr)
    with StopRequest(World()) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
    stderr.close()


def test_one_rank_speaks_for_all(monkeypatch, tmp_path):
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with StopRequest(World(rank=1, size=2)) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked
    assert (tmp_path / "stderr").read_text() == ""
