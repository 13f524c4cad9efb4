"""Losses and statistics of labels, by hand; the recorded values are in test_cycles.py."""

import math

import pytest
import torch

from lm_human_preferences.data.labels import label_type
from lm_human_preferences.learning.label_losses import label_losses, label_statistics


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
