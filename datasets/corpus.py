"""Token files for language-model training from a folder of text.

    python datasets/corpus.py --input FOLDER [--name NAME] [--sources A,B] [--valid_percent 1]

FOLDER holds .txt files (a document each) or .jsonl / .jsonl.gz files (a document a line, in the field `text`). Files
whose name starts with `valid` become the split `valid`; where there are none, every hundredth document
(--valid_percent) by a hash of its text.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.preparation import (
    Document,
    check_writable,
    encoded,
    hash_percent,
    publish,
    read_text,
    write_splits,
)
from lm_human_preferences.data.queries import DATASETS_FOLDER, write_meta
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.records import read_records

SPLITS = ("train", "valid")


def documents_of(path: Path, bar: tqdm, sources: frozenset[str] = frozenset()) -> Iterator[str]:
    """The texts in one file, of `sources` alone if any are named (a .txt has none). UserError names file, line and what
    was expected.
    """
    if path.suffix == ".txt":
        bar.update(path.stat().st_size)
        if sources:
            return
        yield read_text(path)
        return
    for where, document in read_records(path, progress=bar.update):
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise UserError(f"{where}: expected a JSON object with a string field 'text'")
        if not sources or document.get("source") in sources:
            yield document["text"]


def documents(folder: Path, valid_percent: float, sources: frozenset[str]) -> Iterator[Document]:
    """Every document of a folder with its split."""
    files = sorted(path for pattern in ("*.txt", "*.jsonl", "*.jsonl.gz") for path in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} holds no .txt, .jsonl or .jsonl.gz file")
    named = any(path.name.startswith("valid") for path in files)
    with tqdm(
        total=sum(path.stat().st_size for path in files), unit="B", unit_scale=True, desc="corpus", disable=None
    ) as bar:
        for path in files:
            for text in documents_of(path, bar, sources):
                held_out = path.name.startswith("valid") if named else hash_percent(text) < valid_percent
                yield Document("valid" if held_out else "train", text)


def write(folder: Path, source: Path, valid_percent: float, sources: frozenset[str], processes: int) -> dict[str, dict]:
    """Both splits and meta.json into `folder`. UserError if a split would have no document."""
    rows = encoded(documents(source, valid_percent, sources), end_of_text=True, processes=processes)
    splits = write_splits(folder, rows, SPLITS)
    for split, counts in splits.items():
        if not counts["documents"]:
            raise UserError(
                f"{source} has no document for the split {split}"
                + (f" of the sources {', '.join(sorted(sources))}" if sources else "")
            )
    write_meta(folder, source=source.resolve().name, licence="see the texts' own", splits=splits)
    return splits


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with the texts")
    parser.add_argument("--name", default="corpus", help="the data set's name: it is written to datasets/NAME")
    parser.add_argument("--output", type=Path, help="folder to write to instead of datasets/NAME")
    parser.add_argument(
        "--sources",
        type=lambda words: frozenset(words.split(",")),
        default=frozenset(),
        help="take only documents whose field `source` is one of these (.jsonl)",
    )
    parser.add_argument(
        "--valid_percent", type=float, default=1.0, help="share of documents held out where no file is named valid*"
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="processes that encode (default: one a core)"
    )
    arguments = parser.parse_args()
    if not arguments.input.is_dir():
        raise UserError(f"--input {arguments.input} is no folder")
    output = arguments.output or DATASETS_FOLDER / arguments.name
    check_writable(output)
    for split, counts in publish(
        output,
        lambda folder: write(folder, arguments.input, arguments.valid_percent, arguments.sources, arguments.processes),
    ).items():
        print(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")


if __name__ == "__main__":
    main()
