"""Labels made wrong on purpose: how many, which, and what they then say."""

import pytest
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.label_noise import flipped
from lm_human_preferences.data.labels import LabelBatch, label_type


def batch(target: torch.Tensor, N: int) -> LabelBatch:
    n = len(target)
    return LabelBatch(torch.arange(n)[:, None], torch.arange(n * N).view(n, N, 1), target)


def noisy(target: torch.Tensor, name: str, share: float, seed: int = 1) -> torch.Tensor:
    kind = label_type(name)
    labels = batch(target, kind.n_responses)
    found = flipped(labels, kind, share, generator_for(seed, "labels/noise"))
    assert torch.equal(found.queries, labels.queries) and torch.equal(found.responses, labels.responses)
    return found.target


BEST = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))


def test_choices_go_to_another_response():
    """Exactly the share, to all others alike; the same seed the same ones, and no label when the share is 0."""
    found = noisy(BEST, "best_of_4", 0.25)
    wrong = found != BEST
    assert int(wrong.sum()) == 100 and found.min() >= 0 and found.max() <= 3
    steps = torch.bincount((found - BEST)[wrong] % 4, minlength=4)
    assert steps[0] == 0 and (steps[1:] > 20).all()
    assert torch.equal(noisy(BEST, "best_of_4", 0.25), found)
    assert not torch.equal(noisy(BEST, "best_of_4", 0.25, seed=2), found)
    assert torch.equal(noisy(BEST, "best_of_4", 0.0), BEST)
    assert not (noisy(BEST, "best_of_4", 1.0) == BEST).any()
    assert torch.equal(noisy(BEST % 2, "best_of_2", 1.0), 1 - BEST % 2)


def test_distributions_and_rankings_exchange_the_best():
    shares = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]).repeat(100, 1)
    found = noisy(shares, "best_of_3", 0.5)
    changed = (found != shares).any(1)
    assert 75 <= int(changed.sum()) <= 100  # two of a row's shares may be equal, but the best differs: all 100
    assert int((found.argmax(1) != shares.argmax(1)).sum()) == 100
    torch.testing.assert_close(found.sort(1).values, shares.sort(1).values)
    order = torch.tensor([[2, 0, 1], [1, -1, -3]]).repeat(100, 1)  # the second ranks its best alone
    found = noisy(order, "ranking_of_3", 1.0)
    assert not (found[:, 0] == order[:, 0]).any()
    responses = torch.where(found < 0, -1 - found, found).sort(1).values
    assert torch.equal(responses, torch.arange(3).expand(200, -1)) and torch.equal(found < 0, order < 0)


def test_scalars():
    """A difference turns its sign; ratings change owners, and their number of each kind stays."""
    values = torch.linspace(-2, 2, 41)
    found = noisy(values, "scalar_compare", 0.5)
    assert int((found == -values)[values != 0].sum()) in (19, 20) and torch.equal(found.abs(), values.abs())
    found = noisy(values, "scalar_rating", 0.5)
    assert int((found != values).sum()) == 20 and torch.equal(found.sort().values, values)


@pytest.mark.parametrize("share, count", [(0.004, 0), (0.01, 1), (0.5, 40)])
def test_the_share_is_of_all_labels(share, count):
    target = torch.zeros(80, dtype=torch.int64)
    assert int((noisy(target, "best_of_4", share) != target).sum()) == count
