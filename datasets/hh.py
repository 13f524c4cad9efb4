"""Dialogues of people with an assistant, each with a better and a worse last answer, for the task helpful.

    python datasets/hh.py                                      helpful-base of Anthropic/hh-rlhf
    python datasets/hh.py --subset helpful-base,helpful-online
    python datasets/hh.py --input FOLDER                       the same files on disk

FOLDER holds SUBSET/train.jsonl.gz and SUBSET/test.jsonl.gz, or train.jsonl.gz and test.jsonl.gz themselves, gzipped or
not: a line a pair of whole dialogues, {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...} (Bai et al.
2022, arXiv 2204.05862). What is written (S is each of train, valid, test; valid is a part of the source's train split,
by a hash of what the human says first; what begins as a dialogue of the test split does is left out of train and
valid):

    S.bin, S.idx.npy              token file: what humans say first, where it is short (--characters), each once; in
                                  the train split the first ones (--prompts)
    references_S.bin, .idx.npy    token file: the assistant's answer to each, for train_sft
    chosen_S.bin, .idx.npy        token file: the chosen dialogues, whole, for perplexity
    labels_S.jsonl                the better of two answers, the query without the first "Human:" and the last
                                  "Assistant:", so that the query of a first turn is what the task's queries are
    dialogues_S.jsonl             the same labels with all marks: query + response is the dialogue
    meta.json                     source, counts and digests

In both label files the first response is the chosen one. A query is what both dialogues begin with, up to the last
answer; where they part earlier there is no label.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.dialogues import ASSISTANT, HUMAN, first_human_turn, split_pair, turns
from lm_human_preferences.data.documents import Document, SplitRule
from lm_human_preferences.data.exchange.reading import whole_characters
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_labelled_dataset
from lm_human_preferences.data.prepared_labels import PreparedLabels
from lm_human_preferences.data.queries import downloads_folder
from lm_human_preferences.data.sources import fingerprint
from lm_human_preferences.foundation.downloads import cached
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.language.encoding import gpt2_encoding

REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
ADDRESS = f"https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/{REVISION}"
SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")
SPLITS = ("train", "valid", "test")
VALID = 5.0  # percent of the source's train split that become valid
CHARACTERS, PROMPTS = 100, 6400  # the DLite tutorial's


class Dialogues(NamedTuple):
    """One pair, and the split that the source has it in: train or test."""

    split: str
    chosen: str
    rejected: str


class Limits(NamedTuple):
    """What is too long, or too much."""

    characters: int  # of a prompt, fewer than these
    prompts: int  # of the train split
    query_tokens: int  # of a label's query with its marks


# --- sources ---


def find_files(folder: Path, subsets: list[str]) -> list[tuple[str, Path]]:
    """(split, file) of what --input names, the test split's first. UserError for what is missing."""
    found = []
    for split in ("test", "train"):
        for subset in subsets:
            names = (f"{subset}/{split}.jsonl.gz", f"{subset}/{split}.jsonl", f"{split}.jsonl.gz", f"{split}.jsonl")
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is None:
                raise UserError(f"--input {folder} holds no {names[0]}; expected it there, or {names[2]}")
            if (split, path) not in found:
                found.append((split, path))
    return found


def fetch_files(address: str, subsets: list[str]) -> list[tuple[str, Path]]:
    """(split, file) of each subset, fetched where it is not there yet."""
    return [
        (split, cached(f"{address}/{subset}/{split}.jsonl.gz", downloads_folder()))
        for split in ("test", "train")
        for subset in subsets
    ]


def read_pairs(files: list[tuple[str, Path]], limit: int | None) -> Iterator[Dialogues]:
    """All pairs. UserError names file and record of one that is not as it should be."""
    for split, path in files:
        with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=split, disable=None) as bar:
            for where, record in islice(read_records(path, progress=bar.update), limit):
                texts = [record.get(key) if isinstance(record, dict) else None for key in ("chosen", "rejected")]
                if not all(isinstance(text, str) for text in texts):
                    raise UserError(f"{where}: expected an object with two dialogues, 'chosen' and 'rejected'")
                if not any(turns(text) for text in texts):
                    raise UserError(f"{where}: expected dialogues that begin with {HUMAN!r}, found {texts[0][:40]!r}")
                yield Dialogues(split, *map(whole_characters, texts))


# --- documents and labels ---


def first_answer(dialogue: str) -> str:
    """What the assistant says first; "" where that is nothing."""
    return next((turn.text.strip() for turn in turns(dialogue) or [] if turn.speaker == ASSISTANT), "")


