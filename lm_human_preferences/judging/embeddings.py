"""A judge that reads sentences, not words: a frozen sentence encoder and a ridge regression of people's ratings.

`datasets/movies_judge.py` makes its folder; `embeddings:FOLDER` loads it. The encoder (sentence_encoder.py) stays as
its makers trained it. What is learnt here is one number for each feature of a text, in closed form, so that every
machine learns the same judge up to rounding.

Nobody rated word salad, so a rating alone says of "wonderful wonderful cast" what it says of praise. With `#sense` the
judge asks too whether a person could have written the text: a logistic regression on the same vectors tells the
sentences from damaged copies of them, and what is none counts as the worst rating.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.ratings import agreement, folds_of
from lm_human_preferences.judging.sentence_encoder import LONGEST, SentenceEncoder, WordPieces, pooled

RATING = "rating.safetensors"
SENSE = "sense"
_PREFIXES = ("", f"{SENSE}.")  # of the tensors in RATING: the rating's and the sense's
WORST = 4.0  # the end of people's scale
LAYERS = 4  # the last blocks whose outputs are read; the first ones know words without their surroundings
ALPHAS = (300.0, 1000.0, 3000.0, 10000.0)  # strengths of the ridge penalty to choose from
SENSE_STRENGTH = 1e-3  # of the logistic regression, scikit-learn's C
MICRO_BATCH = 64  # texts in memory at once


class Linear(NamedTuple):
    """A linear function of a text's vectors."""

    weights: np.ndarray  # float64 [F]
    bias: float

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float64 [n, F] -> [n]."""
        values: np.ndarray = vectors @ self.weights + self.bias
        return values


class EmbeddingJudge:
    """Rates any text on the human scale, −4 to +4, from its vectors."""

    def __init__(self, encoder: SentenceEncoder, pieces: WordPieces, rating: Linear, sense: Linear | None = None):
        """sense: the log-odds that a text is a sentence; None leaves that out of account."""
        self.encoder, self.pieces, self.rating, self.sense = encoder, pieces, rating, sense

    @classmethod
    def load(cls, spec: str | Path, device: torch.device) -> "EmbeddingJudge":
        """FOLDER or FOLDER#sense, the folder that `datasets/movies_judge.py` wrote. Raises UserError if it is missing
        or damaged.
        """
        name, mark, what = str(spec).partition("#")
        if mark and what != SENSE:
            raise UserError(f"embeddings:{spec}: there is no #{what}; expected embeddings:FOLDER or FOLDER#{SENSE}")
        folder = Path(name)
        path = folder / RATING
        if not path.is_file():
            raise UserError(f"{path} does not exist: make the judge first (python datasets/movies_judge.py)")
        try:
            stored = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): make the judge again with --force") from None
        encoder = SentenceEncoder.load(folder).to(device)
        functions = []
        for prefix in _PREFIXES[: 2 if mark else 1]:
            weights, bias = stored.get(f"{prefix}weights"), stored.get(f"{prefix}bias")
            if (
                weights is None
                or bias is None
                or (weights.shape, bias.shape) != ((LAYERS * encoder.config.width,), (1,))
                or not (np.isfinite(weights).all() and np.isfinite(bias).all())
            ):
                raise UserError(f"{path} does not fit the encoder beside it: make the judge again with --force")
            functions.append(Linear(weights, float(bias[0])))
        return cls(encoder, WordPieces.load(folder), *functions)

    def rate(self, texts: list[str]) -> np.ndarray:
        """The rating that people would give each text, float64 [n], −4 to +4; with `sense` weighed by the probability
        that it is a sentence.
        """
        vectors = text_vectors(self.encoder, self.pieces, texts)
        ratings = self.rating(vectors).clip(-WORST, WORST)
        return ratings if self.sense is None else with_sense(ratings, self.sense(vectors))


def with_sense(ratings: np.ndarray, log_odds: np.ndarray) -> np.ndarray:
    """p r − 4 (1 − p), float64 [n]: ratings r where a text is a sentence, the worst one where it is none, each by its
    probability. log_odds: of being a sentence.
    """
    p = 1 / (1 + np.exp(-log_odds))
    scores: np.ndarray = p * ratings - WORST * (1 - p)
    return scores


@torch.no_grad()
def text_vectors(encoder: SentenceEncoder, pieces: WordPieces, texts: list[str]) -> np.ndarray:
    """Of each text the means over its tokens of what the last LAYERS blocks give, each of length 1: float64
    [n, LAYERS C]. Texts of similar length are computed together; too long ones lose their beginning.
    """
    device = encoder.words.weight.device
    rows = [pieces.encode(text, min(LONGEST, encoder.config.places)) for text in texts]
    order, vectors = (
        sorted(range(len(rows)), key=lambda i: len(rows[i])),
        np.zeros((len(rows), LAYERS * encoder.config.width)),
    )
    for part in (order[start : start + MICRO_BATCH] for start in range(0, len(order), MICRO_BATCH)):
        lengths = torch.tensor([len(rows[i]) for i in part], device=device)
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in part], batch_first=True).to(device)
        seen = torch.arange(tokens.shape[1], device=device) < lengths[:, None]  # bool [B, T]
        states = encoder(tokens, seen)[-LAYERS:]
        vectors[part] = torch.cat([pooled(state, seen) for state in states], dim=1).double().cpu().numpy()
    return vectors


# --- fitting ---


@dataclass(frozen=True)
class RatingFit:
    """What a regression learnt, and how well it does on sentences that it was not fitted on."""

    function: Linear
    alpha: float
    out_of_fold: np.ndarray  # float64 [n], each sentence's rating by a regression fitted without its fold
    pearson: float
    r2: float


def fit_ratings(vectors: np.ndarray, ratings: np.ndarray) -> RatingFit:
    """Ridge regression of ratings float64 [n] on features float64 [n, F]; the penalty is the one of ALPHAS with the
    highest R² in cross-validation.
    """
    folds, predicted = folds_of(len(ratings)), {alpha: np.empty_like(ratings) for alpha in ALPHAS}
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        for alpha, function in zip(ALPHAS, ridge(vectors[rest], ratings[rest], ALPHAS), strict=True):
            predicted[alpha][held] = function(vectors[held])
    best = max(ALPHAS, key=lambda alpha: agreement(predicted[alpha], ratings)["r2"])
    (function,) = ridge(vectors, ratings, (best,))
    measured = agreement(predicted[best], ratings)
    return RatingFit(function, best, predicted[best], measured["pearson"], measured["r2"])


def ridge(vectors: np.ndarray, ratings: np.ndarray, alphas: tuple[float, ...]) -> list[Linear]:
    """For each penalty the weights w and the bias b that minimise Σ (z w + b − y)² + alpha |w|², z being the
    standardised features; they apply to the features as they are.
    """
    mean, spread = vectors.mean(0), vectors.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    z, y = (vectors - mean) / spread, ratings - ratings.mean()
    products, target, fits = z.T @ z, z.T @ y, []
    for alpha in alphas:
        weights = np.linalg.solve(products + alpha * np.eye(len(products)), target) / spread
        fits.append(Linear(weights, float(ratings.mean() - mean @ weights)))
    return fits


def save_judge(path: Path, rating: Linear, sense: Linear) -> None:
    """What was learnt, for `EmbeddingJudge.load`."""
    functions = dict(zip(_PREFIXES, (rating, sense), strict=True))
    tensors = {f"{prefix}weights": function.weights for prefix, function in functions.items()}
    save_file(tensors | {f"{prefix}bias": np.array([function.bias]) for prefix, function in functions.items()}, path)


# --- sense ---


@dataclass(frozen=True)
class SenseFit:
    """What tells sentences from their damaged copies."""

    function: Linear  # the log-odds of a sentence
    whole: np.ndarray  # float64 [n], of each sentence by a regression fitted without its fold
    damaged: np.ndarray  # float64 [n], of its damaged copy

    @property
    def accuracy(self) -> float:
        """Share of sentences and copies that are told right, out of fold."""
        return float(np.concatenate([self.whole > 0, self.damaged <= 0]).mean())


def fit_sense(whole: np.ndarray, damaged: np.ndarray) -> SenseFit:
    """Logistic regression between the vectors of n sentences and of their damaged copies, float64 [n, F] each; a
    sentence and its copy lie in one fold. Raises UserError without scikit-learn.
    """
    folds, found = folds_of(len(whole)), (np.empty(len(whole)), np.empty(len(whole)))
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        function = logistic(whole[rest], damaged[rest])
        for values, vectors in zip(found, (whole, damaged), strict=True):
            values[held] = function(vectors[held])
    return SenseFit(logistic(whole, damaged), *found)


def logistic(whole: np.ndarray, damaged: np.ndarray) -> Linear:
    """The log-odds that standardised features are of `whole`, float64 [n, F], not of `damaged`, with an L2 penalty."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("the judge of sense needs the package scikit-learn: pip install scikit-learn") from None
    vectors = np.concatenate([whole, damaged])
    mean, spread = vectors.mean(0), vectors.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    labels = np.repeat([1, 0], [len(whole), len(damaged)])
    model = LogisticRegression(C=SENSE_STRENGTH, max_iter=1000).fit((vectors - mean) / spread, labels)
    weights = model.coef_[0] / spread
    return Linear(weights, float(model.intercept_[0] - mean @ weights))


