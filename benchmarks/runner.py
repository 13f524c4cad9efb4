"""Many command lines of launch.py, several at once, each in a process of its own; called again they go on. And what the
studies that consist of them are all told.
"""

import argparse
import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import make_folder, read_json_object, write_json
from lm_human_preferences.foundation.root import project_root

SECONDS = "seconds.json"  # in the folder: how long each command took that ran from its beginning to its end


class Command(NamedTuple):
    """One process: a stage's command line, and the file that is there when it has ended well."""

    name: str
    words: list[str]
    result: Path
    program: tuple[str, ...] = ("launch.py",)  # what Python runs


def show(chains: Iterable[Sequence[Command]]) -> None:
    """Print the command lines, one after the other."""
    for command in (command for chain in chains for command in chain):
        print(" ".join(["python", *command.program, *command.words]))


class Runner:
    """Runs chains of commands, each command in a process of its own."""

    def __init__(self, folder: Path):
        self.folder, self.processes, self.lock = folder, set[subprocess.Popen[bytes]](), threading.Lock()
        self.seconds = read_json_object(folder / SECONDS) if (folder / SECONDS).is_file() else {}
        self.stopped = False

    def run(self, commands: Sequence[Command]) -> str | None:
        """The commands of one chain one after the other, but for those that are finished. Returns the name of the one
        that failed.
        """
        for command in commands:
            if command.result.is_file():
                continue
            if not self._succeeds(command):
                return command.name
        return None

    def _succeeds(self, command: Command) -> bool:
        begun = any((self.folder / f"{command.name}{first}/config.json").exists() for first in ("", "_reward"))
        words = [*command.words, *(["--run.resume"] if begun and command.words[0] != "evaluate" else [])]
        start = time.monotonic()
        with open(make_folder(self.folder / "logs") / f"{command.name}.txt", "ab") as log:
            with self.lock:
                if self.stopped:
                    return False
                process = subprocess.Popen(
                    [sys.executable, *command.program, *words], cwd=project_root(), stdout=log, stderr=subprocess.STDOUT
                )
                self.processes.add(process)
            status = process.wait()
        with self.lock:
            self.processes.discard(process)
        ended = "done" if status == 0 else f"FAILED (exit status {status}), see {log.name}"
        seconds = time.monotonic() - start
        print(f"{command.name}: {ended} after {seconds:.0f} s", flush=True)
        if status == 0 and not begun:  # of one that was interrupted nobody knows how long it took
            with self.lock:
                self.seconds[command.name] = round(seconds, 1)
                write_json(self.folder / SECONDS, self.seconds)
        return status == 0

    def stop(self) -> None:
        """End the processes that this one started; their runs keep their checkpoints."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()


def run_all(chains: Sequence[Sequence[Command]], folder: Path, jobs: int) -> list[str]:
    """All chains, `jobs` of them at once; the names of those commands that failed."""
    runner = Runner(folder)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            return [failed for failed in pool.map(runner.run, chains) if failed]
        except KeyboardInterrupt:
            runner.stop()
            raise UserError("stopped; the same command goes on from here") from None


# --- what a study is told ---


def add_study_arguments(p: argparse.ArgumentParser, several: str, folder: str) -> None:
    """Where a study's runs compute and lie, and what is done of it; several: what `--jobs` counts."""
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N, as the stages' --run.device")
    p.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads of a process; 0: PyTorch's choice")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help=f"{several} at once (several fit a GPU)")
    add_folder_arguments(p, folder)


def add_folder_arguments(p: argparse.ArgumentParser, folder: str) -> None:
    """Where a study's runs lie, and what is done of it."""
    p.add_argument("--folder", type=Path, default=Path(folder), help="where all runs lie")
    p.add_argument("--only_report", action="store_true", help="run nothing; tell what is finished")
    p.add_argument("--dry_run", action="store_true", help="print the commands and stop")


def check_study_arguments(a: argparse.Namespace) -> None:
    """UserError, naming the flags, for numbers that cannot be."""
    if a.jobs < 1 or a.threads < 0:
        raise UserError(f"--jobs {a.jobs} must be at least 1, --threads {a.threads} not negative")


def whole_numbers(text: str, flag: str, least: int = 0) -> list[int]:
    """Those of `A,B,...`, as they come. UserError, naming the flag, for anything else, one below `least`, and one that
    is there twice.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} {text}: expected whole numbers with commas between them") from None
    if min(numbers) < least or len(set(numbers)) < len(numbers):
        raise UserError(f"{flag} {text}: expected numbers of {least} or more, none of them twice")
    return numbers
