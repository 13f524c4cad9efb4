"""What a choice among four film-review sentences is worth: chance, a lexicon, a linear model, a person; and an independent judge.

    python datasets/movies_reference.py [--data FOLDER] [--json FILE] [--compare REWARD_RUN | --judge POLICY_RUN]

prints the share of labels_test on which each picks the sentence that people rated highest, and how well the judge's ratings
agree with people's. Import `reference_points` and `HeldOutJudge` to use the same numbers elsewhere.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lm_human_preferences.errors import UserError, exit_on_user_error
from lm_human_preferences.files import read_json, write_json
from lm_human_preferences.queries import DATASETS_FOLDER, preparation_command

FOLDS = 5
ALPHAS = (0.1, 0.3, 1.0, 3.0)  # strengths of the ridge penalty to choose from


# ---- the data


def _rows(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: prepare the data set first ({preparation_command('movies')})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON lines ({error}): prepare the data set again") from None


@dataclass(frozen=True)
class Sentences:
    """Sentences of some splits: texts and, in the same order, mean ratings (float64 [n], -4 to +4)."""
    texts: list[str]
    ratings: np.ndarray


def load_sentences(folder: Path, splits: Sequence[str]) -> Sentences:
    """Those of `splits`. Raises UserError where `folder` holds no prepared data."""
    rows = [row for row in _rows(Path(folder) / "sentences.jsonl") if row["split"] in splits]
    return Sentences([row["text"] for row in rows], np.array([row["rating"] for row in rows], dtype=np.float64))


@dataclass(frozen=True)
class Choices:
    """Choices among four: sentence texts [n][4], each person's ratings [n][4][m], and the index of the best, int64 [n]."""
    texts: list[list[str]]
    ratings: list[list[list[int]]]
    best: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


def load_choices(folder: Path, split: str) -> Choices:
    """The choices of labels_SPLIT.jsonl with whole sentences, query included."""
    by_id = {row["id"]: row for row in _rows(Path(folder) / "sentences.jsonl")}
    labels = _rows(Path(folder) / f"labels_{split}.jsonl")
    if not labels:
        raise UserError(f"{folder} has no choices for {split!r}: prepare the data set from more sentences")
    return Choices([[by_id[number]["text"] for number in label["ids"]] for label in labels],
                   [[by_id[number]["ratings"] for number in label["ids"]] for label in labels],
                   np.array([label["best"] for label in labels]))


# ---- arithmetic


