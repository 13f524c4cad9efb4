"""Scores of responses: truncate, ask the reward model or another judge, bring to a scale, replace by the penalty where
no end was found.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from lm_human_preferences.data.tasks import TaskParams, penalise, response_ends, responses_are_valid, truncate_responses
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.learning.reward_ensemble import RewardEnsemble
from lm_human_preferences.learning.reward_scale import RewardScale

Rewards = Callable[
    [torch.Tensor, torch.Tensor], torch.Tensor
]  # queries int64 [B, Q], responses int64 [B, R] -> float32 [B]


class Measured(NamedTuple):
    """Of responses, before there is a score."""

    rewards: torch.Tensor  # float32 [B], of the truncated responses
    valid: torch.Tensor  # bool [B], whether they have an end
    truncated: torch.Tensor  # int64 [B, R]
    disagreement: torch.Tensor  # float32 [B], biased deviation of an ensemble's members; 0 of a single reward


class Scorer:
    """Original: train_policy.py make_score_fn. The score sees truncated responses."""

    def __init__(
        self,
        rewards: Rewards,
        task: TaskParams,
        padding_token: int,
        ends: Ends | None = None,
        scale: RewardScale | None = None,
    ):
        """`rewards` of queries and truncated responses: a RewardModel is such a function, and so is what
        `Judge.on_tokens` returns. ends: of the task's responses; None where it names them by ids alone. scale: of the
        rewards, None to leave them.
        """
        self.rewards, self.task, self.padding_token = rewards, task, padding_token
        self.ends = response_ends(task) if ends is None else ends
        self.scale = scale or RewardScale()

    @torch.no_grad()
    def __call__(
        self, queries: torch.Tensor, responses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """queries int64 [B, Q], raw responses int64 [B, R] -> scores float32 [B], valid bool [B], truncated responses
        int64 [B, R].
        """
        measured = self.measure(queries, responses)
        return self.scores(measured.rewards, measured.valid), measured.valid, measured.truncated

    @torch.no_grad()
    def measure(self, queries: torch.Tensor, responses: torch.Tensor) -> Measured:
        """The rewards of raw responses int64 [B, R] to queries int64 [B, Q], and what is found on the way."""
        truncated = truncate_responses(responses, self.ends, self.padding_token)
        valid = responses_are_valid(truncated, self.ends)
        if isinstance(self.rewards, RewardEnsemble):
            members = self.rewards.scores(queries, truncated)
            return Measured(self.rewards.combined(members), valid, truncated, members.std(0, correction=0))
        rewards = self.rewards(queries, truncated)
        return Measured(rewards, valid, truncated, torch.zeros_like(rewards))

    def scores(self, rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Scores float32 [B]: rewards [B] on their scale, and the penalty in place of those without an end."""
        return penalise(self.scale(rewards), valid, self.task.penalty_reward_value)
