"""What `evaluate` found, for people: the table on the console, the figures, the page."""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.judging import text_metrics
from lm_human_preferences.judging.bootstrap import Interval
from lm_human_preferences.reports.expected import LEVEL, Expected, ranges_beside, wins_name
from lm_human_preferences.reports.figures import COLOURS, DARK, DASHED, Drawing, in_percent, whiskers, write_figures
from lm_human_preferences.reports.page import Section, joined, origin, part, write_page
from lm_human_preferences.reports.samples import sample_cards, samples_of_evaluation
from lm_human_preferences.reports.tables import Cell, aligned, interval_cell, one_line
from lm_human_preferences.runs.tracking import read_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# figure of a policy -> its name, how to write it
_FIGURES = {
    "kl": ("KL to the reference, nats per response", "{:.2f}"),
    "kl_per_token": ("KL to the reference, nats per token", "{:.3f}"),
    "entropy": ("entropy, nats per token", "{:.2f}"),
    "length": ("tokens up to the end", "{:.1f}"),
    "no_valid_end": ("responses without a valid end", "{:.1%}"),
    "distinct_1": ("distinct tokens", "{:.1%}"),
    "distinct_2": ("distinct pairs of tokens", "{:.1%}"),
    "perplexity": ("perplexity under the reference", "{:.1f}"),
    "text_perplexity": ("perplexity of the given texts", "{:.1f}"),
    "rouge_1": ("ROUGE-1", "{:.3f}"),
    "rouge_2": ("ROUGE-2", "{:.3f}"),
    "rouge_l": ("ROUGE-L", "{:.3f}"),
    "copied_sentences": ("sentences copied from the query", "{:.1%}"),
    **{f"copied_{n}_grams": (f"{n}-grams copied from the query", "{:.1%}") for n in text_metrics.COPIED_NGRAMS},
    "copied_responses": ("responses copied as a whole", "{:.1%}"),
    "copied_lead_3": ("responses copied from the first 3 sentences", "{:.1%}"),
    "copied_from": ("place of copied sentences, 0 start, 1 end", "{:.2f}"),
}


