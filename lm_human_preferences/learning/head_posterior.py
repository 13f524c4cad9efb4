"""What labels leave open about a reward: reward heads that could all have given them, on one trunk.

Each head is the most probable one from a random prior of its own, with every label weighted at random (randomised
priors and the Bayesian bootstrap: Osband et al. 2018, arXiv 1806.03335). Together they are samples of what a linear
head's posterior would be: where they differ, the labels have not decided. The trunk is fixed: what it would itself
have learnt from other labels is not in the samples.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

PRIOR_DEVIATION = 1.0  # of rewards under the prior, in nats of a choice's log-odds
ITERATIONS = 200
TOLERANCE = 1e-6  # of a gradient, for a mean over labels


class HeadPosterior(NamedTuple):
    """M reward heads on one trunk."""

    mean: torch.Tensor  # of the trunk's states, float64 [C]
    scale: torch.Tensor  # deviations of the states times the root of their number, float64 [C]
    weights: torch.Tensor  # float64 [M, C]

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Rewards float64 [M, N] of final hidden states [N, C]. They mean something beside each other only: a head has
        no offset.
        """
        return self.weights @ ((states.to(self.mean) - self.mean) / self.scale).T


def fit_heads(states: torch.Tensor, target: torch.Tensor, heads: int, generator: torch.Generator) -> HeadPosterior:
    """Heads that learn from N labels: states [N, K, C] of the last real token of each response, target int64 [N] of
    the best one or a distribution float [N, K].

    Each minimises sum_n b_n * cross entropy_n + |w - a|^2 / (2 s^2), where a is drawn from N(0, s^2) and b_n from the
    exponential distribution with mean 1. The objective is convex: L-BFGS in float64 from a on.
    """
    states = states.double().cpu()
    labels, choices, channels = states.shape
    rows = states.reshape(-1, channels)
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0) * channels**0.5
    inputs = (states - mean) / scale
    distribution = target.double() if target.is_floating_point() else F.one_hot(target, choices).double()
    anchors = PRIOR_DEVIATION * torch.randn(heads, channels, generator=generator, dtype=torch.float64)
    bootstrap = -torch.rand(heads, labels, generator=generator, dtype=torch.float64).clamp_min(1e-300).log()
    weights = anchors.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    @torch.enable_grad()
    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        rewards = torch.einsum("nkc,mc->mnk", inputs, weights)
        losses = -(distribution * rewards.log_softmax(2)).sum(2)
        prior = ((weights - anchors) ** 2).sum() / (2 * PRIOR_DEVIATION**2)
        loss = ((bootstrap * losses).sum() + prior) / labels
        loss.backward()
        return loss

    optimizer.step(objective)
    return HeadPosterior(mean, scale, weights.detach())
