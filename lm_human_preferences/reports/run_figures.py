"""The figures of a training run: which metrics share a chart, and how a chart is drawn."""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

import functools
import math
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_human_preferences.reports.figures import COLOURS, DARK, DASHED, Bar, Drawing, draw_bars, legend_above
from lm_human_preferences.reports.logged_run import LoggedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """One pair of axes. `bottom`: the lowest value worth showing, where a few outliers would flatten all others."""

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
    "expert_iteration": [
        Chart(
            "score",
            "Score",
            "Of all responses, and of those that were kept to learn from; a control keeps any.",
            [
                Panel(
                    "mean per response\n(reward model's units)",
                    {"objective/score": "sampled", "objective/score_kept": "kept"},
                )
            ],
        ),
        Chart(
            "kl",
            "Distance from the initial model",
            "Rises with each iteration: nothing but the number of iterations, the rate and the price of KL holds it.",
            [Panel("KL (nats\nper response)", {"objective/kl": "KL to the initial model"})],
        ),
        Chart(
            "loss",
            "Loss",
            "Of the kept responses; it falls with their entropy.",
            [Panel("nats per token", {"expert/loss": "kept responses"})],
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
    "train_dpo": [
        Chart(
            "loss",
            "Loss",
            "Where responses come in several labels, or labels in several epochs, training runs ahead of held out.",
            [Panel("loss per choice", {"train/loss": "training", "validation/loss": "held out"})],
        ),
        Chart(
            "accuracy",
            "Accuracy",
            "How often the response that people preferred has the highest implicit reward.",
            [Panel("share of choices", {"train/accuracy": "training", "validation/accuracy": "held out"}, "share")],
        ),
        Chart(
            "likelihood",
            "Likelihood of the labels' responses",
            "The best ones should gain on the others; where both fall, probability goes to texts that nobody has seen.",
            [
                Panel(
                    "log π − log ρ\n(nats per response)",
                    {"train/best_log_ratio": "of the best", "train/other_log_ratio": "of the others"},
                ),
                Panel("margin", {"train/margin": "implicit reward, best less others"}),
            ],
        ),
        _PACE,
    ],
    "train_ilql": [
        Chart(
            "loss",
            "Losses",
            "Q and V learn the scores of the texts, the language model the texts; all are means over their tokens.",
            [
                Panel("Q: squared error", {"train/loss_q": "training", "validation/loss_q": "held out"}),
                Panel("V: expectile", {"train/loss_v": "training", "validation/loss_v": "held out"}),
                Panel("conservative Q\n(nats)", {"train/loss_cql": "training", "validation/loss_cql": "held out"}),
                Panel("language\n(nats per token)", {"train/nll": "training", "validation/nll": "held out"}),
            ],
        ),
        Chart(
            "values",
            "Values",
            "In deviations of the scores, whose mean is 0. The target copy follows Q, V follows the copy.",
            [
                Panel(
                    "mean over tokens", {"train/q": "Q (lowest head)", "train/target_q": "target copy", "train/v": "V"}
                ),
                Panel("correlation", {"train/corr": "last Q and score, training", "validation/corr": "held out"}),
            ],
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
_LOSSES = {"scalar": "squared error", "ranking": "nats per ranking"}  # where a label is no choice
_MANY = 30  # points from which on a noisy series gets a smooth line over it


def drawings_of(run: LoggedRun) -> list[Drawing]:
    """The figures that the run has numbers for, in the order to show them."""
    drawings = [
        Drawing(chart.name, chart.title, chart.caption, functools.partial(_draw_chart, run, chart))
        for chart in charts_of(run)
    ]
    if len(accuracies := compared_accuracies(run)) > 1:
        caption = "Grey: other ways to choose on the same choices."
        draw = functools.partial(_draw_accuracies, run, accuracies)
        drawings.insert(0, Drawing("accuracy_compared", "Held-out choices predicted", caption, draw))
    return drawings


# --- which charts ---


def charts_of(run: LoggedRun) -> list[Chart]:
    """The stage's charts without what the run has no numbers for, then one for each other group of metrics."""
    charts = [shown for chart in CHARTS.get(run.stage, []) if (shown := _with_numbers(run, chart)).panels]
    if run.stage == "train_reward" and (label := _LOSSES.get(_kind_of_labels(run)[0])):
        charts = [
            chart._replace(panels=[chart.panels[0]._replace(label=label)]) if chart.name == "loss" else chart
            for chart in charts
        ]
    return charts + _other_charts(run)


def _kind_of_labels(run: LoggedRun) -> tuple[str, int]:
    """What a reward run's labels are, best, ranking or scalar, and of how many responses; 0 where it does not say."""
    kind, _, number = str(run.parameter("labels.type") or "best_of_").partition("_of_")
    return kind.partition("_")[0], int(number) if number.isdigit() else 0


def _blind_loss(run: LoggedRun, chance: float) -> tuple[float, str]:
    """Loss of equal rewards for all responses, in nats, and its name: ln N of a choice among N, ln N! of an order of
    them all. chance: the accuracy of such rewards.
    """
    kind, n = _kind_of_labels(run)
    if kind == "ranking":
        return math.lgamma(n + 1), "chance, where all are ranked"
    return math.log(n) if n else -math.log(chance), "chance"


def _with_numbers(run: LoggedRun, chart: Chart) -> Chart:
    """The chart with what can be drawn of it: a single number is not a curve, unless another metric of the panel is."""
    panels = []
    for panel in chart.panels:
        series = {metric: label for metric, label in panel.series.items() if metric in run.series}
        if any(len(run.series[metric][0]) > 1 for metric in series):
            panels.append(panel._replace(series=series, label=panel.label.format(next(iter(series.values())))))
    return chart._replace(panels=panels)


def _other_charts(run: LoggedRun) -> list[Chart]:
    """Whatever else the run logged more than once: three metrics of one group to a chart."""
    known = {metric for chart in CHARTS.get(run.stage, []) for panel in chart.panels for metric in panel.series}
    groups: dict[str, list[str]] = {}
    for name, (steps, _) in run.series.items():  # in the order of the file
        if len(steps) > 1 and name not in known | _NOT_DRAWN:
            groups.setdefault(name.rpartition("/")[0] or "other", []).append(name)
    charts = []
    for group, names in groups.items():
        for start in range(0, len(names), 3):
            part = "" if len(names) <= 3 else f" ({start // 3 + 1})"
            panels = [
                Panel(name.rpartition("/")[2].replace("_", " "), {name: name}) for name in names[start : start + 3]
            ]
            file = re.sub(r"\W+", "_", f"other_{group}{part}").strip("_")
            charts.append(Chart(file, f"Other metrics: {group}{part}", "", panels))
    return charts


# --- how a chart is drawn ---


def _draw_chart(run: LoggedRun, chart: Chart, figure: Figure) -> None:
    from matplotlib.ticker import MaxNLocator

    n = len(chart.panels)
    if n > 2:
        figure.set_figheight(1.75 * n)
    axes = figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
    for each, panel in zip(axes, chart.panels, strict=True):
        _draw_panel(each, run, panel)
        each.label_outer()
    figure.align_ylabels(axes)
    axes[-1].set_xlabel(_step_label(run))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_panel(axes: Axes, run: LoggedRun, panel: Panel) -> None:
    for (metric, label), colour in zip(panel.series.items(), COLOURS, strict=False):  # more colours than metrics
        _draw_series(axes, *run.series[metric], colour, label)
        for value, name in _reference_lines(run, metric):
            axes.axhline(value, color=DARK, linewidth=1, linestyle=DASHED, label=name)
    axes.set_ylabel(panel.label)
    axes.margins(x=0.02)
    _scale(axes, panel, [run.series[metric][1] for metric in panel.series])
    if len(axes.get_legend_handles_labels()[1]) > 1:
        legend_above(axes)


def _draw_series(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    if len(values) > _MANY and _noisy(values):
        axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.9, label=label)
        return
    marker = "o" if len(values) <= _MANY else ""
    size = 7 if len(values) == 1 else 3.5
    axes.plot(steps, values, color=colour, linewidth=1.7, label=label, marker=marker, markersize=size)


def _scale(axes: Axes, panel: Panel, shown: list[np.ndarray]) -> None:
    """The vertical axis for the values of the panel's series."""
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    if panel.scale == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    elif panel.scale == "log" and all((values > 0).all() for values in shown):
        axes.set_yscale("log")
        decades = math.log10(axes.get_ylim()[1] / axes.get_ylim()[0])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if decades < 2 and f"{value:e}"[0] in "25" else "")
    elif isinstance(axes.yaxis.get_major_formatter(), ScalarFormatter):
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True, useOffset=False)
    if panel.bottom is not None and min(values.min() for values in shown) < panel.bottom:
        axes.set_ylim(bottom=panel.bottom)
        said = f"values below {panel.bottom:g} not shown"
        axes.text(0.99, 0.03, said, transform=axes.transAxes, ha="right", fontsize=8, color="#555d68")


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean over a twentieth of the series [n] (at least 5 points); at the ends down to a third as wide,
    to lag less.
    """
    n, full = len(values), max(5, len(values) // 20) // 2
    at = np.arange(n)
    half = np.clip(np.minimum(at, n - 1 - at), math.ceil(full / 3), full)
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, n)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means: np.ndarray = (sums[end] - sums[start]) / (end - start)
    return means


def _noisy(values: np.ndarray) -> bool:
    """Whether the series goes up and down far more than from its lowest to its highest value."""
    return bool(np.abs(np.diff(values)).sum() > 3 * (values.max() - values.min()))


def _reference_lines(run: LoggedRun, metric: str) -> list[tuple[float, str]]:
    """What a metric is to be compared with: (value, name) of each line across its panel."""
    chance = run.result.get("chance")
    target = run.parameter("rewards.adaptive_kl.target")
    lines = {
        "objective/kl": [(target, "target")] if isinstance(target, (int, float)) else [],
        "ppo/ratio/std_before": [(0.01, "limit")],
    }
    if run.stage == "train_dpo" and isinstance(chance, (int, float)):
        lines |= {"train/accuracy": [(chance, "chance")], "train/best_log_ratio": [(0.0, "reference")]}
    if run.stage == "train_reward" and isinstance(chance, (int, float)) and 0 < chance < 1:
        lines |= {"train/accuracy": [(chance, "chance")], "train/loss": [_blind_loss(run, chance)]}
    return lines.get(metric, [])


def _step_label(run: LoggedRun) -> str:
    sizes = {
        "train_policy": ("ppo.batch_size", "episodes"),
        "expert_iteration": ("ppo.batch_size", "episodes"),
        "train_reward": ("batch_size", "labels"),
        "train_sft": ("optimizer.batch_size", "rows"),
        "train_dpo": ("batch_size", "labels"),
        "train_ilql": ("batch_size", "texts"),
    }
    name, unit = sizes.get(run.stage, ("", ""))
    size = run.parameter(name) if name else None
    return f"step (of {size} {unit})" if size else "step"


# --- a reward model beside other ways to choose ---

_METHODS = {"lexicon": "VADER lexicon", "tfidf_ridge": "tf-idf + ridge", "one_rater": "one person"}


class Accuracy(NamedTuple):
    """How often something predicts the held-out choices."""

    name: str
    share: float
    standard_error: float  # 0 where it is not known
    own: bool  # of the run itself


def compared_accuracies(run: LoggedRun) -> list[Accuracy]:
    """Everything measured on the held-out choices, the run's own reward model among it, the worst first."""
    if "accuracy" not in run.result:
        return []
    found = {
        name: point
        for name, point in (run.result.get("reference_points") or {}).items()
        if isinstance(point, dict) and "accuracy" in point
    }
    if "chance" in run.result:
        found["chance"] = {"accuracy": run.result["chance"]}
    accuracies = [
        Accuracy(
            _METHODS.get(name, name.replace("_", " ")), point["accuracy"], point.get("standard_error") or 0.0, own=False
        )
        for name, point in found.items()
    ]
    name = "this policy, by its implicit reward" if run.stage == "train_dpo" else "this reward model"
    own = Accuracy(name, run.result["accuracy"], run.result.get("standard_error") or 0.0, own=True)
    return sorted([*accuracies, own], key=lambda accuracy: accuracy.share)


def _draw_accuracies(run: LoggedRun, accuracies: list[Accuracy], figure: Figure) -> None:
    axes = figure.subplots()
    draw_bars(axes, [Bar(name, share, 1.96 * error, own) for name, share, error, own in accuracies])
    count = f" ({run.result['choices']:,} choices)" if "choices" in run.result else ""
    axes.set_xlabel("accuracy, with its 95% interval" + count)
