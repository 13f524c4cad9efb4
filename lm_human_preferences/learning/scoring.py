"""Scores of responses: truncate, ask the reward model or another judge, replace by the penalty where no end was
found.
"""

from collections.abc import Callable

import torch

from lm_human_preferences.data.tasks import TaskParams, penalise, responses_are_valid, truncate_responses
from lm_human_preferences.learning.reward_ensemble import RewardEnsemble

Rewards = Callable[
    [torch.Tensor, torch.Tensor], torch.Tensor
]  # queries int64 [B, Q], responses int64 [B, R] -> float32 [B]


class Scorer:
    """Original: train_policy.py make_score_fn. Only the score sees truncated responses; PPO and KL use the raw ones."""

    def __init__(self, rewards: Rewards, task: TaskParams, padding_token: int):
        """`rewards` of queries and truncated responses: a RewardModel is such a function, and so is what
        `Judge.on_tokens` returns.
        """
        self.rewards, self.task, self.padding_token = rewards, task, padding_token

    @torch.no_grad()
    def __call__(
        self, queries: torch.Tensor, responses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """queries int64 [B, Q], raw responses int64 [B, R] -> scores float32 [B], valid bool [B], truncated responses
        int64 [B, R].
        """
        return self.with_disagreement(queries, responses)[:3]

    @torch.no_grad()
    def with_disagreement(
        self, queries: torch.Tensor, responses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, and the biased deviation of an ensemble's members float32 [B]; 0 of a single reward."""
        task = self.task
        truncated = truncate_responses(responses, task.truncate_token, task.truncate_after, self.padding_token)
        valid = responses_are_valid(truncated, task.truncate_token, task.truncate_after)
        if isinstance(self.rewards, RewardEnsemble):
            members = self.rewards.scores(queries, truncated)
            rewards, disagreement = self.rewards.combined(members), members.std(0, correction=0)
        else:
            rewards = self.rewards(queries, truncated)
            disagreement = torch.zeros_like(rewards)
        return penalise(rewards, valid, task.penalty_reward_value), valid, truncated, disagreement
