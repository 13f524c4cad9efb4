"""A run or a result as one page: `<folder>/report/index.html`, which needs no other file and no network, and its
figures beside it.

Runs of the three stages, results of `evaluate` and of `reward_quality`; a reward-training run shows its `quality_<run>`
too, if it lies beside it.
"""

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_folder, read_json
from lm_human_preferences.judging.calibration import log_probabilities
from lm_human_preferences.reports import result_figures
from lm_human_preferences.reports.figures import Chart, Record, charts_of, points_of_reference, read_run, write_charts
from lm_human_preferences.reports.page import folded, number_table, picture, tag, text, write_page
from lm_human_preferences.reports.report_samples import (
    coloured,
    legend,
    sample_cards,
    samples_of_evaluation,
    samples_of_run,
)
from lm_human_preferences.reports.result_tables import EVALUATION_ROWS, quality_rows, written
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.watching.doctor import Diagnosis, examine
from lm_human_preferences.watching.history import STAGES

_TITLES = {
    "score": "score (mean of the reward model)",
    "kl": "KL to the initial model (nats per response)",
    "valid": "responses with a valid end",
    "distinct_2": "distinct pairs of tokens",
    "valid_loss": "validation loss (nats per token)",
    "valid_perplexity": "validation perplexity",
}
_SHARES = ("valid", "accuracy", "standard_error", "chance", "clipfrac")
_MISTAKES = 10  # of a reward model to show


@dataclass
class ReportParams:
    """What a page shows, and where the run lies."""

    samples: int = param(200, "held-out queries to show with the policies' responses, the first of the list")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")


def write_report(folder: Path, samples: int = 200) -> Path:
    """Draw the figures of the run or result in `folder` and write its page into `<folder>/report/`, which is replaced
    as a whole.

    `samples`: how many queries to show, the first of the list. Returns index.html's path. Raises UserError if the
    folder is neither, or nothing was logged yet.
    """
    folder = Path(folder)
    if samples < 0:
        raise UserError(f"--samples {samples}: must not be negative")
    stage = _stage(folder)
    writers = {"evaluate": _evaluation_page, "reward_quality": _quality_page}
    if stage in writers and not (folder / "result.json").exists():
        raise UserError(f"{folder} has no result.json: run {stage} again")
    record = None if stage in writers else read_run(folder)
    with atomic_folder(folder / "report") as temporary:
        if record is None:
            writers[stage](folder, temporary, samples)
        else:
            _run_page(record, folder, temporary, samples)
    return folder / "report" / "index.html"


