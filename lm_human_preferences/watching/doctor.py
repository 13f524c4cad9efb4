"""What is wrong with a run: the checks of its stage, made row by row, while it goes on and afterwards.

While a run goes on, its `Watch` makes the checks at each row of metrics and reports each kind of trouble once, and once
more when it becomes severe. `python launch.py doctor EXPERIMENT` lets the same checks see the rows of metrics.jsonl
again, then looks at samples and result. Everything reported is a function of the rows, so a resumed run neither repeats
nor loses it.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lm_human_preferences.foundation.configuration import to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.runs.folder import Run
from lm_human_preferences.runs.tracking import JsonLines, NullTracker, Tracker, read_jsonl
from lm_human_preferences.watching.check import FINE, SEVERE
from lm_human_preferences.watching.checks import checks_of
from lm_human_preferences.watching.history import STAGES, History


class Finding(NamedTuple):
    """Something wrong with a run."""

    check: str
    severe: bool
    step: int
    saw: str
    why: str
    change: str

    def block(self, earlier: int | None = None) -> str:
        """The finding for people; `earlier`: the step at which it was first seen, less severe."""
        first = "" if earlier is None else f" (first seen at step {earlier})"
        return (
            f"{'SEVERE' if self.severe else 'WARNING'} {self.check}, step {self.step}{first}\n"
            f"  saw     {self.saw}\n  why     {self.why}\n  change  {self.change}"
        )


@dataclass
class Examination:
    """The checks of a stage as they see a run row by row: each reports when it first finds something and when that
    becomes severe.
    """

    history: History
    # check -> highest level so far; FINE: it looked and found nothing
    reported: dict[str, int] = field(default_factory=dict)

    def see(self, row: dict[str, Any]) -> list[Finding]:
        """What is new with this row of metrics."""
        self.history.add(row)
        return self._make_checks(afterwards=False)

    def look_back(self, samples: list[dict[str, Any]], result: dict[str, Any]) -> list[Finding]:
        """What samples and result show besides."""
        self.history.samples, self.history.result = samples, result
        return self._make_checks(afterwards=True)

    def _make_checks(self, afterwards: bool) -> list[Finding]:
        findings = []
        for check in checks_of(self.history.stage):
            judgement = check(self.history) if check.afterwards == afterwards else None
            if judgement is None or judgement.level <= self.reported.setdefault(check.name, FINE):
                continue
            self.reported[check.name] = judgement.level
            level, saw, change = judgement
            findings.append(Finding(check.name, level == SEVERE, self.history.step, saw, check.why, change))
        return findings


class Watch:
    """A place to report to (see tracking.py) that writes what the checks find to the run's warnings.jsonl and to
    standard error.
    """

    def __init__(self, examination: Examination, file: JsonLines):
        self.examination, self.file = examination, file

    @classmethod
    def open(cls, folder: Path, stage: str, parameters: dict[str, Any], resume_at: int | None) -> "Watch":
        """For a run whose folder and `config.json` exist.

        resume_at: None starts anew; k has seen the rows of the steps before k, whose warnings stay in the file and are
        not repeated.
        """
        examination = Examination(History(stage, parameters, _computed(Path(folder) / "config.json")))
        metrics = Path(folder) / "metrics.jsonl"
        for row in read_jsonl(metrics) if resume_at is not None and metrics.exists() else ():
            if row.get("step", 0) < resume_at:
                examination.see(row)
        return cls(examination, JsonLines(Path(folder) / "warnings.jsonl", resume_at))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        findings = self.examination.see({"step": step, **metrics})
        self.file.write(finding._asdict() for finding in findings)
        for finding in findings:
            tqdm.write(finding.block(), file=sys.stderr)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Samples are looked at afterwards."""

    def flush(self) -> None:
        self.file.sync()

    def close(self, failed: bool) -> None:
        self.file.close()


