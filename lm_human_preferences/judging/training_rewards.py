"""What a policy is trained for: a trained reward model, a judge of sentences or a function, as a function of token
tensors.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging.judges import SENTENCE_JUDGES, FunctionJudge, Judge, load_function, load_judge
from lm_human_preferences.language.encoding import describe_encoding, get_encoding, same_encoding
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.learning.reward_ensemble import ENSEMBLES, RewardEnsemble
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.learning.scoring import Rewards


@dataclass
class RewardSource:
    """Where rewards come from."""

    trained_model: str | None = param(
        None,
        "a run of train_reward or its model folder, or several with commas between them; or a judge, "
        "hf:PATH[?options][#label[:form]], ratings:FOLDER or embeddings:FOLDER, whose score is not normalised; none "
        "trains a new one first",
        "path",
    )
    function: str | None = param(
        None, "module:function of (query texts, response texts) that gives a score each, not normalised; no model then"
    )
    ensemble: str = param(
        "mean",
        "of several reward models: mean; min, the worst case; uwo, the mean less `uncertainty` times their variance",
    )
    uncertainty: float = param(0.5, "price of a unit of the members' variance, with uwo")

    def models(self) -> list[str]:
        """The reward models that `trained_model` names, each as it is given; none if it is a judge or absent."""
        named = self.trained_model
        if named is None or named.startswith(SENTENCE_JUDGES):
            return []
        return [named] if find_path(named).exists() else [part.strip() for part in named.split(",") if part.strip()]

    def check(self) -> None:
        """Raises UserError for what excludes each other or does not exist."""
        if self.trained_model is not None and self.function is not None:
            raise UserError("--rewards.trained_model and --rewards.function exclude each other; give one of them")
        named = self.trained_model
        if named is not None and not named.startswith(SENTENCE_JUDGES) and not self.models():
            raise UserError(f"--rewards.trained_model {named!r} names no reward model; give a folder, or none")
        if self.ensemble not in ENSEMBLES:
            raise UserError(f"--rewards.ensemble {self.ensemble}: must be mean, min or uwo")
        if not 0 <= self.uncertainty < math.inf:
            raise UserError(f"--rewards.uncertainty {self.uncertainty}: must not be negative")
        if judge := next((name for name in self.models() if name.startswith(SENTENCE_JUDGES)), None):
            raise UserError(f"--rewards.trained_model {judge}: an ensemble has reward models of ours alone")

    def inputs(self) -> dict[str, str | None]:
        """What is read, by flag."""
        models = self.models()
        if len(models) > 1:
            return {f"rewards.trained_model {number}": model for number, model in enumerate(models, 1)}
        return {"rewards.trained_model": self.trained_model}


def load_rewards(source: RewardSource, policy: GPT2Config, task: TaskParams, device: torch.device) -> Rewards:
    """The rewards that `source` names. UserError if they cannot be had or do not fit the policy."""
    if source.function is not None:
        return FunctionJudge(source.function, load_function(source.function)).on_tokens(get_encoding(policy))
    if source.trained_model is None:
        raise UserError("no reward model: give a folder with --rewards.trained_model PATH")
    if source.trained_model.startswith(SENTENCE_JUDGES):
        judge = load_judge(source.trained_model, device)
        assert isinstance(judge, Judge)
        return judge.on_tokens(get_encoding(policy))
    members = [RewardModel.load(Path(folder)) for folder in source.models()]
    for member in members:
        check_reward_model(member.transformer.config, policy, task)
    return members[0] if len(members) == 1 else RewardEnsemble(members, source.ensemble, source.uncertainty)


def check_reward_model(reward: GPT2Config, policy: GPT2Config, task: TaskParams) -> None:
    """Raises UserError if the reward model cannot read what the policy writes."""
    if not same_encoding(reward, policy):
        raise UserError(
            f"the reward model's encoding ({describe_encoding(reward)}) is not the policy's "
            f"({describe_encoding(policy)}); train both from models of one encoding"
        )
    if task.query_length + task.response_length > reward.n_ctx:
        raise UserError(
            f"query ({task.query_length}) and response ({task.response_length}) are longer than the reward model's "
            f"context of {reward.n_ctx}; shorten --task.query_length or --task.response_length"
        )