def _stage(folder: Path) -> str | None:
    """What config.json says that `folder` holds; None without one."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return config.get("stage") if isinstance(config, dict) else None


# --- the pages ---


def _run_page(record: Record, folder: Path, out: Path, shown: int) -> None:
    charts = charts_of(record)
    figures = write_charts(record, charts, out)
    cards = _samples(record, folder, shown)
    parts = [
        *_headline(record, charts),
        *(_doctor(examine(folder)) if record.stage in STAGES else []),
        "<h2>Figures</h2>",
        "<p class=note>Where a line is noisy, pale is each step and dark a moving mean over a twentieth of the run.</p>",
        f"<div class=figures>{''.join(_figure(name, path, charts) for name, path in figures.items())}</div>",
        *_quality_beside(folder, out),
        *cards,
        *_training_samples(record),
        *_origin(record.config),
    ]
    write_page(
        out / "index.html", str(record.config.get("experiment") or "run"), _facts(record), parts, script=bool(cards)
    )


def _evaluation_page(folder: Path, out: Path, shown: int) -> None:
    config, result, rows = (
        read_json(folder / "config.json"),
        read_json(folder / "result.json"),
        read_jsonl(folder / "evaluation.jsonl"),
    )
    policies = {
        **result["policies"],
        **{name.replace("_", "-"): figures for name, figures in result.get("baselines", {}).items()},
    }
    judges = list(next(iter(result["policies"].values()))["scores"])
    lines = [
        [
            f"score of {text(judge)}",
            *(_interval(figures.get("scores", {}).get(judge), "{:+.3f}") for figures in policies.values()),
        ]
        for judge in judges
    ]
    lines += [
        [text(title), *(_interval(figures.get(key), form) for figures in policies.values())]
        for key, (title, form) in EVALUATION_ROWS.items()
        if any(key in figures for figures in policies.values())
    ]
    parts = [
        "<h2>Figures of each policy</h2><p class=note>Small: 95% intervals over queries.</p>",
        number_table(["", *(text(name) for name in policies)], lines),
    ]
    if result["wins"]:
        wins = [
            [
                f"{text(win['policy'])} against {text(win['against'])} <small>under {text(win['judge'])}</small>",
                _interval(win["share"], "{:.1%}"),
                _number(win["queries"]),
            ]
            for win in result["wins"]
        ]
        parts += [
            "<h2>Who wins</h2><p class=note>Share of queries on which the first is preferred, ties split.</p>",
            number_table(["", "wins", "queries"], wins),
        ]
    figures = result_figures.write_comparison_figures(result, out)
    parts += [f"<h2>Figures</h2><div class=figures>{_result_figures(figures)}</div>"] if figures else []
    cards = sample_cards(samples_of_evaluation(rows[:shown]), len(rows)) if rows[:shown] else []
    parts += ["<h2>Samples</h2>", *cards] if cards else []
    facts = [
        "evaluate",
        f"task {result['task']}",
        f"{result['queries']:,} held-out queries ({result['split']})",
        f"reference {result['reference']}",
    ]
    write_page(
        out / "index.html",
        str(config.get("experiment") or folder.name),
        facts,
        [*parts, *_origin(config)],
        script=bool(cards),
    )


def _quality_page(folder: Path, out: Path, shown: int) -> None:
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    facts = ["reward_quality", f"task {result['task']}", f"{result['choices']:,} held-out choices"]
    write_page(
        out / "index.html",
        str(config.get("experiment") or folder.name),
        facts,
        [*_quality(folder, out, "h2"), *_origin(config)],
        script=False,
    )


def _quality_beside(folder: Path, out: Path) -> list[str]:
    """What `reward_quality` found about this very run, if its results lie beside it."""
    beside = folder.resolve().parent / f"quality_{folder.resolve().name}"
    if _stage(beside) != "reward_quality" or not (beside / "result.json").is_file():
        return []
    same = Path(read_json(beside / "result.json")["model"]).resolve() == (folder / "reward_model").resolve()
    return ["<h2>Quality on held-out choices</h2>", *_quality(beside, out, "h3")] if same else []


def _quality(folder: Path, out: Path, level: str) -> list[str]:
    """Tables, figures and mistakes of a reward model under headings of that level; the figures are drawn into `out`."""
    result = read_json(folder / "result.json")
    parts = ["<p class=note>± is a standard error over choices. Each number's formula: docs/reward_quality.md.</p>"]
    for title, rows in quality_rows(result).items():
        parts += [
            f"<{level}>{title.capitalize()}</{level}>",
            number_table(["", "", ""], [[text(name), *written(value, form)] for name, value, form in rows]),
        ]
    parts += [
        f"<{level}>Reliability</{level}>",
        number_table(
            ["probability of the response it prefers", "choices", "predicted", "right"],
            [
                [
                    f"{row['low']:.2f} to {row['high']:.2f}",
                    _number(row["choices"]),
                    f"{row['confidence']:.1%}",
                    f"{row['accuracy']:.1%} ± {row['standard_error']:.1%}",
                ]
                for row in result["calibration"]["reliability"]
            ],
        ),
    ]
    if "curve" in result:
        parts += [
            f"<{level}>Learning curve</{level}>",
            number_table(
                ["language model", "labels", "accuracy", "log-likelihood", "temperature"],
                [
                    [
                        text(row["model"] or "its own"),
                        _number(row["labels"]),
                        *(
                            " ".join(written(row[key], form))
                            for key, form in (
                                ("accuracy", "{:.1%}"),
                                ("log_likelihood", "{:+.3f}"),
                                ("temperature", "{:.2f}"),
                            )
                        ),
                    ]
                    for row in result["curve"]
                ],
            ),
        ]
    figures = result_figures.write_quality_figures(result, out)
    parts.append(f"<{level}>Figures</{level}><div class=figures>{_result_figures(figures)}</div>")
    if mistakes := _mistakes(folder):
        parts.append(
            f"<{level}>Where it is most mistaken</{level}><p class=note>Choices of people that it thought least likely.</p>{mistakes}"
        )
    return parts


def _mistakes(folder: Path) -> str:
    """The choices of people that the reward model thought least likely."""
    rows = read_jsonl(folder / "choices.jsonl") if (folder / "choices.jsonl").exists() else []
    wrong = sorted(
        (float(log_probabilities([row["rewards"]])[0, row["best"]]), number)
        for number, row in enumerate(rows)
        if max(row["rewards"]) > row["rewards"][row["best"]]
    )[:_MISTAKES]
    cards = []
    for _, number in wrong:
        row, sides = rows[number], ""
        for place, (response, log) in enumerate(
            zip(row["responses"], log_probabilities([row["rewards"]])[0], strict=True)
        ):
            who = [
                name
                for name, chose in (
                    ("people", place == row["best"]),
                    ("model", row["rewards"][place] == max(row["rewards"])),
                )
                if chose
            ]
            sides += (
                f"<div><b>{' and '.join(who)}</b><span class=tag>{math.exp(log):.0%}</span>{tag('reward', row['rewards'][place])}"
                f"<p>{text(response.strip())}</p></div>"
            )
        cards.append(
            f"<div class=card><p class=query>{text(row['query'])}</p><div class='pair many'>{sides}</div></div>"
        )
    return "".join(cards)


def _result_figures(figures: dict[str, Path]) -> str:
    return "".join(
        picture(path, result_figures.TITLES[name], result_figures.CAPTIONS[name]) for name, path in figures.items()
    )


def _interval(interval: dict | None, form: str) -> str:
    if interval is None or interval["mean"] is None:
        return "" if interval is None else "–"
    mean, low, high = (form.format(interval[key] + 0.0) for key in ("mean", "low", "high"))
    return f"{mean}<br><small>{low} to {high}</small>"


# --- the pieces of a run's page ---


def _number(value: Any, key: str = "", sign: str = "") -> str:
    """A number in four figures or percent, a mean with its interval {"mean", "low", "high"}, a dash for nothing."""
    if isinstance(value, dict):
        ends = (
            f"<br><small>{_number(value['low'], key)} to {_number(value['high'], key)}</small>"
            if "low" in value and "high" in value
            else ""
        )
        return _number(value.get("mean"), key, sign) + ends
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "\u2013" if value is None else text(value)
    if key.rpartition("/")[2] in _SHARES or key.startswith("distinct"):
        return f"{100 * value:+.1f} points" if sign else f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:{sign},}"
    return (
        f"{round(value, 3) + 0.0:{sign},.3f}" if 0.01 <= abs(value) < 1e5 or abs(value) < 1e-6 else f"{value:{sign}.3g}"
    )


def _title(key: str) -> str:
    return text(_TITLES.get(key, key.replace("_", " ")))


def _facts(record: Record) -> list[str]:
    steps = (
        max((int(found[-1]) for found, _ in record.series.values() if len(found) > 1), default=0) + 1
    )  # a closing row is no step
    facts = [record.stage, f"task {record.config.get('task')}", f"{steps:,} steps"]
    if "elapsed/time" in record.series:
        facts.append(f"{record.series['elapsed/time'][1][-1] / 60:,.1f} minutes")
    return facts


def _headline(record: Record, charts: list[Chart]) -> list[str]:
    """The result as a table: before and after, accuracies, or single numbers; without a result where the run stands."""
    result, before, after = record.result, record.result.get("before"), record.result.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        where = f" on {_number(result['queries'])} held-out queries" if "queries" in result else " on held-out queries"
        rows = [
            [
                _title(key),
                _number(before.get(key), key),
                _number(after.get(key), key),
                _number(_difference(before.get(key), after.get(key)), key, "+"),
            ]
            for key in dict.fromkeys([*_TITLES, *before, *after])
            if before.get(key) is not None or after.get(key) is not None
        ]
        return [f"<h2>Before and after{where}</h2>", number_table(["", "before", "after", "change"], rows)]
    if points := points_of_reference(record):
        rows = [
            [text(name), f"{accuracy:.1%}", f"\u00b1 {error:.1%}" if error else ""]
            for name, accuracy, error, _ in reversed(points)
        ]
        table = number_table(
            ["", "accuracy", "standard error"], rows, own=[own for *_, own in reversed(points)].index(True)
        )
        return [
            f"<h2>Accuracy on {_number(result['choices']) + ' ' if 'choices' in result else ''}held-out choices</h2>",
            table,
        ]
    if single := {key: value for key, value in result.items() if isinstance(value, (int, float))}:
        rows = [[_title(key), _number(value, key)] for key, value in single.items()]
        return ["<h2>Result</h2>", number_table(["", "value"], rows)]
    rows = []
    for metric, label in [item for chart in charts[:2] for panel in chart.panels for item in panel.series.items()]:
        values, tenth = record.series[metric][1], max(1, len(record.series[metric][1]) // 10)
        ends = [_number(float(end.mean()), metric) for end in (values[:tenth], values[-tenth:])]
        rows.append([f"{text(label)} <small>{text(metric)}</small>", *ends])
    return [
        "<h2>So far</h2><p class=note>This run has no result yet: means of the first and last tenth of its steps.</p>",
        number_table(["", "first", "last"], rows),
    ]


def _difference(before: Any, after: Any) -> float | None:
    before, after = (value.get("mean") if isinstance(value, dict) else value for value in (before, after))
    return after - before if isinstance(before, (int, float)) and isinstance(after, (int, float)) else None


def _doctor(diagnosis: Diagnosis) -> list[str]:
    """What looks wrong with the run, the severe first; what was looked at and found fine."""
    worst = sorted(
        {finding.check: finding for finding in diagnosis.findings}.values(), key=lambda finding: not finding.severe
    )
    cards = "".join(
        f"<div class='card finding{' severe' if finding.severe else ''}'>"
        f"<h3>{'Severe' if finding.severe else 'Warning'}: {text(finding.check)} <small>step {_number(finding.step)}</small></h3><dl>"
        + "".join(f"<dt>{name}</dt><dd>{_with_flags(getattr(finding, name))}</dd>" for name in ("saw", "why", "change"))
        + "</dl></div>"
        for finding in worst
    )
    looked = (("fine", diagnosis.fine), ("no numbers for", diagnosis.not_looked_at))
    checked = "; ".join(f"{title}: {', '.join(names)}" for title, names in looked if names)
    verdict = "" if worst else "Nothing looks wrong. "
    return ["<h2>Doctor</h2>", cards, f"<p class=note>{verdict}{text(checked[:1].upper() + checked[1:])}.</p>"]


def _with_flags(sentence: str) -> str:
    """The sentence with each --parameter as code, so that no line ends within its name."""
    return re.sub(r"--[\w.]+\w", r"<code>\g<0></code>", text(sentence))


def _figure(name: str, path: Path, charts: list[Chart]) -> str:
    title, caption = next(
        ((chart.title, chart.caption) for chart in charts if chart.name == name),
        ("Held-out choices predicted", "Grey: other ways to choose on the same choices."),
    )
    return picture(path, title, caption)


def _samples(record: Record, folder: Path, shown: int) -> list[str]:
    """Pairs of before and after: all of evaluation.jsonl, with what the result knows besides of the first ones."""
    kept = record.result.get("samples") or []
    pairs = read_jsonl(folder / "evaluation.jsonl") if (folder / "evaluation.jsonl").exists() else kept
    pairs = [pair | more for pair, more in zip(pairs, kept)] + pairs[len(kept) :]
    return (
        ["<h2>Samples before and after</h2>", *sample_cards(samples_of_run(pairs[:shown]), len(pairs))]
        if pairs[:shown]
        else []
    )


def _training_samples(record: Record) -> list[str]:
    """What was sampled at the start, middle and end of training."""
    steps = sorted({row.get("step", 0) for row in record.samples})
    if not steps:
        return []
    parts = ["<h2>Samples during training</h2>", legend() if any(row.get("token_kl") for row in record.samples) else ""]
    for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
        rows = [row for row in record.samples if row.get("step", 0) == step][:4]
        cards = "".join(
            f"<div class=card><p class=query>{text(row.get('query', ''))}</p>"
            f"<p>{coloured(str(row.get('response', '')), row.get('token_kl') or [], row.get('token_ends') or [])}</p>"
            f"{tag('score', row.get('score'))}{tag('KL', row.get('kl'))}{tag('total', row.get('total'))}</div>"
            for row in rows
        )
        parts.append(f"<details><summary>Step {_number(step)}</summary>{cards}</details>")
    return parts


def _origin(config: dict) -> list[str]:
    """How it came about: command, parameters, versions."""
    command, parts = [str(word) for word in config.get("command") or []], ["<h2>Configuration</h2>"]
    if command:
        parts.append(
            f"<pre class=card>{text(shlex.join((['python'] if command[0].endswith('.py') else []) + command))}</pre>"
        )
    versions = {**(config.get("versions") or {}), "commit": config.get("commit") or "not from a git checkout"}
    return [*parts, folded("Parameters", config.get("parameters") or {}), folded("Versions", versions)]
