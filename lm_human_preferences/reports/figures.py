"""A run read back from its files, and its figures as PNG."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file, make_folder, read_json
from lm_human_preferences.runs.tracking import read_jsonl


class Panel(NamedTuple):
    """One pair of axes. `bottom`: the lowest value worth showing, where a few outliers would flatten everything else."""

    label: str
    series: dict[str, str]  # metric -> its name in the legend
    scale: str = "linear"  # linear, log or share (shown in percent)
    bottom: float | None = None


class Chart(NamedTuple):
    """One figure: panels above each other over the same steps."""

    name: str
    title: str
    caption: str
    panels: list[Panel]


_PACE = Chart(
    "pace",
    "Learning rate, speed and memory",
    "Dips in speed are validation, checkpoints or other work on the machine.",
    [
        Panel("learning rate", {"lr": "learning rate", "train/lr": "learning rate"}),
        Panel(
            "{}\nper second",
            {"elapsed/fps": "response tokens", "tokens_per_second": "tokens", "labels_per_second": "labels"},
        ),
        Panel("GiB", {"memory/peak": "most memory so far"}),
    ],
)

CHARTS = {
    "train_policy": [
        Chart(
            "score",
            "Score",
            "What the reward model thinks of the responses, and what is left of it after the price of the KL.",
            [
                Panel(
                    "mean per response\n(reward model's units)",
                    {"objective/score": "score", "objective/score_total": "score less KL penalty"},
                )
            ],
        ),
        Chart(
            "kl",
            "Distance from the initial model",
            "Should rise and settle; a score that is bought with ever more KL is suspect.",
            [
                Panel("KL (nats\nper response)", {"objective/kl": "KL to the initial model"}),
                Panel("coefficient\n(score per nat)", {"objective/kl_coef": "KL coefficient"}),
            ],
        ),
        Chart(
            "entropy",
            "Entropy",
            "Should fall slowly; a collapse to zero means that every response is the same.",
            [
                Panel("nats per response", {"objective/entropy": "of the sampled responses"}),
                Panel("nats per token", {"ppo/policy/entropy": "of the policy's distribution"}),
            ],
        ),
        Chart(
            "losses",
            "Losses",
            "The policy's loss hovers about zero; the value loss should fall.",
            [
                Panel("policy", {"ppo/loss/policy": "policy", "ppo/loss/total": "total"}),
                Panel("value", {"ppo/loss/value": "value"}),
            ],
        ),
        Chart(
            "clipping",
            "Size of an update",
            "Shares far above 20% mean steps that are too large: lower ppo.lr.",
            [
                Panel("clipped tokens", {"ppo/policy/clipfrac": "policy", "ppo/val/clipfrac": "value"}, "share"),
                Panel("approximate KL\n(nats per token)", {"ppo/policy/approxkl": "old to new policy"}),
            ],
        ),
        Chart(
            "value",
            "Value function",
            "Explained variance: 1 is perfect, 0 is no better than a constant.",
            [
                Panel("explained\nvariance", {"ppo/val/var_explained": "explained variance"}, bottom=-1.0),
                Panel(
                    "mean",
                    {
                        "ppo/returns/mean": "returns",
                        "ppo/val/vpred": "values after update",
                        "ppo/val/mean": "values before",
                    },
                ),
            ],
        ),
        Chart(
            "value_errors",
            "Value errors",
            "The squared error should stay below the variance of the returns.",
            [
                Panel(
                    "squared\nreward units",
                    {
                        "ppo/returns/var": "variance of returns",
                        "ppo/val/error": "squared error",
                        "ppo/val/var": "variance of values",
                    },
                    "log",
                )
            ],
        ),
        Chart(
            "checks",
            "Checks",
            "Ratio: its deviation before an update's first step, which is rounding. Valid: ends as the task wants.",
            [
                Panel("ratio's deviation", {"ppo/ratio/std_before": "new to old, before update"}, "log"),
                Panel("valid responses", {"objective/valid": "with a valid end"}, "share"),
            ],
        ),
        Chart(
            "batch",
            "What a batch holds",
            "Distinct responses that become few mean collapse. Padding of responses: what follows their end.",
            [
                Panel("responses", {"objective/distinct": "distinct"}, "share"),
                Panel(
                    "padding",
                    {"objective/query_padding": "in queries", "objective/response_padding": "in responses"},
                    "share",
                ),
                Panel("deviation", {"objective/score_std": "of the score", "objective/kl_std": "of the KL"}),
            ],
        ),
        _PACE,
    ],
    "train_reward": [
        Chart(
            "loss",
            "Loss",
            "Each label is seen once; where responses come in several labels, training runs ahead of held out.",
            [Panel("nats per choice", {"train/loss": "training", "validation/loss": "held out"})],
        ),
        Chart(
            "accuracy",
            "Accuracy",
            "How often the response that people preferred gets the highest reward.",
            [Panel("share of choices", {"train/accuracy": "training", "validation/accuracy": "held out"}, "share")],
        ),
        Chart(
            "scale",
            "Reward scale",
            "Gain and bias that turn the head's output into rewards.",
            [Panel("gain", {"train/gain": "gain"}), Panel("bias", {"train/bias": "bias"})],
        ),
        _PACE,
    ],
    "train_sft": [
        Chart(
            "loss",
            "Loss",
            "Validation that rises is over-fitting. A sampled vocabulary makes the training loss lower than it is.",
            [Panel("nats per token", {"train/loss": "training", "valid/loss": "validation"})],
        ),
        Chart(
            "perplexity",
            "Validation perplexity",
            "Over the whole vocabulary; lower is better.",
            [Panel("perplexity", {"valid/perplexity": "validation"})],
        ),
        _PACE,
    ],
}

_NOT_DRAWN = {
    "elapsed/time",
    "elapsed/updates",
    "elapsed/episodes",
    "elapsed/steps/serial",
    "elapsed/steps/total",
    "train/error",
    "validation/error",
}  # that only count, and the loss under its other name
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito: told apart by colour-blind people too
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929c",
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "axes.labelcolor": "#333a44",
    "xtick.color": "#555d68",
    "ytick.color": "#555d68",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_MANY = 30  # points from which on a noisy series gets a smooth line over it

# --- what a run folder holds ---


@dataclass(frozen=True)
class Record:
    """A run as its files tell it."""

    config: dict
    series: dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> steps [n], values [n]
    samples: list[dict]
    result: dict

    @property
    def stage(self) -> str:
        return str(self.config.get("stage", ""))

    def parameter(self, dotted: str) -> Any:
        """A resolved parameter by its dotted name, None if the run has no such one."""
        value: Any = self.config.get("parameters")
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def read_run(folder: Path) -> Record:
    """The run in `folder`. UserError if it is none or nothing was logged yet."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    config, path = read_json(folder / "config.json"), folder / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((row.get("step", 0), float(value)))
    if not points or not isinstance(config, dict):
        raise UserError(f"{folder} has no metrics yet; train first, then report")
    series = {
        name: (np.array([step for step, _ in found]), np.array([value for _, value in found]))
        for name, found in points.items()
    }
    samples = read_jsonl(folder / "samples.jsonl") if (folder / "samples.jsonl").exists() else []
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    return Record(config, series, samples, result if isinstance(result, dict) else {})


