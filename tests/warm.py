"""Processes of the command line that need not load PyTorch again: `python tests/warm.py` loads it once, with all that
launch.py imports, and forks for each command that it is given.

Such a process runs launch.py itself, from its first line to its exit, in its own folder and with its own arguments and
outputs. Nothing has been computed before the fork, so there are no threads that it could lack. `small.launch` uses it
where the environment is that of the tests. Loading takes eight seconds of a core (PyTorch two; its compiler, which the
first optimizer or embedding loads, six), and the suite starts a process well over a hundred times.

All of them have one seed of Python's hashes, hence one order of sets. Where that must not hide a difference, give
`small.launch` a PYTHONHASHSEED: another environment gets a process that loads everything itself.
"""

import atexit
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
PER_TEST = "PYTEST_CURRENT_TEST"  # in the environment; names the test that runs


class Warm:
    """A process of this file, for commands one after the other. It has the environment of its start."""

    def __init__(self, environment: dict[str, str]):
        self.environment, self.process = environment, None

    def run(self, arguments: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess:
        """launch.py with these arguments: status, and what it said as text. Raises TimeoutExpired."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env=self.environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            atexit.register(self.process.stdin.close)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, error)]
            request = {"arguments": arguments, "cwd": str(cwd), "files": files, "timeout": timeout}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the process that forks ended with status {self.process.wait()}")
            status = json.loads(answer)
            texts = [_text(file) for file in (out, error)]
        if status is None:
            raise subprocess.TimeoutExpired(arguments, timeout, *texts)
        return subprocess.CompletedProcess(arguments, status, *texts)


def _text(file: IO[bytes]) -> str:
    """What a process wrote into it, as `subprocess` would give it: whatever ends a line there, here it is a newline."""
    file.seek(0)
    return io.TextIOWrapper(file, encoding="utf-8", errors="replace").read()


def serve() -> None:
    """Fork for each line of standard input, and answer with the child's exit status, null if it took too long. Returns
    in the child, which is to run launch.py, and when there are no more lines.
    """
    import signal
    import time

    sys.path[0] = str(ROOT)
    import launch  # noqa: F401  # whatever it imports is there for the children

    del sys.modules["launch"]  # it is run anew in each; what comes next must load after it, as launch.py loads PyTorch
    import torch._dynamo  # noqa: F401  # else the first optimizer or embedding loads it

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            os.chdir(request["cwd"])
            for descriptor, file in ((1, request["files"][0]), (2, request["files"][1])):
                opened = os.open(file, os.O_WRONLY | os.O_APPEND)
                os.dup2(opened, descriptor)
                os.close(opened)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)
            sys.argv = [str(ROOT / "launch.py"), *request["arguments"]]
            return
        ends = time.monotonic() + request["timeout"]
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < ends:
            time.sleep(0.005)
        if done[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        answers.write(json.dumps(os.waitstatus_to_exitcode(done[1]) if done[0] else None) + "\n")
    os._exit(0)


if __name__ == "__main__":
    serve()
    runpy.run_path(sys.argv[0], run_name="__main__")
