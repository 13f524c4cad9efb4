"""What expert iteration keeps, and its loss, by hand."""

import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.learning.best_responses import kept_responses, likelihood_losses


def test_the_best_of_each_query_is_kept():
    """The first among equals; a control draws evenly and does not look."""
    rewards = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 0.0])
    assert kept_responses(rewards, 3, "best", torch.Generator()).tolist() == [1, 3]
    assert kept_responses(rewards, 2, "best", torch.Generator()).tolist() == [1, 3, 4]
    many = torch.arange(3000.0)
    kept = kept_responses(many, 3, "random", generator_for(1, "test"))
    assert torch.equal(kept // 3, torch.arange(1000))
    shares = torch.bincount(kept % 3) / 1000
    assert ((shares - 1 / 3).abs() < 0.06).all()
    assert torch.equal(kept, kept_responses(-many, 3, "random", generator_for(1, "test")))


def test_the_loss_counts_tokens_up_to_the_end():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-0.5, -0.5, -9.0]], requires_grad=True)
    counted = torch.tensor([[True, True, True], [True, True, False]])
    losses = likelihood_losses(logprobs, counted)
    assert losses.tolist() == [7.0, 1.0]
    losses.sum().backward()
    assert torch.equal(logprobs.grad, -counted.float())
