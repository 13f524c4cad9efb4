"""What a documented run should come to: the ranges in static/expected.json, and how a finished run compares with them.

`python -m benchmarks.demo_seeds` makes the file from runs of several seeds in both precisions:

    {"model": SHA-256 of the start model, "commit", "computed", ...,
     "runs": {NAME: {"parameters": {dotted name: value},
                     "figures": {FIGURE: {"float32": {"mean", "low", "high", "least", "most", "values", "seeds"},
                                          "bfloat16": ...}}}}}

NAME is a run's folder in saved_models, FIGURE a name that `figures_of` gives. `low` and `high` are where a run of one
more seed would fall (`prediction_range` over the seeds, each the mean of its runs), `least` and `most` the extremes of
the runs that were made; `values` and `seeds` are those of each run, and a seed that ran on several processors is there
several times.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object, sha256
from lm_human_preferences.foundation.root import project_root
from lm_human_preferences.language.weight_files import WEIGHTS
from lm_human_preferences.reports.tables import aligned
from lm_human_preferences.runs.description import leaves

MAKER = "python -m benchmarks.demo_seeds"
START_MODEL = "saved_models/tiny"  # of the demonstration
LEVEL = 0.99  # probability that one more run's figure lies in its range

# parameters that change nothing but rounding and printing, or are the seed of training
_UNSTATED = (
    "run.",
    "tracking.",
    "device",
    "precision",
    "micro_batch",
    "timeout",
    "shown",
    "evaluation.shown",
    "overwrite",
    "people_sheet",
)
_STATED_TEXTS = ("split", "evaluation.split", "labels.type", "ppo.estimator")  # other texts are paths

# figure of a policy in an evaluation -> how to write it; of a run of policy training; of reward training
_EVALUATION = {"kl": "{:.2f}", "no_valid_end": "{:.1%}", "distinct_2": "{:.1%}"}
_POLICY = {"score": "{:+.2f}", "kl": "{:.2f}", "valid": "{:.1%}", "distinct_2": "{:.1%}"}
_REWARD = {"accuracy": "{:.1%}"}


class Figure(NamedTuple):
    """A number that a run came to."""

    value: float
    form: str  # how to write it
    half_width: float = 0.0  # of its 95% interval over queries or choices, where it has one


class Range(NamedTuple):
    """Where a figure is expected."""

    mean: float
    low: float
    high: float

    def text(self, form: str) -> str:
        ends = [min(max(end, 0.0), 1.0) if "%" in form else end + 0.0 for end in (self.low, self.high)]
        return f"{form.format(ends[0])} to {form.format(ends[1])}"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def expected_file() -> Path:
    return project_root() / "static" / "expected.json"


# --- a run's figures ---


def figures_of(result: dict[str, Any]) -> dict[str, Figure]:
    """The headline figures of a result.json by name: of reward training `accuracy`; of policy training `after/kl` and
    others; of an evaluation `POLICY/kl`, `POLICY/scores/JUDGE`, `wins/JUDGE/POLICY/AGAINST` and others.
    """
    if "policies" in result:
        return _evaluation_figures(result)
    if "after" in result:
        return {f"after/{name}": Figure(float(result["after"][name]), form) for name, form in _POLICY.items()}
    half_width = 1.96 * float(result.get("standard_error", 0.0))
    return {name: Figure(float(result[name]), form, half_width) for name, form in _REWARD.items() if name in result}


def _evaluation_figures(result: dict[str, Any]) -> dict[str, Figure]:
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for policy, figures in result["policies"].items():
        found |= {f"{policy}/scores/{judge}": (score, "{:+.2f}") for judge, score in figures["scores"].items()}
        found |= {f"{policy}/{name}": (figures[name], form) for name, form in _EVALUATION.items()}
    found |= {wins_name(win): (win["share"], "{:.1%}") for win in result["wins"]}
    return {
        name: Figure(interval["mean"], form, (interval["high"] - interval["low"]) / 2)
        for name, (interval, form) in found.items()
        if None not in (interval["mean"], interval["low"], interval["high"])
    }


def wins_name(win: dict[str, Any]) -> str:
    return f"wins/{win['judge']}/{win['policy']}/{win['against']}"


# --- ranges ---


def prediction_range(values: Sequence[float], factor: float, least_half_width: float = 0.0) -> Range:
    """Where one more value would fall when the given ones, two at least, are draws from a normal distribution: mean ±
    factor · s · √(1 + 1/n), and at least ± `least_half_width`.

    factor: the quantile of Student's t with n − 1 degrees of freedom.
    """
    mean, n = statistics.fmean(values), len(values)
    half = max(factor * statistics.stdev(values) * (1 + 1 / n) ** 0.5, least_half_width)
    return Range(mean, mean - half, mean + half)


def stated_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The numbers and switches of a stage's config.json that tell whether another run was told the same; paths and what
    changes nothing but rounding are left out.
    """
    return {
        name: value
        for name, value in leaves(config["parameters"]).items()
        if not name.startswith(_UNSTATED) and (name in _STATED_TEXTS or not isinstance(value, str | list))
    }


