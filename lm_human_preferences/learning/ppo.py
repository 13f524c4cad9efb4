"""PPO's mathematics as pure functions: per-token rewards, whitening, advantages, clipped losses, KL controllers.

Shapes: B episodes, R response tokens. Nothing here knows ranks, models or optimizers. Original: train_policy.py,
utils/core.py.

`counted`, bool [B, R], tells a response's tokens up to its end from what follows, which then has no part in anything:
there log-probabilities, values, rewards and losses are 0, and means are over the tokens that count. None: all count, as
in the original.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.ends import Ends

LARGEST_ERROR = 0.2  # of the KL controller in one update, as a share (original: train_policy.py AdaptiveKLController)


ESTIMATORS = ("gae", "rloo", "grpo")  # of advantages
SCALES = ("auto", "none", "group", "batch")


@dataclass
class PPOParams:
    """Proximal policy optimisation; defaults are the original's."""

    estimator: str = param(
        "gae",
        "where advantages come from. gae: a value function, as in the original; rloo and grpo: the other responses to "
        "the same query, without one (docs/methods.md)",
    )
    responses_per_query: int = param(1, "responses to each query of a step; at least 2 for rloo and grpo")
    advantage_scale: str = param(
        "auto",
        "rloo and grpo: divide advantages by the deviation of each query's rewards (group, grpo alone), of the whole "
        "step's (batch), or not (none). auto: group for grpo, none for rloo",
    )
    unbiased_kl: bool = param(
        False,
        "grpo: weigh the KL in the loss by the probability ratio, so that its gradient is that of the KL of the policy "
        "from the reference; off: as published, that of the reference from the policy",
    )
    total_episodes: int = param(
        2_000_000, "responses to sample in the whole run; ceil(total_episodes / batch_size) steps are made"
    )
    batch_size: int = param(64, "episodes in a step, over all ranks")
    nminibatches: int = param(1, "optimizer steps per epoch; each takes batch_size / nminibatches episodes")
    noptepochs: int = param(4, "passes over a step's episodes")
    lr: float = param(5e-6, "learning rate of the first step; it falls linearly to lr / steps at the last")
    vf_coef: float = param(0.1, "weight of the value loss")
    cliprange: float = param(0.2, "clip range of the probability ratio")
    cliprange_value: float = param(0.2, "clip range of the value's change")
    gamma: float = param(1.0, "discount per token")
    lam: float = param(0.95, "lambda of generalised advantage estimation")
    whiten_rewards: bool = param(True, "scale rewards to variance 1 in each minibatch (the mean stays)")
    old_logprobs: str = param(
        "auto",
        "sampling: the ratio's denominator comes from sampling, as in the original; recomputed: from a pass "
        "like the training pass; auto: recomputed under bfloat16, else sampling",
    )


@dataclass
class AdaptiveKLParams:
    """The controller of the KL coefficient."""

    target: float = param(6.0, "KL per response, in nats, that the controller steers to")
    horizon: int = param(10_000, "episodes over which it corrects")


def check_ppo(params: PPOParams) -> None:
    """Raises UserError for numbers that do not divide or make no sense."""
    for name in ("total_episodes", "batch_size", "nminibatches", "noptepochs"):
        if getattr(params, name) < 1:
            raise UserError(f"--ppo.{name} {getattr(params, name)}: must be at least 1")
    check_estimator(params)
    if params.batch_size % params.nminibatches:
        raise UserError(
            f"--ppo.batch_size {params.batch_size} does not divide by --ppo.nminibatches {params.nminibatches}"
        )
    if params.estimator == "gae" and params.whiten_rewards and params.batch_size // params.nminibatches < 8:
        raise UserError(
            "--ppo.whiten_rewards needs minibatches of at least 8 episodes, not "
            f"{params.batch_size // params.nminibatches}; raise --ppo.batch_size or switch it off"
        )
    if params.old_logprobs not in ("auto", "sampling", "recomputed"):
        raise UserError(f"--ppo.old_logprobs {params.old_logprobs}: must be auto, sampling or recomputed")
    for name in ("lr", "cliprange", "cliprange_value"):
        if not 0 < getattr(params, name) < math.inf:
            raise UserError(f"--ppo.{name} {getattr(params, name)}: must be positive")
    for name in ("gamma", "lam"):
        if not 0 <= getattr(params, name) <= 1:
            raise UserError(f"--ppo.{name} {getattr(params, name)}: must lie between 0 and 1")
    if not 0 <= params.vf_coef < math.inf:
        raise UserError(f"--ppo.vf_coef {params.vf_coef}: must not be negative")


