"""What `reward_quality` found, for people: the tables on the console, the figures, the page."""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.judging.calibration import log_probabilities
from lm_human_preferences.reports.figures import (
    COLOURS,
    DARK,
    DASHED,
    GREY,
    Bar,
    Drawing,
    Picture,
    draw_bars,
    in_percent,
    legend_above,
    write_figures,
)
from lm_human_preferences.reports.logged_run import stage_of
from lm_human_preferences.reports.page import Section, joined, origin, part, write_page
from lm_human_preferences.reports.tables import aligned, estimate_cells, estimate_text
from lm_human_preferences.runs.tracking import read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MISTAKES = 10  # of a reward model to show
Row = tuple[str, Any, str]  # what it is, an Estimate or a number, how to write it


def _groups(result: dict[str, Any]) -> dict[str, list[Row]]:
    """What was measured in the order to show it: title of a group -> rows."""
    groups = {
        "choices": _choices(result),
        "calibration": _calibration(result["calibration"]),
        "length": _length(result["length"]),
    }
    if "people" in result:
        groups["people"] = _people(result["people"])
    return {title: [row for row in rows if row[1] is not None] for title, rows in groups.items()}


def _choices(result: dict[str, Any]) -> list[Row]:
    overlapping = "the same, choices that share responses not taken for independent"
    return [
        ("accuracy", result["accuracy"], "{:.1%}"),
        (overlapping, result["accuracy_overlapping"], "{:.1%}"),
        ("chance", result["chance"], "{:.1%}"),
        ("log-likelihood, nats per choice", result["log_likelihood"], "{:+.3f}"),
        ("of choosing blindly", result["calibration"]["uniform_log_likelihood"], "{:+.3f}"),
    ]


def _calibration(found: dict[str, Any]) -> list[Row]:
    return [
        ("mean probability of the response it prefers", found["confidence"], "{:.1%}"),
        ("expected calibration error", found["error"], "{:.1%}"),
        ("temperature that would calibrate it", found["temperature"], "{:.3f}"),
        ("log-likelihood at that temperature", found.get("log_likelihood_at_temperature"), "{:+.3f}"),
        ("calibration error at that temperature", found.get("error_at_temperature"), "{:.1%}"),
    ]


def _length(found: dict[str, Any]) -> list[Row]:
    equal_pairs = f"{found['equal_pairs']:,} such pairs of equal length (ratio up to {found['equal_length']:g})"
    return [
        ("correlation of reward and tokens", found["correlation"], "{:+.3f}"),
        ("within a choice", found["correlation_within"], "{:+.3f}"),
        ("people choose the longest", found["people_longest"], "{:.1%}"),
        ("the model prefers the longest", found["model_longest"], "{:.1%}"),
        (f"accuracy, all {found['pairs']:,} pairs of the best and another", found["pairs_accuracy"], "{:.1%}"),
        (f"accuracy, {equal_pairs}", found["equal_pairs_accuracy"], "{:.1%}"),
        (
            f"accuracy, {found['equal_choices']:,} choices among equally long responses",
            found["equal_accuracy"],
            "{:.1%}",
        ),
    ]


def _people(found: dict[str, Any]) -> list[Row]:
    sentences, ratings = f"{found['sentences']:,}", f"{found['ratings']:,}"
    return [
        (f"correlation with the mean rating ({sentences} sentences)", found["mean_correlation"], "{:+.3f}"),
        ("rank correlation with the mean rating", found["mean_rank_correlation"], "{:+.3f}"),
        ("highest that the noise of the means allows", found["reliability"]["ceiling"], "{:+.3f}"),
        (f"correlation with single ratings ({ratings})", found["single_correlation"], "{:+.3f}"),
        ("one person's with the mean of the others", found.get("single_with_others_correlation"), "{:+.3f}"),
        ("the model agrees with one person's choice", found["agreement_model"], "{:.1%}"),
        ("two persons agree", found["agreement_people"], "{:.1%}"),
        ("one person agrees with the mean of the others", found["agreement_rest"], "{:.1%}"),
    ]


def _reliability_table(result: dict[str, Any]) -> list[list[str]]:
    """Head and rows."""
    return [["probability of the response it prefers", "choices", "predicted", "right"]] + [
        [
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['choices']:,}",
            f"{row['confidence']:.1%}",
            f"{row['accuracy']:.1%} ± {row['standard_error']:.1%}",
        ]
        for row in result["calibration"]["reliability"]
    ]


