"""Files of records, read one record at a time and never held whole: JSON lists and JSON lines, gzipped or not."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError

_CHUNK = 1 << 22  # bytes of a list that are read at once
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")  # JSON's own; Python's \s has more
_UNSEPARATED = "expected a comma or the list's end"
_MARK = codecs.BOM_UTF8  # some editors and spreadsheets begin their files with it


def read_records(
    path: Path, noun: str = "record", progress: Callable[[int], object] = lambda n: None
) -> Iterator[tuple[str, Any]]:
    """(where, record) of each record in a file, for messages and for use.

    `.jsonl` (or `.jsonl.gz`) has a record a line, empty lines are passed over; any other name is one JSON list, or
    lines if it does not begin with `[`. Byte order marks are passed over. `progress` is told how many bytes of the file
    have been read. Raises UserError, naming file and place, for a file that is missing, truncated, not UTF-8 or not
    JSON.
    """
    path = Path(path)
    try:
        with open(path, "rb") as opened:
            file = gzip.GzipFile(fileobj=opened) if path.suffix == ".gz" else opened
            told = 0
            for record in _list_items(path, file, noun) if _is_list(path, file) else _lines(path, file):
                progress(opened.tell() - told)
                told = opened.tell()
                yield record
            progress(opened.tell() - told)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged or not readable: {getattr(error, 'strerror', None) or error}") from None


def _is_list(path: Path, file: io.BufferedIOBase) -> bool:
    if ".jsonl" in path.suffixes:
        return False
    start = file.read(1 << 12).removeprefix(_MARK).lstrip()
    file.seek(0)
    return start.startswith(b"[")


def _lines(path: Path, file: io.BufferedIOBase) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        line = line.removeprefix(_MARK)  # in the middle too: files put together keep each its own
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON: {_reason(error)}") from None


def _list_items(path: Path, file: io.BufferedIOBase, noun: str) -> Iterator[tuple[str, Any]]:
    """The items of one JSON list.

    `text` is what has been read but for most of what is done with; the next item begins at `place`. Where it does not
    end in `text` more is read, twice as much each time, until it does or the file ends.
    """
    texts, text, number, reads = _texts(path, file), "", 0, 1
    while not text.strip():
        text += next(texts)
    place = text.index("[") + 1
    while True:
        try:
            end, items = _next_item(text, place, first=not number)
        except (ValueError, RecursionError) as error:
            more = "".join(islice(texts, reads))
            if not more:
                read = getattr(error, "pos", place) - place
                raise UserError(_what_is_wrong(path, noun, number, text[place:], read, error)) from None
            text, place, reads = text[place:] + more, 0, reads * 2
            continue
        if not items:
            break
        yield f"{path}, {noun} {number}", items[0]
        place, number, reads = end, number + 1, 1
    if any(rest.strip() for rest in chain([text[end:]], texts)):
        raise UserError(f"{path}: something follows the end of its list")


def _next_item(text: str, place: int, first: bool) -> tuple[int, list[Any]]:
    """Where the next item of a list ends, and the item; none where the list is closed. Raises JSONDecodeError, at the
    place up to which `text` is right, also where it only ends too early.
    """
    place = _end_of_space(text, place)
    if text.startswith("]", place):
        return place + 1, []
    if not first:
        if not text.startswith(",", place):
            raise json.JSONDecodeError(_UNSEPARATED, text, place)
        place = _end_of_space(text, place + 1)
    item, end = _DECODER.raw_decode(text, place)
    if end == len(text):  # a number may go on
        raise json.JSONDecodeError(_UNSEPARATED, text, end)
    return end, [item]


def _end_of_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _what_is_wrong(path: Path, noun: str, number: int, rest: str, read: int, error: ValueError | RecursionError) -> str:
    """What to say of `rest`, the end of a file after item `number` - 1, of which `read` characters are right."""
    if not rest.strip(" \t\r\n,"):
        return f"{path} is truncated: its list is not closed" + (f" after {noun} {number - 1}" if number else "")
    if not isinstance(error, json.JSONDecodeError):
        return f"{path}, {noun} {number} is not JSON: {_reason(error)}"
    if error.msg == _UNSEPARATED:
        if not rest[read:]:
            return f"{path} is truncated: its list is not closed after {noun} {number}"
        return f"{path}: {_UNSEPARATED} after {noun} {number - 1}"
    if not rest[read:].strip() or error.msg.startswith("Unterminated string"):
        return f"{path}, {noun} {number} is truncated: the file ends within it"
    return f"{path}, {noun} {number} is not JSON: {error.msg}"


def _texts(path: Path, file: io.BufferedIOBase) -> Iterator[str]:
    """The file's text in parts, none empty."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    while True:
        content = file.read(_CHUNK)
        try:
            text = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            place = file.tell() - len(error.object) + error.start
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {place})") from None
        if text:
            yield text
        if not content:
            return


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)
