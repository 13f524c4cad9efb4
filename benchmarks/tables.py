"""Results as plain tables, on a terminal as in a Markdown page."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file

BEGIN, END = "<!-- measured by python -m benchmarks: begin -->", "<!-- measured by python -m benchmarks: end -->"


def tables(result: dict) -> str:
    """Everything that was measured, as text."""
    parts = [machine(result["machine"])]
    cases = result["cases"]
    if cases:
        head = ["case", "seconds", "CPU", "rows/s", "tokens/s", "GFLOP", "GFLOP/s", "of peak", "peak memory"]
        parts += [table(head, [_row(case) for case in cases])]
        parts += [table(["time in", *_phase_names(cases)], rows) for rows in [_phase_rows(cases)] if rows]
        head = ["case", "instead", "seconds", "ours", "times faster", "less CPU time", "its peak memory", "ours"]
        parts += [table(head, rows) for rows in [_other_rows(cases)] if rows]
    if result["scaling"]:
        rows = [
            [case["task"], str(case["batch"]), str(case["response_length"])]
            + [seconds(row["seconds"]), seconds(row["cpu_seconds"])]
            for row in result["scaling"]
            for case in [row["case"]]
        ]
        parts += [
            table([f"update of {result['scaling'][0]['case']['model']}", "batch", "response", "seconds", "CPU"], rows)
        ]
    return "\n\n".join(parts)


def spread(values: Sequence[float], form: str, centre: float | None = None) -> str:
    """Mean and extremes: "12.1 (11.8 to 12.5)"; the mean alone where they are written alike. centre: instead of the
    mean of the values.
    """
    numbers = statistics.fmean(values) if centre is None else centre, min(values), max(values)
    mean, least, most = (form.format(number + 0.0) for number in numbers)
    return mean if least == most else f"{mean} ({least} to {most})"


def machine(facts: dict) -> str:
    """Where it was measured, in one line, and the peaks that shares refer to."""
    peaks = facts["peaks"]
    return (
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}; measured peaks: "
        f"{peaks['float32'] / 1e12:.3g} TFLOP/s in float32, {peaks['bfloat16'] / 1e12:.3g} in bfloat16, "
        f"copy {peaks['copy'] / 1e9:.3g} GB/s. Medians of {facts['repeats']} rounds after {facts['warmup']}."
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table in columns of equal width: the first on the left, numbers on the right."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]

    def align(line: list[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join([line[0].ljust(widths[0]), *numbers])} |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([align(head), rule, *map(align, rows)])


def name(case: dict) -> str:
    padding = f", {case['padding']:.0%} padding" if case["padding"] else ""
    captured = ", captured" if case.get("captured") else ""
    rows = "choices" if case["kind"] in ("reward", "dpo") else "rows"
    return f"{case['kind']}, {case['model']}, {case['task']}, {case['batch']} {rows}{padding}{captured}"


def seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _row(row: dict) -> list[str]:
    return [
        name(row["case"]),
        seconds(row["seconds"]),
        seconds(row["cpu_seconds"]),
        f"{row['rows_per_second']:.3g}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['flops'] / 1e9:,.0f}",
        f"{row['flops_per_second'] / 1e9:,.0f}",
        f"{row['share_of_peak']:.0%}",
        _memory(row["memory"]),
    ]


def _phase_names(cases: Iterable[dict]) -> list[str]:
    return list(
        dict.fromkeys(
            phase for case in cases if len(case["phases"]) > 1 for phase in case["phases"] if phase != "other"
        )
    ) + ["other"]


def _phase_rows(cases: list[dict]) -> list[list[str]]:
    return [
        [name(row["case"])]
        + [seconds(row["phases"][phase]) if phase in row["phases"] else "" for phase in _phase_names(cases)]
        for row in cases
        if len(row["phases"]) > 1
    ]


def _other_rows(cases: list[dict]) -> list[list[str]]:
    return [
        [
            name(row["case"]),
            other,
            seconds(theirs["seconds"]),
            seconds(row["seconds"]),
            f"{theirs['ratio']:.2f}",
            f"{theirs['cpu_ratio']:.2f}",
            _memory(theirs["memory"]),
            _memory(row["memory"]),
        ]
        for row in cases
        for other, theirs in row["others"].items()
    ] + [
        [name(row["case"]), other, "failed", seconds(row["seconds"]), "", "", "", _memory(row["memory"])]
        for row in cases
        for other in row["failed"]
    ]


def check_page(page: Path) -> None:
    """Raises UserError unless the page exists and has one place for the tables."""
    if not page.is_file():
        raise UserError(f"--page {page}: there is no such file")
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"--page {page}: it needs the lines {BEGIN} and {END} once each, in this order")


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    with atomic_file(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