def _curve_table(result: dict[str, Any]) -> list[list[str]]:
    """Head and rows of the learning curve."""
    return [["language model", "labels", "accuracy", "log-likelihood", "temperature"]] + [
        [
            row["model"] or "its own",
            f"{row['labels']:,}",
            estimate_text(row["accuracy"], "{:.1%}"),
            estimate_text(row["log_likelihood"], "{:+.3f}"),
            estimate_text(row["temperature"], "{:.2f}"),
        ]
        for row in result["curve"]
    ]


# --- the console ---


def quality_table(result: dict[str, Any]) -> str:
    """All that was measured, each number with its standard error."""
    groups = _groups(result)
    rows = [[name, *estimate_cells(value, form)] for group in groups.values() for name, value, form in group]
    lines = [f"\n{result['choices']:,} held-out choices of {result['labels']}; ± is a standard error"]
    shown = iter(aligned(rows))  # all groups as one table, so that their columns agree
    for title, group in groups.items():
        lines += ["", title, *(next(shown) for _ in group)]
    lines += ["", "reliability", *aligned(_reliability_table(result))]
    if "curve" in result:
        lines += ["", "learning curve", *aligned(_curve_table(result))]
    return "\n".join(lines)


# --- the page ---


def write_quality_page(folder: Path, out: Path) -> None:
    """`out/index.html` and its figures from the files in `folder`."""
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    facts = ["reward_quality", f"task {result['task']}", f"{result['choices']:,} held-out choices"]
    sections = [*_sections(folder, out), origin(config)]
    write_page(out / "index.html", str(config.get("experiment") or folder.name), facts, sections, script=False)


def quality_beside(run: Path, out: Path) -> list[Section]:
    """What `reward_quality` found about this very run, if its results lie beside it; figures are drawn into `out`."""
    beside = run.resolve().parent / f"quality_{run.resolve().name}"
    if stage_of(beside) != "reward_quality" or not (beside / "result.json").is_file():
        return []
    if Path(read_json(beside / "result.json")["model"]).resolve() != (run / "reward_model").resolve():
        return []
    return [Section("Quality on held-out choices", part("subsections", _sections(beside, out)))]


def _sections(folder: Path, out: Path) -> list[Section]:
    """Tables, figures and mistakes of a reward model; the figures are drawn into `out`."""
    result = read_json(folder / "result.json")
    sections = [
        Section(
            title.capitalize(),
            part("number_table", ["", "", ""], [[name, *estimate_cells(value, form)] for name, value, form in rows]),
        )
        for title, rows in _groups(result).items()
    ]
    note = part("note", "± is a standard error over choices. Each number's formula: docs/reward_quality.md.")
    sections[0] = sections[0]._replace(body=joined(note, sections[0].body))
    head, *rows = _reliability_table(result)
    sections.append(Section("Reliability", part("number_table", head, rows)))
    if "curve" in result:
        head, *rows = _curve_table(result)
        sections.append(Section("Learning curve", part("number_table", head, rows)))
    sections.append(Section("Figures", part("figures", write_quality_figures(result, out))))
    if mistakes := _mistakes(folder):
        note = part("note", "Choices of people that it thought least likely.")
        sections.append(Section("Where it is most mistaken", joined(note, part("mistakes", mistakes))))
    return sections


def _mistakes(folder: Path) -> list[dict[str, Any]]:
    """The choices of people that the reward model thought least likely, for the page."""
    rows = read_jsonl(folder / "choices.jsonl") if (folder / "choices.jsonl").exists() else []
    logs = [log_probabilities(np.array([row["rewards"]]))[0] for row in rows]
    wrong = [number for number, row in enumerate(rows) if max(row["rewards"]) > row["rewards"][row["best"]]]
    wrong.sort(key=lambda number: (logs[number][rows[number]["best"]], number))
    return [
        {
            "query": rows[number]["query"],
            "responses": [
                {
                    "who": _choosers(rows[number], place),
                    "share": f"{math.exp(logs[number][place]):.0%}",
                    "reward": rows[number]["rewards"][place],
                    "text": response.strip(),
                }
                for place, response in enumerate(rows[number]["responses"])
            ],
        }
        for number in wrong[:_MISTAKES]
    ]


def _choosers(row: dict[str, Any], place: int) -> str:
    """Who takes the response at `place` for the best."""
    model = row["rewards"][place] == max(row["rewards"])
    return " and ".join(name for name, chose in (("people", place == row["best"]), ("model", model)) if chose)


# --- the figures ---


