"""Methods at equal distance from the reference: each method's gold score along its own curve, read at the same KL.

A method's curve joins the reference (KL 0, gain 0) and its settings, each the mean of its seeds, in the order of their
KL, by straight lines over the root of KL, in which such curves are simple (Gao et al. 2022).
"""

import numpy as np

from lm_human_preferences.judging.bootstrap import Bootstrap, Interval


def at_distance(kl: np.ndarray, gain: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The gain at each target KL, float64 [t]; NaN beyond the furthest point.

    kl: nats of a method's points, float64 [p]; gain: gold score less the reference's, [p].
    """
    order = np.argsort(kl, kind="stable")
    d = np.concatenate([[0.0], np.sqrt(np.maximum(kl[order], 0))])
    values: np.ndarray = np.interp(np.sqrt(targets), d, np.concatenate([[0.0], gain[order]]), right=np.nan)
    return values


def matched_gains(
    kl: np.ndarray, gain: np.ndarray, settings: list[float], targets: list[float], bootstrap: Bootstrap
) -> list[Interval]:
    """Gain at each target KL with its 95% interval over queries; None where the method does not reach it.

    kl, gain: of each policy and query, float64 [p, n]; settings: which setting each policy has, [p]: policies of one
    setting are its seeds, of which the mean is taken.
    """
    groups = np.array([[setting == other for other in settings] for setting in sorted(set(settings))], dtype=np.float64)
    groups /= groups.sum(1, keepdims=True)
    counts = bootstrap.counts / bootstrap.counts.sum(1, keepdims=True)
    of_setting = (groups @ kl, groups @ gain)  # [s, n]
    wanted = np.array(targets)
    found = at_distance(of_setting[0].mean(1), of_setting[1].mean(1), wanted)
    resampled = [counts @ values.T for values in of_setting]  # [resamples, s]
    drawn = np.stack([at_distance(one, other, wanted) for one, other in zip(*resampled, strict=True)])
    return [_interval(value, column[np.isfinite(column)]) for value, column in zip(found, drawn.T, strict=True)]


def _interval(value: float, drawn: np.ndarray) -> Interval:
    if not np.isfinite(value) or not len(drawn):
        return {"mean": None, "low": None, "high": None}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(value), "low": float(low), "high": float(high)}
