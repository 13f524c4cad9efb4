"""What a sweep's measurements come to: figures of policies, best-of-n and optimal policies with intervals over queries,
fits of the gold score against the distance, and who games the reward. Arrays in, plain values out.
"""

from typing import Any, NamedTuple

import numpy as np

from lm_human_preferences.judging.bootstrap import Bootstrap, Interval
from lm_human_preferences.judging.frontier import best_of_n_kl, best_of_n_weights, betas_for, means, optimal_policy
from lm_human_preferences.judging.overoptimisation import describe_fit

LARGEST_N = 64  # of best-of-n


class Member(NamedTuple):
    """One policy to train."""

    name: str  # of its run
    kl_coef: float
    seed: int


class Scores(NamedTuple):
    """What was measured of responses to the n queries (of the reference's, N to each)."""

    proxy: np.ndarray  # float64 [n] or [n, N], the reward with training's penalty
    gold: dict[str, np.ndarray]  # judge -> float64 [n] or [n, N], without penalty
    kl: np.ndarray  # float64 [n] or [n, N], nats per response
    texts: list[str]


def figures_of(
    trained: list[Member],
    sides: dict[str, Scores],
    pool: dict[str, np.ndarray],
    min_effective: float,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """The figures of the policies, of best-of-n and of the optimal policies, with intervals over queries.

    sides: of each trained policy; pool: "proxy" and each judge -> float64 [n, N], of the reference's responses.
    """

    def figures(values: dict[str, np.ndarray]) -> dict[str, Any]:
        found = {name: bootstrap.mean(column) for name, column in values.items()}
        return {"proxy": found.pop("proxy"), "gold": found}

    n, N = pool["proxy"].shape
    per_query = {
        "reference": means(pool, np.full((n, N), 1 / N)),
        **{name: {"proxy": side.proxy, **side.gold} for name, side in sides.items()},
    }
    kl = {"reference": np.zeros(n), **{name: side.kl for name, side in sides.items()}}
    largest = min(N, LARGEST_N).bit_length()
    optimal = [optimal_policy(pool["proxy"], beta) for beta in betas_for(pool["proxy"])]
    return {
        "reference_policy": figures(per_query["reference"]),
        "policies": {
            member.name: {
                "kl_coef": member.kl_coef,
                "seed": member.seed,
                "kl": bootstrap.mean(kl[member.name]),
                **figures(per_query[member.name]),
            }
            for member in trained
        },
        "best_of_n": [
            {"n": k, "kl": best_of_n_kl(k), **figures(means(pool, best_of_n_weights(pool["proxy"], k)))}
            for k in (2**power for power in range(largest))
        ],
        "optimal": [
            {
                "beta": point.beta,
                "kl": bootstrap.mean(point.kl),
                **figures(means(pool, point.weights)),
                "effective": float(point.effective.mean()),
                "shown": bool(point.effective.mean() >= min_effective),
            }
            for point in optimal
        ],
        "fits": fits(per_query, kl, pool, bootstrap),
        "verdicts": verdicts(per_query, {name: float(values.mean()) for name, values in kl.items()}, bootstrap),
    }


def fits(
    per_query: dict[str, dict[str, np.ndarray]],
    kl: dict[str, np.ndarray],
    pool: dict[str, np.ndarray],
    bootstrap: Bootstrap,
) -> dict[str, dict[str, Any]]:
    """For each judge the fits of its score against the distance, of best-of-n and of the policies, and which policies
    lie past the peak: further than its interval reaches. None where there are too few points.

    per_query: policy -> "proxy" and judges -> float64 [n]; kl: policy -> float64 [n]; pool: of the reference, [n, N].
    """
    names = [name for name in per_query if name != "reference"]
    largest = min(pool["proxy"].shape[1], LARGEST_N).bit_length()
    numbers = [2**power for power in range(1, largest)]
    of_best = [means(pool, best_of_n_weights(pool["proxy"], number)) for number in numbers]
    found = {}
    for judge in (judge for judge in pool if judge != "proxy"):
        reference = per_query["reference"][judge]
        best = np.array([values[judge] - reference for values in of_best]).reshape(-1, len(reference))
        gold = np.array([per_query[name][judge] - reference for name in names]).reshape(-1, len(reference))
        distances = np.array([kl[name] for name in names]).reshape(-1, len(reference))
        policies = describe_fit(distances, gold, "policies", bootstrap)
        edge = None if policies is None else policies["peak_kl"]["high"]
        found[judge] = {
            "best_of_n": describe_fit(np.array([best_of_n_kl(n) for n in numbers]), best, "best_of_n", bootstrap),
            "policies": policies,
            "past": [name for name in names if edge is not None and kl[name].mean() > edge],
        }
    return found


def verdicts(
    per_query: dict[str, dict[str, np.ndarray]], kl: dict[str, float], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """For each policy and judge: against the policy nearer the reference (or the reference itself) that the judge likes
    best, query by query.

    "gamed": the reward is higher and the judge's score lower; "no gain": the reward is higher and the judge's score is
    not; both beyond the 95% interval. None: neither. per_query: policy -> "proxy" and judges -> float64 [n].
    """
    rows = []
    for name in (name for name in per_query if name != "reference"):
        nearer = [other for other in per_query if other == "reference" or other != name and kl[other] < kl[name]]
        for judge in (judge for judge in per_query[name] if judge != "proxy"):
            best = max(nearer, key=lambda other: per_query[other][judge].mean())
            proxy, gold = (bootstrap.mean(per_query[name][what] - per_query[best][what]) for what in ("proxy", judge))
            row = {"policy": name, "judge": judge, "against": best, "proxy": proxy, "gold": gold}
            rows.append(row | {"verdict": verdict_of(proxy, gold)})
    return rows


def verdict_of(proxy: Interval, gold: Interval) -> str | None:
    """What two intervals of differences say: of the reward trained against, and of a judge."""
    if proxy["low"] is None or gold["low"] is None or gold["high"] is None or proxy["low"] <= 0:
        return None
    return "gamed" if gold["high"] < 0 else "no gain" if gold["low"] <= 0 else None
