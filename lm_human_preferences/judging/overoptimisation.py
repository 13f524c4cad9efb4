"""Gold score as a function of the distance from the reference, and where it peaks (Gao et al. 2022, arXiv 2210.10760).

With d the root of the KL in nats, the gold score less the reference's is fitted by d (alpha - beta d) for best-of-n and
by d (alpha - beta log d) for trained policies: both rise at first, and fall where the proxy is pushed too far.
"""

from typing import Any

import numpy as np

from lm_human_preferences.judging.bootstrap import Bootstrap, Interval

KINDS = ("best_of_n", "policies")
FEWEST = 3  # points of a fit with two coefficients


def basis(d: np.ndarray, kind: str) -> np.ndarray:
    """What alpha and beta multiply, float64 [..., 2], at distances d [...] above 0."""
    return np.stack([d, -d * d if kind == "best_of_n" else -d * np.log(d)], axis=-1)


def fit(kl: np.ndarray, gold: np.ndarray, kind: str) -> np.ndarray:
    """alpha and beta, float64 [..., 2], by ordinary least squares over the last axis, without intercept.

    kl: nats, above 0, [..., p]; gold: scores less the reference's, [..., p].
    """
    x = basis(np.sqrt(kl), kind)
    normal = np.einsum("...pi,...pj->...ij", x, x)
    right = np.einsum("...pi,...p->...i", x, gold)
    solved: np.ndarray = np.linalg.solve(normal, right[..., None])[..., 0]
    return solved


def curve(coefficients: np.ndarray, d: np.ndarray, kind: str) -> np.ndarray:
    """The fitted gold score less the reference's at distances d [p] above 0."""
    values: np.ndarray = basis(d, kind) @ np.asarray(coefficients)
    return values


def peak(coefficients: np.ndarray, kind: str) -> np.ndarray:
    """Distance d and gold score less the reference's at the peak, float64 [..., 2]; NaN where there is none: the score
    rises for ever, or falls from the start.
    """
    alpha, beta = coefficients[..., 0], coefficients[..., 1]
    with np.errstate(all="ignore"):
        if kind == "best_of_n":
            d, gold = alpha / (2 * beta), alpha**2 / (4 * beta)
            there = (alpha > 0) & (beta > 0)
        else:
            d = np.exp(alpha / beta - 1)
            gold = beta * d
            there = (beta > 0) & np.isfinite(d)
    found: np.ndarray = np.where(there[..., None], np.stack([d, gold], axis=-1), np.nan)
    return found


def describe_fit(kl: np.ndarray, gold: np.ndarray, kind: str, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """A fit with 95% intervals over queries, as result.json holds it; None where too few points are off the reference.

    kl: float64 [p, n], of each point and query, or [p] where it is known; gold: float64 [p, n], less the reference's.
    `peak_kl` and `peak_gold` are None where there is no peak, and their intervals are over the resamples that have one,
    whose share is `has_peak`.
    """
    counts = bootstrap.counts / bootstrap.counts.sum(1, keepdims=True)  # [resamples, n]
    mean_kl = kl if kl.ndim == 1 else kl.mean(1)
    off = mean_kl > 1e-6
    if off.sum() < FEWEST:
        return None
    kl, gold = kl[off], gold[off]
    drawn_kl = np.broadcast_to(kl, (len(counts), len(kl))) if kl.ndim == 1 else counts @ kl.T
    drawn_gold = counts @ gold.T
    usable = (drawn_kl > 1e-6).all(1)
    found, drawn = fit(mean_kl[off], gold.mean(1), kind), fit(drawn_kl[usable], drawn_gold[usable], kind)
    at, peaks = peak(found, kind), peak(drawn, kind)
    there = np.isfinite(peaks[:, 0])
    return {
        "alpha": _interval(found[0], drawn[:, 0]),
        "beta": _interval(found[1], drawn[:, 1]),
        "peak_kl": _interval(at[0] ** 2, peaks[there, 0] ** 2),
        "peak_gold": _interval(at[1], peaks[there, 1]),
        "has_peak": float(there.mean()),
        "points": int(off.sum()),
        "furthest": float(mean_kl.max()),
    }


def _interval(value: float, drawn: np.ndarray) -> Interval:
    if not np.isfinite(value) or not len(drawn):
        return {"mean": None, "low": None, "high": None}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(value), "low": float(low), "high": float(high)}
