"""What the scripts in datasets/ share: clean and encode documents in parallel, write token files, publish them whole,
do nothing twice.
"""

import argparse
import functools
import hashlib
import itertools
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lm_human_preferences.data.queries import TokenFileWriter, datasets_folder, write_meta
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import make_folder, read_json, sha256
from lm_human_preferences.language.encoding import gpt2_encoding

_BATCH_CHARACTERS = (
    400_000  # of text that a process takes at once: small enough to share out, large enough to be worth sending
)


class Document(NamedTuple):
    """One document of a split. `reference` is what people wrote in answer to it, a summary say; None where the data set
    has none.
    """

    split: str
    text: str
    reference: str | None = None


Clean = Callable[[str], str]


def unchanged(text: str) -> str:
    return text


# --- encoding in parallel ---


def encoded(
    documents: Iterable[Document],
    clean: Clean = unchanged,
    clean_reference: Clean = unchanged,
    end_of_text: bool = False,
    processes: int = 0,
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """(split, tokens, tokens of the reference) of each document, in order, as uint16 arrays; documents that are empty
    once cleaned are left out.

    The cleaning and encoding run in `processes` processes (0: one a core); the two cleaning functions must be
    importable by name.
    """
    work = functools.partial(_encode_batch, clean=clean, clean_reference=clean_reference, end_of_text=end_of_text)
    processes = processes or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    batches = _batches(iter(documents))
    if processes == 1:
        for batch in batches:
            yield from work(batch)
        return
    with ProcessPoolExecutor(processes) as pool:
        waiting: deque[Future] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > 2 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(
    documents: list[Document], clean: Clean, clean_reference: Clean, end_of_text: bool
) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    encoding, result = gpt2_encoding(), []
    for split, text, reference in documents:
        tokens = list(itertools.chain.from_iterable(encoding.encode(piece) for piece in pieces(clean(text))))
        if not tokens:
            continue
        if end_of_text:
            tokens.append(encoding.end_of_text)
        answer = None if reference is None else np.array(encoding.encode(clean_reference(reference)), np.uint16)
        result.append((split, np.array(tokens, np.uint16), answer))
    return result


def pieces(text: str, size: int = 50_000) -> Iterator[str]:
    """A long text in pieces whose tokens, one after the other, are those of the whole; short pieces are encoded faster.

    It is cut before blank lines: what precedes them ends there in GPT-2's pattern too.
    """
    start = 0
    while len(text) - start > size:
        cut = text.find("\n\n", start + size)
        while cut != -1 and text[cut - 1].isspace():
            cut = text.find("\n\n", cut + 1)
        if cut == -1:
            break
        yield text[start:cut]
        start = cut
    yield text[start:]


def write_splits(
    folder: Path,
    encoded_documents: Iterable[tuple[str, np.ndarray, np.ndarray | None]],
    splits: Iterable[str],
    references: bool = False,
) -> dict[str, dict]:
    """The token file of each split, and `references_<split>` beside it, document by document; returns what meta.json
    says of them.
    """
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(TokenFileWriter(folder, name))
            for split in splits
            for name in (split, *([f"references_{split}"] if references else []))
        }
        for split, tokens, reference in encoded_documents:
            writers[split].add(tokens)
            if references:
                writers[f"references_{split}"].add(reference)
    return {name: writer.entry() for name, writer in writers.items()}


# --- splits ---


