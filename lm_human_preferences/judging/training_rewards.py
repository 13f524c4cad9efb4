"""What a policy is trained for: a trained reward model, a judge of sentences or a function, as a function of token
tensors.
"""

from pathlib import Path

import torch

from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import SENTENCE_JUDGES, FunctionJudge, SentenceJudge, load_function, load_judge
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.learning.scoring import Rewards


def load_rewards(
    trained_model: str | None, function: str | None, policy: GPT2Config, task: TaskParams, device: torch.device
) -> Rewards:
    """The rewards that `--rewards.trained_model` or `--rewards.function` names. UserError if they cannot be had or do
    not fit the policy.
    """
    if function is not None:
        return FunctionJudge(function, load_function(function)).on_tokens(get_encoding(policy.encoding))
    if trained_model is None:
        raise UserError("no reward model: give a folder with --rewards.trained_model PATH")
    if trained_model.startswith(SENTENCE_JUDGES):
        judge = load_judge(trained_model, device)
        assert isinstance(judge, SentenceJudge)
        return judge.on_tokens(get_encoding(policy.encoding))
    reward_model = RewardModel.load(Path(trained_model))
    check_reward_model(reward_model.transformer.config, policy, task)
    return reward_model


def check_reward_model(reward: GPT2Config, policy: GPT2Config, task: TaskParams) -> None:
    """Raises UserError if the reward model cannot read what the policy writes."""
    if (reward.encoding, reward.n_vocab) != (policy.encoding, policy.n_vocab):
        raise UserError(
            f"the reward model's encoding ({reward.encoding}, {reward.n_vocab} tokens) is not the policy's "
            f"({policy.encoding}, {policy.n_vocab} tokens); train both from models of one encoding"
        )
    if task.query_length + task.response_length > reward.n_ctx:
        raise UserError(
            f"query ({task.query_length}) and response ({task.response_length}) are longer than the reward model's "
            f"context of {reward.n_ctx}; shorten --task.query_length or --task.response_length"
        )
