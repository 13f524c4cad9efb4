"""Figures of results that are no training run: a reward model's quality, policies compared, a sweep. Each as PNG and
SVG.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file, make_folder
from lm_human_preferences.reports.figures import COLOURS, STYLE

GREY, DARK = "#b4bcc6", "#333a44"
CAPTIONS = {
    "reliability": "On the diagonal it knows how sure it may be; below it, it is too sure. Bars: standard errors; grey: how many choices.",
    "length": "Mean reward of responses of similar length; level where length does not matter.",
    "people": "How often two choose the same response, ties split. Bars: standard errors.",
    "learning_curve": "Accuracy on the same held-out choices. Bars: standard errors over choices, not over seeds.",
    "scores": "Mean score under each judge with its 95% interval over queries.",
    "frontier": "What each policy's score costs in KL to the reference; 95% intervals.",
    "wins": "Share of queries on which the first policy's response is preferred, ties split; 95% intervals.",
}
TITLES = {
    "reliability": "Calibration of the choice probabilities",
    "length": "Reward and length",
    "people": "Agreement on choices",
    "learning_curve": "Learning curve",
    "scores": "Scores",
    "frontier": "Score against KL",
    "wins": "Who wins",
    "sweep": "Reward against distance from the reference",
}


def write_quality_figures(result: dict, folder: Path) -> dict[str, Path]:
    """Figures of `reward_quality`'s result.json as PNG and SVG in `folder`; name -> path of the PNG."""
    drawings: dict[str, Callable] = {"reliability": _draw_reliability, "length": _draw_length}
    if "people" in result:
        drawings["people"] = _draw_people
    if "curve" in result:
        drawings["learning_curve"] = _draw_curve
    return _write(drawings, result, folder)


def write_comparison_figures(result: dict, folder: Path) -> dict[str, Path]:
    """Figures of `evaluate`'s result.json likewise."""
    drawings: dict[str, Callable] = {}
    if any(figures.get("scores") for figures in result["policies"].values()):
        drawings = {"scores": _draw_scores, "frontier": _draw_frontier}
    if any(win["share"]["mean"] is not None for win in result["wins"]):
        drawings["wins"] = _draw_wins
    return _write(drawings, result, folder)


def write_sweep_figure(result: dict, folder: Path) -> Path:
    """`sweep.png` and `sweep.svg` of a sweep's result.json: proxy and each gold judge against the root of KL."""
    return _write({"sweep": _draw_sweep}, result, folder)["sweep"]


def _write(drawings: dict[str, Callable], result: dict, folder: Path) -> dict[str, Path]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need a package that is missing: pip install matplotlib") from None
    make_folder(folder)
    paths = {}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "lm-human-preferences"}):
        for name, draw in drawings.items():
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            figure.suptitle(TITLES[name], fontsize=12, fontweight="bold", x=0.01, ha="left")
            draw(figure, result)
            paths[name] = Path(folder) / f"{name}.png"
            for path, metadata in (
                (paths[name], {"Software": None}),
                (paths[name].with_suffix(".svg"), {"Date": None}),
            ):
                with atomic_file(path) as temporary:
                    figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
    return paths


def _percent(axis) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


# --- a reward model ---