# --- figures ---


def write_figures(run_folder: Path, out_folder: Path) -> dict[str, Path]:
    """One PNG in `out_folder` for each chart that the run has metrics for; name -> path, in the order to show them."""
    record = read_run(run_folder)
    return write_charts(record, charts_of(record), Path(out_folder))


def write_charts(record: Record, charts: list[Chart], folder: Path) -> dict[str, Path]:
    """One PNG in `folder` for each chart, the comparison of accuracies first where there is one; name -> path."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("figures need a package that is missing: pip install matplotlib") from None
    make_folder(folder)
    paths = {}
    with matplotlib.rc_context(STYLE):
        figures = {chart.name: _draw(record, chart) for chart in charts}
        if len(points_of_reference(record)) > 1:
            figures = {"accuracy_compared": _draw_accuracies(record), **figures}
        for name, figure in figures.items():
            paths[name] = folder / f"{name}.png"
            with atomic_file(paths[name]) as temporary:
                figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return paths


def charts_of(record: Record) -> list[Chart]:
    """The stage's charts without what the run has no numbers for, then one for each other group of metrics."""
    charts, left = [], {name for name, (steps, _) in record.series.items() if len(steps) > 1} - _NOT_DRAWN
    for chart in CHARTS.get(record.stage, []):
        panels = []
        for panel in chart.panels:
            series = {metric: label for metric, label in panel.series.items() if metric in record.series}
            if any(len(record.series[metric][0]) > 1 for metric in series):
                panels.append(panel._replace(series=series, label=panel.label.format(next(iter(series.values())))))
            left -= series.keys()
        if panels:
            charts.append(chart._replace(panels=panels))
    if record.stage == "train_reward" and not str(record.parameter("labels.type") or "best_of").startswith("best_of"):
        charts = [
            c._replace(panels=[c.panels[0]._replace(label="squared error")]) if c.name == "loss" else c for c in charts
        ]
    groups: dict[str, list[str]] = {}
    for name in (name for name in record.series if name in left):  # in the order of the file
        groups.setdefault(name.rpartition("/")[0] or "other", []).append(name)
    for prefix, names in groups.items():
        for start in range(0, len(names), 3):
            part = "" if len(names) <= 3 else f" ({start // 3 + 1})"
            panels = [
                Panel(name.rpartition("/")[2].replace("_", " "), {name: name}) for name in names[start : start + 3]
            ]
            charts.append(
                Chart(
                    re.sub(r"\W+", "_", f"other_{prefix}{part}").strip("_"),
                    f"Other metrics: {prefix}{part}",
                    "",
                    panels,
                )
            )
    return charts


