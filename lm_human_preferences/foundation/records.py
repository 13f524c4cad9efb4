"""Files of records, read one record at a time: JSON lists of objects and JSON lines, gzipped or not, without ever
holding the whole.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError

_CHUNK = 1 << 22
# A string, whole or up to the end of what has been read; or a brace.
_STRING_OR_BRACE = re.compile(rb'"(?:[^"\\]|\\(?:.|\Z))*+("|\Z)|[{}]', re.DOTALL)
_SPACE = b" \t\r\n"


def read_records(
    path: Path, noun: str = "record", progress: Callable[[int], object] = lambda n: None, raw: bool = False
) -> Iterator[tuple[str, Any]]:
    """(where, record) of each record in a file, for messages and for use; with `raw` its bytes, which need not be right
    inside.

    `.jsonl` (or `.jsonl.gz`) has a record a line, empty lines are passed over; any other name is one JSON list, or
    lines if it does not begin with `[`. `progress` is told how many bytes of the file have been read. Raises UserError,
    naming file and place, for a file that is missing, truncated, not UTF-8 or no JSON.
    """
    path = Path(path)
    try:
        with open(path, "rb") as opened:
            file = gzip.GzipFile(fileobj=opened) if path.suffix == ".gz" else opened
            yield from _records(
                path, file, opened, noun, progress, (lambda content, where: content) if raw else parse_json
            )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged or not readable: {getattr(error, 'strerror', None) or error}") from None


def _records(
    path: Path, file, opened, noun: str, progress: Callable[[int], object], parse: Callable[[bytes, str], Any]
) -> Iterator[tuple[str, Any]]:
    told = 0

    def read() -> bytes:
        nonlocal told
        content = file.read(_CHUNK)
        progress(opened.tell() - told)
        told = opened.tell()
        return content

    start = read()
    while start and not start.strip():
        start = read()
    if ".jsonl" not in path.suffixes and start.lstrip(_SPACE).startswith(b"["):
        yield from _list_items(path, start, read, noun, parse)
        return
    number, rest = 0, start
    while rest:
        *lines, rest = rest.split(b"\n")
        for number, line in enumerate(lines, number + 1):
            if line.strip():
                yield (where := f"{path}, line {number}"), parse(line, where)
        more = read()
        if not more and rest.strip():
            yield (where := f"{path}, line {number + 1}"), parse(rest, where)
        rest = rest + more if more else b""


def _list_items(
    path: Path, buffer: bytes, read: Callable[[], bytes], noun: str, parse: Callable[[bytes, str], Any]
) -> Iterator[tuple[str, Any]]:
    """The items of one JSON list; objects are cut out one by one, a list of anything else is read at once."""
    import simdjson

    parser = simdjson.Parser()
    place, number = buffer.index(b"[") + 1, 0

    def following() -> bytes:
        """The next byte that is no white space, b"" at the end of the file; `place` is where it lies."""
        nonlocal buffer, place
        while True:
            while buffer[place : place + 1] and buffer[place] in _SPACE:
                place += 1
            if place < len(buffer):
                return buffer[place : place + 1]
            buffer, place = read(), 0
            if not buffer:
                return b""

    while (byte := following()) != b"]":
        where = f"{path}, {noun} {number}"
        if number:
            if byte != b"," and byte:
                raise UserError(f"{path}: expected a comma or the list's end after {noun} {number - 1}")
            place += 1
            byte = following()
        if not byte:
            raise UserError(
                f"{path} is truncated: its list is not closed" + (f" after {noun} {number - 1}" if number else "")
            )
        if byte != b"{":
            if number:
                raise UserError(f"{where}: expected an object")
            whole = [b"[", buffer[place:], *iter(read, b"")]
            for i, item in enumerate(parse_json(b"".join(whole), str(path))):
                yield (where := f"{path}, {noun} {i}"), parse(json.dumps(item).encode(), where)
            return
        end = buffer.find(b"}", place) + 1
        if not end or not _is_json(parser, buffer[place:end]):  # a brace inside a string or an object, or more to read
            while not (end := _object_end(buffer, place)):
                more = read()
                if not more:
                    raise UserError(f"{where} is truncated: the file ends within it")
                buffer, place = buffer[place:] + more, 0
        yield where, parse(buffer[place:end], where)
        place, number = end, number + 1
    place += 1
    if following():
        raise UserError(f"{path}: something follows the end of its list")


def _object_end(buffer: bytes, start: int) -> int:
    """The place after the brace that closes the object at `start`; 0 if the buffer ends before."""
    depth = 0
    for match in _STRING_OR_BRACE.finditer(buffer, start):
        token = match.group()
        if token == b"{":
            depth += 1
        elif token == b"}":
            depth -= 1
            if not depth:
                return match.end()
        elif not match.group(1):
            return 0
    return 0


def _is_json(parser, content: bytes) -> bool:
    try:
        parser.parse(content)
    except (ValueError, RuntimeError):
        return False
    return True


def parse_json(content: bytes, where: str) -> Any:
    """One JSON value. Raises UserError, naming the place, for bytes that are no UTF-8 or no JSON."""
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON: {error}") from None
