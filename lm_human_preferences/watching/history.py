"""What a run has logged so far, as the checks see it: the parameters, and of each metric its first and last values."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, TypeGuard

WINDOW = 20  # rows of a mean over batches: of 32 labels each, accuracy is then known to 2 points
SHORT = 5  # rows of a mean over steps of PPO: enough to tell a state from one odd batch
STAGES = {  # stage -> its learning rate
    "train_policy": "ppo.lr",
    "train_reward": "lr",
    "train_sft": "optimizer.lr",
    "train_dpo": "lr",
    "train_ilql": "lr",
    "expert_iteration": "ppo.lr",
}
_STEPS = {  # stage -> the parameters whose quotient is its number of steps, once or `epochs` times
    "train_policy": ("ppo.total_episodes", "ppo.batch_size"),
    "train_reward": ("labels.num_train", "batch_size"),
    "train_dpo": ("labels.num_train", "batch_size"),
    "train_ilql": ("labels.num_train", "batch_size"),
    "expert_iteration": ("ppo.total_episodes", "ppo.batch_size"),
}


def parameter_of(parameters: dict[str, Any], dotted: str) -> Any:
    """A parameter of a nested configuration by its dotted name; None if there is no such parameter."""
    value: Any = parameters
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number, and neither NaN nor infinite."""
    return isinstance(value, int | float) and math.isfinite(value)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def variance(values: list[float]) -> float:
    """Biased."""
    middle = mean(values)
    return sum((value - middle) * (value - middle) for value in values) / len(values)


class Series:
    """A metric's first and last values and its lowest one: all that any check needs, whatever the length of the run."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.lowest, self.count = math.inf, 0

    def add(self, value: float) -> None:
        if len(self.first) < WINDOW:
            self.first.append(value)
        self.last.append(value)
        self.lowest, self.count = min(self.lowest, value), self.count + 1

    def mean_first(self, n: int) -> float:
        return mean(self.first[:n])

    def mean_last(self, n: int) -> float:
        return mean(list(self.last)[-n:])


@dataclass
class History:
    """A run up to its newest row of metrics. `samples` and `result` are empty while it goes on."""

    stage: str
    parameters: dict[str, Any]  # nested, as in config.json
    computed: dict[str, Any] = field(default_factory=dict)  # config.json's; empty in a run of an earlier version
    series: dict[str, Series] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)  # the newest
    step: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """The next row of metrics."""
        self.row, self.step = row, row.get("step", self.step + 1)
        for name, value in row.items():
            if name != "step" and is_finite(value):
                self.series.setdefault(name, Series()).add(float(value))

    def number(self, name: str) -> float | None:
        """The newest row's value, None if it has none that is finite."""
        value = self.row.get(name)
        return float(value) if is_finite(value) else None

    def so_far(self, name: str, at_least: int = 1) -> Series | None:
        """A metric's values; None if the newest row has none, or if there are fewer than `at_least`."""
        found = self.series.get(name)
        return found if found is not None and found.count >= at_least and self.number(name) is not None else None

    def parameter(self, dotted: str) -> Any:
        """A resolved parameter by its dotted name, None if the run has no such parameter."""
        return parameter_of(self.parameters, dotted)

    def flag(self, dotted: str) -> str:
        """The parameter as a flag with its present value, for advice."""
        value = self.parameter(dotted)
        if value is None:
            shown = "none"
        elif value is False:
            shown = "off"
        else:
            shown = "on" if value is True or isinstance(value, dict) else str(value)
        return f"--{dotted} (now {shown})"

    @property
    def precision(self) -> str | None:
        """float32 or bfloat16, as it was resolved. Runs of earlier versions know what was requested alone, perhaps
        `auto`.
        """
        found = self.computed.get("precision") or self.parameter("run.precision")
        return None if found is None else str(found)

    @property
    def learning_rate(self) -> str:
        """The dotted name of the stage's learning rate."""
        return STAGES.get(self.stage, "lr")

    @property
    def total(self) -> int | None:
        """Steps of the whole run, None where the configuration alone does not tell."""
        count, size = (self.parameter(name) for name in _STEPS.get(self.stage, ("", "")))
        return math.ceil(count / size) * (self.parameter("epochs") or 1) if count and size else None

    @property
    def progress(self) -> float:
        """Share of the steps that are done; 0 where their number is unknown."""
        return (self.step + 1) / self.total if self.total else 0.0