def _draw(record: Record, chart: Chart):
    """The chart as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n = len(chart.panels)
    figure = Figure(figsize=(6.4, 4.0 if n < 3 else 1.75 * n), layout="constrained")
    axes = figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(chart.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    for axis, panel in zip(axes, chart.panels, strict=True):
        _draw_panel(axis, record, panel)
        axis.label_outer()
    figure.align_ylabels(axes)
    axes[-1].set_xlabel(_step_label(record))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_panel(axis, record: Record, panel: Panel) -> None:
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    shown = [record.series[metric] for metric in panel.series]
    for (metric, label), colour in zip(panel.series.items(), COLOURS):
        steps, values = record.series[metric]
        if len(values) > _MANY and _noisy(values):
            axis.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
            axis.plot(steps, smooth(values), color=colour, linewidth=1.9, label=label)
        else:
            marker = {"marker": "o", "markersize": 7 if len(values) == 1 else 3.5} if len(values) <= _MANY else {}
            axis.plot(steps, values, color=colour, linewidth=1.7, label=label, **marker)
        for value, name in _reference_lines(record, metric):
            axis.axhline(value, color="#333a44", linewidth=1, linestyle=(0, (4, 3)), label=name)
    axis.set_ylabel(panel.label)
    axis.margins(x=0.02)
    if panel.scale == "share":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(bottom=0)
    elif panel.scale == "log" and all((values > 0).all() for _, values in shown):
        axis.set_yscale("log")
        decades = math.log10(axis.get_ylim()[1] / axis.get_ylim()[0])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if decades < 2 and f"{value:e}"[0] in "25" else "")
    elif isinstance(axis.yaxis.get_major_formatter(), ScalarFormatter):
        axis.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True, useOffset=False)
    if panel.bottom is not None and min(values.min() for _, values in shown) < panel.bottom:
        axis.set_ylim(bottom=panel.bottom)
        axis.text(
            0.99,
            0.03,
            f"values below {panel.bottom:g} not shown",
            transform=axis.transAxes,
            ha="right",
            fontsize=8,
            color="#555d68",
        )
    if len(axis.get_legend_handles_labels()[1]) > 1:
        # above the axes, where it can hide no data
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.1,
            ncols=4,
            handlelength=1.6,
            columnspacing=1.2,
        )


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean over a twentieth of the series [n] (at least 5 points); at the ends down to a third as wide,
    to lag less.
    """
    n, full = len(values), max(5, len(values) // 20) // 2
    at = np.arange(n)
    half = np.clip(np.minimum(at, n - 1 - at), math.ceil(full / 3), full)
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, n)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (sums[end] - sums[start]) / (end - start)


