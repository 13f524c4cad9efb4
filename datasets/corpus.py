"""Token files for language-model training from a folder of text.

    python datasets/corpus.py --input FOLDER [--name NAME] [--sources A,B] [--weights A=2,B=0.5] [--drop_words FILE]
        [--valid_percent 1] [--test_percent 0]

FOLDER holds .txt files (a document each) or .jsonl / .jsonl.gz files (a document a line, in the field `text`). Files
whose name starts with `valid` become the split `valid`; where there are none, every hundredth document
(--valid_percent) by a hash of its text. Likewise the split `test`, of files whose name starts with `test` or of
--test_percent of the documents; with neither there is no such split.

A document of a source (its field `source`) with weight 2 is written twice to the split train; with weight 0.5 half of
its documents there are, chosen by another hash of their text. --drop_words leaves out, in all splits, each paragraph
that holds a word of a list; datasets/unwanted_words.txt is the list for old fiction.

Each document is closed by <|endoftext|>. Queries are the documents' beginnings, without that mark.
"""

import argparse
import itertools
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.documents import Document, SplitRule, encoded, hash_percent, write_splits
from lm_human_preferences.data.preparation import add_encoding_argument, check_writable, publish_dataset
from lm_human_preferences.data.queries import Splits, added_tokens_entry, datasets_folder, write_meta
from lm_human_preferences.data.sources import read_text
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.model_folders import encoding_named

HELD_OUT = ("valid", "test")


def files_in(folder: Path) -> list[Path]:
    """The files of text in a folder, in order of name. UserError if there are none."""
    files = sorted(path for pattern in ("*.txt", "*.jsonl", "*.jsonl.gz") for path in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} holds no .txt, .jsonl or .jsonl.gz file")
    return files


def check_percentages(valid: float, test: float) -> None:
    """UserError for shares of the documents that cannot be."""
    if not (valid >= 0 and test >= 0 and valid + test < 100):
        raise UserError(
            f"--valid_percent {valid:g} and --test_percent {test:g}: must not be negative and leave something to train "
            "on"
        )


def named_after(path: Path) -> str | None:
    """The split that a file's name begins with."""
    return next((split for split in HELD_OUT if path.name.startswith(split)), None)


def split_rule(files: list[Path], valid: float, test: float) -> SplitRule:
    """How documents are divided whose files are not named after a split: percentages, 0 for a split that has files."""
    named = {named_after(path) for path in files}
    return SplitRule(0.0 if "valid" in named else valid, 0.0 if "test" in named else test)


def parse_weights(words: str) -> dict[str, float]:
    """`A=2,B=0.5` -> how often a document of each source is written. UserError for anything else."""
    weights = {}
    for word in words.split(","):
        source, _, number = word.rpartition("=")
        try:
            weights[source] = float(number)
        except ValueError:
            weights[source] = math.nan
        if not (source and 0 <= weights[source] < math.inf):
            raise UserError(f"--weights {word}: expected SOURCE=WEIGHT, a weight of 0 or more, like novels=0.5")
    return weights


def copies(text: str, weight: float) -> int:
    """How often a document is written: the weight's whole part, and once more for its fraction of all documents, by
    another hash than that which divides the splits.
    """
    return int(weight) + (hash_percent(f"copies {text}") < 100 * (weight % 1))


class UnwantedWords:
    """Leaves out paragraphs that hold a word of a list, and counts them."""

    def __init__(self, path: Path):
        """path: a word a line, in any case; lines that begin with # are comments."""
        lines = (line.strip() for line in read_text(path).splitlines())
        words = [line for line in lines if line and not line.startswith("#")]
        if not words:
            raise UserError(f"--drop_words {path} holds no word; expected one a line")
        self.path, self.pattern = path, re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
        self.dropped = self.seen = 0

    def clean(self, text: str) -> str:
        """The text's other paragraphs (a blank line lies between paragraphs)."""
        paragraphs = text.split("\n\n")
        kept = [paragraph for paragraph in paragraphs if not self.pattern.search(paragraph)]
        self.seen += len(paragraphs)
        self.dropped += len(paragraphs) - len(kept)
        return "\n\n".join(kept)

    def say(self) -> None:
        share = self.dropped / max(1, self.seen)
        print(f"left out {self.dropped:,} of {self.seen:,} paragraphs ({share:.2%}) for words of {self.path}")


