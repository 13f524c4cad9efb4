"""Output that cannot end a program, and what a file system refuses: exit statuses of programs of their own."""

import os
import subprocess
import sys

import pytest

from small import ROOT

PROGRAM = """
from pathlib import Path
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
@exit_on_user_error
def main():
    {body}
    Path({done!r}).touch()
main()
"""
MUCH = "[print('x' * 1000) for _ in range(1000)]"


def run(tmp_path, body: str, shell: str = "", **environment) -> tuple[int, str, str, bool]:
    """Exit status, standard output and error of a program with that body, and whether it reached its end."""
    script, done = tmp_path / "program.py", tmp_path / "done"
    script.write_text(PROGRAM.format(body=body, done=str(done)))
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} {shell}; exit ${{PIPESTATUS[0]}}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout.decode("latin-1"), ended.stderr.decode("latin-1"), done.exists()


@pytest.mark.parametrize(
    "environment, expected",
    [
        (dict(PYTHONIOENCODING="cp1252"), "caf\u00e9 ?\n"),
        (dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"), "caf? ?\n"),
        (dict(PYTHONUTF8="1"), "caf\u00c3\u00a9 \u00e5\u00ae\u00b6\n"),
    ],
)
def test_characters_that_the_encoding_lacks(tmp_path, environment, expected):
    assert run(tmp_path, "print('caf\\xe9 \\u5bb6')", **environment) == (0, expected, "", True)


@pytest.mark.parametrize("shell", ["| head -c 10 > /dev/null", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_output_that_nobody_reads(tmp_path, shell):
    """A pipe whose reader has gone, and streams closed from the beginning: no traceback, and the work is done."""
    body = f"{MUCH}; import sys; print('to standard error', file=sys.stderr)"
    status, _, error, done = run(tmp_path, body, shell)
    assert status == 0 and done and error in ("", "to standard error\n")


def test_a_file_does_not_become_standard_error(tmp_path):
    """Where it is closed, the first file that is opened would else take its number."""
    body = (
        f"file = open({str(tmp_path / 'file')!r}, 'w'); import os, sys; os.write(2, b'x'); print('y', file=sys.stderr)"
    )
    assert run(tmp_path, body, "2>&-")[0] == 0 and (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_to_a_full_disk_is_said(tmp_path):
    """After the work, which it does not end."""
    for body in (MUCH, "print('a line')"):
        status, _, error, done = run(tmp_path, body, "> /dev/full")
        assert status == 2 and done
        assert error == "error: done, but the output could not be written: No space left on device\n"


def test_a_broken_pipe_of_another_kind_keeps_its_traceback(tmp_path):
    """One to a worker, say: that is no reader who has seen enough."""
    status, _, error, done = run(tmp_path, "raise BrokenPipeError(32, 'Broken pipe')")
    assert status == 1 and "Traceback" in error and not done


@pytest.mark.parametrize(
    "body, says",
    [
        ("open('x' * 300)", "File name too long; choose a shorter one"),
        ("open('/proc/cpuinfo/x', 'w')", "/proc/cpuinfo/x: Not a directory; choose another path"),
        ("open('/', 'w')", "/: Is a directory; choose another path"),
        ("Path('/' + 'y' * 300).exists()", "File name too long; choose a shorter one"),
        ("raise PermissionError(13, 'no', 'x')", "x: Permission denied; choose another path"),
    ],
)
def test_what_a_file_system_refuses_is_a_line(tmp_path, body, says):
    status, _, error, done = run(tmp_path, body)
    assert status == 2 and error.startswith("error: ") and error.endswith(says + "\n") and not done
    assert error.count("\n") == 1


def test_a_missing_file_of_the_program_keeps_its_traceback(tmp_path):
    status, _, error, _ = run(tmp_path, "open('/nowhere')")
    assert status == 1 and "Traceback" in error