def choice_credit(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """How right it is to choose by the highest score: `scores` [n, k], `best` int [n] -> [n] from 0 to 1.

    1 where the best alone scores highest, 0 where another scores higher, 1/m where m tie with it.
    """
    scores = np.asarray(scores)
    top = scores == scores.max(axis=1, keepdims=True)
    return top[np.arange(len(scores)), best] / top.sum(axis=1)


def rater_credit(ratings: Sequence[Sequence[int]], best: int) -> float:
    """The same for one person's ratings of four sentences, mean over persons: `ratings` [4][m], m may differ by sentence.

    Person j is the j-th rating of each sentence, as far as the shortest list goes. The person's own rating is part of the mean that
    says which sentence is best, which flatters by a little.
    """
    persons = min(len(given) for given in ratings)
    scores = np.array([given[:persons] for given in ratings]).T  # [m, 4]
    return float(choice_credit(scores, np.full(persons, best)).mean())


def point(credits: np.ndarray) -> dict[str, float]:
    """Accuracy p of n choices and its standard error sqrt(p (1 - p) / n), which takes the choices for independent."""
    p, n = float(np.mean(credits)), len(credits)
    return {"accuracy": p, "standard_error": math.sqrt(p * (1 - p) / n)}


def _accuracy(rate: Callable[[list[str]], np.ndarray], choices: Choices) -> np.ndarray:
    """Credit of choosing by `rate`, which gives one score a text; [n]."""
    unique = {text: i for i, text in enumerate(dict.fromkeys(text for four in choices.texts for text in four))}
    scores = rate(list(unique))
    return choice_credit(scores[[[unique[text] for text in four] for four in choices.texts]], choices.best)


# ---- the references


def lexicon_scores(texts: list[str]) -> np.ndarray:
    """VADER's compound score of each text, float64 [n], -1 to +1. Raises UserError without the package."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError("the lexicon needs the package vaderSentiment: pip install vaderSentiment") from None
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def _linear_model(alpha: float, characters: bool):
    """tf-idf of words and word pairs (and of 3 to 5 characters within words), then ridge regression."""
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


def tfidf_ridge(folder: Path) -> Callable[[list[str]], np.ndarray]:
    """Texts -> ratings, fitted on the sentences of `train`; the penalty is the one with the least squared error on those of `valid`."""
    train, valid = load_sentences(folder, ["train"]), load_sentences(folder, ["valid"])
    fitted = [_linear_model(alpha, characters=False).fit(train.texts, train.ratings) for alpha in ALPHAS]
    return min(fitted, key=lambda model: ((model.predict(valid.texts) - valid.ratings) ** 2).mean()).predict


def reference_points(folder: Path) -> dict:
    """Accuracy and standard error on labels_test of four ways to choose.

    Returns {"choices": n, "chance": {"accuracy", "standard_error"}, "lexicon": .., "tfidf_ridge": .., "one_rater": ..}.
    """
    test = load_choices(folder, "test")
    return {"choices": len(test), "chance": point(np.full(len(test), 0.25)),
            "lexicon": point(_accuracy(lexicon_scores, test)),
            "tfidf_ridge": point(_accuracy(tfidf_ridge(folder), test)),
            "one_rater": point(np.array([rater_credit(ratings, int(best)) for ratings, best in zip(test.ratings, test.best, strict=True)]))}


# ---- the judge


class HeldOutJudge:
    """Rates any text on the human scale, and has no part in training: it learns from the sentences of valid and test alone.

    A reward model never sees those, so the judge can tell whether a policy pleases people or only its reward model. Do not measure it
    on labels_valid or labels_test, which hold its own sentences; `cross_validation` says how good it is.
    """

    def __init__(self, data: Sentences):
        self.data = data
        self._measured: dict[float, dict[str, float]] = {}
        self.alpha = max(ALPHAS, key=lambda alpha: self._cross_validate(alpha)["r2"])
        self._model = _linear_model(self.alpha, characters=True).fit(data.texts, data.ratings)

    @classmethod
    def fit(cls, folder: Path) -> "HeldOutJudge":
        """From a prepared data set. Raises UserError where that is missing or too small, or scikit-learn is not installed."""
        data = load_sentences(folder, ["valid", "test"])
        if len(data.texts) < 2 * FOLDS:
            raise UserError(f"{folder} holds {len(data.texts)} held-out sentences, the judge needs at least {2 * FOLDS}: prepare more")
        return cls(data)

    def rate(self, texts: list[str]) -> np.ndarray:
        """The rating that people would give each text, float64 [n], -4 to +4; about the mean for a text without known words."""
        return np.clip(self._model.predict(texts), -4.0, 4.0) if texts else np.zeros(0)

    def cross_validation(self) -> dict[str, float]:
        """Agreement with the mean ratings of sentences that the judge was not fitted on (5 folds).

        Returns {"pearson", "r2", "alpha", "sentences"}; alpha was chosen by r2 in the same folds.
        """
        return {**self._cross_validate(self.alpha), "alpha": self.alpha, "sentences": len(self.data.texts)}

    def _cross_validate(self, alpha: float) -> dict[str, float]:
        if alpha not in self._measured:
            truth, folds = self.data.ratings, np.random.RandomState(0).permutation(len(self.data.texts)) % FOLDS
            predicted = np.empty_like(truth)
            for fold in range(FOLDS):
                held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
                model = _linear_model(alpha, characters=True).fit([self.data.texts[i] for i in rest], truth[rest])
                predicted[held] = model.predict([self.data.texts[i] for i in held])
            residual = ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
            self._measured[alpha] = {"pearson": float(np.corrcoef(truth, predicted)[0, 1]), "r2": float(1 - residual)}
        return self._measured[alpha]


NAMES = {"chance": "chance", "lexicon": "VADER lexicon", "tfidf_ridge": "tf-idf + ridge regression", "one_rater": "one person"}


def judge_run(run: Path, judge: HeldOutJudge) -> dict[str, dict[str, float]]:
    """Mean ratings of a policy run's held-out samples before and after, each with a normal 95% interval; also of the paired difference.

    Written into the run's `result.json`. Raises UserError if the run compared nothing.
    """
    pairs = _rows(run / "evaluation.jsonl")
    ratings = {side: judge.rate([pair["query"] + pair[side] for pair in pairs]) for side in ("before", "after")}
    ratings["difference"] = ratings["after"] - ratings["before"]
    figures = {}
    for side, values in ratings.items():
        mean, half = float(values.mean()), 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
        figures[side] = {"mean": mean, "low": mean - half, "high": mean + half}
    result = read_json(run / "result.json")
    for i, sample in enumerate(result["samples"]):
        sample |= {"judge_before": float(ratings["before"][i]), "judge_after": float(ratings["after"][i])}
    for side in ("before", "after"):
        result[side]["judge"] = figures[side]
    write_json(run / "result.json", result | {"judge_difference": figures["difference"]})
    return figures


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", default=DATASETS_FOLDER / "movies", help="the prepared data set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE as well")
    parser.add_argument("--compare", type=Path, metavar="REWARD_RUN", help="print a reward run's accuracy beside these and keep them in its result.json")
    parser.add_argument("--judge", type=Path, metavar="POLICY_RUN", help="rate a policy run's samples before and after, and keep it in its result.json")
    arguments = parser.parse_args()
    if arguments.judge:
        for side, f in judge_run(arguments.judge, HeldOutJudge.fit(arguments.data)).items():
            print(f"judge's mean rating (-4 to +4) {side:<10} {f['mean']:+.3f}  (95% interval {f['low']:+.3f} to {f['high']:+.3f})")
        return
    points = reference_points(arguments.data)
    if arguments.compare:
        result = read_json(arguments.compare / "result.json")
        write_json(arguments.compare / "result.json", result | {"reference_points": {name: points[name] for name in NAMES}})
        print(f"  {'reward model':<28}{100 * result['accuracy']:5.1f}% +- {100 * result['standard_error']:.1f}")
    judge = HeldOutJudge.fit(arguments.data).cross_validation()
    print(f"choice of the best among four, {points['choices']:,} choices of held-out sentences")
    for name, title in NAMES.items():
        error = "" if name == "chance" else f" +- {100 * points[name]['standard_error']:.1f}"
        print(f"  {title:<28}{100 * points[name]['accuracy']:5.1f}%{error}")
    print(f"judge fitted on {judge['sentences']:,} held-out sentences, {FOLDS}-fold cross-validation: "
          f"Pearson {judge['pearson']:.3f}, R^2 {judge['r2']:.3f}, alpha {judge['alpha']:g}")
    if arguments.json:
        write_json(arguments.json, {**points, "judge": judge})


if __name__ == "__main__":
    main()
