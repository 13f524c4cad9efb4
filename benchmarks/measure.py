"""Measuring cases: each subject in a process of its own, asked in turn, so that whatever else the machine does meets
all of them alike.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.cases import RIVALS, Case
from lm_human_preferences.foundation import process
from lm_human_preferences.foundation.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
_LEAVING = 10  # seconds that a process may take to remove its files and end


class Worker:
    """A subject in its own process. Raises UserError with the process's one line, RuntimeError with its last lines if
    it breaks.
    """

    def __init__(self, case: Case, root: Path = ROOT):
        """root: the checkout whose code works."""
        self.case, self.errors = case, tempfile.TemporaryFile()
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(dataclasses.asdict(case))]
        environment = (
            {"TOKENIZERS_PARALLELISM": "false"} | os.environ | process.waiting()
        )  # the last to the others' good, too
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(_LEAVING)
        except subprocess.TimeoutExpired:  # in the middle of a repetition that nobody wants any more
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def wait_until_ready(self) -> None:
        self._answer()

    def repeat(self) -> dict:
        """One repetition, described."""
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last lines say why
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(
                f"{self.case.name} by {self.case.subject} ended with status {self.process.returncode}:\n"
                + self.errors.read().decode(errors="replace")[-3000:]
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer


def check_checkout(folder: Path) -> None:
    """Raises UserError unless a folder is a checkout of this project, whose code can be measured beside ours."""
    if not (folder / "benchmarks" / "worker.py").is_file():
        raise UserError(
            f"--before {folder}: no checkout of this project with benchmarks in it; make one with "
            "`git worktree add FOLDER COMMIT`"
        )


def measure(
    case: Case,
    repeats: int,
    warmup: int,
    alone: bool,
    say: Callable[[str], None] = lambda text: None,
    before: Path | None = None,
) -> dict:
    """Medians over `repeats` rounds after `warmup` ones; in each round the device's peaks, ours, with `before` the same
    by the code of that checkout, and, unless `alone`, what stands against it.

    What stands against ours may break, for lack of memory say: then that is part of the result. Raises RuntimeError if
    ours does.
    """
    subjects = {subject: (case.of(subject), ROOT) for subject in ("peaks", "ours")}
    if before is not None:
        subjects["before"] = (case, before)
    if case.kind in RIVALS and not alone:
        subjects[RIVALS[case.kind]] = (case.of(RIVALS[case.kind]), ROOT)
    answers: dict[str, list[dict]] = {subject: [] for subject in subjects}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        workers = {subject: stack.enter_context(Worker(*work)) for subject, work in subjects.items()}
        for number in range(-1, warmup + repeats):
            for subject in list(answers):
                try:
                    answer = workers[subject].repeat() if number >= 0 else workers[subject].wait_until_ready()
                except RuntimeError as error:
                    if subject in ("peaks", "ours"):
                        raise
                    failed[subject] = str(error).splitlines()[0]
                    say(str(error))
                    del answers[subject]
                    continue
                if number >= warmup:
                    answers[subject].append(answer)
                    if "seconds" in answer:
                        say(f"{case.name}, {subject}: {answer['seconds']:.3g} s")
    return summarise(case, answers) | {"failed": failed}


def summarise(case: Case, answers: dict[str, list[dict]]) -> dict:
    """One case's result from its rounds: medians, rates, the share of the peak and ratios to what stands against it."""
    ours = answers["ours"]
    seconds = median(answer["seconds"] for answer in ours)
    last, peaks = ours[-1], {name: median(answer[name] for answer in answers["peaks"]) for name in answers["peaks"][0]}
    flops = median(answer["flops"] for answer in ours)

    def cpu_seconds(rounds: list[dict]) -> float:
        return median(answer["cpu_seconds"] for answer in rounds)

    result = {
        "case": dataclasses.asdict(case),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds(ours),
        "all_seconds": [answer["seconds"] for answer in ours],
        "phases": {name: median(answer["phases"].get(name, 0.0) for answer in ours) for name in last["phases"]},
        "tokens_per_second": last["tokens"] / seconds,
        "rows_per_second": last["rows"] / seconds,
        "flops": flops,
        "flops_per_second": flops / seconds,
        "precision": last["precision"],
        "peaks": peaks,
        "share_of_peak": median(
            answer["flops"] / answer["seconds"] / peak[answer["precision"]]
            for answer, peak in zip(ours, answers["peaks"], strict=True)
        ),
        "memory": last["memory"],
        "others": {},
    }
    for name, rounds in answers.items():
        if name not in ("peaks", "ours"):
            result["others"][name] = {
                "seconds": median(answer["seconds"] for answer in rounds),
                "cpu_seconds": cpu_seconds(rounds),
                "all_seconds": [answer["seconds"] for answer in rounds],
                "memory": rounds[-1]["memory"],
                "ratio": median(other["seconds"] / own["seconds"] for other, own in zip(rounds, ours, strict=True)),
                "cpu_ratio": cpu_seconds(rounds) / cpu_seconds(ours),
            }
    return result
