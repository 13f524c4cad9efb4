"""Tables as spreadsheets and pandas save them (CSV): read one row at a time and never held whole, gzipped or not; and
written.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file

LARGEST_FIELD = 1 << 26  # characters of one field; Python's own limit is 131,072
_MARK = b"\xef\xbb\xbf"  # the byte order mark that spreadsheets begin their files with
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # and what they begin with in their other form


def read_table(
    path: Path,
    columns: tuple[str, ...] = (),
    delimiter: str | None = ",",
    progress: Callable[[int], object] = lambda n: None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) of each row of a CSV file whose first line names the columns; `where` is for messages.

    columns: those that it must have; others come along, but for those without a name. Fields may be quoted and hold
    line breaks; rows without any text are passed over. delimiter: None takes the comma, semicolon or tab that divides
    the first line into most fields. `progress` is told how many bytes of the file have been read. Raises UserError,
    naming file and place, for a file that is missing, empty, truncated or not UTF-8, that lacks a column, or whose row
    has more or fewer fields than the first line.
    """
    path = Path(path)
    csv.field_size_limit(LARGEST_FIELD)
    try:
        with open(path, "rb") as opened:
            file = gzip.GzipFile(fileobj=opened) if path.suffix == ".gz" else opened
            told = 0
            for row in _rows(path, file, columns, delimiter):
                progress(opened.tell() - told)
                told = opened.tell()
                yield row
            progress(opened.tell() - told)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged or not readable: {getattr(error, 'strerror', None) or error}") from None


def _rows(
    path: Path, file: io.BufferedIOBase, columns: tuple[str, ...], delimiter: str | None
) -> Iterator[tuple[str, dict[str, str]]]:
    lines = _lines(path, file)
    if delimiter is None:
        first = next(lines, "")
        delimiter, lines = _delimiter(first), chain([first] if first else [], lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number, start = 0, 1
    while True:
        where = f"{path}, row {number} (line {start})"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            what = f"is not CSV: {error}"
            if "end of data" in str(error):
                what = "is truncated: the file ends within it"
            elif "new-line character" in str(error):
                what = "is not CSV: a carriage return stands alone; save it as `CSV UTF-8`"
            raise UserError(f"{where} {what}") from None
        start = reader.line_num + 1
        if fields is None:
            break
        if names is None:
            names = _checked_names(path, fields, columns)
        elif any(field.strip() for field in fields):
            if len(fields) != len(names):
                raise UserError(f"{where}: expected {len(names)} fields, as the first line has, found {len(fields)}")
            yield where, {name: field for name, field in zip(names, fields, strict=True) if name}
        number += bool(fields)
    if names is None:
        raise UserError(f"{path} is empty: expected a first line with the columns {', '.join(columns) or '...'}")


def _delimiter(line: str) -> str:
    """What divides a line into most fields; a comma where it is no line of a table, which reading it says."""
    try:
        return max(",;\t", key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))
    except csv.Error:
        return ","


def _checked_names(path: Path, names: list[str], columns: tuple[str, ...]) -> list[str]:
    """The names of the columns. UserError for those that are missing, or that name two columns."""
    names = [name.strip() for name in names]
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(f"{path}: expected the columns {', '.join(columns)}; it has {', '.join(names)[:200]}")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: its first line names the column {twice[0]!r} twice")
    return names


def _lines(path: Path, file: io.BufferedIOBase) -> Iterator[str]:
    """The file's lines with their ends, decoded one by one, so that a message can say which is no text."""
    for number, line in enumerate(file, 1):
        if number == 1:
            if line.startswith(_UTF16):
                raise UserError(f"{path} is UTF-16, not UTF-8: save it as `CSV UTF-8`")
            line = line.removeprefix(_MARK)
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> int:
    """Write rows as comma-separated values, atomically, their fields in the order of `columns`; returns how many. A
    field that a row lacks, or that is None, is empty.
    """
    count = 0
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            count += 1
    return count