def _columns(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> figures of each policy, then of what needs none."""
    baselines = {name.replace("_", "-"): figures for name, figures in result.get("baselines", {}).items()}
    return {**result["policies"], **baselines}


def _rows(result: dict[str, Any], expected: Expected | None) -> list[tuple[str, list[Cell]]]:
    """What was measured, and for each column its mean with the 95% interval, and the expected range where there is
    one.
    """
    columns = _columns(result)

    def cell(name: str, key: str, interval: Interval | None, form: str) -> Cell:
        return beside(interval_cell(interval, form), f"{name}/{key}", form, expected)

    rows = [
        (
            f"score of {judge}",
            [
                cell(name, f"scores/{judge}", figures.get("scores", {}).get(judge), "{:+.3f}")
                for name, figures in columns.items()
            ],
        )
        for judge in _judges(result)
    ]
    return rows + [
        (title, [cell(name, key, figures.get(key), form) for name, figures in columns.items()])
        for key, (title, form) in _FIGURES.items()
        if any(key in figures for figures in columns.values())
    ]


def beside(cell: Cell, figure: str, form: str, expected: Expected | None) -> Cell:
    """The cell with the expected range of the figure, where there is one."""
    if expected is None or figure not in expected.ranges:
        return cell
    return Cell(cell.text, f"{cell.small}; expected {expected.ranges[figure].text(form)}")


def _about_expected(expected: Expected) -> str:
    return (
        f"Expected: where {100 * LEVEL:.0f} of 100 such runs fall, by {expected.seeds} seeds in {expected.precision} "
        "(static/expected.json)."
    )


def _judges(result: dict[str, Any]) -> list[str]:
    return list(next(iter(result["policies"].values()))["scores"])


# --- the console ---


def evaluation_table(result: dict[str, Any], expected: Expected | None = None) -> str:
    """A column for each policy, means with their 95% intervals; then who wins. expected: the ranges of a documented
    evaluation.
    """
    lines = [
        f"\n{result['queries']:,} held-out queries ({result['split']}), reference {result['reference']}; "
        "95% intervals over queries",
        *aligned(
            [["", *_columns(result)], *([title, *map(one_line, cells)] for title, cells in _rows(result, expected))]
        ),
    ]
    if result["wins"]:
        lines.append("\nwins, ties split")
    lines += [
        f"  {win['policy']} against {win['against']} under {win['judge']}: "
        f"{one_line(_wins_cell(win, expected))} of {win['queries']:,} queries"
        for win in result["wins"]
    ]
    if expected is not None:
        lines.append(f"\n{_about_expected(expected)}")
    return "\n".join(lines)


# --- the page ---


def write_evaluation_page(folder: Path, out: Path, shown: int) -> None:
    """`out/index.html` and its figures from the files in `folder`; `shown`: how many queries to show."""
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    rows = read_jsonl(folder / "evaluation.jsonl")
    expected = ranges_beside(config)
    rows_of_table = [[title, *cells] for title, cells in _rows(result, expected)]
    table = part("number_table", ["", *_columns(result)], rows_of_table)
    about = "Small: 95% intervals over queries." + (f" {_about_expected(expected)}" if expected else "")
    sections = [Section("Figures of each policy", joined(part("note", about), table)), *_wins(result, expected)]
    if drawings := _drawings(result):
        sections.append(Section("Figures", part("figures", write_figures(drawings, out, svg=True))))
    if rows[:shown]:
        sections.append(Section("Samples", sample_cards(samples_of_evaluation(rows[:shown]), len(rows))))
    facts = [
        "evaluate",
        f"task {result['task']}",
        f"{result['queries']:,} held-out queries ({result['split']})",
        f"reference {result['reference']}",
    ]
    title = str(config.get("experiment") or folder.name)
    write_page(out / "index.html", title, facts, [*sections, origin(config)], script=bool(rows[:shown]))


def _wins_cell(win: dict[str, Any], expected: Expected | None) -> Cell:
    return beside(interval_cell(win["share"], "{:.1%}"), wins_name(win), "{:.1%}", expected)


def _wins(result: dict[str, Any], expected: Expected | None) -> list[Section]:
    if not result["wins"]:
        return []
    rows = [
        [
            Cell(f"{win['policy']} against {win['against']}", f"under {win['judge']}"),
            _wins_cell(win, expected),
            f"{win['queries']:,}",
        ]
        for win in result["wins"]
    ]
    note = part("note", "Share of queries on which the first is preferred, ties split.")
    return [Section("Who wins", joined(note, part("number_table", ["", "wins", "queries"], rows)))]


# --- the figures ---


def _drawings(result: dict[str, Any]) -> list[Drawing]:
    """Scores and frontier where there are judges, wins where there are any."""
    wins = [win for win in result["wins"] if win["share"]["mean"] is not None]
    drawings = []
    if _judges(result):
        caption = "Mean score under each judge with its 95% interval over queries."
        drawings.append(Drawing("scores", "Scores", caption, functools.partial(_draw_scores, result)))
        caption = "What each policy's score costs in KL to the reference; 95% intervals."
        drawings.append(Drawing("frontier", "Score against KL", caption, functools.partial(_draw_frontier, result)))
    if wins:
        caption = "Share of queries on which the first policy's response is preferred, ties split; 95% intervals."
        drawings.append(Drawing("wins", "Who wins", caption, functools.partial(_draw_wins, wins)))
    return drawings


def _draw_scores(result: dict[str, Any], figure: Figure) -> None:
    judges, policies = _judges(result), result["policies"]
    figure.set_figheight(max(2.4, 0.9 + len(judges) * (0.5 + 0.32 * len(policies))))
    for axes, judge in zip(figure.subplots(len(judges), 1, squeeze=False)[:, 0], judges, strict=True):
        for place, figures in enumerate(policies.values()):
            score, colour = figures["scores"][judge], COLOURS[place % len(COLOURS)]
            axes.errorbar(score["mean"], -place, xerr=whiskers(score), color=colour, marker="o", capsize=3)
        axes.set_yticks([-place for place in range(len(policies))], list(policies))
        axes.set_ylim(-len(policies) + 0.4, 0.6)
        axes.set_title(judge, loc="left", fontsize=10)


def _draw_frontier(result: dict[str, Any], figure: Figure) -> None:
    judges = _judges(result)
    figure.set_figheight(max(2.6, 1.0 + 1.7 * len(judges)))
    panels = figure.subplots(len(judges), 1, squeeze=False, sharex=True)[:, 0]
    for axes, judge in zip(panels, judges, strict=True):
        for number, (name, figures) in enumerate(result["policies"].items()):
            score, kl, colour = figures["scores"][judge], figures["kl"], COLOURS[number % len(COLOURS)]
            place = kl["mean"], score["mean"]
            axes.errorbar(*place, xerr=whiskers(kl), yerr=whiskers(score), color=colour, marker="o", capsize=3)
            axes.annotate(name, place, xytext=(7, 5), textcoords="offset points", fontsize=9)
        axes.set_ylabel(judge)
        axes.margins(0.12)
    panels[-1].set_xlabel("KL to the reference, nats per response")
    figure.align_ylabels(panels)


def _draw_wins(wins: list[dict[str, Any]], figure: Figure) -> None:
    axes, upward = figure.subplots(), wins[::-1]
    figure.set_figheight(max(2.2, 1.0 + 0.42 * len(wins)))
    for place, win in enumerate(upward):
        share = win["share"]
        axes.errorbar(share["mean"], place, xerr=whiskers(share), color=COLOURS[0], marker="o", capsize=3)
    axes.axvline(0.5, color=DARK, linewidth=1, linestyle=DASHED)
    axes.set_yticks(range(len(wins)), [f"{win['policy']} against {win['against']}\n{win['judge']}" for win in upward])
    axes.set_ylim(-0.6, len(wins) - 0.4)
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    in_percent(axes.xaxis)
