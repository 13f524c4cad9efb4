"""Files that appear whole or not at all, and the digests that tell a whole one from a damaged one."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lm_human_preferences.foundation.errors import UserError, refusal

PARTIAL = ".partial"  # ends the names of what is being written
REPLACED = f".replaced{PARTIAL}"  # set aside until another folder has its name
REMOVED = f".removed{PARTIAL}"  # set aside to be deleted
_NAMES = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """UserError where the file system refuses what the block writes to `path`: it is full, the name is too long, ..."""
    try:
        yield
    except OSError as error:
        if (said := refusal(error.errno)) is None:
            raise
        raise UserError(f"cannot write {path}: {said}") from None
    except SafetensorError as error:  # has the number in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None or (said := refusal(int(number[1]))) is None:
            raise
        raise UserError(f"cannot write {path}: {said}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _linked(path: Path) -> Path:
    """Where a file or folder lies: the end of a chain of links, which itself may be missing. UserError if the folder is
    missing too: the link leads to a disk that is not there.
    """
    path = Path(path)
    if not os.path.islink(path):
        return path
    end = Path(os.path.realpath(path))
    if not end.parent.is_dir() or end.is_symlink():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there; mend the link or delete it")
    return end


def make_folder(folder: Path) -> Path:
    """`folder`, made with its parents, at the end of a link where it is one. UserError when that is not permitted or a
    file stands in the way.
    """
    end = _linked(folder)
    try:
        end.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(f"cannot write to {folder}: {why}; choose another folder") from None
    if not os.access(end, os.W_OK):
        raise UserError(f"cannot write to {folder}: no permission; choose another folder")
    return folder


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; when the block ends well it is synced to disk and takes `path`'s
    name. Where `path` is a link, that is done at its end.
    """
    make_folder(Path(path).parent)
    path = _linked(path)
    with disk_errors(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(descriptor)
        os.chmod(name, 0o666 & ~_umask())
        temporary = Path(name)
        try:
            yield temporary
            publish_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def publish_file(temporary: Path, path: Path) -> None:
    """Sync a finished file to disk and give it its final name, in the same folder."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; when the block ends well it takes `path`'s place (`publish_folder`). Where
    `path` is a link, that is done at its end.
    """
    make_folder(Path(path).parent)
    path = _linked(path)
    with disk_errors(path):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL))
        os.chmod(temporary, 0o777 & ~_umask())
        try:
            yield temporary
            publish_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, path: Path) -> None:
    """Sync a finished folder's files to disk and give it its final name beside it, in place of what may lie there."""
    for file in temporary.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
    _sync_folder(temporary)
    if path.exists():  # two renames; if they are cut apart, `remove_leftovers` gives the old folder its name back
        replaced = _set_aside(path, REPLACED)
        os.rename(temporary, path)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(temporary, path)
    _sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that nobody ever sees a part of it under its name. A link stays, and then leads nowhere until
    `make_folder` makes the folder at its end anew.
    """
    shutil.rmtree(_set_aside(_linked(path), REMOVED), ignore_errors=True)


def _set_aside(path: Path, suffix: str) -> Path:
    aside = path.with_name(f".{path.name}{suffix}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    return aside


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing into `folder` or deleting there when it ended. A folder that it had set
    aside to put another in its place, and had not yet, is whole and gets its name back.
    """
    for path in Path(folder).glob(f".*{REPLACED}"):
        name = path.with_name(path.name[1:].removesuffix(REPLACED))
        if path.is_dir() and not name.exists():
            os.rename(path, name)
    for path in Path(folder).glob(f".*{PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON in UTF-8, atomically.

    Text that the locale could not decode (a command's words under LC_ALL=C) is written as the bytes that it was; half a
    surrogate pair, which UTF-8 lacks, as JSON's escape.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode("utf-8", "surrogateescape")
        data.decode("utf-8")
    except UnicodeError:
        data = text.encode("utf-8", "backslashreplace")
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path) -> Any:
    """The JSON in `path`, with or without a byte order mark. UserError when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. UserError when the file is missing, is not JSON, or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {_NAMES.get(type(value), 'a number')}, not a JSON object {{...}}")
    return value


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
