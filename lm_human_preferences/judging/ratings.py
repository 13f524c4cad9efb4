"""What a text is worth: a lexicon of feelings, and a linear model of people's ratings (tf-idf and ridge regression).

Ratings lie in `sentences.jsonl` of a prepared data set, a line a sentence: {"text": ..., "rating": mean, "split":
train, valid or test, ...}.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_human_preferences.data.queries import preparation_command
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.records import read_records

FOLDS = 5
ALPHAS = (0.1, 0.3, 1.0, 3.0)  # strengths of the ridge penalty to choose from


def rated_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of the data set. Raises UserError where it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: prepare the data set first ({preparation_command('movies')})")
    rows = []
    for where, row in read_records(path, "row"):
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected {{...}} in each line: prepare the data set again")
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Sentences:
    """Sentences of some splits: texts and, in the same order, mean ratings (float64 [n], -4 to +4)."""

    texts: list[str]
    ratings: np.ndarray


def load_sentences(folder: Path, splits: Sequence[str]) -> Sentences:
    """Those of `splits`. Raises UserError where `folder` holds no prepared data."""
    path = Path(folder) / "sentences.jsonl"
    try:
        rows = [row for row in rated_rows(path) if row["split"] in splits]
        ratings = np.array([row["rating"] for row in rows], dtype=np.float64)
        if ratings.ndim == 1 and np.isfinite(ratings).all():
            return Sentences([str(row["text"]) for row in rows], ratings)
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f'{path}: expected {{"text": text, "rating": number, "split": name}} in each line')


def held_out_sentences(folder: Path) -> Sentences:
    """Those of valid and test, on which judges are fitted: no label and no text that a model is trained on has any of
    them. Raises UserError where they are missing, too few or teach nothing.
    """
    data = load_sentences(folder, ["valid", "test"])
    if len(data.texts) < 2 * FOLDS:
        raise UserError(
            f"{folder} holds {len(data.texts)} held-out sentences, the judge needs at least {2 * FOLDS}: prepare more"
        )
    if not np.ptp(data.ratings):
        raise UserError(f"{folder}: all held-out sentences have the same rating, {data.ratings[0]:g}")
    return data


def folds_of(n: int) -> np.ndarray:
    """The fold of cross-validation in which each of n sentences is held out, int64 [n], always the same."""
    return np.random.RandomState(0).permutation(n) % FOLDS


def agreement(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of predicted with true ratings, float64 [n] both: {"pearson", "r2"}, the latter 1 − squared errors / variance."""
    errors, spread = ((truth - predicted) ** 2).sum(), ((truth - truth.mean()) ** 2).sum()
    return {"pearson": float(np.corrcoef(truth, predicted)[0, 1]), "r2": float(1 - errors / spread)}


def lexicon_scores(texts: list[str]) -> np.ndarray:
    """VADER's compound score of each text, float64 [n], -1 to +1. Raises UserError without the package."""
    analyzer = _lexicon()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


@functools.cache
def _lexicon() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError("the lexicon needs the package vaderSentiment: pip install vaderSentiment") from None
    return SentimentIntensityAnalyzer()


def linear_model(alpha: float, characters: bool) -> Any:
    """tf-idf of words and word pairs (and of 3 to 5 characters within words), then ridge regression. UserError without
    scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError:
        raise UserError("the linear models need the package scikit-learn: pip install scikit-learn") from None
    parts = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w[\w']*\b|[!?]")]
    if characters:
        parts.append(TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True))
    return make_pipeline(make_union(*parts), Ridge(alpha=alpha))


class HeldOutJudge:
    """Rates any text on the human scale, and has no part in training: it learns from the sentences of valid and test
    alone.

    A reward model never sees those, so the judge can tell whether a policy pleases people or only its reward model. Do
    not measure it on labels_valid or labels_test, which hold its own sentences; `cross_validation` says how good it is.
    """

    def __init__(self, data: Sentences):
        self.data = data
        predicted = self._cross_validate()
        self.alpha = max(ALPHAS, key=lambda alpha: agreement(predicted[alpha], data.ratings)["r2"])
        self.out_of_fold = predicted[self.alpha]  # float64 [n]
        self._model = linear_model(self.alpha, characters=True).fit(data.texts, data.ratings)

    @classmethod
    def fit(cls, folder: Path) -> "HeldOutJudge":
        """From a prepared data set. Raises UserError where that is missing, too small or teaches nothing, or
        scikit-learn is not installed.
        """
        data = held_out_sentences(folder)
        try:
            return cls(data)
        except ValueError as error:  # scikit-learn's, for texts without words
            raise UserError(f"{folder}: no judge can be made of its held-out sentences ({error})") from None

    def rate(self, texts: list[str]) -> np.ndarray:
        """The rating that people would give each text, float64 [n], -4 to +4; about the mean for a text without known
        words.
        """
        return np.clip(self._model.predict(texts), -4.0, 4.0) if texts else np.zeros(0)

    def cross_validation(self) -> dict[str, float]:
        """Agreement with the mean ratings of sentences that the judge was not fitted on (5 folds).

        Returns {"pearson", "r2", "alpha", "sentences"}; alpha was chosen by r2 in the same folds.
        """
        return {
            **agreement(self.out_of_fold, self.data.ratings),
            "alpha": self.alpha,
            "sentences": len(self.data.texts),
        }

    def _cross_validate(self) -> dict[float, np.ndarray]:
        """For each of ALPHAS the rating of each sentence by a model fitted without its fold, float64 [n]."""
        truth, folds = self.data.ratings, folds_of(len(self.data.texts))
        predicted = {alpha: np.empty_like(truth) for alpha in ALPHAS}
        for fold in range(FOLDS):
            held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
            models = {alpha: linear_model(alpha, characters=True) for alpha in ALPHAS}
            features = models[ALPHAS[0]][0]  # the same for all
            seen = features.fit_transform([self.data.texts[i] for i in rest])
            unseen = features.transform([self.data.texts[i] for i in held])
            for alpha, model in models.items():
                predicted[alpha][held] = model[-1].fit(seen, truth[rest]).predict(unseen)
        return predicted
