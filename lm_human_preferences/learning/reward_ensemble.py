"""Several reward models as one: where they disagree, the reward is a guess (Coste et al. 2023, arXiv 2310.02743)."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from lm_human_preferences.learning.reward_model import RewardModel

ENSEMBLES = ("mean", "min", "uwo")


def combine(scores: torch.Tensor, how: str, uncertainty: float) -> torch.Tensor:
    """One score float [N] of those of M members, float [M, N].

    mean; min, the worst case (that paper's WCO); uwo, the mean less `uncertainty` times the members' variance, divided
    by M as in that paper's best-of-n code (its PPO code divides by M - 1).
    """
    if how == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean if how == "mean" else mean - uncertainty * scores.var(0, correction=0)


class RewardEnsemble(nn.Module):
    """Called as a reward model of its own, on one response to each query."""

    def __init__(self, members: Sequence[RewardModel], how: str, uncertainty: float):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.how, self.uncertainty = how, uncertainty

    def scores(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """Of each member, float32 [M, B]."""
        return torch.stack([member(queries, responses) for member in self.members])

    def forward(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """The reward float32 [B] of responses int64 [B, R] to queries int64 [B, Q]."""
        return self.combined(self.scores(queries, responses))

    def combined(self, scores: torch.Tensor) -> torch.Tensor:
        """The reward [B] of the members' scores [M, B]."""
        return combine(scores, self.how, self.uncertainty)


def reward_models(rewards: object) -> list[RewardModel]:
    """The reward models of ours that rewards are made of, none of them for a judge or a function."""
    if isinstance(rewards, RewardEnsemble):
        return [member for member in rewards.members if isinstance(member, RewardModel)]
    return [rewards] if isinstance(rewards, RewardModel) else []
