"""How much reward a distance from the reference can buy without any training: best-of-n and the optimal policies, from
samples of the reference.

Pure functions on float64 arrays [n, N]: n queries, N responses of the reference to each. docs/sweep.md has the
formulas.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


def best_of_n_kl(n: int) -> float:
    """KL to the reference, in nats, of the best of n responses where no two score alike (with ties it is less): log n -
    (n - 1) / n.

    Hilton and Gao 2022, "Measuring Goodhart's law" (openai.com/research/measuring-goodharts-law); Beirami et al. 2024,
    arXiv 2401.01879, on ties.
    """
    return math.log(n) - (n - 1) / n


def best_of_n_weights(scores: np.ndarray, n: int) -> np.ndarray:
    """[n queries, N] scores -> for each response the probability that it is the best of n of its query's N, drawn
    without replacement.

    The response of rank i (1 the lowest) is the best of C(i - 1, n - 1) of the C(N, n) choices of n; equal scores share
    their ranks' sum. So the sum of weight times anything is the unbiased estimate of that thing's mean under best-of-n.
    Hilton and Gao 2022, as above.
    """
    rows, N = scores.shape
    if not 1 <= n <= N:
        raise ValueError(f"the best of {n} cannot be told from {N} responses")
    ranked = np.zeros(N)
    ranked[-1] = n / N
    for i in range(N - 1, n - 1, -1):  # C(i - 1, n - 1) / C(i, n - 1) = (i - n + 1) / i
        ranked[i - 1] = ranked[i] * (i - n + 1) / i
    weights = np.empty_like(scores, dtype=np.float64)
    for row in range(rows):
        _, rank, counts = np.unique(scores[row], return_inverse=True, return_counts=True)
        weights[row] = (np.bincount(np.repeat(np.arange(len(counts)), counts), weights=ranked) / counts)[rank]
    return weights


class Optimal(NamedTuple):
    """pi(y|x) proportional to reference(y|x) exp(reward(y) / beta), as seen from N samples of the reference a query."""

    beta: float
    weights: np.ndarray  # float64 [n, N], each row sums to 1
    kl: np.ndarray  # float64 [n], nats; at most log N, however far the true policy is
    effective: np.ndarray  # float64 [n], effective sample sizes: 1 / sum of squared weights, 1 to N


def optimal_policy(rewards: np.ndarray, beta: float) -> Optimal:
    """The policy that maximises E[reward] - beta KL (Ziegler et al. 2019, section 2), by self-normalised importance
    weights of rewards [n, N].

    Its KL is the sum of w log(N w), the estimate of E[reward / beta - log Z] with Z from the same samples.
    """
    logits = rewards / beta
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    weights = np.exp(logs)
    return Optimal(beta, weights, (weights * (logs + math.log(rewards.shape[1]))).sum(1), 1 / (weights**2).sum(1))


def betas_for(rewards: np.ndarray) -> list[float]:
    """Prices of a nat from far dearer to far cheaper than rewards [n, N] vary within a query: 8 to 1/16 of that
    deviation, by factors of sqrt 2.
    """
    spread = math.sqrt(rewards.var(1).mean()) or 1.0
    return [spread * 2 ** (power / 2) for power in range(6, -9, -1)]


def means(values: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """For each thing measured, [n, N], its mean [n] under the weights [n, N] of each query."""
    return {name: (weights * measured).sum(1) for name, measured in values.items()}
