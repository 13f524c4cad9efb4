"""What a check is: a pure function of a `History`, the limits that it holds a number against, and why they are there.

A check says how bad things are, what it saw and what to change; None where the run has nothing to look at (yet).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lm_human_preferences.watching.history import History

FINE, WARNING, SEVERE = 0, 1, 2


class Judgement(NamedTuple):
    """What a check says at one row: how bad it is, what it saw, what to change."""

    level: int  # FINE, WARNING or SEVERE
    saw: str
    change: str = ""


Judge = Callable[[History], Judgement | None]


@dataclass(frozen=True)
class Limit:
    """Where a warning begins, where it is severe (None: never), and why just there. `AtMost` or `MoreThan`."""

    of: str  # the number that is limited, with its unit
    warning: float
    severe: float | None
    why: str

    def level(self, value: float, unit: float = 1.0) -> int:
        """How bad a value is, both limits in units of `unit`."""
        if self.severe is not None and self.is_beyond(value, self.severe * unit):
            return SEVERE
        return WARNING if self.is_beyond(value, self.warning * unit) else FINE

    def is_beyond(self, value: float, bound: float) -> bool:
        raise NotImplementedError("a limit is AtMost or MoreThan")

    def words(self, bound: float) -> str:
        """What a value on the wrong side of the bound is, for people."""
        raise NotImplementedError("a limit is AtMost or MoreThan")


@dataclass(frozen=True)
class AtMost(Limit):
    """For a number that should not rise above it."""

    def is_beyond(self, value: float, bound: float) -> bool:
        return value > bound

    def words(self, bound: float) -> str:
        return f"above {_shown(bound)}"


@dataclass(frozen=True)
class MoreThan(Limit):
    """For a number that should not fall to it."""

    def is_beyond(self, value: float, bound: float) -> bool:
        return value <= bound

    def words(self, bound: float) -> str:
        return f"at or below {_shown(bound)}"


def _shown(bound: float) -> str:
    return f"{bound:g}".replace("-", "−")


@dataclass(frozen=True)
class Check:
    """A check by the name of its function. `looks_at`, `why` and `change` are for docs/doctor.md; `why` also for each
    finding.
    """

    judge: Judge
    stages: tuple[str, ...]  # where it is made
    looks_at: str
    limits: tuple[Limit, ...]
    why: str  # what is bad about it
    change: str
    afterwards: bool  # it needs samples.jsonl or result.json, which are whole at the end only

    @property
    def name(self) -> str:
        return self.judge.__name__

    def __call__(self, history: History) -> Judgement | None:
        return self.judge(history)


def check(
    *stages: str, looks_at: str, why: str, change: str, limits: tuple[Limit, ...] = (), afterwards: bool = False
) -> Callable[[Judge], Check]:
    """Makes a `Check` of these stages of the function below it."""
    return lambda judge: Check(judge, stages, looks_at, limits, why, change, afterwards)
