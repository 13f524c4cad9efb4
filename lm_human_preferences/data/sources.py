"""Where the scripts in datasets/ read from: files and folders of the user's, packages, and data sets on the Hugging
Face hub.
"""

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import sha256


def fingerprint(path: Path) -> str:
    """What tells one input from another: a file's SHA-256; of a folder, a digest of its files' names, sizes and
    times.
    """
    if path.is_file():
        return sha256(path)
    listing = sorted(
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    )
    return hashlib.sha256(repr(listing).encode()).hexdigest()


def input_files(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files an --input names: itself, or those of a folder that fit a pattern. Raises UserError if there are
    none.
    """
    files = [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))
    if not files:
        raise UserError(f"--input {path} holds no {', '.join(patterns)}")
    return files


def read_text(path: Path) -> str:
    """A text file. Raises UserError, naming the place, if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # without the byte order mark that some editors begin with
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror or error}") from None


def hub_fingerprint(name: str, revision: str | None) -> str:
    """What tells one data set of the hub from another: its revision; of a local folder, its files."""
    return fingerprint(Path(name)) if Path(name).is_dir() else f"hub, {revision or 'newest'}"


def hub_rows(
    name: str, config: str | None, split: str, revision: str | None, columns: tuple[str, ...], limit: int | None
) -> Iterator[dict[str, str]]:
    """Rows of texts of a data set on the Hugging Face hub. Raises UserError if it cannot be had or a row lacks one of
    the columns.
    """
    for where, row in hub_records(name, config, split, revision, limit):
        for column in columns:
            if not isinstance(row.get(column), str):
                raise UserError(f"{where}: expected a text in the column {column!r}; it has {', '.join(row)}")
        yield row


def hub_records(
    name: str, config: str | None, split: str, revision: str | None, limit: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each row of a data set on the Hugging Face hub, or in a local folder of its files, streamed;
    `where` is for messages. Needs the package datasets. Raises UserError if it cannot be had.
    """
    try:
        import datasets

        if not hasattr(datasets, "load_dataset"):
            raise ImportError
    except ImportError:
        raise UserError(
            f"reading {name} needs the package datasets: pip install datasets; or give local files with --input"
        ) from None
    datasets.disable_progress_bars()  # type: ignore[attr-defined]  # mypy takes our folder datasets/ for the package
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
        known = (rows.info.splits or {}).get(split)
        total = known.num_examples or None if known is not None else None
        with tqdm(
            total=min(total, limit) if total and limit else total or limit, desc=split, unit="row", disable=None
        ) as bar:
            for number, row in enumerate(itertools.islice(rows, limit)):
                yield f"{name}, split {split}, row {number}", row
                bar.update()
    except UserError:
        raise
    except Exception as error:  # the package and its many back ends raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{name} could not be read from the hub ({reason}); try again, or give local files with --input"
        ) from None


def pip_download(package: str, digest: str, folder: Path, wheel: bool) -> Path:
    """The distribution of `package` (name==version) with that SHA-256, fetched into `folder` by this interpreter's pip
    without what it depends on; nothing of it runs but, for a source distribution, the building of its metadata.

    That pip does in a fresh environment, or, where that fails, with the setuptools at hand. Raises UserError where pip
    cannot have it.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{package} --hash=sha256:{digest}\n")
    kind = ["--only-binary", ":all:"] if wheel else ["--no-binary", package.partition("==")[0]]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *kind, "--require-hashes", "--no-input"]
    command += ["--retries", "2", "--timeout", "20", "-r", str(pinned), "-d", str(folder)]
    reasons = []
    for isolation in ([], [] if wheel else ["--no-build-isolation"]):
        done = subprocess.run(command + isolation, capture_output=True, text=True, errors="replace")
        found = sorted(folder.glob("*.whl" if wheel else "*.tar.gz"))
        if done.returncode == 0 and found:
            return found[0]
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error:")]
        reasons.append((errors or lines[-1:] or ["no message"])[0])
    raise UserError(
        f"pip could not download {package} ({reasons[0][:200]}); where there is no network, fetch its "
        f"{'.whl' if wheel else '.tar.gz'} elsewhere and give it with --input"
    )
