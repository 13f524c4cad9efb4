"""Losses and statistics of labels, by hand; the recorded values are in test_cycles.py."""

import itertools
import math

import numpy as np
import pytest
import torch

from lm_human_preferences.data.labels import label_type
from lm_human_preferences.learning.label_losses import (
    chance_accuracy,
    choice_accuracy,
    label_losses,
    label_statistics,
    ranking_losses,
)

from small import ROOT


def test_losses_and_statistics_by_hand():
    """Cross entropy of the best, squared error of a rating, squared error of the second reward minus the first."""
    rewards, best = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([1, 0])
    torch.testing.assert_close(
        label_losses(label_type("best_of_2"), rewards, best), torch.tensor([2.0, 1 + math.exp(-2)]).log()
    )
    assert (
        label_statistics(label_type("best_of_2"), rewards, best)["accuracy"] == 0.5
    )  # of equal rewards the first counts as chosen
    assert label_losses(label_type("scalar_compare"), rewards, torch.tensor([1.0, 1.0])).tolist() == [1.0, 9.0]
    ratings, kind = torch.tensor([1.0, 2.0, 6.0]), label_type("scalar_rating")
    stats = label_statistics(kind, -2 * ratings[:, None], ratings)
    assert stats["loss"] == stats["error"] == 9 * 41 / 3 and stats["corr"] == pytest.approx(-1)
    assert label_statistics(label_type("scalar_compare"), torch.stack([0 * ratings, ratings], 1), 3 * ratings)[
        "corr"
    ] == pytest.approx(1)
    assert (stats["label_mean"], stats["label_var"]) == (3.0, pytest.approx(14 / 3))


@pytest.fixture
def recorded():
    with np.load(ROOT / "tests/data/people/labels.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name.startswith("soft/")}


def test_a_distribution_as_recorded(recorded):
    """Loss and gradient of targets with ties, of all alike and of any, in float64."""
    rewards = recorded["soft/rewards"].requires_grad_()
    losses = label_losses(label_type("best_of_4"), rewards, recorded["soft/target"])
    losses.mean().backward()
    for found, name in ((losses, "loss"), (losses.mean(), "mean"), (rewards.grad, "grad")):
        torch.testing.assert_close(found, recorded[f"soft/{name}"], rtol=0, atol=1e-9)
    assert bool((losses >= recorded["soft/entropy"] - 1e-12).all())


def test_rankings_sum_to_one_and_need_not_be_whole():
    """Over all orders, over all first and second places; the best one alone is equation 1, bit for bit."""
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5])

    def probabilities(orders):
        return torch.exp(-ranking_losses(rewards.expand(len(orders), -1), torch.tensor(orders))).sum()

    whole = list(itertools.permutations(range(4)))
    pairs = [[*some, *(-1 - n for n in range(4) if n not in some)] for some in itertools.permutations(range(4), 2)]
    assert float(probabilities(whole)) == pytest.approx(1) and float(probabilities(pairs)) == pytest.approx(1)
    alone = torch.tensor([[2, -1, -2, -4]])
    assert float(ranking_losses(rewards[None], alone)) == pytest.approx(
        float(label_losses(label_type("best_of_4"), rewards[None], torch.tensor([2]))), rel=1e-6
    )
    stats = label_statistics(
        label_type("ranking_of_4"), rewards.expand(2, -1), torch.tensor([[2, 3, 0, 1], [0, 1, 2, 3]])
    )
    assert stats["accuracy"] == 0.5


def test_accuracy_on_distributions_counts_each_of_the_most_probable():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    target = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    assert choice_accuracy(rewards, target) == pytest.approx(2 / 3)
    assert choice_accuracy(rewards, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_what_rewards_that_know_nothing_come_to():
    """30% of the choices between two are ties, of which either is right."""
    generator = torch.Generator().manual_seed(0)
    target = torch.nn.functional.one_hot(torch.randint(2, (20_000,), generator=generator), 2).float()
    target[:6000] = 0.5
    blind = choice_accuracy(torch.randn(20_000, 2, generator=generator), target)
    assert chance_accuracy(target, 2) == pytest.approx(0.65) and abs(blind - 0.65) < 4 * (0.25 / 20_000) ** 0.5
    assert chance_accuracy(torch.tensor([3, 0]), 4) == chance_accuracy(torch.tensor([[3, 0, 1, 2]]), 4) == 0.25