def write_quality_figures(result: dict[str, Any], folder: Path) -> list[Picture]:
    """The figures of `reward_quality`'s result.json as PNG and SVG in `folder`."""
    draw = {"reliability": _draw_reliability, "length": _draw_length}
    draw |= {"people": _draw_people} if "people" in result else {}
    draw |= {"learning_curve": _draw_curve} if "curve" in result else {}
    drawings = [Drawing(name, *_TITLES[name], functools.partial(each, result)) for name, each in draw.items()]
    return write_figures(drawings, folder, svg=True)


_TITLES = {  # and captions
    "reliability": (
        "Calibration of the choice probabilities",
        "On the diagonal it knows how sure it may be; below it, it is too sure. Bars: standard errors; grey: how many "
        "choices.",
    ),
    "length": ("Reward and length", "Mean reward of responses of similar length; level where length does not matter."),
    "people": ("Agreement on choices", "How often two choose the same response, ties split. Bars: standard errors."),
    "learning_curve": (
        "Learning curve",
        "Accuracy on the same held-out choices. Bars: standard errors over choices, not over seeds.",
    ),
}


def _points(axes: Axes, x: list[float], estimates: list[dict[str, float]], colour: str, label: str | None) -> None:
    """A line through estimates with their standard errors."""
    axes.errorbar(
        x,
        [estimate["value"] for estimate in estimates],
        yerr=[estimate["standard_error"] for estimate in estimates],
        color=colour,
        marker="o",
        markersize=5,
        capsize=3,
        linewidth=1.5,
        label=label,
    )


def _draw_reliability(result: dict[str, Any], figure: Figure) -> None:
    rows = result["calibration"]["reliability"]
    panels = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above, below = panels
    above.plot([0, 1], [0, 1], color=DARK, linewidth=1, linestyle=DASHED, label="calibrated")
    right = [{"value": row["accuracy"], "standard_error": row["standard_error"]} for row in rows]
    _points(above, [row["confidence"] for row in rows], right, COLOURS[0], "this reward model")
    above.axhline(result["chance"], color=GREY, linewidth=1, label="chance")
    above.set_ylabel("accuracy")
    above.set_ylim(0, 1.02)
    above.legend(loc="upper left")
    below.bar(
        [(row["low"] + row["high"]) / 2 for row in rows],
        [row["choices"] for row in rows],
        width=[0.9 * (row["high"] - row["low"]) for row in rows],
        color=GREY,
    )
    below.set_ylabel("choices")
    below.set_xlabel("probability of the response with the highest reward")
    below.set_xlim(min(row["low"] for row in rows) - 0.02, 1.02)
    for axis in (above.yaxis, below.xaxis):
        in_percent(axis)
    figure.align_ylabels(panels)


def _draw_length(result: dict[str, Any], figure: Figure) -> None:
    rows, axes = result["length"]["by_length"], figure.subplots()
    _points(axes, [row["length"] for row in rows], [row["reward"] for row in rows], COLOURS[0], None)
    axes.set_xlabel("tokens of the response, mean of a group")
    axes.set_ylabel("mean reward")


def _draw_people(result: dict[str, Any], figure: Figure) -> None:
    people, axes = result["people"], figure.subplots()
    downward = [
        ("one person,\nthe mean of the others", people["agreement_rest"], False),
        ("two persons", people["agreement_people"], False),
        ("the model,\none person", people["agreement_model"], True),
        ("the model,\nthe mean of all", result["accuracy"], True),
    ]
    bars = [
        Bar(name, estimate["value"], estimate["standard_error"], own)
        for name, estimate, own in reversed(downward)
        if estimate["value"] is not None
    ]
    draw_bars(axes, bars)
    axes.axvline(result["chance"], color=DARK, linewidth=1, linestyle=DASHED)
    axes.set_xlabel(f"same choice among the responses (line: chance; {result['choices']:,} choices)")


def _draw_curve(result: dict[str, Any], figure: Figure) -> None:
    axes, models = figure.subplots(), list(dict.fromkeys(row["model"] for row in result["curve"]))
    for number, model in enumerate(models):
        rows = [row for row in result["curve"] if row["model"] == model]
        colour, label = COLOURS[number % len(COLOURS)], model or "its own language model"
        _points(axes, [row["labels"] for row in rows], [row["accuracy"] for row in rows], colour, label)
    axes.axhline(result["chance"], color=DARK, linewidth=1, linestyle=DASHED, label="chance")
    if (person := result.get("people", {}).get("agreement_rest", {}).get("value")) is not None:
        axes.axhline(person, color=GREY, linewidth=1.5, label="one person")
    axes.set_xscale("log", base=2)
    counts = sorted({row["labels"] for row in result["curve"]})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("labels that it was trained on")
    axes.set_ylabel("accuracy")
    in_percent(axes.yaxis)
    legend_above(axes)
