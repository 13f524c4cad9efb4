"""The page of a training run: result, what the doctor finds, figures, samples, configuration."""

from pathlib import Path
from typing import Any

from lm_human_preferences.reports.figures import write_figures
from lm_human_preferences.reports.logged_run import LoggedRun
from lm_human_preferences.reports.page import Section, joined, origin, part, write_page
from lm_human_preferences.reports.quality_report import quality_beside
from lm_human_preferences.reports.run_figures import charts_of, compared_accuracies, drawings_of
from lm_human_preferences.reports.samples import LEVELS, pieces, sample_cards, samples_of_run
from lm_human_preferences.reports.tables import Cell
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.watching.doctor import examine
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
_NOISY = "Where a line is noisy, pale is each step and dark a moving mean over a twentieth of the run."


def write_run_page(run: LoggedRun, folder: Path, out: Path, shown: int) -> None:
    """`out/index.html` and its figures; `folder`: of the run; `shown`: how many held-out queries to show."""
    pictures = write_figures(drawings_of(run), out)
    samples = _samples(run, folder, shown)
    sections = [
        _headline(run),
        *([_doctor(folder)] if run.stage in STAGES else []),
        Section("Figures", joined(part("note", _NOISY), part("figures", pictures))),
        *quality_beside(folder, out),
        *samples,
        *_training_samples(run),
        origin(run.config),
    ]
    title = str(run.config.get("experiment") or "run")
    write_page(out / "index.html", title, _facts(run), sections, script=bool(samples))


def _facts(run: LoggedRun) -> list[str]:
    # a metric of a single row may be of the row that closes the run, which is not a step
    steps = max((int(found[-1]) for found, _ in run.series.values() if len(found) > 1), default=0) + 1
    facts = [run.stage, f"task {run.config.get('task')}", f"{steps:,} steps"]
    if "elapsed/time" in run.series:
        facts.append(f"{run.series['elapsed/time'][1][-1] / 60:,.1f} minutes")
    return facts


# --- the result ---


def _headline(run: LoggedRun) -> Section:
    """The result as a table: before and after, accuracies, or single numbers; without a result where the run stands."""
    before, after = run.result.get("before"), run.result.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        return _before_and_after(run, before, after)
    if accuracies := compared_accuracies(run)[::-1]:
        count = f"{_number(run.result['choices'])} " if "choices" in run.result else ""
        rows = [[a.name, f"{a.share:.1%}", f"± {a.standard_error:.1%}" if a.standard_error else ""] for a in accuracies]
        own = [accuracy.own for accuracy in accuracies].index(True)
        table = part("number_table", ["", "accuracy", "standard error"], rows, own)
        return Section(f"Accuracy on {count}held-out choices", table)
    if single := {key: value for key, value in run.result.items() if isinstance(value, (int, float))}:
        return Section(
            "Result", part("number_table", ["", "value"], [[_title(k), _cell(v, k)] for k, v in single.items()])
        )
    return _so_far(run)


def _before_and_after(run: LoggedRun, before: dict[str, Any], after: dict[str, Any]) -> Section:
    count = f"{_number(run.result['queries'])} " if "queries" in run.result else ""
    rows = [
        [
            _title(key),
            _cell(before.get(key), key),
            _cell(after.get(key), key),
            _number(_difference(before.get(key), after.get(key)), key, "+"),
        ]
        for key in dict.fromkeys([*_TITLES, *before, *after])
        if before.get(key) is not None or after.get(key) is not None
    ]
    table = part("number_table", ["", "before", "after", "change"], rows)
    return Section(f"Before and after on {count}held-out queries", table)


