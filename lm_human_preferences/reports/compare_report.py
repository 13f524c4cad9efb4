"""What `compare` found, for people: the tables on the console, the figure, the page."""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_human_preferences.foundation.files import atomic_file, read_json, write_json
from lm_human_preferences.reports.figures import COLOURS, DARK, DASHED, GREY, Drawing, Picture, whiskers, write_figures
from lm_human_preferences.reports.page import Section, joined, origin, part, write_page
from lm_human_preferences.reports.samples import sample_cards, samples_of_sweep
from lm_human_preferences.reports.tables import Cell, aligned, interval_cell, one_line
from lm_human_preferences.runs.tracking import read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OVERLAP = (
    "Gains over the reference at equal KL, with 95% intervals over queries; where two intervals overlap no difference "
    "is seen. '-': no policy of the method went as far."
)
_SHARED = (
    "Training alone, on this machine; a reward model that several methods share is not in it. Strengths of ilql share "
    "their run."
)
_SAMPLES = (
    "Of each method the policy whose KL is nearest to the middle one of the distances; all are in evaluation.jsonl."
)
_MARKERS = "osD^vXP"


def _matched(result: dict[str, Any], judge: str) -> list[list[Cell]]:
    """A row a method: its gain at each of the distances."""
    return [
        [Cell(method), *(interval_cell(gain, "{:+.3f}") for gain in result["matched"][method][judge])]
        for method in result["methods"]
    ]


def _policies(result: dict[str, Any]) -> list[list[Cell]]:
    """A row a policy: distance, scores, and what it cost."""
    return [
        [
            Cell(name),
            interval_cell(side["kl"], "{:.2f}"),
            interval_cell(side["proxy"], "{:+.3f}"),
            *(interval_cell(side["gold"][judge], "{:+.3f}") for judge in result["judges"]),
            Cell("-" if side["seconds"] is None else f"{side['seconds'] / 60:.1f}"),
            Cell("-" if side["memory"] is None else f"{side['memory']:.1f}"),
            Cell("-" if side["labels"] is None else f"{side['labels']:,}"),
        ]
        for name, side in result["policies"].items()
    ]


def leaders(result: dict[str, Any], judge: str) -> list[str]:
    """At each distance the method that gains most, and from which others no difference is seen, in words."""
    lines = []
    for place, target in enumerate(result["targets"]):
        gains = {method: result["matched"][method][judge][place] for method in result["methods"]}
        reached = {method: gain for method, gain in gains.items() if gain["mean"] is not None}
        if len(reached) < 2:
            continue
        best = max(reached, key=lambda method: reached[method]["mean"])
        alike = [name for name, gain in reached.items() if name != best and gain["high"] >= reached[best]["low"]]
        line = f"at {target:g} nats {best} gains most, of {len(reached)} methods that go as far"
        lines.append(line + (f"; no difference is seen from {', '.join(alike)}" if alike else ""))
    return lines


def _costs(result: dict[str, Any]) -> list[list[Cell]]:
    """A row a method: how many policies were trained for it, minutes of one and of all, memory, labels. What a reward
    model cost, which several methods share, is not in it.
    """
    rows = []
    for method in result["methods"]:
        runs = {side.get("run", name): side for name, side in result["policies"].items() if side["method"] == method}
        seconds = [side["seconds"] for side in runs.values() if side["seconds"] is not None]
        memory = [side["memory"] for side in runs.values() if side["memory"] is not None]
        labels = next((side["labels"] for side in runs.values()), None)
        rows.append(
            [
                Cell(method),
                Cell(str(len(runs))),
                Cell(f"{sum(seconds) / len(seconds) / 60:.1f}" if seconds else "-"),
                Cell(f"{sum(seconds) / 60:.1f}" if seconds else "-"),
                Cell(f"{max(memory):.1f}" if memory else "-"),
                Cell("-" if labels is None else f"{labels:,}"),
            ]
        )
    return rows


_COSTS = ["", "trained", "minutes each", "minutes in all", "GiB at most", "labels"]