def without_marks(query: str) -> str:
    """A query without the marks that it begins and ends with."""
    return query.removeprefix(HUMAN).removesuffix(ASSISTANT).strip()


def add_labels(pair: Dialogues, split: str, limits: Limits, labels: PreparedLabels) -> None:
    """The pair as a label in both forms, or counted as left out."""
    found = split_pair(pair.chosen, pair.rejected)
    if found is None or any(HUMAN in text or ASSISTANT in text for text in found[1:]):
        labels.leave_out("pairs of dialogues that part before their last answer, as labels")
    elif found.chosen.strip() == found.rejected.strip():
        labels.leave_out("pairs of equal dialogues, as labels")
    elif not found.chosen.strip() or not found.rejected.strip():
        labels.leave_out("pairs with an empty answer, as labels")
    elif len(gpt2_encoding().encode(found.query)) > limits.query_tokens:
        labels.leave_out(f"pairs with more than {limits.query_tokens} tokens before the last answer, as labels")
    else:
        marked, plain = [found.chosen, found.rejected], [found.chosen.strip(), found.rejected.strip()]
        labels.add(f"dialogues_{split}", {"query": found.query, "responses": marked, "best": 0})
        labels.add(f"labels_{split}", {"query": without_marks(found.query), "responses": plain, "best": 0})


def documents(
    pairs: Iterator[Dialogues], rule: SplitRule, limits: Limits, labels: PreparedLabels
) -> Iterator[Document]:
    """The first turns with their answers, and the chosen dialogues; labels go to the label files."""
    tested: set[str] = set()  # first turns of the source's test split
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for pair in pairs:
        turn = first_human_turn(pair.chosen)
        if turn is None:
            labels.leave_out("dialogues that no human begins")
            continue
        split = rule.with_valid(turn, pair.split, VALID)
        if split == "test":
            tested.add(turn)
        elif turn in tested:
            labels.leave_out("pairs of train that begin as one of test does")
            continue
        yield Document(f"chosen_{split}", pair.chosen)
        add_labels(pair, split, limits, labels)
        full = split == "train" and len(seen[split]) >= limits.prompts
        if len(turn) < limits.characters and turn not in seen[split] and not full:
            seen[split].add(turn)
            yield Document(split, turn, first_answer(pair.chosen))


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="FOLDER", help="folder with the files, instead of a download")
    parser.add_argument("--url", default=ADDRESS, help="download the files from this address instead (a mirror)")
    parser.add_argument(
        "--subset",
        default=SUBSETS[0],
        metavar="NAMES",
        help=f"parts of the data set, with commas between: {', '.join(SUBSETS)} (default: {SUBSETS[0]})",
    )
    parser.add_argument(
        "--characters",
        type=int,
        default=CHARACTERS,
        metavar="N",
        help=f"a prompt has fewer characters than this (default: {CHARACTERS})",
    )
    parser.add_argument(
        "--prompts", type=int, default=PROMPTS, metavar="N", help=f"prompts to train on (default: {PROMPTS})"
    )
    parser.add_argument(
        "--query_tokens", type=int, default=256, metavar="N", help="most tokens of a label's query (default: 256)"
    )
    add_arguments(parser, "hh", "source")
    arguments = parser.parse_args()
    rule = check_arguments(arguments)
    limits = Limits(arguments.characters, arguments.prompts, arguments.query_tokens)
    for name, value, least in zip(("characters", "prompts", "query_tokens"), limits, (2, 1, 1), strict=True):
        if value < least:
            raise UserError(f"--{name} {value}: expected a number from {least} up")
    subsets = [name.strip() for name in arguments.subset.split(",")]
    if arguments.input is None:
        for name in subsets:
            if name not in SUBSETS:
                raise UserError(f"--subset {name}: expected {', '.join(SUBSETS)}")
        files = fetch_files(arguments.url, subsets)
    else:
        files = find_files(arguments.input, subsets)
    recipe = Recipe(
        1,
        "MIT",
        SPLITS,
        references=True,
        others=tuple(f"chosen_{split}" for split in SPLITS),
        labels=tuple(f"{name}_{split}" for name in ("labels", "dialogues") for split in SPLITS),
    )
    prepare_labelled_dataset(
        recipe,
        arguments,
        {f"{path.parent.name}/{path.name}": fingerprint(path) for _, path in files},
        lambda labels: documents(read_pairs(files, arguments.limit), rule, limits, labels),
        limits=limits._asdict(),
    )


if __name__ == "__main__":
    main()