def hash_percent(text: str) -> float:
    """A number in [0, 100) that depends on the text alone, to divide documents by."""
    return int(hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10_000 / 100


class SplitRule(NamedTuple):
    """`source` keeps the source's own splits; two percentages divide all documents by a hash of their text."""

    valid: float | None = None
    test: float | None = None

    @classmethod
    def parse(cls, text: str) -> "SplitRule":
        if text == "source":
            return cls()
        try:
            valid, test = (float(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"--split {text}: expected source, or percentages for valid and test like 1,1") from None
        if not (valid >= 0 and test >= 0 and valid + test < 100):
            raise UserError(
                f"--split {text}: the percentages for valid and test must not be negative and leave something to train "
                "on"
            )
        return cls(valid, test)

    def of(self, text: str, own: str) -> str:
        """The split of a document whose split in the source is `own`."""
        if self.valid is None:
            return own
        percent = hash_percent(text)
        return "valid" if percent < self.valid else "test" if percent < self.valid + self.test else "train"


# --- writing whole, once ---


def check_writable(folder: Path) -> None:
    """UserError, before any work is done, where `folder` cannot be made or written to; nothing is made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"cannot write to {folder}: {there} is a file; choose another folder with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: no permission; choose another folder with --output")


def publish(output: Path, write: Callable[[Path], Any]) -> Any:
    """What `write` makes in the empty folder it is given appears in `output`, files whole, meta.json last; returns its
    result.

    A run that was cut short is thus seen and repeated. What else lies in `output` stays.
    """
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    make_folder(output)
    staging = Path(tempfile.mkdtemp(dir=output, prefix=".new."))
    try:
        result = write(staging)
        for path in sorted(staging.iterdir(), key=lambda path: (path.name == "meta.json", path.name)):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(path, output / path.name)
        new = []
    except OSError as error:
        raise UserError(
            f"cannot write to {output}: {error.strerror or error}; make room or choose another folder with --output"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in itertools.takewhile(lambda folder: not any(folder.iterdir()), new):
            folder.rmdir()
    return result


def is_complete(output: Path, about: dict) -> bool:
    """Whether `output` holds what `about` describes, every file with the digest that meta.json gives for it."""
    try:
        meta = read_json(output / "meta.json")
        return all(meta.get(key) == value for key, value in about.items()) and all(
            (output / name).is_file() and sha256(output / name) == digest for name, digest in meta["files"].items()
        )
    except (UserError, KeyError, AttributeError, OSError):
        return False


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, for meta.json's `files`."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


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


class Recipe(NamedTuple):
    """What a preparation script has of its own; `prepare` does the rest."""

    version: int  # raise it whenever the same source would give different files
    licence: str
    splits: tuple[str, ...]
    references: bool = False
    needed_reference: str = ""  # what a reference is, where a split in which no document has one is an error
    end_of_text: bool = False
    clean: Clean = unchanged
    clean_reference: Clean = unchanged


def add_arguments(parser: argparse.ArgumentParser, name: str, split: str) -> None:
    """The options that all scripts have; `split` is the default rule."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=datasets_folder() / name,
        help=f"folder to write to (default: datasets/{name})",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="read the first N documents of each of the source's splits only"
    )
    parser.add_argument(
        "--split",
        metavar="RULE",
        default=split,
        help=f"source: the source's own splits; or VALID,TEST: percentages by a hash of the text (default: {split})",
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="processes that clean and encode (default: one a core)"
    )
    parser.add_argument("--force", action="store_true", help="make everything again even where it is complete")


def check_arguments(arguments: argparse.Namespace) -> SplitRule:
    """The rule of splitting. Raises UserError for arguments that cannot work, before anything is read."""
    for name in ("limit", "processes"):
        value = getattr(arguments, name)
        if value is not None and value < (name == "limit"):
            raise UserError(
                f"--{name} {value}: expected {'a number from 1 up' if name == 'limit' else 'a number from 0 up'}"
            )
    if getattr(arguments, "input", None) is not None and not arguments.input.exists():
        raise UserError(f"--input {arguments.input} does not exist")
    check_writable(arguments.output)
    return SplitRule.parse(arguments.split)


def prepare(
    recipe: Recipe,
    arguments: argparse.Namespace,
    source: dict[str, str],
    documents: Callable[[], Iterable[Document]],
    **settings,
) -> None:
    """Make the data set in `arguments.output`, or do nothing where it is there already.

    source: what was read, by name (paths with their fingerprints, addresses); settings: what else the result depends
    on. Raises UserError if a split would have no document, or lack all of the references that it needs.
    """
    about = {"recipe": recipe.version, "limit": arguments.limit, "split": arguments.split, "inputs": source} | settings
    if not arguments.force and is_complete(arguments.output, about):
        print(f"nothing to do: {arguments.output} is complete (--force makes it again)")
        return

    def write(folder: Path) -> dict[str, dict]:
        rows = encoded(documents(), recipe.clean, recipe.clean_reference, recipe.end_of_text, arguments.processes)
        splits = write_splits(folder, rows, recipe.splits, recipe.references)
        for split in recipe.splits:
            if not splits[split]["documents"]:
                raise UserError(
                    f"the source has no document for the split {split}; give more of it, or another --split than "
                    f"{arguments.split}"
                )
            if recipe.needed_reference and not splits[f"references_{split}"]["tokens"]:
                raise UserError(f"no document of the split {split} has a {recipe.needed_reference}")
        write_meta(
            folder, source=", ".join(source), licence=recipe.licence, splits=splits, **about, files=file_digests(folder)
        )
        return splits

    for name, counts in publish(arguments.output, write).items():
        print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")


# --- sources ---


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
    """Rows of a data set on the Hugging Face hub, or in a local folder of its files, streamed; needs the package
    datasets.

    Raises UserError if it cannot be had or a row lacks one of the columns.
    """
    try:
        import datasets

        if not hasattr(datasets, "load_dataset"):
            raise ImportError
    except ImportError:
        raise UserError(
            f"reading {name} needs the package datasets: pip install datasets; or give local files with --input"
        ) from None
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
        known = (rows.info.splits or {}).get(split)
        total = known.num_examples or None if known is not None else None
        with tqdm(
            total=min(total, limit) if total and limit else total or limit, desc=split, unit="row", disable=None
        ) as bar:
            for number, row in enumerate(itertools.islice(rows, limit)):
                for column in columns:
                    if not isinstance(row.get(column), str):
                        raise UserError(
                            f"{name}, split {split}, row {number}: expected a text in the column {column!r}; it has "
                            f"{', '.join(row)}"
                        )
                yield row
                bar.update()
    except UserError:
        raise
    except Exception as error:  # the package and its many back ends raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{name} could not be read from the hub ({reason}); try again, or give local files with --input"
        ) from None