def check_estimator(params: PPOParams) -> None:
    """Raises UserError for an estimator that does not exist, or that these numbers do not suit."""
    k, estimator, scale = params.responses_per_query, params.estimator, params.advantage_scale
    if estimator not in ESTIMATORS:
        raise UserError(f"--ppo.estimator {estimator}: must be gae, rloo or grpo")
    if scale not in SCALES:
        raise UserError(f"--ppo.advantage_scale {scale}: must be auto, none, group or batch")
    if k < 1 or params.batch_size % k:
        raise UserError(f"--ppo.batch_size {params.batch_size} does not divide by --ppo.responses_per_query {k}")
    if estimator != "gae" and k < 2:
        raise UserError(
            f"--ppo.estimator {estimator} compares the responses to one query with each other: give "
            "--ppo.responses_per_query 2 or more"
        )
    if scale not in ("auto", "none") and estimator == "gae" or scale == "group" and estimator == "rloo":
        raise UserError(f"--ppo.advantage_scale {scale} has no part in --ppo.estimator {estimator}; leave it at auto")
    if params.unbiased_kl and estimator != "grpo":
        raise UserError(f"--ppo.unbiased_kl has no part in --ppo.estimator {estimator}, whose rewards hold the KL")


def check_kl(kl_coef: float, adaptive: AdaptiveKLParams | None, batch_size: int) -> None:
    """Raises UserError for a KL coefficient or controller that would pay for distance, or could never move.

    An update multiplies the coefficient by at least 1 - 0.2 * batch_size / horizon, which must stay positive.
    """
    if not 0 <= kl_coef < math.inf:
        raise UserError(f"--rewards.kl_coef {kl_coef}: must not be negative")
    if adaptive is None:
        return
    if not (0 < adaptive.target < math.inf and adaptive.horizon > 0):
        raise UserError("--rewards.adaptive_kl.target and --rewards.adaptive_kl.horizon must be positive")
    if kl_coef == 0:
        raise UserError(
            "--rewards.kl_coef 0 with --rewards.adaptive_kl on: the controller multiplies the coefficient, and 0 "
            "stays 0; give a first value above 0, or --rewards.adaptive_kl off"
        )
    if batch_size >= adaptive.horizon / LARGEST_ERROR:
        raise UserError(
            f"--rewards.adaptive_kl.horizon {adaptive.horizon} is too short for --ppo.batch_size {batch_size}: a "
            "single step could take the coefficient to 0 or below; give a horizon above "
            f"{int(LARGEST_ERROR * batch_size)}"
        )


class Rollout(NamedTuple):
    """A step's episodes, the whole global batch, equal on every rank."""

    queries: torch.Tensor  # int64 [B, Q]
    responses: torch.Tensor  # int64 [B, R], raw
    logprobs: torch.Tensor  # float32 [B, R], of the sampled tokens: the denominator of the ratio
    values: torch.Tensor  # float32 [B, R]
    sampled_logprobs: torch.Tensor  # float32 [B, R], as sampling computed them; `logprobs` unless those were recomputed
    ref_logprobs: torch.Tensor  # float32 [B, R]
    scores: torch.Tensor  # float32 [B], of the truncated responses, with the penalty
    valid: torch.Tensor  # bool [B]
    truncated: torch.Tensor  # int64 [B, R], the responses as the score sees them
    real: torch.Tensor  # bool [B, Q] on the host: where queries have no padding, which a GPU need not be asked then
    disagreement: torch.Tensor | None = None  # float32 [B], deviation of an ensemble's members
    support: torch.Tensor | None = None  # uint8 [B, R, bytes], what each token was drawn among; None: all tokens
    counted: torch.Tensor | None = None  # bool [B, R], the tokens that count; None: all
    rewards: torch.Tensor | None = None  # float32 [B], what became the scores: before scale, clipping and penalty


def without_what_follows(rollout: Rollout, ends: Ends) -> Rollout:
    """The episodes with what follows their ends set to 0 and not counted."""
    counted = ~ends.follows(rollout.responses)
    zeroed = {
        name: getattr(rollout, name).masked_fill(~counted, 0)
        for name in ("logprobs", "values", "sampled_logprobs", "ref_logprobs")
    }
    return rollout._replace(counted=counted, **zeroed)


def of_rows(columns: Iterable[torch.Tensor | None], rows: slice | torch.Tensor) -> list[Any]:
    """The same rows of each column; None stays None."""
    return [None if column is None else column[rows] for column in columns]


def joined(parts: Sequence[Iterable[Any]]) -> list[Any]:
    """Columns of tensors, from parts that are some rows of each; a column may be None in all of them."""
    return [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]


class FixedKLController:
    """A KL coefficient that stays."""

    def __init__(self, value: float):
        self.value = float(value)

    def update(self, kl: float, n_episodes: int) -> None:
        """Nothing: the coefficient is fixed."""