class Expected(NamedTuple):
    """The content of expected.json that concerns one run."""

    precision: str
    ranges: dict[str, Range]
    seeds: int  # different ones


def expected_of(config: dict[str, Any]) -> Expected:
    """The ranges of the run that a config.json describes. Raises UserError, saying why, where there are none: no such
    run is documented, it was told something else, or the start model is another one.
    """
    path = expected_file()
    if not path.is_file():
        raise UserError(f"{path} does not exist: {MAKER} makes it")
    stored, name = read_json_object(path), str(config.get("experiment"))
    if name not in stored["runs"]:
        raise UserError(f"{path} knows no run {name}; it has {', '.join(stored['runs'])}")
    if sha256(project_root() / START_MODEL / WEIGHTS) != stored["model"]:
        raise UserError(f"{path} was made with another {START_MODEL}: {MAKER} makes it anew")
    told = leaves(config["parameters"])
    for parameter, value in stored["runs"][name]["parameters"].items():
        if parameter in told and told[parameter] != value and not parameter.startswith(_UNSTATED):
            raise UserError(f"{name} was told --{parameter} {told[parameter]}; the expected figures are of {value}")
    precision = str((config.get("computed") or {}).get("precision"))
    figures = {key: by[precision] for key, by in stored["runs"][name]["figures"].items() if precision in by}
    if not figures:
        raise UserError(f"{path} has no figures of {name} in {precision}")
    ranges = {key: Range(figure["mean"], figure["low"], figure["high"]) for key, figure in figures.items()}
    return Expected(precision, ranges, max(len(set(figure["seeds"])) for figure in figures.values()))


def ranges_beside(config: dict[str, Any]) -> Expected | None:
    """The same for a report, which shows none where there are none."""
    try:
        return expected_of(config)
    except (UserError, KeyError, TypeError):
        return None


# --- a run beside its ranges ---


class Compared(NamedTuple):
    """Figures of a run beside what is expected."""

    lines: list[str]
    outside: list[str]  # names of figures that lie outside, or are missing


def compare(name: str, config: dict[str, Any], result: dict[str, Any]) -> Compared:
    """A table for people of a run's figures and their ranges. Raises UserError where nothing is expected of it."""
    expected, figures = expected_of(config), figures_of(result)
    rows, outside = [[f"{name}, {expected.precision}", "found", "expected", "mean", ""]], []
    for key, range_ in expected.ranges.items():
        figure = figures.get(key)
        form = figure.form if figure else "{:.3g}"
        if figure is None or not range_.holds(figure.value):
            outside.append(f"{name}: {key}")
        rows.append(
            [
                key,
                form.format(figure.value + 0.0) if figure else "missing",
                range_.text(form),
                form.format(range_.mean + 0.0),
                "" if figure and range_.holds(figure.value) else "OUTSIDE",
            ]
        )
    return Compared(aligned(rows), outside)