@dataclass(frozen=True)
class Mix:
    """What of the texts is taken, and how often."""

    sources: frozenset[str] = frozenset()  # all if empty
    weights: dict[str, float] = field(default_factory=dict)  # 1 where a source is not named
    unwanted: UnwantedWords | None = None

    def check(self, seen: set[str]) -> None:
        """UserError for a source that is chosen or weighed and that no document has."""
        for flag, named in (("--sources", self.sources), ("--weights", self.weights)):
            for name in sorted(set(named) - seen):
                raise UserError(
                    f"{flag} {name}: no document is of this source; {', '.join(sorted(seen)) or 'none'} are"
                )


def documents_of(path: Path, bar: tqdm) -> Iterator[tuple[str | None, str]]:
    """(source, text) of each document in one file; a .txt has no source. UserError names file, line and what was
    expected.
    """
    if path.suffix == ".txt":
        bar.update(path.stat().st_size)
        yield None, read_text(path)
        return
    for where, document in read_records(path, progress=bar.update):
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise UserError(f"{where}: expected a JSON object with a string field 'text'")
        source = document.get("source")
        yield source if isinstance(source, str) else None, document["text"]


def documents(files: list[Path], rule: SplitRule, mix: Mix) -> Iterator[Document]:
    """Every document that the mix takes, as often as it does, with its split. UserError for a source that is not there,
    when all files are read.
    """
    seen = set()
    with tqdm(
        total=sum(path.stat().st_size for path in files), unit="B", unit_scale=True, desc="corpus", disable=None
    ) as bar:
        for path in files:
            for source, text in documents_of(path, bar):
                if source is not None:
                    seen.add(source)
                if mix.sources and source not in mix.sources:
                    continue
                split = named_after(path) or rule.of(text, "train")
                count = copies(text, mix.weights.get(source or "", 1.0)) if split == "train" else 1
                document = Document(split, mix.unwanted.clean(text) if mix.unwanted and count else text)
                yield from itertools.repeat(document, count)
    mix.check(seen)


def write(
    folder: Path, source: Path, percentages: tuple[float, float], mix: Mix, processes: int, encoding: Encoding
) -> Splits:
    """The splits and meta.json into `folder`. UserError if a split would have no document."""
    files = files_in(source)
    rule = split_rule(files, *percentages)
    has_test = rule.test or any(named_after(path) == "test" for path in files)
    rows = encoded(documents(files, rule, mix), end_of_text=True, processes=processes, encoding=encoding)
    splits = write_splits(folder, rows, ("train", "valid", "test") if has_test else ("train", "valid"))
    for split, counts in splits.items():
        if not counts["documents"]:
            chosen = f" of the sources {', '.join(sorted(mix.sources))}" if mix.sources else ""
            more = f"--{split}_percent" if split != "train" else "fewer held out"
            remedy = f"give more texts, {more}, or a file whose name begins with {split}"
            raise UserError(f"{source} has no document for the split {split}{chosen}: {remedy}")
    added = added_tokens_entry(encoding)
    write_meta(folder, source=source.resolve().name, licence="see the texts' own", splits=splits, **added)
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
        "--weights",
        default="",
        metavar="SOURCE=WEIGHT,...",
        help="how often a source's documents are in the split train",
    )
    parser.add_argument(
        "--drop_words", type=Path, metavar="FILE", help="leave out paragraphs that hold one of these words, one a line"
    )
    parser.add_argument(
        "--valid_percent", type=float, default=1.0, help="share of documents held out where no file is named valid*"
    )
    parser.add_argument(
        "--test_percent",
        type=float,
        default=0.0,
        help="share of documents for the split test where no file is named test*",
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="processes that encode (default: one a core)"
    )
    add_encoding_argument(parser)
    arguments = parser.parse_args()
    encoding = encoding_named(arguments.encoding)
    if not arguments.input.is_dir():
        raise UserError(f"--input {arguments.input} is no folder")
    percentages = arguments.valid_percent, arguments.test_percent
    check_percentages(*percentages)
    if arguments.processes < 0:
        raise UserError(f"--processes {arguments.processes}: expected a number from 0 up")
    mix = Mix(
        arguments.sources,
        parse_weights(arguments.weights) if arguments.weights else {},
        UnwantedWords(arguments.drop_words) if arguments.drop_words else None,
    )
    output = arguments.output or datasets_folder() / arguments.name
    check_writable(output)
    splits = publish_dataset(
        output, lambda folder: write(folder, arguments.input, percentages, mix, arguments.processes, encoding)
    )
    if "test" not in splits:  # one of an earlier call would be of other documents, some of which may be trained on now
        for name in ("test.bin", "test.idx.npy"):
            (output / name).unlink(missing_ok=True)
    if mix.unwanted:
        mix.unwanted.say()
    for split, counts in splits.items():
        print(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")


if __name__ == "__main__":
    main()