def one_of_each_method(result: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of evaluation.jsonl with the reference and of each method the policy whose KL is nearest to the middle one
    of the distances: samples side by side, at about the same distance.
    """
    middle = sorted(result["targets"])[len(result["targets"]) // 2]
    chosen = ["reference"]
    for method in result["methods"]:
        off = {n: abs(s["kl"]["mean"] - middle) for n, s in result["policies"].items() if s["method"] == method}
        chosen += [min(off, key=lambda name: off[name])] if off else []
    return [row | {"policies": {name: row["policies"][name] for name in chosen}} for row in rows]


def _head(result: dict[str, Any]) -> list[str]:
    return ["", "KL, nats", "proxy", *(f"gold: {judge}" for judge in result["judges"]), "minutes", "GiB", "labels"]


def _distances(result: dict[str, Any]) -> list[str]:
    return ["", *(f"at {target:g} nats" for target in result["targets"])]


def comparison_table(result: dict[str, Any]) -> str:
    """Each judge's scores at matched KL, then all policies."""
    lines = [f"\n{result['queries']:,} held-out queries ({result['split']}). {_OVERLAP}"]
    for judge in result["judges"]:
        rows = [list(map(one_line, row)) for row in _matched(result, judge)]
        lines += ["", f"gold: {judge}", *aligned([_distances(result), *rows])]
        lines += [f"  {line}" for line in leaders(result, judge)]
    lines += ["", *aligned([_COSTS, *(list(map(one_line, row)) for row in _costs(result))])]
    lines += ["", *aligned([_head(result), *(list(map(one_line, row)) for row in _policies(result))])]
    return "\n".join([*lines, *(f"  {name}: failed: {reason}" for name, reason in result["failed"].items())])


def write_comparison(folder: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """result.json, evaluation.jsonl (a line a query), compare.svg and compare.png."""
    write_json(folder / "result.json", result)
    with atomic_file(folder / "evaluation.jsonl") as temporary:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(lines, encoding="utf-8")
    write_comparison_figure(result, folder)


def write_comparison_page(folder: Path, out: Path, shown: int) -> None:
    """`out/index.html` and its figure from the files in `folder`; `shown`: how many queries to show."""
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    rows = read_jsonl(folder / "evaluation.jsonl")
    tables = [
        joined(
            part("note", f"Gold: {judge}"),
            part("number_table", _distances(result), _matched(result, judge)),
            *(part("note", line) for line in leaders(result, judge)),
        )
        for judge in result["judges"]
    ]
    failures = [part("note", f"{name} failed: {reason}") for name, reason in result["failed"].items()]
    sections = [
        Section("At equal distance", joined(part("note", _OVERLAP), *tables)),
        Section("Figure", part("figures", write_comparison_figure(result, out))),
        Section("What each method costs", joined(part("note", _SHARED), part("number_table", _COSTS, _costs(result)))),
        Section("All policies", joined(part("number_table", _head(result), _policies(result)), *failures)),
    ]
    if rows[:shown]:
        cards = sample_cards(samples_of_sweep(one_of_each_method(result, rows[:shown])), len(rows))
        sections.append(Section("Samples", joined(part("note", _SAMPLES), cards)))
    facts = ["compare", f"task {result['task']}", f"{len(result['policies']):,} policies"]
    facts.append(f"{result['queries']:,} held-out queries ({result['split']})")
    title = str(config.get("experiment") or folder.name)
    write_page(out / "index.html", title, facts, [*sections, origin(config)], script=bool(rows[:shown]))


def write_comparison_figure(result: dict[str, Any], folder: Path) -> list[Picture]:
    """`compare.png` and `compare.svg` of a comparison's result.json: each gold judge against the root of KL."""
    caption = "Gold scores of every policy by method; 95% intervals over queries. Best of n trains nothing."
    draw = functools.partial(_draw, result)
    return write_figures([Drawing("compare", "Methods at equal distance", caption, draw)], folder, svg=True)


def _draw(result: dict[str, Any], figure: Figure) -> None:
    judges = result["judges"]
    figure.set_size_inches(6.4, 1.0 + 3.2 * len(judges))
    panels = figure.subplots(len(judges), 1, sharex=True, squeeze=False)[:, 0]
    for axes, judge in zip(panels, judges, strict=True):
        _draw_panel(axes, result, judge)
        axes.set_ylabel(f"gold: {judge}")
    panels[-1].set_xlabel("√ KL to the reference (√ nats per response)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.8)


def _draw_curve(axes: Axes, result: dict[str, Any], method: str, judge: str, colour: str) -> None:
    """The line that a method is read off at equal distance: the reference, then the means of its settings' seeds."""
    settings: dict[float, list[dict[str, Any]]] = {}
    for side in result["policies"].values():
        if side["method"] == method:
            settings.setdefault(side["strength"], []).append(side)
    points = [(0.0, result["reference_policy"][judge]["mean"])]
    for sides in settings.values():
        kl = sum(side["kl"]["mean"] for side in sides) / len(sides)
        points.append((math.sqrt(max(0.0, kl)), sum(side["gold"][judge]["mean"] for side in sides) / len(sides)))
    axes.plot(*zip(*sorted(points), strict=True), color=colour, linewidth=1, alpha=0.6)


def _draw_panel(axes: Axes, result: dict[str, Any], judge: str) -> None:
    axes.axhline(result["reference_policy"][judge]["mean"], color=GREY, linewidth=1, linestyle=DASHED)
    for target in result["targets"]:
        axes.axvline(math.sqrt(target), color=GREY, linewidth=0.8, linestyle=DASHED)
    if result["best_of_n"]:
        places = [math.sqrt(point["kl"]) for point in result["best_of_n"]]
        values = [point["gold"][judge]["mean"] for point in result["best_of_n"]]
        axes.plot(places, values, color=DARK, linewidth=1.4, label="best_of_n")
    trained = [method for method in result["methods"] if method != "best_of_n"]
    for number, method in enumerate(trained):
        known = False
        _draw_curve(axes, result, method, judge, COLOURS[number % len(COLOURS)])
        for side in result["policies"].values():
            if side["method"] != method:
                continue
            kl = {end: math.sqrt(max(0.0, side["kl"][end])) for end in ("low", "mean", "high")}
            axes.errorbar(
                kl["mean"],
                side["gold"][judge]["mean"],
                xerr=whiskers(kl),
                yerr=whiskers(side["gold"][judge]),
                color=COLOURS[number % len(COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5.5,
                linestyle="none",
                elinewidth=1.1,
                capsize=2,
                label=None if known else method,
            )
            known = True
