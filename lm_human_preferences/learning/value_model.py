"""A value function with a trunk of its own (Stiennon et al. 2020, arXiv 2009.01325, section 3.4), beside the policy's
head on the shared one.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.heads import ScalarHead
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.policy import states_before
from lm_human_preferences.learning.reward_model import RewardModel

VALUE_MODELS = ("shared", "separate", "reward")


@dataclass
class ValueParams:
    """PPO's value function."""

    model: str = param(
        "shared",
        "shared: a head on the policy's trunk, as in the original; separate: a trunk and an optimizer of its own, "
        "from the policy's first weights; reward: the same from the reward model's weights, head included",
    )
    lr: float | None = param(None, "its learning rate at the first step, falling as the policy's; none takes ppo.lr")


class ValueModel(nn.Module):
    """A transformer and a scalar head that sees what the policy sees."""

    def __init__(self, transformer: GPT2, formatter: QueryFormatter):
        super().__init__()
        self.transformer, self.formatter = transformer, formatter
        self.head = ScalarHead(transformer.config.n_embd)  # zero: the first values are exactly 0

    @classmethod
    def load(
        cls, params: ValueParams, initial: Path, reward_model: str | None, formatter: QueryFormatter
    ) -> "ValueModel":
        """Of `separate` from the language model in `initial`, of `reward` from the folder of a reward model of ours.
        UserError if that is not one.
        """
        if params.model == "separate":
            return cls(load_model(initial), formatter)
        if reward_model is None:
            raise UserError(
                "--value.model reward needs a reward model, which --rewards.trained_model names; take separate"
            )
        rewards = RewardModel.load(Path(reward_model))
        model = cls(rewards.transformer, formatter)
        with torch.no_grad():  # the reward that a response would get if it ended here
            model.head.weight.copy_(rewards.gain * rewards.head.weight)
            model.head.bias.copy_(rewards.gain * rewards.head.bias + rewards.bias)
        return model

    def forward(self, queries: torch.Tensor, responses: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """Values float32 [B, R] of the state before each token of unpadded responses int64 [B, R] to queries int64
        [B, Q]; `real` as in `Policy.analyze`.
        """
        hidden = states_before(self.transformer, self.formatter, queries, responses, real)
        values: torch.Tensor = self.head(hidden)
        return values
