"""Downloads that go on where they broke off, show their progress, are checked, and never leave half a file under the
final name.
"""

import base64
import hashlib
import http.client
import io
import itertools
import os
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import make_folder, publish_file, sha256

if TYPE_CHECKING:
    from filelock import BaseFileLock

ATTEMPTS = 5  # in a row without a new byte
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_BROKEN = (
    http.client.HTTPException,
    OSError,
)  # whatever a connection can raise; what the disk raises is told apart where it is written


class NotThere(UserError):
    """The server has no such file, or does not give it to everybody."""


class _RememberLinked(urllib.request.HTTPRedirectHandler):
    """Follows redirects; keeps what Hugging Face says of a large file on the way: its size and SHA-256."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        for name in ("X-Linked-Size", "X-Linked-Etag"):
            if value := headers[name]:
                self.linked[name.lower()] = value
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, path: Path, sha256_digest: str | None = None, pause: float = 1.0) -> Path:
    """Fetch `url` into `path`, unless it is there already.

    What has come is kept beside it under a hidden name, and a later call goes on from there if the server still has the
    same file. Checked are the length, the given SHA-256, and the digest that the server publishes (Azure: MD5; Hugging
    Face: SHA-256). `pause` is the first wait in seconds before another attempt; it doubles. Raises UserError for an
    address that does not exist, a connection that stays broken, a full disk, or a content that is not the expected one.
    """
    path = Path(path)
    new = [folder for folder in path.absolute().parents if not folder.exists()]
    make_folder(path.parent)
    try:
        with _lock(path):
            if not path.exists():
                _fetch(url, path, sha256_digest, pause)
    finally:
        for folder in itertools.takewhile(lambda folder: not any(folder.iterdir()), new):
            folder.rmdir()
    return path


def _lock(path: Path) -> "BaseFileLock":
    """Held by one process of this machine at a time: ranks ask for the same file at once. It lies among the temporary
    files, one for each user.
    """
    from filelock import FileLock

    name = hashlib.sha256(f"{os.getuid() if hasattr(os, 'getuid') else ''} {path.absolute()}".encode()).hexdigest()
    return FileLock(Path(tempfile.gettempdir()) / f"lm-human-preferences-{name[:16]}.lock")


def cached(url: str, folder: Path) -> Path:
    """The file at `url` from a cache folder, fetched if it is not there or no longer has the SHA-256 written down when
    it came.
    """
    address = urllib.parse.urlparse(url)
    path = folder / address.netloc.replace(":", "_") / urllib.parse.unquote(address.path).lstrip("/").replace("..", "_")
    note = path.with_name(f"{path.name}.sha256")
    with _lock(note):  # another process may be fetching it, or checking
        if path.exists() and (not note.exists() or note.read_text().split()[:1] != [sha256(path)]):
            print(f"{path} is not what was fetched from {url}; fetching it again", file=sys.stderr)
            path.unlink()
        if not path.exists():
            download(url, path)
            note.write_text(f"{sha256(path)}  {path.name}\n")
    return path


def _fetch(url: str, path: Path, digest: str | None, pause: float) -> None:
    if urllib.parse.urlparse(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is no web address: it must begin with https:// or http://")
    part, validator = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.etag")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            headers = _receive(url, part, validator, path.name)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what we have does not fit what the server has now
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                kind = NotThere if error.code in (401, 403, 404) else UserError
                raise kind(f"{url}: the server answers {error.code} {error.reason}; is the address right?") from None
            reason = f"the server answers {error.code} {error.reason}"
        except _BROKEN as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        have = part.stat().st_size if part.exists() else 0
        failures = 1 if have > before else failures + 1
        if failures >= ATTEMPTS:
            raise UserError(
                f"{url}: broke off after {have:,} bytes ({reason}); run the command again, it goes on from there"
                if have
                else f"{url} could not be reached ({reason}); is there a connection to the internet?"
            )
        wait = pause * 2 ** (failures - 1)
        print(f"{path.name}: {reason}; trying again in {wait:g} s", file=sys.stderr)
        time.sleep(wait)
    try:
        _verify(url, part, headers, digest)
    except UserError:
        part.unlink()
        raise
    finally:
        validator.unlink(missing_ok=True)
    publish_file(part, path)


def _receive(url: str, part: Path, validator: Path, name: str) -> dict[str, str]:
    """One connection's worth of bytes appended to `part`; returns the answer's headers. Raises ConnectionError if it
    ends early.
    """
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() and validator.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "lm-human-preferences", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator.read_text())
    redirects = _RememberLinked()
    with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as response:
        headers = {key.lower(): value for key, value in response.headers.items()} | redirects.linked
        if headers.get("content-type", "").startswith("text/html"):
            raise UserError(f"{url}: the server answers with a web page, not with {name}; is the address right?")
        if response.status != 206:
            start = 0
        etag = headers.get("etag", "")
        if etag and not etag.startswith("W/"):
            validator.write_text(etag)
        else:
            validator.unlink(missing_ok=True)  # nothing tells whether a rest would belong to this beginning
        total = start + int(headers["content-length"]) if "content-length" in headers else None
        have = start
        with (
            _opened(part, start) as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar,
        ):
            while chunk := response.read(_CHUNK):
                _write(file, chunk, part)
                bar.update(len(chunk))
                have += len(chunk)
    if total is not None and have < total:
        raise ConnectionError(f"{total - have:,} of {total:,} bytes are missing")
    # Azure's Content-MD5 is that of the bytes it sends; of the whole file where only a part is sent, it says so under
    # another name.
    md5 = headers.get("x-ms-blob-content-md5") or (headers.get("content-md5") if response.status != 206 else None)
    return headers | {"total": str(total) if total is not None else "", "whole-md5": md5 or ""}


def _opened(part: Path, start: int) -> io.FileIO:
    """`part` open for writing from `start` on, without a buffer whose last bytes could still fail. UserError if it
    cannot be.
    """
    try:
        file = open(part, "r+b" if start else "wb", buffering=0)
        file.seek(start)
    except OSError as error:
        raise UserError(f"{part}: cannot be written: {error.strerror or error}") from None
    return file


def _write(file: io.FileIO, chunk: bytes, part: Path) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise UserError(
            f"{part}: cannot be written: {error.strerror or error}; make room and run the command again"
        ) from None


def _verify(url: str, part: Path, headers: dict[str, str], digest: str | None) -> None:
    size, expected = part.stat().st_size, headers.get("x-linked-size") or headers["total"]
    if expected and size != int(expected):
        raise UserError(f"{url}: {size:,} bytes came, {expected} were announced; run the command again")
    linked = headers.get("x-linked-etag", "").strip('"')
    for wanted in (digest, linked if len(linked) == 64 else None):
        if wanted and sha256(part) != wanted:
            raise UserError(
                f"{url}: SHA-256 is {sha256(part)}, expected {wanted}; it was damaged on its way or is another file"
            )
    if headers["whole-md5"]:
        with open(part, "rb") as file:
            have = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
        if have != headers["whole-md5"]:
            raise UserError(f"{url}: its MD5 is not the one the server publishes; run the command again")
