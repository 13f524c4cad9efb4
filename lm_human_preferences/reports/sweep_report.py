"""What `sweep` found, for people: the table on the console, the figure, the page."""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.judging.overoptimisation import curve
from lm_human_preferences.reports.figures import COLOURS, DARK, DASHED, Drawing, Picture, whiskers, write_figures
from lm_human_preferences.reports.page import Section, joined, origin, part, write_page
from lm_human_preferences.reports.samples import sample_cards, samples_of_sweep
from lm_human_preferences.reports.tables import Cell, aligned, interval_cell, interval_text, one_line
from lm_human_preferences.runs.tracking import read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUSPECT = {"gamed": "GAMES THE REWARD", "no gain": "suspect: more reward, no better"}
_HONEST = "no policy got more reward than one nearer the reference without more from each gold judge"
_KL = "{:.2f}"
_REFERENCE = "#8a929c"  # the colour of its lines


def _head(result: dict[str, Any]) -> list[str]:
    return ["", "KL, nats", "proxy", *(f"gold: {judge}" for judge in result["judges"])]


def _rows(result: dict[str, Any]) -> list[list[Cell]]:
    """KL, proxy and gold scores of the reference, the policies by KL, best-of-n and the optimal policies."""
    policies = sorted(result["policies"].items(), key=lambda item: item[1]["kl"]["mean"])
    points = [("reference", Cell("0.00"), result["reference_policy"])]
    points += [(name, interval_cell(side["kl"], _KL), side) for name, side in policies]
    points += [(f"best of {side['n']}", Cell(_KL.format(side["kl"])), side) for side in result["best_of_n"][1:]]
    points += [
        (f"optimal at {side['beta']:.3g}, effective {side['effective']:.0f}", interval_cell(side["kl"], _KL), side)
        for side in result["optimal"]
        if side["shown"]
    ]
    return [
        [
            Cell(name),
            kl,
            interval_cell(side["proxy"], "{:+.3f}"),
            *(interval_cell(side["gold"][judge], "{:+.3f}") for judge in result["judges"]),
        ]
        for name, kl, side in points
    ]


def _left_out(result: dict[str, Any]) -> list[str]:
    """What the table lacks, and why."""
    hidden = [point for point in result["optimal"] if not point["shown"]]
    lines = [f"{name}: failed: {reason}" for name, reason in result["failed"].items()]
    if hidden:
        beta = f"{hidden[0]['beta']:.3g}"
        few = f"{len(hidden)} optimal policies at a beta of {beta} and less rest on too few effective samples: left out"
        lines.insert(0, few)
    return lines


# --- the console ---


def sweep_table(result: dict[str, Any]) -> str:
    """A line a policy, by KL; then who games the reward."""
    lines = [
        f"\n{result['queries']:,} held-out queries ({result['split']}), {result['responses']} responses of the "
        "reference to each; 95% intervals over queries",
        *aligned([_head(result), *(list(map(one_line, row)) for row in _rows(result))]),
        *(f"  {line}" for line in _left_out(result)),
    ]
    fits = fit_lines(result)
    if fits:
        lines += ["", "gold score against d, the root of the KL, fitted (Gao et al. 2022):", *(f"  {f}" for f in fits)]
    return "\n".join([*lines, "", "is the reward gamed?", *(f"  {line}" for line in verdict_lines(result["verdicts"]))])


def verdict_lines(verdicts: list[dict[str, Any]]) -> list[str]:
    """Who games the reward, in words; one line if nobody does."""
    lines = [
        f"{row['policy']}: {_SUSPECT[row['verdict']]}. Against {row['against']}: "
        f"proxy {interval_text(row['proxy'], '{:+.3f}')}, {row['judge']} {interval_text(row['gold'], '{:+.3f}')}"
        for row in verdicts
        if row["verdict"]
    ]
    return lines or [_HONEST]


def fit_lines(result: dict[str, Any]) -> list[str]:
    """Where each judge's score is predicted to peak, in words; results of earlier versions have no fits."""
    lines = []
    for judge, kinds in result.get("fits", {}).items():
        for kind, formula in (("policies", "d (α − β log d)"), ("best_of_n", "d (α − β d)")):
            found = kinds[kind]
            name = f"{judge}, {'best of n' if kind == 'best_of_n' else kind}"
            if found is None:
                lines.append(f"{name}: too few points off the reference for a fit")
                continue
            coefficients = f"α {interval_text(found['alpha'], '{:+.3f}')}, β {interval_text(found['beta'], '{:+.3f}')}"
            if found["peak_kl"]["mean"] is None:
                where = "no peak: the fit rises for ever, or falls from the start"
            else:
                beyond = "" if found["peak_kl"]["mean"] <= found["furthest"] else ", beyond every point"
                where = f"peak at {interval_text(found['peak_kl'], '{:.1f}')} nats{beyond}"
                where += f", in {found['has_peak']:.0%} of the resamples"
            lines.append(f"{name}: {formula} with {coefficients}; {where}")
        if kinds["past"]:
            lines.append(f"{judge}: past the peak of the policies' fit: {', '.join(kinds['past'])}")
    return lines


