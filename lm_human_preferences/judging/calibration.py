"""How rewards compare with choices and ratings of people: calibration, temperature, correlations, agreement. Pure
functions of arrays.

n choices among N responses. docs/reward_quality.md has every formula.
"""

from collections.abc import Hashable, Sequence
from typing import Any, TypedDict

import numpy as np

from lm_human_preferences.judging.bootstrap import Bootstrap


class Estimate(TypedDict):
    """A number with its standard error, as result.json holds it; None where nothing was measured."""

    value: float | None
    standard_error: float | None


def mean(values: np.ndarray) -> Estimate:
    """Of values [n] taken for independent: standard error = biased deviation / sqrt(n), for zeros and ones sqrt(p (1 -
    p) / n).
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return {"value": None, "standard_error": None}
    return {"value": float(values.mean()), "standard_error": float(values.std() / np.sqrt(len(values)))}


def ratio_of_sums(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Of the sums of numerators [n] and of denominators [n], pairs taken for independent: standard error sqrt(sum of
    e_i^2) / sum of denominators, e the numerators less the ratio times their denominators (the delta method).
    """
    total = float(denominators.sum())
    if not total:
        return {"value": None, "standard_error": None}
    value = float(numerators.sum()) / total
    rest = np.asarray(numerators, dtype=np.float64) - value * np.asarray(denominators, dtype=np.float64)
    return {"value": value, "standard_error": float(np.sqrt((rest**2).sum())) / total}


def mean_of_overlapping(values: np.ndarray, members: Sequence[Sequence[Hashable]]) -> Estimate:
    """Of values [n] that are not independent where two share a member (a response, say); members [n][any number].

    Standard error sqrt(sum of e_i e_j over all i, j that are the same or share one) / n, e the values less their mean;
    None if that sum is negative, as it can be by chance.
    """
    found, values_of = mean(values), dict[Hashable, set[int]]()
    if found["value"] is None:
        return found
    rest = np.asarray(values, dtype=np.float64) - found["value"]
    for place, own in enumerate(members):
        for member in own:
            values_of.setdefault(member, set()).add(place)
    total = sum(
        rest[place] * sum(rest[other] for other in {place}.union(*(values_of[member] for member in own)))
        for place, own in enumerate(members)
    )
    return {"value": found["value"], "standard_error": float(np.sqrt(total) / len(rest)) if total >= 0 else None}


def ratio(numerators: np.ndarray, denominators: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Sum of numerators [n] / sum of denominators [n], parts of n choices; its deviation over resamples of them."""
    if not denominators.sum():
        return {"value": None, "standard_error": None}
    below = bootstrap.counts @ np.asarray(denominators, dtype=np.float64)
    drawn = (bootstrap.counts @ np.asarray(numerators, dtype=np.float64))[below > 0] / below[below > 0]
    return {"value": float(numerators.sum() / denominators.sum()), "standard_error": float(drawn.std())}


# --- calibration ---


def log_probabilities(rewards: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax of rewards [n, N] / temperature: the model's log-probability that people choose each response."""
    scaled = np.asarray(rewards, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    logs: np.ndarray = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    return logs


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """A row for each of `bins` equal parts of 0..1 that holds choices, by the probability of the response with the
    highest reward.

    confidence float [n], right bool [n]. Rows: low, high, choices, confidence (mean), accuracy and its standard error.
    """
    place, rows = _bin_of(confidence, bins), list[dict[str, Any]]()
    for i in range(bins):
        if (inside := place == i).any():
            accuracy = mean(right[inside])
            rows.append(
                {
                    "low": i / bins,
                    "high": (i + 1) / bins,
                    "choices": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": accuracy["value"],
                    "standard_error": accuracy["standard_error"],
                }
            )
    return rows


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int, bootstrap: Bootstrap) -> Estimate:
    """Expected calibration error: sum over bins of |sum of (confidence - right)| / n; its deviation over resamples of
    the choices.
    """
    n, gaps = len(confidence), np.zeros((len(confidence), bins))
    gaps[np.arange(n), _bin_of(confidence, bins)] = confidence - right
    return {
        "value": float(np.abs(gaps.sum(0)).sum() / n),
        "standard_error": float((np.abs(bootstrap.counts @ gaps).sum(1) / n).std()),
    }


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    places: np.ndarray = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    return places


def best_temperature(rewards: np.ndarray, best: np.ndarray) -> Estimate:
    """The temperature T at which softmax(rewards / T) makes the choices likeliest; above 1 the rewards are too sure of
    themselves.

    The log-likelihood is concave in 1 / T, so its slope, mean of r_best - E[r], has one root. None where there is none
    between 1/1000 and 1000: the rewards say nothing about the choices, or everything. Standard error from the Fisher
    information: T^2 / sqrt(sum of Var[r]).
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    chosen = rewards[np.arange(len(rewards)), best]

    def slope(inverse: float) -> tuple[float, float]:
        p = np.exp(log_probabilities(rewards, 1 / inverse))
        expected = (p * rewards).sum(1)
        return float((chosen - expected).mean()), float((p * (rewards - expected[:, None]) ** 2).sum())

    low, high = 1e-3, 1e3
    if slope(low)[0] <= 0 or slope(high)[0] >= 0:
        return {"value": None, "standard_error": None}
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle)[0] > 0 else (low, middle)
    temperature = float(1 / np.sqrt(low * high))
    return {"value": temperature, "standard_error": temperature**2 / float(np.sqrt(slope(1 / temperature)[1]))}


# --- correlations ---


def correlation(x: np.ndarray, y: np.ndarray, unit: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Pearson's r of x, y [m]; its deviation over resamples of the units (unit int [m]: to which choice, say, a point
    belongs).

    None where one of them is constant.
    """
    x, y = (np.asarray(part, dtype=np.float64) - np.mean(part) for part in (x, y))
    points = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])
    n_units = bootstrap.counts.shape[1]
    units = np.stack([np.bincount(unit, row, minlength=n_units) for row in points], axis=1)  # [units, 6]
    value = float(_pearson_of_sums(units.sum(0)))
    if not np.isfinite(value):
        return {"value": None, "standard_error": None}
    drawn = _pearson_of_sums((bootstrap.counts @ units).T)
    return {"value": value, "standard_error": float(drawn[np.isfinite(drawn)].std())}


