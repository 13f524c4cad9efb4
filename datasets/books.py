"""Passages of books, for the tasks sentiment and descriptiveness.

    python datasets/books.py --limit 2000000      BookCorpus from the Hugging Face hub (needs the package datasets)
    python datasets/books.py --input PATH         your own: a file or a folder

Read from PATH: .txt (a book each; blank lines part paragraphs), .jsonl or .json, gzipped or not (a passage a record: a
text, or an object with the field `text`; that is the form of the original's own passages and is taken as it is). What
is written (S is each of train, valid, test):

    S.bin, S.idx.npy    token file: passages of at least --passage characters, each of which gives one query
    meta.json           source, counts and digests

A query begins after a passage's first full stop, which must be token 13 ('.'). BookCorpus on the hub is a sentence a
row, in lower case, with spaces before its marks, and ' .' is another token (764): so sentences are joined to passages
there and the spaces before marks removed.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.documents import Document, SplitRule, unchanged
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_dataset
from lm_human_preferences.data.sources import fingerprint, hub_fingerprint, hub_rows, input_files, read_text
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.records import read_records

HUB, REVISION = (
    "bookcorpus/bookcorpus",
    "refs/convert/parquet",
)  # the hub's own conversion: the data set itself is a script
PATTERNS = ("*.txt", "*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz")
PASSAGE = 700  # characters: a query of 64 tokens after the first sentence fits in nearly always

_MARKS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"``|''", '"'),
        (r" (?=[.,;:!?%)\]}])", ""),
        (r"(?<=[(\[{$]) ", ""),
        (r" (?=n't\b)", ""),
        (r" (?='(?:s|re|ve|ll|d|m)\b)", ""),
        (r"(?<=\w) - (?=\w)", "-"),
    )
]
_QUOTED = re.compile(r'"([^"]*)"')


def join_marks(text: str) -> str:
    """Text that a tokeniser took apart, together again: no space before marks and shortened verbs, quotes at their
    words.
    """
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    return _QUOTED.sub(lambda quoted: '"' + quoted[1].strip(" ") + '"', text)


def passages(parts: Iterable[str], least: int, separator: str) -> Iterator[str]:
    """Consecutive parts joined until they have `least` characters; what is left at the end is a passage if it has half
    of that.
    """
    joined, length = [], 0
    for part in parts:
        joined.append(part)
        length += len(part) + len(separator)
        if length >= least:
            yield separator.join(joined)
            joined, length = [], 0
    if length >= least / 2:
        yield separator.join(joined)


def paragraphs(book: str) -> Iterator[str]:
    """A book's paragraphs, each on one line."""
    for paragraph in re.split(r"\n\s*\n", book):
        if text := " ".join(paragraph.split()):
            yield text


def texts_in(path: Path, least: int, bar: tqdm) -> Iterator[str]:
    """The passages of one file. UserError names file and record of one that is not as it should be."""
    if path.suffix == ".txt":
        bar.update(path.stat().st_size)
        yield from passages(paragraphs(read_text(path)), least, "\n\n")
        return
    for where, record in read_records(path, progress=bar.update):
        text = record.get("text") if isinstance(record, dict) else record
        if not isinstance(text, str):
            raise UserError(f"{where}: expected a text, or an object with a text in 'text'")
        yield text


def from_files(files: list[Path], least: int, rule: SplitRule, limit: int | None) -> Iterator[Document]:
    with tqdm(
        total=sum(path.stat().st_size for path in files), unit="B", unit_scale=True, desc="books", disable=None
    ) as bar:
        for text in islice((text for path in files for text in texts_in(path, least, bar)), limit):
            yield Document(rule.of(text, "train"), text)


def from_hub(name: str, revision: str | None, least: int, rule: SplitRule, limit: int | None) -> Iterator[Document]:
    for text in passages(
        (row["text"] for row in hub_rows(name, None, "train", revision, ("text",), limit)), least, " "
    ):
        yield Document(rule.of(text, "train"), text)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="PATH", help="file or folder of text, instead of the hub")
    parser.add_argument(
        "--hub",
        metavar="NAME",
        default=HUB,
        help=f"data set on the Hugging Face hub, or a folder of its files (default: {HUB})",
    )
    parser.add_argument(
        "--passage", type=int, metavar="N", default=PASSAGE, help=f"least characters of a passage (default: {PASSAGE})"
    )
    add_arguments(parser, "books", "1,1")
    arguments = parser.parse_args()
    rule = check_arguments(arguments)
    if rule.valid is None or not rule.valid or not rule.test:
        raise UserError(
            f"--split {arguments.split}: books have no splits of their own; give percentages above 0 for valid and "
            "test like 1,1"
        )
    if arguments.passage < 1:
        raise UserError(f"--passage {arguments.passage}: expected a number of characters from 1 up")
    recipe = Recipe(
        2,
        "the books belong to their authors",
        ("train", "valid", "test"),
        clean=unchanged if arguments.input else join_marks,
    )
    if arguments.input is not None:
        files = input_files(arguments.input, PATTERNS)
        source = {path.name: fingerprint(path) for path in files}
        prepare_dataset(
            recipe,
            arguments,
            source,
            lambda: from_files(files, arguments.passage, rule, arguments.limit),
            passage=arguments.passage,
        )
    else:
        revision = REVISION if arguments.hub == HUB else None
        source = {arguments.hub: hub_fingerprint(arguments.hub, revision)}
        prepare_dataset(
            recipe,
            arguments,
            source,
            lambda: from_hub(arguments.hub, revision, arguments.passage, rule, arguments.limit),
            passage=arguments.passage,
        )


if __name__ == "__main__":
    main()