# --- the page ---


def write_sweep_page(folder: Path, out: Path, shown: int) -> None:
    """`out/index.html` and its figure from the files in `folder`; `shown`: how many queries to show."""
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    rows = read_jsonl(folder / "evaluation.jsonl")
    small = "Small: 95% intervals over queries. Each policy has a page of its own: "
    example = f"python launch.py report {folder.name}/{next(iter(result['policies']))}"
    table = part("number_table", _head(result), _rows(result))
    left_out = [part("note", line) for line in _left_out(result)]
    fits = fit_lines(result)
    sections = [
        Section("Is the reward gamed?", _verdict_table(result)),
        Section("Figure", part("figures", write_sweep_figure(result, out))),
        *([Section("Where the gold score peaks", joined(*(part("note", line) for line in fits)))] if fits else []),
        Section("Scores and KL", joined(part("note", small + example), table, *left_out)),
    ]
    if rows[:shown]:
        sections.append(Section("Samples", sample_cards(samples_of_sweep(rows[:shown]), len(rows))))
    facts = [
        "sweep",
        f"task {result['task']}",
        f"{len(result['policies']):,} policies",
        f"{result['queries']:,} held-out queries ({result['split']})",
        f"reference {result['reference']}",
        f"proxy {result['proxy']}",
    ]
    title = str(config.get("experiment") or folder.name)
    write_page(out / "index.html", title, facts, [*sections, origin(config)], script=bool(rows[:shown]))


def _verdict_table(result: dict[str, Any]) -> Markup:
    suspects = [
        [
            Cell(f"{row['policy']}: {_SUSPECT[row['verdict']]}", f"against {row['against']}, by {row['judge']}"),
            interval_cell(row["proxy"], "{:+.3f}"),
            interval_cell(row["gold"], "{:+.3f}"),
        ]
        for row in result["verdicts"]
        if row["verdict"]
    ]
    if not suspects:
        return part("note", f"{_HONEST[0].upper()}{_HONEST[1:]}.")
    note = part(
        "note", "Differences, query by query, to the policy nearer the reference that the judge scores highest."
    )
    return joined(note, part("number_table", ["", "proxy", "gold score"], suspects))


# --- the figure ---

_MARKS = {  # verdict -> colour, marker, name in the legend; the gravest last
    None: (COLOURS[0], "o", "trained, by KL coefficient"),
    "no gain": (COLOURS[4], "D", "trained: more reward, no better"),
    "gamed": (COLOURS[1], "X", "trained: games the reward"),
}
Value = Callable[[dict[str, Any]], dict[str, float]]  # the interval of a point that a panel shows


def write_sweep_figure(result: dict[str, Any], folder: Path) -> list[Picture]:
    """Of a sweep's result.json, as .png and .svg: `sweep`, proxy and each gold judge against the root of KL, and
    `gold_against_proxy`, each gold judge against the proxy.
    """
    caption = "Proxy and gold scores of every policy; 95% intervals over queries, the optimal policies by reweighting."
    other = "The same scores against each other: where a judge falls behind the proxy's rise, the reward is overrated."
    drawings = [
        Drawing("sweep", "Reward against distance from the reference", caption, functools.partial(_draw_sweep, result)),
        Drawing("gold_against_proxy", "Gold against proxy", other, functools.partial(_draw_gold_against_proxy, result)),
    ]
    return write_figures(drawings, folder, svg=True)


def _draw_sweep(result: dict[str, Any], figure: Figure) -> None:
    """Panels above each other over the root of KL: the proxy, then a gold judge each."""
    judges = result["judges"]
    figure.set_size_inches(6.4, 1.0 + 2.5 * (1 + len(judges)))
    panels = figure.subplots(1 + len(judges), 1, sharex=True, squeeze=False)[:, 0]
    _draw_panel(panels[0], result, lambda point: point["proxy"], _gravest(result))
    panels[0].set_ylabel("proxy: the reward\ntrained against")
    for axes, judge in zip(panels[1:], judges, strict=True):
        found = {row["policy"]: row["verdict"] for row in result["verdicts"] if row["judge"] == judge}
        fitted = result.get("fits", {}).get(judge, {}).get("policies")
        _draw_panel(axes, result, functools.partial(_gold, judge), found, fitted)
        axes.set_ylabel(f"gold: {judge}")
    panels[-1].set_xlabel("√ KL to the reference (√ nats per response)")
    _scale_in_nats(panels[0])
    _legend_of_all(figure, list(panels))


