"""A judge that reads sentences, not words: a frozen sentence encoder and a ridge regression of people's ratings.

`datasets/movies_judge.py` makes its folder; `embeddings:FOLDER` loads it. The encoder (sentence_encoder.py) stays as
its makers trained it. What is learnt here is one number for each feature of a text, in closed form, so that every
machine learns the same judge up to rounding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.ratings import agreement, folds_of
from lm_human_preferences.judging.sentence_encoder import LONGEST, SentenceEncoder, WordPieces, pooled

RATING = "rating.safetensors"
LAYERS = 4  # the last blocks whose outputs are read; the first ones know words without their surroundings
ALPHAS = (300.0, 1000.0, 3000.0, 10000.0)  # strengths of the ridge penalty to choose from
MICRO_BATCH = 64  # texts in memory at once


class EmbeddingJudge:
    """Rates any text on the human scale, −4 to +4, from its vectors."""

    def __init__(self, encoder: SentenceEncoder, pieces: WordPieces, weights: np.ndarray, bias: float):
        """weights: float64 [LAYERS C]."""
        self.encoder, self.pieces, self.weights, self.bias = encoder, pieces, weights, bias

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "EmbeddingJudge":
        """From the folder that `datasets/movies_judge.py` wrote. Raises UserError if it is missing or damaged."""
        folder = Path(folder)
        path = folder / RATING
        if not path.is_file():
            raise UserError(f"{path} does not exist: make the judge first (python datasets/movies_judge.py)")
        try:
            stored = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): make the judge again with --force") from None
        encoder = SentenceEncoder.load(folder).to(device)
        weights, bias = stored.get("weights"), stored.get("bias")
        if (
            weights is None
            or bias is None
            or (weights.shape, bias.shape) != ((LAYERS * encoder.config.width,), (1,))
            or not (np.isfinite(weights).all() and np.isfinite(bias).all())
        ):
            raise UserError(f"{path} does not fit the encoder beside it: make the judge again with --force")
        return cls(encoder, WordPieces.load(folder), weights, float(bias[0]))

    def rate(self, texts: list[str]) -> np.ndarray:
        """The rating that people would give each text, float64 [n], −4 to +4."""
        ratings: np.ndarray = text_vectors(self.encoder, self.pieces, texts) @ self.weights + self.bias
        return ratings.clip(-4.0, 4.0)


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

    weights: np.ndarray  # float64 [F]
    bias: float
    alpha: float
    out_of_fold: np.ndarray  # float64 [n], each sentence's rating by a regression fitted without its fold
    pearson: float
    r2: float

    def save(self, path: Path) -> None:
        """The regression alone, for `EmbeddingJudge.load`."""
        save_file({"weights": self.weights, "bias": np.array([self.bias])}, path)


def fit_ratings(vectors: np.ndarray, ratings: np.ndarray) -> RatingFit:
    """Ridge regression of ratings float64 [n] on features float64 [n, F]; the penalty is the one of ALPHAS with the
    highest R² in cross-validation.
    """
    folds, predicted = folds_of(len(ratings)), {alpha: np.empty_like(ratings) for alpha in ALPHAS}
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        for alpha, (weights, bias) in zip(ALPHAS, ridge(vectors[rest], ratings[rest], ALPHAS), strict=True):
            predicted[alpha][held] = vectors[held] @ weights + bias
    best = max(ALPHAS, key=lambda alpha: agreement(predicted[alpha], ratings)["r2"])
    ((weights, bias),) = ridge(vectors, ratings, (best,))
    measured = agreement(predicted[best], ratings)
    return RatingFit(weights, bias, best, predicted[best], measured["pearson"], measured["r2"])


def ridge(vectors: np.ndarray, ratings: np.ndarray, alphas: tuple[float, ...]) -> list[tuple[np.ndarray, float]]:
    """For each penalty the weights float64 [F] and the bias that minimise Σ (z w + b − y)² + alpha |w|², z being the
    standardised features; they apply to the features as they are.
    """
    mean, spread = vectors.mean(0), vectors.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    z, y = (vectors - mean) / spread, ratings - ratings.mean()
    products, target, fits = z.T @ z, z.T @ y, []
    for alpha in alphas:
        weights = np.linalg.solve(products + alpha * np.eye(len(products)), target) / spread
        fits.append((weights, float(ratings.mean() - mean @ weights)))
    return fits
