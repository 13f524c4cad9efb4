"""What policy training can be told, what follows from it, and what cannot work.

Begin with `PolicyTrainingParams`. `settle` and `check` come before anything is read or written; the stage itself is
train_policy.py.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass

from lm_human_preferences import train_reward
from lm_human_preferences.data.tasks import TaskParams, check_task_numbers
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.evaluation import EvaluationParams
from lm_human_preferences.judging.judges import SENTENCE_JUDGES
from lm_human_preferences.judging.training_rewards import RewardSource
from lm_human_preferences.learning.ppo import AdaptiveKLParams, PPOParams, check_kl, check_ppo
from lm_human_preferences.learning.reward_scale import check_scale
from lm_human_preferences.learning.value_model import VALUE_MODELS, ValueParams
from lm_human_preferences.people.schedule import OnlineParams, check_online
from lm_human_preferences.runs.folder import model_folder, reward_model_folders
from lm_human_preferences.runs.params import RunParams, check_run_params
from lm_human_preferences.runs.tracking import TrackingParams, check_tracking
from lm_human_preferences.runs.training import TrainedPartParams, check_trained_part
from lm_human_preferences.train_reward import RewardTrainingParams

ANSWERS = "(people's answers)"  # stands for the label file of a run that asks people


@dataclass
class RewardsParams(RewardSource):
    """Where rewards come from, and what distance from the reference costs."""

    scale: str = param(
        "none",
        "of rewards. none: as they are; running: divided by the deviation of all the run's rewards so far; normalised: "
        "brought to mean 0 and deviation 1 on the reference's responses before the first step",
    )
    scale_samples: int = param(256, "responses of the reference that normalised measures")
    clip: float | None = param(None, "rewards, on their scale, are cut to at most this and at least minus this")
    kl_coef: float = param(0.15, "price of a nat of KL to the reference policy (the adaptive controller's first value)")
    adaptive_kl: AdaptiveKLParams | None = param(None, "on: steer the coefficient to a target KL; off: keep it fixed")
    train_new_model: RewardTrainingParams | None = param(
        None, "how to train a new reward model first; off with trained_model or function"
    )


@dataclass
class PolicyTrainingParams:
    """Everything a policy-training run can be told; defaults are the original's."""

    task: TaskParams = param(TaskParams, "")
    rewards: RewardsParams = param(RewardsParams, "")
    ppo: PPOParams = param(PPOParams, "")
    value: ValueParams = param(ValueParams, "")
    model: TrainedPartParams = param(TrainedPartParams, "")
    evaluation: EvaluationParams = param(EvaluationParams, "")
    online: OnlineParams | None = param(
        None, "on: ask people while training, and train the reward model on what they answer (docs/people.md)"
    )
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")

    def minibatch(self) -> tuple[int, str]:
        """Episodes in a minibatch, over all ranks, and the flags that make them so many."""
        return self.ppo.batch_size // self.ppo.nminibatches, "--ppo.batch_size / --ppo.nminibatches"


def settle(params: PolicyTrainingParams) -> PolicyTrainingParams:
    """What a run will use, as a copy: a run that is named stands for its model folder, and the reward training that
    comes first is off where there is a reward already, or takes this run's task, device and seed.
    """
    params = copy.deepcopy(params)
    if params.ppo.advantage_scale == "auto":
        params.ppo.advantage_scale = "group" if params.ppo.estimator == "grpo" else "none"
    rewards, save_dir = params.rewards, params.run.save_dir
    params.task.policy.initial_model = model_folder(params.task.policy.initial_model, save_dir, ("policy", "lm"))
    if rewards.models():
        rewards.trained_model = ",".join(reward_model_folders(rewards.models(), save_dir))
    if rewards.trained_model is not None or rewards.function is not None:
        rewards.train_new_model = None
    if rewards.train_new_model is not None:
        new, own = rewards.train_new_model, rewards.train_new_model.run
        new.task, new.tracking = params.task, params.tracking
        new.run = dataclasses.replace(
            params.run,
            captured_decoding="off",  # reward training does not sample at each step
            save_interval=own.save_interval,  # its steps are of another length
            keep_checkpoints=own.keep_checkpoints,
        )
        if params.online is not None:
            new.labels.source, new.labels.num_train = ANSWERS, params.online.initial_labels
            new.labels.num_valid = new.labels.num_valid if new.labels.valid_source else 0
    return params


def check(params: PolicyTrainingParams) -> None:
    """Raises UserError, naming the flag and the numbers, for settled parameters that cannot work."""
    check_run_params(params.run, rollouts=True)
    check_tracking(params.tracking)
    check_task_numbers(params.task)
    check_ppo(params.ppo)
    check_trained_part(params.model)
    check_value(params)
    rewards = params.rewards
    if params.evaluation.samples < 0 or params.evaluation.shown < 0:
        raise UserError("--evaluation.samples and --evaluation.shown must not be negative")
    check_kl(rewards.kl_coef, rewards.adaptive_kl, params.ppo.batch_size)
    rewards.check()
    check_scale(rewards.scale, rewards.clip, rewards.scale_samples)
    if params.online is not None and rewards.scale == "normalised":
        raise UserError(
            "--rewards.scale normalised: --online replaces the reward model, and normalises each itself; leave it out"
        )
    if rewards.trained_model is None and rewards.function is None and rewards.train_new_model is None:
        raise UserError(
            "no reward model: give a folder with --rewards.trained_model PATH, or --rewards.train_new_model on"
        )
    if params.online is not None and rewards.train_new_model is None:
        raise UserError(
            "--online trains its own reward models: leave out --rewards.trained_model and --rewards.function, and "
            "--rewards.train_new_model on"
        )
    if rewards.train_new_model is not None:
        kind = train_reward.check(rewards.train_new_model)
        if params.online is not None:
            check_online(params.online, kind, rewards.train_new_model.batch_size)
            if rewards.train_new_model.members > 1:
                raise UserError(
                    f"--rewards.train_new_model.members {rewards.train_new_model.members}: with --online one reward "
                    "model is trained at a time; give 1"
                )


def check_value(params: PolicyTrainingParams) -> None:
    """Raises UserError for a value function that cannot be had."""
    value, source = params.value, params.rewards
    if value.model not in VALUE_MODELS:
        raise UserError(f"--value.model {value.model}: must be {', '.join(VALUE_MODELS[:-1])} or {VALUE_MODELS[-1]}")
    if value.model != "shared" and params.ppo.estimator != "gae":
        raise UserError(f"--value.model {value.model}: --ppo.estimator {params.ppo.estimator} has no values")
    if value.lr is not None and (value.model == "shared" or not 0 < value.lr < math.inf):
        raise UserError(f"--value.lr {value.lr}: must be positive, and --value.model separate or reward")
    elsewhere = source.function is not None or (source.trained_model or "").startswith(SENTENCE_JUDGES)
    if value.model == "reward" and (elsewhere or len(source.models()) > 1):
        raise UserError(
            "--value.model reward needs one reward model of ours to start from; take --value.model separate"
        )
    if value.model == "reward" and source.train_new_model is not None and source.train_new_model.members > 1:
        raise UserError(
            f"--rewards.train_new_model.members {source.train_new_model.members}: --value.model reward needs one "
            "reward model to start from; give 1, or take --value.model separate"
        )
