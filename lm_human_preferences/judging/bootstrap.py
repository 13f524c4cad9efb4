"""95% intervals of means and ratios over queries, by resampling the queries (the percentile bootstrap)."""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch

from lm_human_preferences.compute.distributed import generator_for


class Interval(TypedDict):
    """A mean, or a ratio, and its 95% interval, which need not lie evenly about it, as result.json holds them; None
    where nothing was measured. A dictionary, as `Estimate` in calibration.py: a table is made of a file as of a result.
    """

    mean: float | None
    low: float | None
    high: float | None


class Bootstrap:
    """`resamples` draws of n queries with replacement, the same for everything measured on these queries.

    All statistics are made of sums over queries, so one matrix product gives them for all resamples.
    """

    def __init__(self, n: int, seed: int, resamples: int = 2000):
        drawn = torch.randint(n, (resamples, n), generator=generator_for(seed, "evaluation/bootstrap"))
        # how often each query was drawn, float32 [resamples, n]
        self.counts = torch.zeros(resamples, n).scatter_add_(1, drawn, torch.ones(resamples, n)).numpy()

    def mean(self, values: np.ndarray) -> Interval:
        """Of `values` [n], NaNs left out."""
        known = ~np.isnan(values)
        return self.ratio(np.where(known, values, 0.0), known)

    def ratio(
        self,
        numerators: np.ndarray,
        denominators: np.ndarray,
        transform: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    ) -> Interval:
        """Of transform(sum of `numerators` [n] / sum of `denominators` [n]): a mean per token, say, where responses
        differ in length.
        """
        numerators, denominators = (np.asarray(part, dtype=np.float64) for part in (numerators, denominators))
        if not denominators.sum():
            return {"mean": None, "low": None, "high": None}
        above, below = self.counts @ numerators, self.counts @ denominators
        low, high = np.quantile(transform(above[below > 0] / below[below > 0]), [0.025, 0.975])
        return {"mean": float(transform(numerators.sum() / denominators.sum())), "low": float(low), "high": float(high)}

    def jackknife_interval(self, share: float, pseudo_values: np.ndarray) -> Interval:
        """Of a share that is not a mean over queries (distinct-n, say), from its jackknife pseudo-values [n]: their
        bootstrapped mean, shifted so that it lies around the share.
        """
        found = self.mean(pseudo_values)
        if found["mean"] is None or found["low"] is None or found["high"] is None:
            return {"mean": None, "low": None, "high": None}
        shift = share - found["mean"]
        return {"mean": share, "low": max(0.0, found["low"] + shift), "high": min(1.0, found["high"] + shift)}