def _pearson_of_sums(sums: np.ndarray) -> np.ndarray:
    """r from the sums [6, ...] of 1, x, y, xx, yy, xy; NaN where x or y is constant.

    From sums, so that one matrix product gives it for all resamples; `pearson_r` is the original's, of two vectors.
    """
    n, x, y, xx, yy, xy = sums
    spread = np.maximum(xx - x * x / n, 0.0) * np.maximum(yy - y * y / n, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-18 * np.maximum(1.0, xx * yy), (xy - x * y / n) / np.sqrt(spread), np.nan)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [m] from 1, equal values sharing the mean of theirs: Pearson's r of ranks is Spearman's."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


# --- agreement with people ---


def top_shares(scores: np.ndarray) -> np.ndarray:
    """Scores [..., N] as choices: 1 for the highest, 1/m for each of m that tie, 0 for the others."""
    top = scores == scores.max(-1, keepdims=True)
    shares: np.ndarray = top / top.sum(-1, keepdims=True)
    return shares


def rater_agreement(ratings: Sequence[Sequence[float]], picked: int) -> dict[str, float]:
    """Who agrees with whom about one choice: ratings [N][m], each person's; `picked`: the response that the model
    prefers.

    Two agree as far as their choices overlap, ties split. Person j is the j-th rating of each response, as far as the
    shortest list goes. `model`: the model and one person, `people`: two persons, `rest`: one person and the mean of the
    others; means over persons.
    """
    persons = min(len(given) for given in ratings)
    by_person = np.array([given[:persons] for given in ratings], dtype=np.float64).T  # [m, N]
    tops = top_shares(by_person)
    found = {"model": float(tops[:, picked].mean())}
    if persons > 1:
        together = tops.sum(0)
        found["people"] = float((together @ together - (tops * tops).sum()) / (persons * (persons - 1)))
        found["rest"] = float((tops * top_shares(by_person.sum(0) - by_person)).sum(1).mean())
    return found


def rating_reliability(ratings: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """How far ratings of the same texts agree: ratings [n][m_i]. `single`: the share of a rating's variance that lies
    between texts.

    One-way analysis of variance: (B - W) / (B + (k - 1) W) with mean squares B between and W within texts, k = mean
    size of a text's ratings corrected for unequal sizes. `mean`: the same for the mean of k (Spearman and Brown);
    `ceiling`: its root, the highest correlation with the means that a perfect model could reach. None where people
    agree no more than chance would have it.
    """
    sizes = np.array([len(given) for given in ratings], dtype=np.float64)
    means, total = np.array([np.mean(given) for given in ratings]), sizes.sum()
    n = len(sizes)
    within = sum(float(((np.asarray(given) - m) ** 2).sum()) for given, m in zip(ratings, means, strict=True))
    if n < 2 or total <= n:
        return {"single": None, "mean": None, "ceiling": None}
    between = float((sizes * (means - (sizes * means).sum() / total) ** 2).sum()) / (n - 1)
    within, k = within / (total - n), float((total - (sizes**2).sum() / total) / (n - 1))
    single = (between - within) / (between + (k - 1) * within) if between + (k - 1) * within else 0.0
    if single <= 0:
        return {"single": single, "mean": None, "ceiling": None}
    mean_of_k = k * single / (1 + (k - 1) * single)
    return {"single": single, "mean": mean_of_k, "ceiling": float(np.sqrt(mean_of_k))}
