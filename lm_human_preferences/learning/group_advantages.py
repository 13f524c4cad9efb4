"""Policy gradients without a value function: the other responses to a query are the baseline.

RLOO (Ahmadian et al. 2024, arXiv 2402.14740) and GRPO (Shao et al. 2024, arXiv 2402.03300; without its two biases, Liu
et al. 2025, arXiv 2503.20783) as pure functions. Rows of a query are adjacent: row = query * k + response.

Shapes: B responses, k of them to each query, R response tokens. A mask, bool [B, R], tells response tokens from
what does not count; without one every response has R tokens, and all of them count.
"""

from typing import NamedTuple

import torch

from lm_human_preferences.learning.ppo import PPOParams, deviation_of, mean_of, of_rows, to_numbers

EPSILON = 1e-4  # added to deviations, as in TRL: a group whose rewards are all equal has advantages of exactly 0


def leave_one_out(rewards: torch.Tensor, k: int, scale: str = "none") -> torch.Tensor:
    """RLOO's advantages float32 [B]: each reward less the mean of the query's other rewards.

    rewards: float32 [B], the price of the KL in them; k: at least 2. scale: none; batch: brought to mean 0 and
    deviation 1 over all of them.
    """
    groups = rewards.view(-1, k)
    others = (groups.sum(1, keepdim=True) - groups) / (k - 1)
    advantages = (groups - others).flatten()
    if scale == "batch":
        return (advantages - advantages.mean()) / (advantages.std() + EPSILON)
    return advantages


def group_relative(rewards: torch.Tensor, k: int, scale: str = "group") -> torch.Tensor:
    """GRPO's advantages float32 [B]: each reward less the mean of its query's.

    scale: group divides by the deviation of the query's rewards, as Shao et al. do, which weighs queries that are
    nearly decided as much as all others; none does not (Liu et al.); batch divides by the deviation of all rewards.
    Deviations are those of samples (n - 1).
    """
    groups = rewards.view(-1, k)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(1, keepdim=True) + EPSILON)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + EPSILON)
    return advantages.flatten()


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's estimate of the KL at each token, never negative: rho / pi - 1 - log(rho / pi)."""
    log_ratio = ref_logprobs - logprobs
    return torch.exp(log_ratio) - 1 - log_ratio


class GroupTargets(NamedTuple):
    """What a minibatch's losses aim at, without gradient."""

    advantages: torch.Tensor  # float32 [B]
    old_logprobs: torch.Tensor  # float32 [B, R]
    ref_logprobs: torch.Tensor  # float32 [B, R]
    counted: torch.Tensor | None = None  # bool [B, R], the tokens that count; None: all

    def rows(self, index: slice | torch.Tensor) -> "GroupTargets":
        return GroupTargets(*of_rows(self, index))


class GroupLosses(NamedTuple):
    """Losses of each response, and what is measured with them. Only `total` carries a gradient; a minibatch's loss is
    its mean.
    """

    total: torch.Tensor  # [B]
    policy: torch.Tensor  # [B], the part without KL
    ratio: torch.Tensor  # [B, R], new / old probability
    clipped: torch.Tensor  # [B, R]: where the clipped loss is strictly the larger one
    approxkl: torch.Tensor  # [B, R]


def rloo_losses(
    logprobs: torch.Tensor, targets: GroupTargets, params: PPOParams, mask: torch.Tensor | None = None
) -> GroupLosses:
    """-min(w A, clip(w) A), with w the ratio of a whole response: one action, taken or not. The KL is in A."""
    log_ratio = _masked(logprobs - targets.old_logprobs, mask)
    plain, clipped = _surrogates(log_ratio.sum(1).exp(), targets.advantages, params.cliprange)
    loss = torch.maximum(plain, clipped)
    is_clipped = (clipped > plain).float()[:, None].expand_as(log_ratio)
    return GroupLosses(loss, loss.detach(), *_measured(log_ratio, is_clipped))


def grpo_losses(
    logprobs: torch.Tensor,
    targets: GroupTargets,
    params: PPOParams,
    kl_coef: float,
    mask: torch.Tensor | None = None,
    *,
    tokens: str = "response",
    longest: int | None = None,
) -> GroupLosses:
    """-min(w A, clip(w) A) + kl_coef * k3 at each token, with w the token's ratio; the KL has a gradient of its own.

    In expectation over tokens of the policy that gradient is the one of KL(rho, pi), so that the best policy is another
    than that of PPO and RLOO, proportional to rho / (a constant - r / kl_coef). With `params.unbiased_kl` w multiplies
    k3, as TRL has it, and it is the gradient of KL(pi, rho).

    tokens: response, each response's mean over its tokens (Shao et al.), by which a token of a long response counts
    less; all, the mean over all tokens; constant, the sum divided by `longest` (Liu et al.; None: R). Where all
    responses have R tokens the three are the same.
    """
    log_ratio = _masked(logprobs - targets.old_logprobs, mask)
    plain, clipped = _surrogates(log_ratio.exp(), targets.advantages[:, None], params.cliprange)
    policy = _masked(torch.maximum(plain, clipped), mask)
    kl = k3(logprobs, targets.ref_logprobs)
    kl = _masked(log_ratio.exp() * kl if params.unbiased_kl else kl, mask)
    counted = torch.ones_like(policy) if mask is None else mask.to(policy.dtype)
    per_response = {
        "response": counted.sum(1).clamp(min=1),
        "all": counted.sum() / len(counted),
        "constant": torch.tensor(float(longest or policy.shape[1])),
    }[tokens]
    total = (policy + kl_coef * kl).sum(1) / per_response
    alone = policy.detach().sum(1) / per_response
    return GroupLosses(total, alone, *_measured(log_ratio, _masked((clipped > plain).float(), mask)))


def _masked(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return x if mask is None else torch.where(mask, x, 0.0)


def _surrogates(ratio: torch.Tensor, advantages: torch.Tensor, cliprange: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain and clipped loss."""
    return -advantages * ratio, -advantages * torch.clamp(ratio, 1 - cliprange, 1 + cliprange)


def _measured(log_ratio: torch.Tensor, clipped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_ratio = log_ratio.detach()
    return log_ratio.exp(), clipped, 0.5 * log_ratio**2


def group_stats(
    losses: GroupLosses, entropies: torch.Tensor, counted: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Statistics of one minibatch, as `minibatch_stats` gives them; entropies: float32 [B, R]."""
    stats = {
        "loss/policy": losses.policy.mean(),
        "loss/total": losses.total.mean(),
        "policy/entropy": mean_of(entropies, counted),
        "policy/approxkl": mean_of(losses.approxkl, counted),
        "policy/clipfrac": mean_of(losses.clipped, counted),
        "ratio/std": deviation_of(losses.ratio, counted),
    }
    return {name: value.detach().float() for name, value in stats.items()}


def advantage_stats(rewards: torch.Tensor, advantages: torch.Tensor, k: int) -> dict[str, float]:
    """What a step's groups are like: the share of queries whose k rewards are all the same, which teach nothing, and
    the deviation of the advantages.
    """
    groups = rewards.view(-1, k)
    equal = (groups == groups[:, :1]).all(1).float().mean()
    return to_numbers({"objective/equal_groups": equal, "objective/advantage_std": advantages.std(correction=0)})