def _so_far(run: LoggedRun) -> Section:
    """How the first two charts' metrics have changed."""
    rows: list[list[Cell | str]] = []
    for chart in charts_of(run)[:2]:
        for metric, label in ((metric, label) for panel in chart.panels for metric, label in panel.series.items()):
            values = run.series[metric][1]
            tenth = max(1, len(values) // 10)
            ends = [_number(float(end.mean()), metric) for end in (values[:tenth], values[-tenth:])]
            rows.append([Cell(label, metric), *ends])
    note = part("note", "This run has no result yet: means of the first and last tenth of its steps.")
    return Section("So far", joined(note, part("number_table", ["", "first", "last"], rows)))


def _title(key: str) -> str:
    return _TITLES.get(key, key.replace("_", " "))


def _cell(value: Any, key: str) -> Cell:
    """A number, or a mean with its interval {"mean", "low", "high"}."""
    if not isinstance(value, dict):
        return Cell(_number(value, key))
    known = "low" in value and "high" in value
    return Cell(
        _number(value.get("mean"), key),
        f"{_number(value['low'], key)} to {_number(value['high'], key)}" if known else "",
    )


def _number(value: Any, key: str = "", sign: str = "") -> str:
    """A number in four figures or percent, as suits what `key` is; a dash for nothing."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "\u2013" if value is None else str(value)
    if key.rpartition("/")[2] in _SHARES or key.startswith("distinct"):
        return f"{100 * value:+.1f} points" if sign else f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:{sign},}"
    plain = 0.01 <= abs(value) < 1e5 or abs(value) < 1e-6
    return f"{round(value, 3) + 0.0:{sign},.3f}" if plain else f"{value:{sign}.3g}"


def _difference(before: Any, after: Any) -> float | None:
    before, after = (value.get("mean") if isinstance(value, dict) else value for value in (before, after))
    return after - before if isinstance(before, (int, float)) and isinstance(after, (int, float)) else None


# --- the doctor ---


def _doctor(folder: Path) -> Section:
    """What looks wrong with the run, the severe first; what was looked at and found fine."""
    diagnosis = examine(folder)
    last = {
        finding.check: finding for finding in diagnosis.findings
    }.values()  # a check that became severe is there twice
    worst = sorted(last, key=lambda finding: not finding.severe)
    looked = (("fine", diagnosis.fine), ("no numbers for", diagnosis.not_looked_at))
    checked = "; ".join(f"{title}: {', '.join(names)}" for title, names in looked if names)
    verdict = "" if worst else "Nothing looks wrong. "
    note = part("note", f"{verdict}{checked[:1].upper()}{checked[1:]}.")
    return Section("Doctor", joined(part("findings", [finding._asdict() for finding in worst]), note))


# --- samples ---


def _samples(run: LoggedRun, folder: Path, shown: int) -> list[Section]:
    """Pairs of before and after: all of evaluation.jsonl, with what the result knows besides of the first ones."""
    kept = run.result.get("samples") or []
    pairs = read_jsonl(folder / "evaluation.jsonl") if (folder / "evaluation.jsonl").exists() else kept
    pairs = [pair | more for pair, more in zip(pairs, kept, strict=False)] + pairs[len(kept) :]
    if not pairs[:shown]:
        return []
    return [Section("Samples before and after", sample_cards(samples_of_run(pairs[:shown]), len(pairs)))]


def _training_samples(run: LoggedRun) -> list[Section]:
    """What was sampled at the start, middle and end of training."""
    steps = sorted({row.get("step", 0) for row in run.samples})
    if not steps:
        return []
    chosen = {
        step: [_training_sample(row) for row in run.samples if row.get("step", 0) == step][:4]
        for step in (steps[0], steps[len(steps) // 2], steps[-1])
    }
    coloured = any(row.get("token_kl") for row in run.samples)
    return [Section("Samples during training", part("training_samples", chosen, LEVELS if coloured else ()))]


def _training_sample(row: dict[str, Any]) -> dict[str, Any]:
    response, token_kl, token_ends = (
        str(row.get("response", "")),
        row.get("token_kl") or [],
        row.get("token_ends") or [],
    )
    numbers = {name: row.get(name) for name in ("score", "kl", "total")}
    return {"query": row.get("query", ""), "pieces": pieces(response, token_kl, token_ends), **numbers}