def _draw_gold_against_proxy(result: dict[str, Any], figure: Figure) -> None:
    """A panel a gold judge over the proxy: best of n and the optimal policies as lines, the trained ones as points."""
    judges = result["judges"]
    figure.set_size_inches(6.4, 1.2 + 2.5 * len(judges))
    panels = figure.subplots(len(judges), 1, sharex=True, squeeze=False)[:, 0]
    for axes, judge in zip(panels, judges, strict=True):
        verdicts = {row["policy"]: row["verdict"] for row in result["verdicts"] if row["judge"] == judge}
        shown = [point for point in result["optimal"] if point["shown"]]
        for points, label, colour, marker in (
            (result["best_of_n"], "best of n", COLOURS[2], "o"),
            (shown, "optimal, by reweighting", DARK, ""),
        ):
            _draw_line(axes, [(p["proxy"]["mean"], p["gold"][judge]) for p in points], label, colour, marker)
        reference = result["reference_policy"]
        axes.axhline(
            reference["gold"][judge]["mean"], color=_REFERENCE, linewidth=1, linestyle=DASHED, label="reference"
        )
        axes.axvline(reference["proxy"]["mean"], color=_REFERENCE, linewidth=1, linestyle=DASHED)
        for name, side in result["policies"].items():
            _draw_policy(axes, side["proxy"], side["gold"][judge], verdicts.get(name), f"{side['kl_coef']:g}")
        axes.margins(y=0.14)
        axes.set_ylabel(f"gold: {judge}")
    panels[-1].set_xlabel("proxy: the reward trained against")
    _legend_of_all(figure, list(panels))


def _legend_of_all(figure: Figure, panels: list[Axes]) -> None:
    """One legend for all panels, each name once."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=2, handlelength=1.8)
    figure.align_ylabels(panels)


def _gold(judge: str, point: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = point["gold"][judge]
    return found


def _gravest(result: dict[str, Any]) -> dict[str, str | None]:
    """Policy -> its gravest verdict, whichever judge it comes from."""
    order = list(_MARKS)
    return {
        policy: max((row["verdict"] for row in result["verdicts"] if row["policy"] == policy), key=order.index)
        for policy in result["policies"]
    }


def _scale_in_nats(axes: Axes) -> None:
    """Above the panel the KL itself, which the axis below shows as its root."""
    right = axes.get_xlim()[1]
    axes.set_xlim(-0.025 * right, right)
    nats = axes.secondary_xaxis(
        "top", functions=(lambda x: np.sign(x) * np.square(x), lambda x: np.sign(x) * np.sqrt(np.abs(x)))
    )
    nats.set_xlabel("KL (nats)", fontsize=9)
    ticks = [0.0]
    for value in (digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)):
        if value <= right**2 and math.sqrt(value) - math.sqrt(ticks[-1]) >= 0.09 * right:  # else they would crowd
            ticks.append(value)
    nats.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _draw_fit(axes: Axes, fitted: dict[str, Any], reference: float) -> None:
    """The curve of the policies' fit up to the furthest of them."""
    d = np.linspace(0.02, math.sqrt(fitted["furthest"]), 100)
    gained = curve(np.array([fitted["alpha"]["mean"], fitted["beta"]["mean"]]), d, "policies")
    axes.plot(d, reference + gained, color=COLOURS[0], linewidth=1.2, alpha=0.7, label="fit to the trained policies")


def _draw_panel(
    axes: Axes,
    result: dict[str, Any],
    value: Value,
    verdicts: dict[str, str | None],
    fitted: dict[str, Any] | None = None,
) -> None:
    """verdicts: policy -> what the sweep found of it; fitted: the fit of the policies' scores, if there is one."""
    best = [(math.sqrt(point["kl"]), value(point)) for point in result["best_of_n"]]
    optimal = [(_root(point["kl"]["mean"]), value(point)) for point in result["optimal"] if point["shown"]]
    _draw_line(axes, best, "best of n", COLOURS[2], "o")
    _draw_line(axes, optimal, "optimal, by reweighting", DARK, "")
    reference = value(result["reference_policy"])["mean"]
    if fitted is not None:
        _draw_fit(axes, fitted, reference)
    axes.axhline(reference, color=_REFERENCE, linewidth=1, linestyle=DASHED, label="reference")
    for name, side in result["policies"].items():
        kl = {end: _root(side["kl"][end]) for end in ("low", "mean", "high")}
        _draw_policy(axes, kl, value(side), verdicts.get(name), f"{side['kl_coef']:g}")
    axes.margins(y=0.14)  # room for the coefficients


def _draw_policy(axes: Axes, across: dict[str, float], up: dict[str, float], verdict: str | None, text: str) -> None:
    """A trained policy's point with both intervals, marked as its verdict says, and its coefficient."""
    colour, marker, label = _MARKS[verdict]
    place = across["mean"], up["mean"]
    known = label in axes.get_legend_handles_labels()[1]
    axes.errorbar(
        *place,
        xerr=whiskers(across),
        yerr=whiskers(up),
        color=colour,
        marker=marker,
        markersize=6,
        linestyle="none",
        elinewidth=1.2,
        capsize=2.5,
        label=None if known else label,
    )
    axes.annotate(text, place, xytext=(6, 5), textcoords="offset points", fontsize=8.5, color=colour)


def _root(kl: float) -> float:
    return math.sqrt(max(0.0, kl))


def _draw_line(axes: Axes, points: list[tuple[float, dict[str, float]]], label: str, colour: str, marker: str) -> None:
    """Means at their places, with their intervals as a band."""
    if not points:
        return
    x, intervals = [x for x, _ in points], [interval for _, interval in points]
    means, low, high = ([interval[end] for interval in intervals] for end in ("mean", "low", "high"))
    axes.plot(x, means, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
