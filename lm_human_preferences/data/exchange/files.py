"""The files that labels of other people come in: JSON, JSON lines, tables in text, parquet. What a file is is found in
its content, and in its name where that leaves it open.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.foundation.tables import read_table, write_table

TABLES = (".csv", ".tsv")
WRITTEN = (".json", ".jsonl", ".csv", ".parquet")
_PARQUET = b"PAR1"
_ROWS = 1000  # of a parquet file that are held at once


def is_table(path: Path) -> bool:
    """Whether a file is a table in text: by its name, or where that says nothing by its first character."""
    suffixes = Path(path).suffixes
    if any(suffix in suffixes for suffix in (".json", ".jsonl", ".parquet")):
        return False
    return any(suffix in suffixes for suffix in TABLES) or _start(path).lstrip()[:1] not in (b"{", b"[", b"")


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 12).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror or error}") from None


def read_file(path: Path, noun: str = "record") -> Iterator[tuple[str, Any]]:
    """(where, record) of each record of a file, whatever it is. UserError, naming file and record, for a damaged
    one.
    """
    if _start(path).startswith(_PARQUET):
        return _read_parquet(path)
    return read_table(path, delimiter=None) if is_table(path) else read_records(path, noun)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "parquet files need the package pyarrow: pip install pyarrow; or convert to JSON lines"
        ) from None
    return pyarrow


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    arrow, number = _parquet(), 0
    try:
        with arrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (arrow.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[0][:200]
        raise UserError(f"{path} is damaged or no parquet file ({reason})") from None


def write_file(path: Path, records: Iterable[dict[str, Any]], what: str) -> int:
    """Write records, atomically, as the name's end says; returns how many. A table's columns are those of all its
    records, texts and numbers alone. UserError where there is nothing to write, or a text that the form cannot hold.
    """
    path, records = Path(path), iter(records)
    first = list(islice(records, 1))
    if not first:
        raise UserError(f"{path}: none of the labels gives {what}")
    if path.suffix in (".json", ".jsonl"):
        return write_json_records(path, chain(first, records))
    if path.suffix == ".csv":
        rows = [
            {name: value for name, value in row.items() if isinstance(value, str | int | float)}
            for row in chain(first, records)
        ]
        return write_table(path, rows, list(dict.fromkeys(name for row in rows for name in row)))
    return _write_parquet(path, list(chain(first, records)))


def write_json_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records, atomically, in the form that the name asks for: .jsonl a line each, .json one list. Returns how
    many.
    """
    count = 0
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        lines = str(path).endswith(".jsonl")
        file.write("" if lines else "[")
        for count, record in enumerate(records, 1):
            between = "" if lines or count == 1 else ",\n "
            file.write(between + json.dumps(record, ensure_ascii=False) + ("\n" if lines else ""))
        file.write("" if lines else "]\n")
    return count


def _write_parquet(path: Path, records: list[dict[str, Any]]) -> int:
    arrow = _parquet()
    names = dict.fromkeys(name for record in records for name in record)
    try:
        table = arrow.Table.from_pydict({name: [record.get(name) for record in records] for name in names})
        with atomic_file(path) as temporary:
            arrow.parquet.write_table(table, temporary)
    except arrow.ArrowException as error:
        raise UserError(f"{path}: parquet cannot hold these records ({str(error).splitlines()[0][:150]})") from None
    return len(records)