class AdaptiveKLController:
    """A proportional controller in log space (section 2.2 of the paper): the coefficient rises when the KL is above its
    target.
    """

    def __init__(self, value: float, params: AdaptiveKLParams):
        self.value, self.params = float(value), params

    def update(self, kl: float, n_episodes: int) -> None:
        """kl: mean KL per response over the global batch, in nats; n_episodes: the global batch size."""
        error = min(max(float(kl) / self.params.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.value *= 1 + error * n_episodes / self.params.horizon


def compute_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    kl_coef: float,
    counted: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token rewards and their KL part, both float32 [B, R].

    The KL part is -kl_coef * (logprob - ref_logprob) of the sampled token; the score [B] is added at the last place
    that counts: of all, wherever the response was truncated, or at the response's end.
    """
    non_score = -kl_coef * (logprobs - ref_logprobs)
    rewards = non_score.clone()
    if counted is None:
        rewards[:, -1] += scores
    else:
        last = torch.arange(rewards.shape[1], device=rewards.device) == counted.sum(1, keepdim=True) - 1
        rewards += torch.where(last, scores[:, None], 0.0)
    return rewards, non_score


def mean_of(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """The mean of values [B, R] over the tokens that count."""
    return values.mean() if counted is None else torch.where(counted, values, 0.0).sum() / counted.sum()


def variance_of(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Their biased variance."""
    if counted is None:
        return values.var(correction=0)
    return mean_of((values - mean_of(values, counted)) ** 2, counted)


def deviation_of(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Their biased standard deviation."""
    return values.std(correction=0) if counted is None else variance_of(values, counted).sqrt()


def whiten(values: torch.Tensor, shift_mean: bool = True, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Values [B, R] scaled to variance 1 over all tokens that count (biased variance + 1e-8 under the root), mean 0
    unless `shift_mean` is False; 0 where they do not count.
    """
    mean, variance = mean_of(values, counted), variance_of(values, counted)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    whitened = whitened if shift_mean else whitened + mean
    return whitened if counted is None else whitened.masked_fill(~counted, 0)


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates (not whitened) and returns = advantages + values, all [B, R]. The value after the
    last token is 0.
    """
    R = rewards.shape[1]
    advantages, running = torch.empty_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(R)):
        next_value = values[:, t + 1] if t + 1 < R else 0.0
        running = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


class Targets(NamedTuple):
    """What a minibatch's losses aim at, float32 [B, R]; the same on every rank, without gradient."""

    advantages: torch.Tensor  # whitened
    returns: torch.Tensor
    old_logprobs: torch.Tensor
    old_values: torch.Tensor
    counted: torch.Tensor | None = None  # bool [B, R]

    def rows(self, index: slice | torch.Tensor) -> "Targets":
        return Targets(*of_rows(self, index))

    @property
    def n_counted(self) -> int | torch.Tensor:
        """How many tokens count, over which a minibatch's losses are averaged."""
        return self.returns.numel() if self.counted is None else self.counted.sum()


def minibatch_targets(
    rewards: torch.Tensor,
    old_logprobs: torch.Tensor,
    old_values: torch.Tensor,
    params: PPOParams,
    counted: torch.Tensor | None = None,
) -> Targets:
    """Whitened rewards -> advantages -> whitened advantages, over the whole global minibatch (the original: over each
    rank's part).

    Returns keep the scale of the whitened rewards: they are made from the advantages before *their* whitening. Behind
    a response's end rewards and values are 0, so that the estimates end with it.
    """
    if params.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False, counted=counted)
    advantages, returns = advantages_and_returns(rewards, old_values, params.gamma, params.lam)
    return Targets(whiten(advantages, counted=counted), returns, old_logprobs, old_values, counted)


class Losses(NamedTuple):
    """Per-position losses and what is measured with them, [B, R] each. Only `policy` and `value` carry a gradient."""

    policy: torch.Tensor
    value: torch.Tensor
    ratio: torch.Tensor
    approxkl: torch.Tensor
    policy_clipped: torch.Tensor
    value_clipped: torch.Tensor
    value_error: torch.Tensor


class PolicyLosses(NamedTuple):
    """The policy's part of `Losses`."""

    loss: torch.Tensor
    ratio: torch.Tensor
    approxkl: torch.Tensor
    clipped: torch.Tensor


class ValueLosses(NamedTuple):
    """The value function's part of `Losses`."""

    loss: torch.Tensor
    clipped: torch.Tensor
    error: torch.Tensor


def policy_losses(logprobs: torch.Tensor, targets: Targets, params: PPOParams) -> PolicyLosses:
    """The clipped loss of the policy at each position."""
    log_ratio = logprobs - targets.old_logprobs
    ratio = torch.exp(log_ratio)
    plain = -targets.advantages * ratio
    clipped = -targets.advantages * torch.clamp(ratio, 1 - params.cliprange, 1 + params.cliprange)
    loss = torch.maximum(plain, clipped)
    return PolicyLosses(loss, ratio.detach(), 0.5 * log_ratio.detach() ** 2, (clipped > plain).float())


def value_losses(values: torch.Tensor, targets: Targets, params: PPOParams) -> ValueLosses:
    """The clipped loss of the values at each position."""
    clipped_values = torch.clamp(
        values, targets.old_values - params.cliprange_value, targets.old_values + params.cliprange_value
    )
    plain_error, clipped_error = (values - targets.returns) ** 2, (clipped_values - targets.returns) ** 2
    loss = 0.5 * torch.maximum(plain_error, clipped_error)
    return ValueLosses(loss, (clipped_error > plain_error).float(), plain_error.detach())


def ppo_losses(logprobs: torch.Tensor, values: torch.Tensor, targets: Targets, params: PPOParams) -> Losses:
    """The clipped losses at each position; the total loss is mean(policy) + vf_coef * mean(value) over a minibatch's
    positions.

    "Clipped" counts where the clipped loss is strictly the larger one. Where a token does not count, all of logprobs,
    values and targets are 0, and so are the losses.
    """
    return both_losses(policy_losses(logprobs, targets, params), value_losses(values, targets, params))


def both_losses(policy: PolicyLosses, value: ValueLosses) -> Losses:
    """The losses of policy and values as one."""
    return Losses(policy.loss, value.loss, policy.ratio, policy.approxkl, policy.clipped, value.clipped, value.error)


def minibatch_stats(
    losses: Losses, values: torch.Tensor, entropies: torch.Tensor, targets: Targets, params: PPOParams
) -> dict[str, torch.Tensor]:
    """The original's statistics of one minibatch, from per-position tensors [B, R] of the whole global minibatch, over
    the tokens that count; float32 scalars without gradient, where the tensors are: nothing waits for them yet.
    """
    mean, variance = (partial(of, counted=targets.counted) for of in (mean_of, variance_of))
    policy, value = mean(losses.policy), mean(losses.value)
    stats = {
        "loss/policy": policy,
        "loss/value": value,
        "loss/total": policy + params.vf_coef * value,
        "policy/entropy": mean(entropies),
        "policy/approxkl": mean(losses.approxkl),
        "policy/clipfrac": mean(losses.policy_clipped),
        "returns/mean": mean(targets.returns),
        "returns/var": variance(targets.returns),
        "val/vpred": mean(values),
        "val/error": mean(losses.value_error),
        "val/clipfrac": mean(losses.value_clipped),
        "val/mean": mean(targets.old_values),
        "val/var": variance(targets.old_values),
        "ratio/std": deviation_of(losses.ratio, targets.counted),
    }
    return {name: value.detach().float() for name, value in stats.items()}


def rollout_stats(
    rollout: Rollout, non_score: torch.Tensor, kl_coef: float, recomputed: bool = False
) -> dict[str, float]:
    """What a step's episodes are like, before the update; names and meaning as in the original.

    non_score: float32 [B, R], the KL part of the rewards; recomputed: whether `logprobs` come from another pass than
    sampling's, which then says how far sampling and training are apart. All means are over the global batch.
    """
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(1)
    stats = {
        "objective/kl": kl.mean(),
        "objective/kl_std": kl.std(correction=0),
        "objective/entropy": -rollout.logprobs.sum(1).mean(),
        "objective/score": rollout.scores.mean(),
        "objective/score_std": rollout.scores.std(correction=0),
        "objective/score_total": rollout.scores.mean() + non_score.sum(1).mean(),
        "objective/valid": rollout.valid.float().mean(),
    }
    if recomputed:
        ratio = torch.exp(rollout.logprobs - rollout.sampled_logprobs)
        stats["ppo/ratio/std_sampling"] = deviation_of(ratio, rollout.counted)
    distinct = len(torch.unique(rollout.truncated, dim=0)) / len(rollout.truncated)
    return to_numbers(stats) | {"objective/kl_coef": kl_coef, "objective/distinct": distinct}


def update_stats(minibatches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """A step's statistics from those of its minibatches: their means, and the deviation of the ratio in the first one,
    before any optimizer step, where it is 0 but for rounding. A GPU is waited for once for all of them.
    """
    rows = torch.stack([torch.stack(list(row.values())) for row in minibatches]).tolist()
    columns = dict(zip(minibatches[0], zip(*rows, strict=True), strict=True))
    stats = {f"ppo/{name}": sum(column) / len(column) for name, column in columns.items() if name != "ratio/std"}
    variance = stats.get("ppo/returns/var")  # without values there is none
    if variance is not None:
        stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / variance if variance > 0 else 0.0
    return stats | {"ppo/ratio/std_before": columns["ratio/std"][0]}


def to_numbers(stats: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers: a GPU is waited for once for all of them."""
    return dict(zip(stats, torch.stack([value.detach().float() for value in stats.values()]).tolist(), strict=True))
