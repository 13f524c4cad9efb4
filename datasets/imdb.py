"""Film reviews that are for a film or against it, for the task imdb.

    python datasets/imdb.py                    stanfordnlp/imdb from the Hugging Face hub
    python datasets/imdb.py --archive          its authors' archive, 84 MB, from their address
    python datasets/imdb.py --input aclImdb    the archive on disk, packed or unpacked, or any folder of the same form

The first needs the package datasets. The archive is aclImdb_v1.tar.gz (A. Maas et al. 2011, "Learning Word Vectors for
Sentiment Analysis"); in it train/pos, train/neg, test/pos and test/neg hold a review a file. A folder with pos and neg
alone, of anybody's texts, serves too. A review that came before, in the same words, is left out; the test split is read
first. What is written (S is each of train, valid, test; valid is a part
of the source's train split, by a hash of the text):

    S.bin, S.idx.npy              token file: the reviews, each closed by <|endoftext|>, for train_sft
    queries_S.bin, .idx.npy       token file: the reviews' first words, which the policy goes on from
    ratings_S.jsonl               the same words as query, the rest of the review as response, 1 for it or 0 against it
                                  as score: labels of type scalar_rating
    meta.json                     source, counts and digests
"""

import argparse
import hashlib
import re
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.documents import Document, SplitRule
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_labelled_dataset
from lm_human_preferences.data.prepared_labels import PreparedLabels
from lm_human_preferences.data.queries import downloads_folder
from lm_human_preferences.data.sources import fingerprint, hub_fingerprint, hub_records
from lm_human_preferences.foundation.downloads import download
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.language.encoding import gpt2_encoding

HUB = "stanfordnlp/imdb"
ARCHIVE = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
DIGEST = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"  # SHA-256 of the archive
SPLITS = ("train", "valid", "test")
SIDES = {"pos": 1, "neg": 0}
VALID = 5.0  # percent of the source's train split that become valid
WORDS = 4  # trlX's ppo_sentiments


class Review(NamedTuple):
    """One review; `positive` is 1 for the film, 0 against it."""

    split: str  # the source's own, train or test
    text: str
    positive: int


# --- sources ---


def from_hub(name: str, limit: int | None) -> Iterator[Review]:
    """The labelled reviews, those of the test split first. UserError names the row that is not as it should be."""
    for split in ("test", "train"):
        for where, row in hub_records(name, None, split, None, limit):
            if not isinstance(row.get("text"), str) or row.get("label") not in (0, 1):
                raise UserError(
                    f"{where}: expected a text in the column 'text' and 0 or 1 in the column 'label'; it has "
                    f"{', '.join(row)}"
                )
            yield Review(split, row["text"], int(row["label"]))


def from_folder(folder: Path, rule: SplitRule, limit: int | None) -> Iterator[Review]:
    """The reviews below `folder`, those of the test split first. UserError names the file that is not as it should
    be.
    """
    for split, place in places(folder, rule).items():
        files = sorted((file for side in SIDES for file in (place / side).glob("*.txt")), key=order)
        for file in tqdm(files[:limit], desc=split, unit="review", disable=None):
            yield Review(split, decoded(file.read_bytes(), str(file)), SIDES[file.parent.name])


def from_archive(path: Path, limit: int | None) -> Iterator[Review]:
    """The reviews in aclImdb's archive, in the order of `from_folder`; nothing is unpacked to disk. UserError for
    another file, or a review that is not as it should be.
    """
    reviews: dict[str, list[tuple[str, Review]]] = {"test": [], "train": []}
    try:
        with tarfile.open(path, "r:gz") as archive, tqdm(desc=path.name, unit="review", disable=None) as bar:
            for member in archive:
                *_, split, side, name = ("", "", "", *Path(member.name).parts)
                content = archive.extractfile(member) if member.isfile() and name.endswith(".txt") else None
                if content is None or split not in reviews or side not in SIDES:
                    continue
                where = f"{path}, {member.name}"
                review = Review(split, decoded(content.read(), where), SIDES[side])
                reviews[split].append((order(Path(side) / name), review))
                bar.update()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is truncated or no .tar.gz archive ({error}); fetch it again") from None
    for split, found in reviews.items():
        if {review.positive for _, review in found} != {0, 1}:
            raise UserError(f"{path}: expected reviews in {split}/pos and {split}/neg, a .txt file each")
        yield from (review for _, review in sorted(found)[:limit])


