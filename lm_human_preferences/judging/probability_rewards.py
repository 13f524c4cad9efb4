"""Rewards made of a classifier's probability: each a function of p, by name.

`hf:PATH#LABEL:NAME` applies one of them to the label's probability. For a reward of one's own, a function of texts in a
file of one's own, `shaped` gives one for `--rewards.function`:

    from lm_human_preferences.judging.probability_rewards import shaped

    undecided = shaped("hf:saved_models/my_classifier#POSITIVE:prob", lambda p: 1 - (2 * p - 1) ** 2)
"""

from collections.abc import Callable

import torch

from lm_human_preferences.foundation.errors import UserError


def prob(p: float) -> float:
    """The probability itself, 0 to 1: trlX's `ppo_sentiments`, TRL's examples."""
    return p


def neutral(p: float) -> float:
    """1 − 2 |p − 0.5|: 1 for a text that the classifier is undecided about, 0 for one that it is certain of, either
    way.
    """
    return 1 - 2 * abs(p - 0.5)


def decided(p: float) -> float:
    """2 |p − 0.5|: 1 for a text that the classifier is certain of, either way; 1 − `neutral`."""
    return 2 * abs(p - 0.5)


def margin(p: float) -> float:
    """p − (1 − p), −1 to +1: the probability of the label less that of all others."""
    return 2 * p - 1


SHAPES: dict[str, Callable[[float], float]] = {shape.__name__: shape for shape in (prob, neutral, decided, margin)}


def shaped(
    judge: str, shape: Callable[[float], float], device: str | None = None
) -> Callable[[list[str], list[str]], list[float]]:
    """A function of (queries, responses) for `--rewards.function` or `--judges`: `shape` of each of a judge's scores.

    judge: a specification as `--judges` takes it, of one that scores responses by themselves; device: where it
    computes, by default a GPU where there is one. The judge is loaded at the first call, which raises UserError if it
    cannot be had.
    """
    loaded: list[Callable[[list[str], list[str]], list[float]]] = []

    def score(queries: list[str], responses: list[str]) -> list[float]:
        if not loaded:
            loaded.append(_load(judge, device))
        return [shape(value) for value in loaded[0](queries, responses)]

    return score


def _load(judge: str, device: str | None) -> Callable[[list[str], list[str]], list[float]]:
    from lm_human_preferences.judging.judges import Judge, load_judge  # which loads classifiers, which need SHAPES

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = load_judge(judge, torch.device(place))
    if not isinstance(found, Judge):
        raise UserError(f"{judge}: people's choices have no score for a single response")
    return found.score
