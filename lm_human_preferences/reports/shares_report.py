"""What sweeps against reward models of more and fewer labels found, for people: the table on the console, the figure,
the page.
"""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.reports.figures import COLOURS, DASHED, GREY, Drawing, Picture, write_figures
from lm_human_preferences.reports.page import Section, joined, origin, part, write_page
from lm_human_preferences.reports.tables import Cell, aligned, interval_cell, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEAD = ["", "labels", "accuracy", "best policy", "its KL", "its gold", "peak by the fit, nats", "gamed"]
_BEST = (
    "The best policy is the one that the judge scores highest; its score is chosen from several, so a little too high."
)


def _rows(result: dict[str, Any], judge: str) -> list[list[Cell]]:
    """A row a share: its reward model, the policy that the judge likes best, where the fit peaks, who games."""
    rows = []
    for found in result["shares"]:
        name, best = max(found["policies"].items(), key=lambda item: item[1]["gold"][judge]["mean"])
        fit = found["fits"][judge]["policies"]
        gamed = [row["policy"] for row in found["verdicts"] if row["judge"] == judge and row["verdict"] == "gamed"]
        rows.append(
            [
                Cell(f"{found['share']:g} of the labels"),
                Cell(f"{found['labels']:,}"),
                Cell("-" if found["accuracy"] is None else f"{found['accuracy']:.1%}"),
                Cell(name),
                interval_cell(best["kl"], "{:.2f}"),
                interval_cell(best["gold"][judge], "{:+.3f}"),
                Cell("-") if fit is None else interval_cell(fit["peak_kl"], "{:.1f}"),
                Cell(f"{len(gamed)} of {len(found['policies'])}"),
            ]
        )
    return rows


def shares_table(result: dict[str, Any]) -> str:
    """For each judge a line a share."""
    lines = []
    for judge in result["shares"][0]["judges"]:
        rows = [list(map(one_line, row)) for row in _rows(result, judge)]
        lines += ["", f"gold: {judge}", *aligned([_HEAD, *rows])]
    return "\n".join([*lines, f"  {_BEST}"])


def write_shares_page(folder: Path, out: Path) -> None:
    """`out/index.html` and its figure from the files in `folder`."""
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    tables = [
        joined(part("note", f"Gold: {judge}"), part("number_table", _HEAD, _rows(result, judge)))
        for judge in result["shares"][0]["judges"]
    ]
    first = result["shares"][0]
    one = f"Each share has a page of its own: python launch.py report {folder.name}/share_{first['share']:g}"
    sections = [
        Section("Figure", part("figures", write_shares_figure(result, out))),
        Section("Shares of the labels", joined(part("note", _BEST), *tables, part("note", one))),
    ]
    facts = ["sweep", f"task {result['task']}", f"{len(result['shares'])} shares of the labels"]
    facts.append(f"{first['queries']:,} held-out queries ({first['split']})")
    title = str(config.get("experiment") or folder.name)
    write_page(out / "index.html", title, facts, [*sections, origin(config)], script=False)


def write_shares_figure(result: dict[str, Any], folder: Path) -> list[Picture]:
    """`shares.png` and `shares.svg`: proxy and each gold judge against the root of KL, a colour a share."""
    caption = (
        "Trained policies (points joined, means of seeds) and best of n (dashed) against each share's reward model."
    )
    draw = functools.partial(_draw, result)
    return write_figures([Drawing("shares", "More and fewer labels", caption, draw)], folder, svg=True)


def _draw(result: dict[str, Any], figure: Figure) -> None:
    judges = result["shares"][0]["judges"]
    figure.set_size_inches(6.4, 1.0 + 2.6 * (1 + len(judges)))
    panels = figure.subplots(1 + len(judges), 1, sharex=True, squeeze=False)[:, 0]
    for axes, judge in zip(panels, (None, *judges), strict=True):
        for number, found in enumerate(result["shares"]):
            _draw_share(axes, found, judge, COLOURS[number % len(COLOURS)])
        axes.set_ylabel("proxy" if judge is None else f"gold: {judge}")
    panels[-1].set_xlabel("√ KL to the reference (√ nats per response)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.8)


def _draw_share(axes: Axes, found: dict[str, Any], judge: str | None, colour: str) -> None:
    """Means over seeds of each coefficient, from the reference on, and best of n."""

    def mean(point: dict[str, Any]) -> float:
        return float((point["proxy"] if judge is None else point["gold"][judge])["mean"])

    axes.axhline(mean(found["reference_policy"]), color=GREY, linewidth=0.8, linestyle=DASHED)
    of_coefficient: dict[float, list[dict[str, Any]]] = {}
    for side in found["policies"].values():
        of_coefficient.setdefault(side["kl_coef"], []).append(side)
    points = [
        (
            math.sqrt(max(0.0, sum(side["kl"]["mean"] for side in sides) / len(sides))),
            sum(map(mean, sides)) / len(sides),
        )
        for sides in of_coefficient.values()
    ]
    line = sorted([(0.0, mean(found["reference_policy"])), *points])
    name = f"{found['labels']:,} labels"
    axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4, linewidth=1.3, label=name)
    best = [(math.sqrt(point["kl"]), mean(point)) for point in found["best_of_n"]]
    axes.plot(*zip(*best, strict=True), color=colour, linestyle=DASHED, linewidth=1.1)