def decoded(content: bytes, where: str) -> str:
    """A review as text. UserError, beginning with `where`, for none."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise UserError(f"{where}: expected a review, found an empty file")
    return text


def places(folder: Path, rule: SplitRule) -> dict[str, Path]:
    """Where the reviews of each of the source's splits lie."""
    folder = folder / "aclImdb" if (folder / "aclImdb").is_dir() else folder
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        found = {"test": folder / "test", "train": folder / "train"}
    else:
        found = {"train": folder}
    for place in found.values():
        for side in SIDES:
            if not (place / side).is_dir():
                raise UserError(
                    f"--input {folder} holds no folder {(place / side).relative_to(folder)}: expected train/pos, "
                    "train/neg, test/pos and test/neg, or pos and neg, with a .txt file a review"
                )
            if next((place / side).glob("*.txt"), None) is None:
                raise UserError(f"{place / side} holds no review: expected .txt files")
    if "test" not in found and not (rule.valid and rule.test):
        raise UserError(
            f"--input {folder} has pos and neg but no train and test: give percentages above 0 for valid and test like "
            "--split 5,10"
        )
    return found


def order(file: Path) -> str:
    """Both sides in one order, so that the first N files are of both."""
    return hashlib.sha1(file.stem.encode("utf-8", "surrogateescape")).hexdigest() + file.parent.name


# --- documents and labels ---


def opening(text: str, words: int, tokens: int | None) -> tuple[str, str]:
    """The first words of a review, a space between them, and what follows; or its first `tokens` tokens as text."""
    if tokens is not None:
        encoding = gpt2_encoding()
        ids = encoding.encode(text[: 50 * tokens])[:tokens]
        while not text.startswith(query := encoding.decode(ids)):  # the last token is a part of a character
            ids.pop()
        return query, text[len(query) :]
    found = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+", text)
    return ("", "") if found is None else (" ".join(found[0].split()), text[found.end() :])


def documents(
    reviews: Iterable[Review], rule: SplitRule, words: int, tokens: int | None, labels: PreparedLabels
) -> Iterator[Document]:
    """Each review once and its opening; its rating goes to the label files. In the order of a hash of the text, since
    the source has one side after the other and a training takes the first ones of a label file.
    """
    different: dict[str, Review] = {}
    for review in reviews:
        if different.setdefault(review.text, review) is not review:
            labels.leave_out("reviews that came before")
    for review in sorted(different.values(), key=lambda review: hashlib.sha1(review.text.encode()).digest()):
        split = rule.with_valid(review.text, review.split, VALID)
        yield Document(split, review.text)
        query, rest = opening(review.text, words, tokens)
        if not rest.strip():
            labels.leave_out("reviews that end before a query does, as queries and ratings")
            continue
        yield Document(f"queries_{split}", query)
        labels.add(f"ratings_{split}", {"query": query, "responses": [rest], "score": float(review.positive)})


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", type=Path, metavar="PATH", help="folder with train and test, or with pos and neg, or the archive"
    )
    parser.add_argument("--archive", action="store_true", help="fetch the archive instead of the hub's data set")
    parser.add_argument("--url", default=ARCHIVE, help="fetch the archive from this address (a mirror)")
    parser.add_argument(
        "--hub",
        metavar="NAME",
        default=HUB,
        help=f"data set on the Hugging Face hub, or a folder of its files (default: {HUB})",
    )
    parser.add_argument(
        "--words", type=int, default=WORDS, metavar="N", help=f"words of a review in its query (default: {WORDS})"
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of a review in its query, instead of words")
    add_arguments(parser, "imdb", "source")
    arguments = parser.parse_args()
    rule = check_arguments(arguments)
    for name in ("words", "tokens"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: expected a number from 1 up")
    recipe = Recipe(
        1,
        "the reviews belong to their authors",
        SPLITS,
        end_of_text=True,
        others=tuple(f"queries_{split}" for split in SPLITS),
        labels=tuple(f"ratings_{split}" for split in SPLITS),
    )
    path = arguments.input
    if arguments.archive:
        if path is not None:
            raise UserError("--input and --archive exclude each other; give one of them")
        path = download(arguments.url, downloads_folder() / "aclImdb_v1.tar.gz", DIGEST)
    if path is None:
        source = {arguments.hub: hub_fingerprint(arguments.hub, None)}
    else:
        if path.is_dir():
            places(path, rule)
        source = {"reviews": fingerprint(path)}

    def reviews() -> Iterator[Review]:
        if path is None:
            return from_hub(arguments.hub, arguments.limit)
        if path.is_dir():
            return from_folder(path, rule, arguments.limit)
        return from_archive(path, arguments.limit)

    prepare_labelled_dataset(
        recipe,
        arguments,
        source,
        lambda labels: documents(reviews(), rule, arguments.words, arguments.tokens, labels),
        words=arguments.words,
        tokens=arguments.tokens,
    )


if __name__ == "__main__":
    main()