def damage(texts: list[str]) -> list[str]:
    """A copy of each text that is no sentence any more, always the same: in turn its words in another order, neighbours
    exchanged, two words of five from other texts, a quarter of its words said again elsewhere.
    """
    random = np.random.RandomState(0)
    words = [text.split() for text in texts]
    pool = [word for row in words for word in row]
    ways = (_shuffled, _exchanged, _mixed, _repeated)
    return [" ".join(ways[i % len(ways)](row, pool, random)) for i, row in enumerate(words)]


def _shuffled(row: list[str], pool: list[str], random: np.random.RandomState) -> list[str]:
    return [row[i] for i in random.permutation(len(row))]


def _exchanged(row: list[str], pool: list[str], random: np.random.RandomState) -> list[str]:
    row = list(row)
    for i in range(0, len(row) - 1, 2):
        if random.rand() < 0.6:
            row[i], row[i + 1] = row[i + 1], row[i]
    return row


def _mixed(row: list[str], pool: list[str], random: np.random.RandomState) -> list[str]:
    return [pool[random.randint(len(pool))] if random.rand() < 0.4 else word for word in row]


def _repeated(row: list[str], pool: list[str], random: np.random.RandomState) -> list[str]:
    row = list(row)
    for _ in range(max(1, len(row) // 4) if row else 0):
        start, count, place = random.randint(len(row)), random.randint(1, 3), random.randint(len(row) + 1)
        row[place:place] = row[start : start + count]
    return row