def open_watched(run: Run, params: Any, stage: str, experiment: str, first: int) -> NullTracker:
    """The tracker of a stage's run that starts or goes on at step `first`, with a `Watch` among its places; on ranks
    that report nothing a tracker that does nothing.

    params: the stage's parameters, with `run` and `tracking`. Raises UserError as `Tracker.open` does.
    """
    if not run.world.is_main:
        return NullTracker()
    config, resume_at = to_dict(params), first if params.run.resume else None
    watch = Watch.open(run.folder, stage, config, resume_at)
    return Tracker.open(
        run.folder, params.tracking, run_name=experiment, config=config, resume_at=resume_at, more=[watch]
    )


def _computed(config: Path) -> dict[str, Any]:
    """What `config.json` says that a run computes with; nothing where it does not say, as in earlier versions."""
    stored = read_json(config) if config.exists() else {}
    computed = stored.get("computed") if isinstance(stored, dict) else None
    return computed if isinstance(computed, dict) else {}


class Diagnosis(NamedTuple):
    """What the doctor says about a run."""

    stage: str
    rows: int  # rows of metrics
    findings: list[Finding]  # in the order of their appearance; a check may be in it twice, the second time severe
    fine: list[str]  # checks that looked and found nothing
    not_looked_at: list[str]  # checks for which the run has no numbers

    @property
    def healthy(self) -> bool:
        return not self.findings


def examine(folder: Path) -> Diagnosis:
    """Every check on the run in `folder`, finished or not. UserError if it holds no run or nothing was logged yet."""
    folder, metrics = Path(folder), Path(folder) / "metrics.jsonl"
    config, rows = read_json(folder / "config.json"), read_jsonl(metrics) if metrics.exists() else []
    if not isinstance(config, dict) or config.get("stage") not in STAGES:
        raise UserError(f"{folder}/config.json is not that of a run of {', '.join(STAGES)}")
    if not rows:
        raise UserError(f"{folder} has no metrics yet; train first, then ask the doctor")
    samples = read_jsonl(folder / "samples.jsonl") if (folder / "samples.jsonl").exists() else []
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    history = History(config["stage"], config.get("parameters") or {}, _computed(folder / "config.json"))
    return diagnose(history, rows, samples, result if isinstance(result, dict) else {})


def diagnose(
    history: History, rows: Iterable[dict[str, Any]], samples: list[dict[str, Any]], result: dict[str, Any]
) -> Diagnosis:
    """Every check of the stage on rows of metrics.jsonl, samples and result, as their files hold them.

    history: of no row yet.
    """
    examination, findings, count = Examination(history), [], 0
    for row in rows:
        findings += examination.see(row)
        count += 1
    findings += examination.look_back(samples, result)
    names = [check.name for check in checks_of(history.stage)]
    return Diagnosis(
        history.stage,
        count,
        findings,
        [name for name in names if examination.reported.get(name) == FINE],
        [name for name in names if name not in examination.reported],
    )


def describe(diagnosis: Diagnosis, name: str) -> str:
    """The diagnosis for people: a block a finding at its worst, then what was looked at and found fine."""
    worst = {finding.check: finding for finding in diagnosis.findings}
    first = {finding.check: finding.step for finding in reversed(diagnosis.findings)}
    verdict = "healthy" if diagnosis.healthy else f"{len(worst)} finding{'s' if len(worst) > 1 else ''}"
    lines = [f"{name} ({diagnosis.stage}, {diagnosis.rows:,} rows of metrics): {verdict}", ""]
    for finding in sorted(worst.values(), key=lambda finding: not finding.severe):
        lines += [finding.block(first[finding.check] if first[finding.check] != finding.step else None), ""]
    lines += [
        f"{title}: {', '.join(names)}"
        for title, names in (("fine", diagnosis.fine), ("no numbers for", diagnosis.not_looked_at))
        if names
    ]
    return "\n".join(lines)
