"""What can be read off texts alone: how varied they are, what they copy from their source, and their overlap with a
reference (ROUGE).

Words are runs of letters and digits in lower case, apostrophes inside; punctuation does not count. The figures on
copying are in the manner of the paper's on what its summaries copy: sentences, n-grams and whole responses that occur
in the source, and where there.
"""

import functools
import re
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_human_preferences.foundation.errors import UserError

COPIED_NGRAMS = (1, 2, 3, 4)  # lengths, in words
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|sen|rep|gov|gen|lt|col|vs|inc|co|corp)|\b[a-z](?:\.[a-z])*)\.$", re.IGNORECASE
)


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """The text cut after . ! ? (and closing quotes) before white space, and at line ends; not after abbreviations and
    initials.

    Parts without a word are dropped.
    """
    parts, start = [], 0
    for end in _END.finditer(text):
        if not (end.group().startswith(".") and _ABBREVIATION.search(text[start : end.start() + 1])):
            parts.append(text[start : end.end()])
            start = end.end()
    return [part.strip() for part in (*parts, text[start:]) if words(part)]


def lead(text: str, n: int = 3) -> str:
    """The first `n` sentences of a text: as a summary of it, the lead-3 baseline."""
    return " ".join(sentences(text)[:n])


# --- copying ---


def copied_ngrams(source: str, text: str, n: int) -> tuple[int, int]:
    """How many of the n-grams of `text` occur in `source`, and how many there are (each occurrence counts)."""
    known, found = set(_ngrams(words(source), n)), _ngrams(words(text), n)
    return sum(gram in known for gram in found), len(found)


def copied_sentences(source: str, text: str) -> tuple[int, int]:
    """How many sentences of `text` occur in `source`, and how many there are. A sentence occurs if its words do, one
    after the other.
    """
    found = [_place(words(source), words(sentence)) for sentence in sentences(text)]
    return sum(place is not None for place in found), len(found)


def is_copied(source: str, text: str) -> bool:
    """Whether every sentence of `text` occurs in `source` (in any order); False for a text without words."""
    copied, total = copied_sentences(source, text)
    return copied == total > 0


def copy_places(source: str, text: str) -> list[float]:
    """Where in `source` each copied sentence of `text` begins, first occurrence: words before it over words of the
    source, 0 to below 1.
    """
    whole = words(source)
    found = (_place(whole, words(sentence)) for sentence in sentences(text))
    return [place / len(whole) for place in found if place is not None]


def _ngrams(items: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def _place(source: list[str], part: list[str]) -> int | None:
    """The index at which the words `part` first stand in `source` one after the other, None if nowhere."""
    joined = f" {' '.join(source)} "
    at = joined.find(f" {' '.join(part)} ")
    return None if at < 0 else joined.count(" ", 0, at)


# --- variety ---


class Distinct(NamedTuple):
    """Different n-grams over all n-grams of a set of responses, and what each response does to that number."""

    share: float
    pseudo_values: np.ndarray  # float64 [n], the jackknife's: n * share - (n - 1) * share without the response


def distinct(responses: Sequence[Sequence[int]], n: int) -> Distinct:
    """Distinct-n of responses given as tokens without padding; 0 where there are no n-grams."""
    grams = [_ngrams(response, n) for response in responses]
    owners: dict[tuple[Hashable, ...], set[int]] = {}
    for i, found in enumerate(grams):
        for gram in found:
            owners.setdefault(gram, set()).add(i)
    alone, counts = np.zeros(len(grams)), np.array([len(found) for found in grams], dtype=np.float64)
    for held_by in owners.values():
        if len(held_by) == 1:
            alone[next(iter(held_by))] += 1
    total = counts.sum()
    share = len(owners) / total if total else 0.0
    without = np.divide(len(owners) - alone, total - counts, out=np.zeros_like(alone), where=total > counts)
    return Distinct(share, len(grams) * share - (len(grams) - 1) * without)


def unrepeated(queries: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Of each response the share of its words that it has not used before, 1 for a response without words. As a judge
    (`lm_human_preferences.judging.text_metrics:unrepeated`) it sees what no judge of single words sees: the same praise
    over and over.
    """
    found = [words(response) for response in responses]
    return [len(set(row)) / len(row) if row else 1.0 for row in found]


# --- overlap with a reference ---

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def rouge(references: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE-1, -2 and -L of each text against its reference: F1 with Porter's stemmer, float64 [n] each. UserError
    without rouge-score.
    """
    scores = [_rouge_scorer().score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {name: np.array([score[theirs].fmeasure for score in scores]) for name, theirs in ROUGE.items()}


@functools.cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE needs the package rouge-score: pip install rouge-score") from None
    return RougeScorer(list(ROUGE.values()), use_stemmer=True)
