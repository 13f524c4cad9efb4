"""Choices among sentences that people rated, and how often a judge, a model or one person picks the right one.

They lie in a prepared data set: `labels_SPLIT.jsonl`, and the sentences that these name in `sentences.jsonl`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.calibration import top_shares
from lm_human_preferences.judging.ratings import rated_rows


@dataclass(frozen=True)
class RatedChoices:
    """Choices among four: sentence texts [n][4], each rating [n][4][m], and the index of the best, int64 [n]."""

    texts: list[list[str]]
    ratings: list[list[list[int]]]
    best: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


def load_choices(folder: Path, split: str) -> RatedChoices:
    """The choices of labels_SPLIT.jsonl with whole sentences, query included."""
    by_id = {row["id"]: row for row in rated_rows(Path(folder) / "sentences.jsonl")}
    labels = rated_rows(Path(folder) / f"labels_{split}.jsonl")
    if not labels:
        raise UserError(f"{folder} has no choices for {split!r}: prepare the data set from more sentences")
    return RatedChoices(
        [[by_id[number]["text"] for number in label["ids"]] for label in labels],
        [[by_id[number]["ratings"] for number in label["ids"]] for label in labels],
        np.array([label["best"] for label in labels]),
    )


def choice_credit(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """How right it is to choose by the highest score: `scores` [n, k], `best` int [n] -> [n] from 0 to 1.

    1 where the best alone scores highest, 0 where another scores higher, 1/m where m tie with it.
    """
    credit: np.ndarray = top_shares(np.asarray(scores))[np.arange(len(scores)), best]
    return credit


def choice_accuracy(rate: Callable[[list[str]], np.ndarray], choices: RatedChoices) -> np.ndarray:
    """Credit of choosing by `rate`, which gives one score a text; [n]. Each different text is rated once."""
    unique = {text: i for i, text in enumerate(dict.fromkeys(text for four in choices.texts for text in four))}
    scores = rate(list(unique))
    return choice_credit(scores[[[unique[text] for text in four] for four in choices.texts]], choices.best)


def rater_credit(ratings: Sequence[Sequence[int]], best: int) -> float:
    """The same for one person's ratings of four sentences, mean over persons: `ratings` [4][m], m may differ by
    sentence.

    Person j is the j-th rating of each sentence, as far as the shortest list goes. The person's own rating is part of
    the mean that says which sentence is best, which raises the figure a little.
    """
    persons = min(len(given) for given in ratings)
    scores = np.array([given[:persons] for given in ratings]).T  # [m, 4]
    return float(choice_credit(scores, np.full(persons, best)).mean())


def point(credits: np.ndarray) -> dict[str, float]:
    """Accuracy p of n choices and its standard error sqrt(p (1 - p) / n), which takes the choices for independent."""
    p, n = float(np.mean(credits)), len(credits)
    return {"accuracy": p, "standard_error": math.sqrt(p * (1 - p) / n)}
