"""Labels made wrong on purpose, to see what a method makes of wrong answers."""

import torch

from lm_human_preferences.data.labels import LabelBatch, LabelType


def flipped(labels: LabelBatch, kind: LabelType, share: float, generator: torch.Generator) -> LabelBatch:
    """The same labels, in whose `share` (of all, to the nearest label) the answer is wrong. Which ones, and what they
    say instead, are drawn from `generator`.

    A choice goes to another response, each of the others as likely; in a distribution and a ranking the best response
    changes places with such another one. The sign of a difference turns. The ratings of the labels that are chosen go
    round among these. Nothing else changes, the number of answers of each kind neither for ratings.
    """
    count = round(share * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    steps = torch.randint(1, max(2, kind.n_responses), (count,), generator=generator)  # from the best to another one
    target = labels.target.clone()
    if kind.answer == "difference":
        target[chosen] = -target[chosen]
    elif kind.answer == "score":
        target[chosen] = labels.target[chosen.roll(1)]
    elif target.ndim == 1:
        target[chosen] = (target[chosen] + steps) % kind.n_responses
    else:
        target[chosen] = _best_exchanged(labels.rows(chosen), kind, steps)
    return LabelBatch(labels.queries, labels.responses, target)


def _best_exchanged(labels: LabelBatch, kind: LabelType, steps: torch.Tensor) -> torch.Tensor:
    """Targets [n, N] in which the best response has the place of the one `steps` int64 [n] further on, and the other
    way round.
    """
    best, target = labels.best, labels.target.clone()
    other, row = (best + steps) % kind.n_responses, torch.arange(len(labels))
    if target.is_floating_point():  # a distribution
        target[row, best], target[row, other] = labels.target[row, other], labels.target[row, best]
        return target
    ranked = torch.where(target < 0, -1 - target, target)  # which response stands at each place
    swapped = torch.where(
        ranked == best[:, None], other[:, None], torch.where(ranked == other[:, None], best[:, None], ranked)
    )
    return torch.where(target < 0, -1 - swapped, swapped)
