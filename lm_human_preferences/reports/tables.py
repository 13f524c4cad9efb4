"""Numbers with their uncertainty as text, and tables of text for the console."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lm_human_preferences.judging.bootstrap import Interval


class Cell(NamedTuple):
    """What a table shows in one place: a text, and something small besides."""

    text: str
    small: str = ""


def aligned(rows: Sequence[Sequence[str]], left: int = 1, indent: str = "  ", gap: str = "   ") -> list[str]:
    """A line for each row, all columns as wide as their widest cell; the first `left` are flush left, the rest right.

    The rows must be equally long. Nothing follows a line's last character.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + gap.join(cells)).rstrip())
    return lines


def interval_cell(interval: Interval | None, form: str) -> Cell:
    """A mean and its 95% interval; "-" for what was not measured, nothing for what does not exist."""
    if interval is None:
        return Cell("")
    known = [value + 0.0 for value in (interval["mean"], interval["low"], interval["high"]) if value is not None]
    if len(known) < 3:
        return Cell("-")
    mean, low, high = (form.format(value) for value in known)
    return Cell(mean, f"{low} to {high}")


def interval_text(interval: Interval | None, form: str) -> str:
    """The same on one line."""
    return one_line(interval_cell(interval, form))


def one_line(cell: Cell) -> str:
    return f"{cell.text} ({cell.small})" if cell.small else cell.text


def estimate_cells(value: Any, form: str) -> tuple[str, str]:
    """An Estimate or a number, and its standard error; "-" and nothing where it was not measured."""
    estimate = value if isinstance(value, dict) else {"value": value, "standard_error": None}
    if estimate["value"] is None:
        return "-", ""
    error = estimate["standard_error"]
    return form.format(estimate["value"] + 0.0), "" if error is None else f"± {form.replace('+', '').format(error)}"


def estimate_text(value: Any, form: str) -> str:
    """The same on one line."""
    return " ".join(estimate_cells(value, form)).rstrip()