def _draw_reliability(figure, result: dict) -> None:
    rows, bins = result["calibration"]["reliability"], figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axis, below = bins
    x, y, error = (np.array([row[key] for row in rows]) for key in ("confidence", "accuracy", "standard_error"))
    axis.plot([0, 1], [0, 1], color=DARK, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    axis.errorbar(
        x,
        y,
        yerr=error,
        color=COLOURS[0],
        marker="o",
        markersize=5,
        capsize=3,
        linewidth=1.5,
        label="this reward model",
    )
    axis.axhline(result["chance"], color=GREY, linewidth=1, label="chance")
    axis.set_ylabel("accuracy")
    axis.set_ylim(0, 1.02)
    axis.legend(loc="upper left")
    below.bar(
        [(row["low"] + row["high"]) / 2 for row in rows],
        [row["choices"] for row in rows],
        width=[0.9 * (row["high"] - row["low"]) for row in rows],
        color=GREY,
    )
    below.set_ylabel("choices")
    below.set_xlabel("probability of the response with the highest reward")
    below.set_xlim(min(row["low"] for row in rows) - 0.02, 1.02)
    for each in (axis.yaxis, below.xaxis):
        _percent(each)
    figure.align_ylabels(bins)


def _draw_length(figure, result: dict) -> None:
    rows, axis = result["length"]["by_length"], figure.subplots()
    axis.errorbar(
        [row["length"] for row in rows],
        [row["reward"]["value"] for row in rows],
        yerr=[row["reward"]["standard_error"] for row in rows],
        color=COLOURS[0],
        marker="o",
        markersize=5,
        capsize=3,
        linewidth=1.5,
    )
    axis.set_xlabel("tokens of the response, mean of a group")
    axis.set_ylabel("mean reward")


def _draw_people(figure, result: dict) -> None:
    people, axis = result["people"], figure.subplots()
    bars = [
        ("one person,\nthe mean of the others", people["agreement_rest"], False),
        ("two persons", people["agreement_people"], False),
        ("the model,\none person", people["agreement_model"], True),
        ("the model,\nthe mean of all", result["accuracy"], True),
    ]
    _bars(
        axis,
        [(name, estimate, own) for name, estimate, own in reversed(bars) if estimate["value"] is not None],
        result["chance"],
    )
    axis.set_xlabel(f"same choice among the responses (line: chance; {result['choices']:,} choices)")


def _bars(axis, bars: list[tuple[str, dict, bool]], chance: float) -> None:
    for place, (_, estimate, own) in enumerate(bars):
        value, error = estimate["value"], estimate["standard_error"]
        axis.barh(place, value, height=0.6, color=COLOURS[0] if own else GREY)
        axis.errorbar(value, place, xerr=error, color=DARK, capsize=3, linewidth=1.2)
        axis.text(value + error + 0.012, place, f"{value:.1%}", va="center")
    axis.axvline(chance, color=DARK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axis.set_xlim(0, min(1.15, max(estimate["value"] + estimate["standard_error"] for _, estimate, _ in bars) + 0.12))
    axis.grid(axis="y", visible=False)
    _percent(axis.xaxis)


def _draw_curve(figure, result: dict) -> None:
    axis, models = figure.subplots(), list(dict.fromkeys(row["model"] for row in result["curve"]))
    for number, model in enumerate(models):
        rows = [row for row in result["curve"] if row["model"] == model]
        axis.errorbar(
            [row["labels"] for row in rows],
            [row["accuracy"]["value"] for row in rows],
            yerr=[row["accuracy"]["standard_error"] for row in rows],
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.5,
            label=model or "its own language model",
        )
    axis.axhline(result["chance"], color=DARK, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    if (person := result.get("people", {}).get("agreement_rest", {}).get("value")) is not None:
        axis.axhline(person, color=GREY, linewidth=1.5, label="one person")
    axis.set_xscale("log", base=2)
    counts = sorted({row["labels"] for row in result["curve"]})
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("labels that it was trained on")
    axis.set_ylabel("accuracy")
    _percent(axis.yaxis)
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, ncols=4, handlelength=1.6, columnspacing=1.2
    )


# --- policies ---


def _judges(result: dict) -> list[str]:
    return list(next(iter(result["policies"].values()))["scores"])


def _whiskers(interval: dict) -> list[list[float]]:
    return [[interval["mean"] - interval["low"]], [interval["high"] - interval["mean"]]]


def _draw_scores(figure, result: dict) -> None:
    judges, policies = _judges(result), result["policies"]
    figure.set_figheight(max(2.4, 0.9 + len(judges) * (0.5 + 0.32 * len(policies))))
    axes = figure.subplots(len(judges), 1, squeeze=False)[:, 0]
    for axis, judge in zip(axes, judges, strict=True):
        for place, (name, figures) in enumerate(policies.items()):
            interval = figures["scores"][judge]
            axis.errorbar(
                interval["mean"],
                -place,
                xerr=_whiskers(interval),
                color=COLOURS[place % len(COLOURS)],
                marker="o",
                capsize=3,
            )
        axis.set_yticks([-place for place in range(len(policies))], list(policies))
        axis.set_ylim(-len(policies) + 0.4, 0.6)
        axis.set_title(judge, loc="left", fontsize=10)


def _draw_frontier(figure, result: dict) -> None:
    judges = _judges(result)
    figure.set_figheight(max(2.6, 1.0 + 1.7 * len(judges)))
    axes = figure.subplots(len(judges), 1, squeeze=False, sharex=True)[:, 0]
    for axis, judge in zip(axes, judges, strict=True):
        for number, (name, figures) in enumerate(result["policies"].items()):
            score, kl = figures["scores"][judge], figures["kl"]
            axis.errorbar(
                kl["mean"],
                score["mean"],
                xerr=_whiskers(kl),
                yerr=_whiskers(score),
                color=COLOURS[number % len(COLOURS)],
                marker="o",
                capsize=3,
            )
            axis.annotate(name, (kl["mean"], score["mean"]), xytext=(7, 5), textcoords="offset points", fontsize=9)
        axis.set_ylabel(judge)
        axis.margins(0.12)
    axes[-1].set_xlabel("KL to the reference, nats per response")
    figure.align_ylabels(axes)


def _draw_wins(figure, result: dict) -> None:
    wins, axis = [win for win in result["wins"] if win["share"]["mean"] is not None][::-1], figure.subplots()
    figure.set_figheight(max(2.2, 1.0 + 0.42 * len(wins)))
    for place, win in enumerate(wins):
        axis.errorbar(
            win["share"]["mean"], place, xerr=_whiskers(win["share"]), color=COLOURS[0], marker="o", capsize=3
        )
    axis.axvline(0.5, color=DARK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(wins)), [f"{win['policy']} against {win['against']}\n{win['judge']}" for win in wins])
    axis.set_ylim(-0.6, len(wins) - 0.4)
    axis.set_xlim(0, 1)
    axis.grid(axis="y", visible=False)
    _percent(axis.xaxis)


# --- a sweep ---

_VERDICTS = {
    None: (COLOURS[0], "o", "trained, by KL coefficient"),
    "no gain": (COLOURS[4], "D", "trained: more reward, no better"),
    "gamed": (COLOURS[1], "X", "trained: games the reward"),
}


def _draw_sweep(figure, result: dict) -> None:
    """Panels above each other over the root of KL: the proxy, then a gold judge each."""
    panels = [
        ("proxy", lambda point: point["proxy"]),
        *((judge, lambda point, judge=judge: point["gold"][judge]) for judge in result["judges"]),
    ]
    figure.set_size_inches(6.4, 1.0 + 2.5 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, value) in zip(axes, panels, strict=True):
        found = {row["policy"]: row["verdict"] for row in result["verdicts"] if row["judge"] == name}
        if name == "proxy":  # whichever judge says so
            order = list(_VERDICTS)
            found = {
                policy: max((row["verdict"] for row in result["verdicts"] if row["policy"] == policy), key=order.index)
                for policy in result["policies"]
            }
        _draw_sweep_panel(axis, result, value, found)
        axis.margins(y=0.14)  # room for the points' coefficients
        axis.set_ylabel("proxy: the reward\ntrained against" if name == "proxy" else f"gold: {name}")
    axes[-1].set_xlabel("√ KL to the reference (√ nats per response)")
    right = axes[0].get_xlim()[1]
    axes[0].set_xlim(-0.025 * right, right)
    nats = axes[0].secondary_xaxis(
        "top", functions=(lambda x: np.sign(x) * np.square(x), lambda x: np.sign(x) * np.sqrt(np.abs(x)))
    )
    nats.set_xlabel("KL (nats)", fontsize=9)
    _no_more_than(nats, right)
    named = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        named |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in named}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2, handlelength=1.8)
    figure.align_ylabels(axes)


