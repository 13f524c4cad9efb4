"""What the tests of faults share: a small world with a finished run of each stage and one that was stopped, and what a
resumed run must come to.
"""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.foundation.errors import Interrupted
from lm_human_preferences.runs.stopping import StopRequest

from small import flags, make_world, metrics, policy_flags, reward_flags, run_here, sft_flags

STAGES = {"train_reward": "reward_model", "train_policy": "policy", "train_sft": "lm"}


def train(stage: str, name: str, words: list[str]) -> None:
    """A run of the stage in this process."""
    run_here(stage, "movies", name, *words)


def words_of(folder: Path, stage: str, **changes) -> list[str]:
    """The stage's words in the small world, with a checkpoint each step."""
    words = {
        "train_reward": lambda: reward_flags(folder),
        "train_policy": lambda: policy_flags(folder, folder / "runs/train_reward/reward_model"),
        "train_sft": lambda: sft_flags(folder) + flags(validation__interval=2),
    }[stage]()
    return words + flags(run__save_interval=1, run__keep_checkpoints=3, **changes)


def make_stopped_world(parent: Path) -> Path:
    """The small world with a finished run of each stage, and one that was stopped after its third step with three
    checkpoints.
    """
    folder = make_world(parent)
    for stage in STAGES:
        train(stage, stage, words_of(folder, stage))
        count = itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopRequest, "agreed", lambda request, count=count: next(count) == 3)
            with pytest.raises(Interrupted):
                train(stage, f"stopped_{stage}", words_of(folder, stage))
        assert saved(folder / f"runs/stopped_{stage}") == [1, 2, 3]
    return folder


def saved(run: Path) -> list[int]:
    """Steps of a run's checkpoints."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("0*"))


def assert_same_end(world: Path, stage: str, run: Path) -> None:
    """Weights and metrics of a finished run are those of the uninterrupted one, and nothing half-written is left."""
    whole = world / "runs" / stage
    assert metrics(run) == metrics(whole)
    for file in (whole / STAGES[stage]).glob("*.safetensors"):
        ours, theirs = load_file(run / STAGES[stage] / file.name), load_file(file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(run.rglob(".*")) and not (run / "checkpoints").exists()


def copy_of_stopped(world: Path, stage: str, name: str) -> Path:
    run = world / "runs" / name
    shutil.copytree(world / f"runs/stopped_{stage}", run)
    return run