def _noisy(values: np.ndarray) -> bool:
    """Whether the series goes up and down far more than from its lowest to its highest value."""
    return bool(np.abs(np.diff(values)).sum() > 3 * (values.max() - values.min()))


def _reference_lines(record: Record, metric: str) -> list[tuple[float, str]]:
    """What a metric is to be compared with: (value, name) of each line across its panel."""
    chance = record.result.get("chance")
    target = record.parameter("rewards.adaptive_kl.target")
    lines = {
        "objective/kl": [(target, "target")] if isinstance(target, (int, float)) else [],
        "ppo/ratio/std_before": [(0.01, "limit")],
    }
    if record.stage == "train_reward" and isinstance(chance, (int, float)) and 0 < chance < 1:
        lines |= {"train/accuracy": [(chance, "chance")], "train/loss": [(-math.log(chance), "chance")]}
    return lines.get(metric, [])


def _step_label(record: Record) -> str:
    sizes = {
        "train_policy": ("ppo.batch_size", "episodes"),
        "train_reward": ("batch_size", "labels"),
        "train_sft": ("optimizer.batch_size", "rows"),
    }
    name, unit = sizes.get(record.stage, ("", ""))
    size = record.parameter(name) if name else None
    return f"step (of {size} {unit})" if size else "step"


_POINT_NAMES = {"lexicon": "VADER lexicon", "tfidf_ridge": "tf-idf + ridge", "one_rater": "one person"}


def points_of_reference(record: Record) -> list[tuple[str, float, float, bool]]:
    """(name, accuracy, standard error, whether it is this run) of everything measured on the held-out choices, worst
    first.
    """
    if "accuracy" not in record.result:
        return []
    found = {
        name: point
        for name, point in (record.result.get("reference_points") or {}).items()
        if isinstance(point, dict) and "accuracy" in point
    }
    if "chance" in record.result:
        found["chance"] = {"accuracy": record.result["chance"]}
    points = [
        (_POINT_NAMES.get(name, name.replace("_", " ")), point["accuracy"], point.get("standard_error") or 0.0, False)
        for name, point in found.items()
    ]
    points.append(("this reward model", record.result["accuracy"], record.result.get("standard_error") or 0.0, True))
    return sorted(points, key=lambda point: point[1])


def _draw_accuracies(record: Record):
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    points = points_of_reference(record)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    figure.suptitle("Held-out choices predicted", fontsize=12, fontweight="bold", x=0.01, ha="left")
    for place, (_, accuracy, error, own) in enumerate(points):
        axis.barh(place, accuracy, height=0.62, color=COLOURS[0] if own else "#b4bcc6")
        if error:
            axis.errorbar(accuracy, place, xerr=1.96 * error, color="#333a44", capsize=3, linewidth=1.2)
        axis.text(
            accuracy + 1.96 * error + 0.012,
            place,
            f"{accuracy:.1%}",
            va="center",
            fontweight="bold" if own else "normal",
        )
    axis.set_yticks(range(len(points)), [name for name, *_ in points])
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, min(1.15, max(accuracy + 1.96 * error for _, accuracy, error, _ in points) + 0.12))
    axis.set_xlabel(
        "accuracy, with its 95% interval"
        + (f" ({record.result['choices']:,} choices)" if "choices" in record.result else "")
    )
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure
