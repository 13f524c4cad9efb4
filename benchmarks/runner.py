"""Many command lines of launch.py, several at once, each in a process of its own; called again they go on, if they are
told the same. And what the studies that consist of them are all told.
"""

import argparse
import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_human_preferences.foundation.errors import Terminated, UserError
from lm_human_preferences.foundation.files import make_folder, read_json_object, write_json
from lm_human_preferences.foundation.root import project_root

SECONDS = "seconds.json"  # in the folder: how long each command took that ran from its beginning to its end
WORDS = "words.json"  # in the folder: what each command was told, as `told` has it
_ALIKE = ("--run.threads", "--run.device", "--run.save_dir", "--run.resume", "--device", "--save_dir")  # same results


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


def told(command: Command, folder: Path) -> dict[str, str]:
    """Flag -> value of a command line, "" -> the words before the flags; without the flags that results do not depend
    on, and paths in the study's folder without it.
    """
    flags: dict[str, list[str]] = {"": []}
    flag = ""
    for word in (word.replace(f"{folder}/", "") for word in command.words):
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            flags[flag] = [value] if value else []
        else:
            flags[flag].append(word)
    return {flag: " ".join(values) for flag, values in flags.items() if flag not in _ALIKE}


def check_told(chains: Iterable[Sequence[Command]], folder: Path) -> None:
    """UserError, naming the first difference, if a command that is finished, or would go on, was told other things.
    Those of a folder that does not say are taken as they are.
    """
    known = _known(folder / WORDS)
    for command in (command for chain in chains for command in chain):
        before, now = known.get(command.name), told(command, folder)
        if before is None or not (command.result.is_file() or _goes_on(command, folder)):
            continue
        flag = next((flag for flag in [*now, *before] if now.get(flag) != before.get(flag)), None)
        if flag is not None:
            was, is_asked = (f"{flag} {of[flag]}".strip() if flag in of else f"no {flag}" for of in (before, now))
            raise UserError(
                f"{folder / command.name} was made with {was} and is asked for with {is_asked}; take another --folder"
            )


def _known(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _begun(command: Command, folder: Path) -> bool:
    return any((folder / f"{command.name}{first}/config.json").exists() for first in ("", "_reward"))


def _goes_on(command: Command, folder: Path) -> bool:
    """Whether it is resumed if it is not finished."""
    return command.words[0] != "evaluate" and _begun(command, folder)


class Runner:
    """Runs chains of commands, each command in a process of its own."""

    def __init__(self, folder: Path):
        self.folder, self.processes, self.lock = folder, set[subprocess.Popen[bytes]](), threading.Lock()
        self.seconds, self.words = _known(folder / SECONDS), _known(folder / WORDS)
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
        begun, goes_on = _begun(command, self.folder), _goes_on(command, self.folder)
        words = [*command.words, *(["--run.resume"] if goes_on else [])]
        start = time.monotonic()
        with open(make_folder(self.folder / "logs") / f"{command.name}.txt", "ab") as log:
            with self.lock:
                if self.stopped:
                    return False
                if not goes_on:
                    self.words[command.name] = told(command, self.folder)
                    write_json(self.folder / WORDS, self.words)
                process = subprocess.Popen(
                    [sys.executable, *command.program, *words], cwd=project_root(), stdout=log, stderr=subprocess.STDOUT
                )
                self.processes.add(process)
            status = process.wait()
        with self.lock:
            self.processes.discard(process)
        done = status == 0 and command.result.is_file()  # a run that was stopped ends with 0 as well
        ended = "done" if done else f"FAILED (exit status {status}), see {log.name}" if status else "stopped"
        seconds = time.monotonic() - start
        print(f"{command.name}: {ended} after {seconds:.0f} s", flush=True)
        if done and not begun:  # of one that was interrupted nobody knows how long it took
            with self.lock:
                self.seconds[command.name] = round(seconds, 1)
                write_json(self.folder / SECONDS, self.seconds)
        return done

    def stop(self) -> None:
        """End the processes that this one started; their runs keep their checkpoints."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()


def run_all(chains: Sequence[Sequence[Command]], folder: Path, jobs: int, only_report: bool = False) -> list[str]:
    """All chains, `jobs` of them at once, or none; the names of those commands that failed. UserError, before anything
    is started, as of `check_told`.
    """
    check_told(chains, folder)
    if only_report:
        return []
    runner = Runner(folder)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            return [failed for failed in pool.map(runner.run, chains) if failed]
        except (KeyboardInterrupt, Terminated):
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
    p.add_argument("--only_report", action="store_true", help="run nothing; tell what is finished of it")
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
