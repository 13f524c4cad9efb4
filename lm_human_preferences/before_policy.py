"""What comes before policy training: a look at what it needs besides rewards and, where there is no reward model yet,
people's first answers and reward training.
"""

from pathlib import Path

import torch

from lm_human_preferences import train_reward
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import check_split
from lm_human_preferences.data.tasks import check_drawing_repeats
from lm_human_preferences.foundation.configuration import to_dict
from lm_human_preferences.language.captured import decoding_graphs
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.model_folders import load_config
from lm_human_preferences.policy_params import PolicyTrainingParams
from lm_human_preferences.runs.folder import Run, go_on_after_restart, reward_model_folders, same_finished_run
from lm_human_preferences.runs.training import train_part
from lm_human_preferences.train_online import OnlineRewards


def check_besides_rewards(params: PolicyTrainingParams, precision: Precision, world: World) -> None:
    """UserError for what policy training would not begin with, whatever its rewards: it is found before people are
    asked and a reward model is trained. params: settled.
    """
    world.share(*params.minibatch())
    check_drawing_repeats(params.task, precision.device.type)
    with torch.device("meta"):  # without weights
        train_part(GPT2(load_config(Path(params.task.policy.initial_model))), params.model)
    if params.run.captured_decoding == "on":
        decoding_graphs(precision.device.type, params.run.sharding)
    if params.evaluation.samples:
        check_split(params.task.query_dataset, params.evaluation.split, "--evaluation.split")


def check_reward_batches(params: PolicyTrainingParams, world: World) -> None:
    """UserError if the ranks cannot share the batches of the reward model that is trained first, if one is."""
    if params.rewards.train_new_model is not None:
        for name in ("batch_size", "rollout_batch_size"):
            world.share(getattr(params.rewards.train_new_model, name), f"--rewards.train_new_model.{name}")


def begin_online(
    params: PolicyTrainingParams, precision: Precision, world: World, task: str, experiment: str
) -> OnlineRewards | None:
    """Where people are asked: gather the initial labels, and name them as those of the first reward model."""
    new, folder = params.rewards.train_new_model, Path(params.run.save_dir) / experiment
    if params.online is None or new is None:
        return None
    check_reward_batches(params, world)
    go_on_after_restart(params.run, folder, world)
    Run(folder, params.run, world).check_free()
    online = OnlineRewards(params.online, new, params.ppo, precision, world, task, experiment)
    online.begin(params.run.resume, params.run.overwrite)
    params.rewards.train_new_model = online.first()
    return online


def train_reward_model_first(
    params: PolicyTrainingParams, precision: Precision, world: World, task: str, experiment: str
) -> None:
    """Train a reward model where `params` (settled) say so, as a run of its own called `<experiment>_reward`; then
    `params` name its model. When a run is resumed, a reward model that is finished is not trained again.
    """
    new, name = params.rewards.train_new_model, f"{experiment}_reward"
    if new is None:
        return
    own, folder = Path(params.run.save_dir) / experiment, Path(params.run.save_dir) / name
    go_on_after_restart(params.run, own, world)
    new.run.resume, new.run.overwrite = params.run.resume, params.run.overwrite
    go_on_after_restart(new.run, folder, world)
    Run(own, params.run, world).check_free()
    if params.evaluation.samples:
        check_split(params.task.query_dataset, params.evaluation.split, "--evaluation.split")
    begun, reward_begun, finished = world.from_main(
        [path.exists() for path in (own / "config.json", folder / "config.json", folder / "result.json")]
    )
    if new.run.resume and finished:
        same_finished_run(folder, "train_reward", task, to_dict(new), world)
    else:
        new.run.resume = new.run.resume and reward_begun
        if new.members > 1:
            train_reward.train_members(new, precision, world, task, name)
        else:
            train_reward.RewardTrainer.prepare(new, precision, world).run(task, name)
    if params.run.resume and reward_begun and not begun:
        params.run.resume = False  # it stopped before the policy's run began
    params.rewards.trained_model = ",".join(reward_model_folders([str(folder)], params.run.save_dir))
    params.rewards.train_new_model = None
