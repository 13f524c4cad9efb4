"""The forms that label files have, found by their first record, and files of labels in any of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm_human_preferences.data.exchange import argilla, label_studio, pairs, rows, summaries
from lm_human_preferences.data.exchange.files import WRITTEN, is_table, read_file, write_file
from lm_human_preferences.data.exchange.reading import Label, Reading, ReadingParams, names_of, short
from lm_human_preferences.foundation.errors import UserError

Read = Callable[[Mapping[str, Any], str, Reading, bool], Iterator[Label]]  # record, where, settings, typed by people
Write = Callable[[Iterable[Label], Reading], Iterator[dict[str, Any]]]


class Form(NamedTuple):
    """One form of label file."""

    about: str  # what its records have, for messages
    fits: Callable[[Mapping[str, Any]], bool]  # whether a file's first record is of this form
    read: Read
    write: Write


FORMS = {  # in the order in which a file's first record is tried
    "summaries": Form(summaries.ABOUT, summaries.fits, summaries.read, summaries.write),
    "label_studio": Form(label_studio.ABOUT, label_studio.fits, label_studio.read, label_studio.write),
    "argilla": Form(argilla.ABOUT, argilla.fits, argilla.read, argilla.write),
    "pairs": Form(pairs.ABOUT, pairs.fits, pairs.read, pairs.write),
    "table": Form(rows.ABOUT, rows.fits, rows.read, rows.write),
}
_ENDS = {  # of those that have no place in a table
    "messages": (".json", ".jsonl", ".parquet"),
    "summaries": (".json", ".jsonl", ".parquet"),
    "argilla": (".json", ".jsonl"),
    "label_studio": (".json", ".jsonl"),
}
OURS = "ours"  # the original's token lists, and readable labels
WRITERS = {name: form.write for name, form in FORMS.items()} | {"messages": pairs.write_messages}


def is_ours(record: object) -> bool:
    """Whether a record is of the project's own form: `query` and `responses`, `sample` or `sample0`, ..."""
    return isinstance(record, Mapping) and "query" in record and bool({"responses", "sample", "sample0"} & set(record))


def fitting_form(record: Mapping[str, Any]) -> str | None:
    """The first of FORMS that a record is of, None if it is of none."""
    return next((name for name, form in FORMS.items() if form.fits(record)), None)


def form_of(path: Path, params: ReadingParams) -> str:
    """The form of a file's labels, `ours` or one of FORMS. UserError for a form that nobody knows, told or found."""
    if params.format != "auto":
        if params.format not in (OURS, *FORMS):
            raise UserError(f"--format {params.format}: must be auto, {OURS}, {', '.join(FORMS)}")
        return params.format
    where, first = next(read_file(path, "label"), ("", None))
    if is_ours(first) or not isinstance(first, Mapping) or not first:
        return OURS  # whose reader says what is wrong
    if name := fitting_form(first):
        return name
    if params.columns or is_table(path):
        return "table"
    if {"query", "best", "target", "ranking", "score", "difference"} & set(first):
        return OURS
    known = "; ".join(f"{name}: {form.about}" for name, form in FORMS.items())
    raise UserError(
        f"{where}: the form of this file is not known; it has {names_of(first)}. --format names one of them ({known}), "
        "--columns says which field is what"
    )


class LabelFile:
    """A file of labels in any form: iterating gives (where, label) of each, as readable labels, or as they stand in a
    file of the project's own. `reading.counts` counts what is worth saying afterwards.
    """

    def __init__(self, path: Path, params: ReadingParams | None = None):
        """UserError for settings that mean nothing, and for a form that is not known."""
        params = params or ReadingParams()
        self.path, self.reading = Path(path), Reading.of(params)
        self.form = form_of(self.path, params)

    @property
    def is_ours(self) -> bool:
        return self.form == OURS

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """UserError, naming file and record, for what does not fit."""
        return read_file(self.path, "label") if self.is_ours else self._converted(FORMS[self.form])

    def _converted(self, form: Form) -> Iterator[tuple[str, Label]]:
        typed = is_table(self.path)
        for where, record in read_file(self.path):
            if not isinstance(record, Mapping):
                raise UserError(f"{where}: expected an object with {form.about}; it is {short(record)}")
            for label in form.read(record, where, self.reading, typed):
                yield where, label


def write_labels(path: Path, labels: Iterable[Label], form: str, reading: Reading) -> int:
    """Write readable labels in one of WRITERS, atomically; returns how many records. UserError for a name that ends
    otherwise, or labels that the form has no place for.
    """
    if Path(path).suffix not in WRITTEN:
        raise UserError(f"{path}: must end in {', '.join(WRITTEN)}")
    if form not in WRITERS:
        raise UserError(f"--to {form}: must be {OURS}, {', '.join(WRITERS)}")
    ends = _ENDS.get(form, WRITTEN)
    if Path(path).suffix not in ends:
        raise UserError(f"{path}: the form {form} is written to files that end in {', '.join(ends)}")
    return write_file(path, WRITERS[form](labels, reading), form)
