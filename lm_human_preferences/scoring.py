"""Scores of responses: truncate, ask the reward model, replace by the penalty where no end was found."""

import torch

from lm_human_preferences.reward_model import RewardModel
from lm_human_preferences.tasks import TaskParams, penalise, responses_are_valid, truncate_responses


class Scorer:
    """Original: train_policy.py make_score_fn. Only the score sees truncated responses; PPO and KL use the raw ones."""

    def __init__(self, reward_model: RewardModel, task: TaskParams):
        self.reward_model, self.task = reward_model, task

    @torch.no_grad()
    def __call__(self, queries: torch.Tensor, responses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """queries int64 [B, Q], raw responses int64 [B, R] -> scores float32 [B], valid bool [B], truncated responses int64 [B, R]."""
        task, padding = self.task, self.reward_model.transformer.config.padding_token
        truncated = truncate_responses(responses, task.truncate_token, task.truncate_after, padding)
        valid = responses_are_valid(truncated, task.truncate_token, task.truncate_after)
        return penalise(self.reward_model(queries, truncated), valid, task.penalty_reward_value), valid, truncated
