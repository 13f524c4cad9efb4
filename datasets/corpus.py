"""Token files for language-model training from a folder of text.

    python datasets/corpus.py --input FOLDER [--name NAME] [--sources A,B] [--valid_percent 1]

FOLDER holds .txt files (a document each) or .jsonl / .jsonl.gz files (a document a line, in the field `text`). Files whose name
starts with `valid` become the split `valid`; where there are none, every hundredth document (--valid_percent) by a hash of its text.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.errors import UserError, exit_on_user_error
from lm_human_preferences.files import make_folder
from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.queries import DATASETS_FOLDER, write_meta, write_token_file

BATCH_CHARACTERS = 4_000_000


def documents_of(path: Path, sources: frozenset[str] = frozenset()) -> Iterator[str]:
    """The texts in one file, of `sources` alone if any are named (a .txt has none). UserError names file, line and what was expected."""
    if path.suffix == ".txt":
        if sources:
            return
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        return
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                document = json.loads(line)
                if not isinstance(document["text"], str):
                    raise TypeError
                if not sources or document.get("source") in sources:
                    yield document["text"]
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: damaged after line {number}: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} after line {number})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}, line {number}: expected a JSON object with a string field 'text'") from None


def encoded(texts: Iterator[str]) -> Iterator[list[int]]:
    """Token ids of each text, closed by <|endoftext|>; long texts are encoded in pieces, for speed."""
    encoding = gpt2_encoding()
    while batch := list(_take_characters(texts)):
        pieces, owners = [], []
        for number, text in enumerate(batch):
            for piece in _pieces(text):
                pieces.append(piece)
                owners.append(number)
        joined: list[list[int]] = [[] for _ in batch]
        for owner, tokens in zip(owners, encoding.encode_batch(pieces), strict=True):
            joined[owner].extend(tokens)
        for tokens in joined:
            yield tokens + [encoding.end_of_text]


def _take_characters(texts: Iterator[str]) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text)
        if taken > BATCH_CHARACTERS:
            return


def _pieces(text: str, size: int = 50_000) -> Iterator[str]:
    """Cut before a blank line: what precedes it ends there in GPT-2's pattern too, so the tokens are those of the whole text."""
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


def prepare(folder: Path, output: Path, valid_percent: float, sources: frozenset[str] = frozenset()) -> dict[str, dict]:
    """Write both splits; returns what meta.json says of them. UserError if one would have no document."""
    files = sorted(path for pattern in ("*.txt", "*.jsonl", "*.jsonl.gz") for path in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} holds no .txt, .jsonl or .jsonl.gz file")
    valid_files = [path for path in files if path.name.startswith("valid")]
    groups = {"train": [path for path in files if path not in valid_files], "valid": valid_files}
    splits = {}
    for split in ("train", "valid"):
        with tqdm(groups[split] if valid_files else files, desc=split, unit="file", disable=None) as paths:
            texts = itertools.chain.from_iterable(documents_of(path, sources) for path in paths)
            if not valid_files:
                texts = (text for text in texts if _is_valid(text, valid_percent) == (split == "valid"))
            splits[split] = write_token_file(output, split, encoded(texts))
        if not splits[split]["documents"]:
            raise UserError(f"{folder} has no document for the split {split}" + (f" of the sources {', '.join(sorted(sources))}" if sources else ""))
        print(f"{split}: {splits[split]['documents']:,} documents, {splits[split]['tokens']:,} tokens")
    return splits


def _is_valid(text: str, percent: float) -> bool:
    return int(hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10_000 < percent * 100


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with the texts")
    parser.add_argument("--name", default="corpus", help="the data set's name: it is written to datasets/NAME")
    parser.add_argument("--output", type=Path, help="folder to write to instead of datasets/NAME")
    parser.add_argument("--sources", type=lambda words: frozenset(words.split(",")), default=frozenset(),
                        help="take only documents whose field `source` is one of these (.jsonl)")
    parser.add_argument("--valid_percent", type=float, default=1.0, help="share of documents held out where no file is named valid*")
    arguments = parser.parse_args()
    if not arguments.input.is_dir():
        raise UserError(f"--input {arguments.input} is no folder")
    output = arguments.output or DATASETS_FOLDER / arguments.name
    beside = output if output.is_dir() else make_folder(output.parent)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".corpus.") as temporary:
        splits = prepare(arguments.input, Path(temporary), arguments.valid_percent, arguments.sources)
        write_meta(Path(temporary), source=arguments.input.resolve().name, licence="see the texts' own", splits=splits)
        make_folder(output)
        for path in Path(temporary).iterdir():  # file by file: what else lies in the folder is not ours to remove
            os.replace(path, output / path.name)


if __name__ == "__main__":
    main()
