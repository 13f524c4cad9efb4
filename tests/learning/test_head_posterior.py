"""Heads that could all have given the labels: each is the best for its own prior and weights, and labels decide."""

import torch

from lm_human_preferences.learning.head_posterior import PRIOR_DEVIATION, fit_heads


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(count, channels=6, choices=4, seed=1):
    """States float64 [n, K, C] and choices of somebody who follows a direction [C]."""
    g = generator(seed)
    direction = 3 * torch.randn(channels, generator=g, dtype=torch.float64)
    states = torch.randn(count, choices, channels, generator=g, dtype=torch.float64)
    chances = (states @ direction / channels**0.5).softmax(1)
    return direction, states, torch.multinomial(chances, 1, generator=g)[:, 0]


def test_each_head_is_the_minimum_of_its_own_objective():
    """The gradient in closed form: sum of b_n X_n^T (p_n - y_n) + (w - a) / s^2 is 0."""
    _, states, best = labels(40)
    found = fit_heads(states, best, 5, generator())
    g = generator()
    anchors = PRIOR_DEVIATION * torch.randn(5, 6, generator=g, dtype=torch.float64)
    bootstrap = -torch.rand(5, 40, generator=g, dtype=torch.float64).log()
    inputs = (states - found.mean) / found.scale
    for weights, anchor, weight in zip(found.weights, anchors, bootstrap, strict=True):
        error = (inputs @ weights).softmax(1) - torch.nn.functional.one_hot(best, 4)
        gradient = torch.einsum("n,nkc,nk->c", weight, inputs, error) + (weights - anchor) / PRIOR_DEVIATION**2
        assert gradient.abs().max() < 40 * 1e-5


def test_a_distribution_that_is_one_hot_is_the_index():
    _, states, best = labels(30)
    one_hot = torch.nn.functional.one_hot(best, 4).float()
    assert torch.equal(
        fit_heads(states, best, 3, generator()).weights, fit_heads(states, one_hot, 3, generator()).weights
    )


def test_heads_agree_where_labels_have_decided():
    """More labels, less spread; and less along directions in which responses differed than along one where they never
    did, which keeps the prior's."""
    _, states, best = labels(1500)
    spreads = []
    for count in (20, 200, 1500):
        found = fit_heads(states[:count], best[:count], 16, generator())
        spreads.append(float(found.scores(states[:100].flatten(0, 1)).std(0).mean()))
    assert spreads[0] > 1.5 * spreads[1] > 1.5 * 1.5 * spreads[2]
    flat = states.clone()
    flat[:, :, 0] = 2.0
    found = fit_heads(flat, best, 16, generator())
    deviations = found.weights.std(0)
    assert deviations[1:].max() < 0.5 * deviations[0] and torch.isfinite(found.weights).all()


def test_heads_find_the_direction():
    direction, states, best = labels(1500)
    found = fit_heads(states, best, 8, generator())
    mean = found.weights.mean(0) / found.scale
    assert torch.nn.functional.cosine_similarity(mean, direction, dim=0) > 0.95
