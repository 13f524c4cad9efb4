"""Tables as spreadsheets and pandas save them (CSV), read one row at a time and never held whole, gzipped or not."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lm_human_preferences.foundation.errors import UserError

LARGEST_FIELD = 1 << 26  # characters of one field; Python's own limit is 131,072
_MARK = b"\xef\xbb\xbf"  # the byte order mark that spreadsheets begin their files with


def read_table(
    path: Path, columns: tuple[str, ...] = (), delimiter: str = ",", progress: Callable[[int], object] = lambda n: None
) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) of each row of a CSV file whose first line names the columns; `where` is for messages.

    columns: those that it must have; others come along. Fields may be quoted and hold line breaks; empty lines are
    passed over. `progress` is told how many bytes of the file have been read. Raises UserError, naming file and place,
    for a file that is missing, empty, truncated or not UTF-8, that lacks a column, or whose row has more or fewer
    fields than the first line.
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
    path: Path, file: io.BufferedIOBase, columns: tuple[str, ...], delimiter: str
) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number, start = 0, 1
    while True:
        where = f"{path}, row {number} (line {start})"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            what = "is truncated: the file ends within it" if "end of data" in str(error) else f"is not CSV: {error}"
            raise UserError(f"{where} {what}") from None
        start = reader.line_num + 1
        if fields is None:
            break
        if names is None:
            names = _checked_names(path, fields, columns)
        elif fields:
            if len(fields) != len(names):
                raise UserError(f"{where}: expected {len(names)} fields, as the first line has, found {len(fields)}")
            yield where, dict(zip(names, fields, strict=True))
        number += bool(fields)
    if names is None:
        raise UserError(f"{path} is empty: expected a first line with the columns {', '.join(columns) or '...'}")


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
            line = line.removeprefix(_MARK)
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None