def _no_more_than(nats, right: float) -> None:
    """Ticks at round nats that do not crowd on an axis that is drawn as their root, up to right^2."""
    candidates, ticks = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)], [0.0]
    for value in candidates:
        if math.sqrt(value) - math.sqrt(ticks[-1]) >= 0.09 * right and value <= right**2:
            ticks.append(value)
    nats.set_ticks(ticks, [f"{tick:g}" for tick in ticks])


def _draw_sweep_panel(axis, result: dict, value, verdicts: dict[str, str | None]) -> None:
    """`value` takes the interval to draw out of a point; verdicts: policy -> what `sweep.verdicts` found."""
    optimal = [
        (math.sqrt(max(0.0, point["kl"]["mean"])), value(point)) for point in result["optimal"] if point["shown"]
    ]
    lines = [
        ("best of n", COLOURS[2], "o", [(math.sqrt(point["kl"]), value(point)) for point in result["best_of_n"]]),
        ("optimal, by reweighting", "#333a44", "", optimal),
    ]
    for label, colour, marker, points in lines:
        if points:
            x, y = [x for x, _ in points], [interval["mean"] for _, interval in points]
            axis.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)
            axis.fill_between(
                x, [i["low"] for _, i in points], [i["high"] for _, i in points], color=colour, alpha=0.15, linewidth=0
            )
    axis.axhline(
        value(result["reference_policy"])["mean"],
        color="#8a929c",
        linewidth=1,
        linestyle=(0, (4, 3)),
        label="reference",
    )
    for name, side in result["policies"].items():
        colour, marker, label = _VERDICTS[verdicts.get(name)]
        (left, x, right), y = (math.sqrt(max(0.0, side["kl"][key])) for key in ("low", "mean", "high")), value(side)
        known = label in axis.get_legend_handles_labels()[1]
        axis.errorbar(
            x,
            y["mean"],
            xerr=[[x - left], [right - x]],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            color=colour,
            marker=marker,
            markersize=6,
            linestyle="none",
            elinewidth=1.2,
            capsize=2.5,
            label=None if known else label,
        )
        axis.annotate(
            f"{side['kl_coef']:g}",
            (x, y["mean"]),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
        )
