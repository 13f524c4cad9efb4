"""What the tests of the doctor share: a small world whose runs are healthy, with data that break them, runs in this
process, and the recorded demo.
"""

import json
import random
import re
from pathlib import Path

import torch

from lm_human_preferences.data.queries import write_meta, write_token_file
from lm_human_preferences.expert_iteration import ExpertIterationParams
from lm_human_preferences.foundation.configuration import _all_names
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.train_dpo import DPOParams
from lm_human_preferences.train_ilql import ILQLParams
from lm_human_preferences.train_policy import PolicyTrainingParams
from lm_human_preferences.train_reward import RewardTrainingParams
from lm_human_preferences.train_sft import SFTParams
from lm_human_preferences.watching.doctor import Diagnosis, examine

from small import PAD, ROOT, dpo_flags, flags, ilql_flags, make_world, policy_flags, reward_flags, run_here, sft_flags

PARAMS = {
    "train_policy": PolicyTrainingParams,
    "train_reward": RewardTrainingParams,
    "train_sft": SFTParams,
    "train_dpo": DPOParams,
    "train_ilql": ILQLParams,
    "expert_iteration": ExpertIterationParams,
}
RECORDED = ROOT / "tests/data/demo"
ONLINE = ["win_rate", "reward_blind", "one_labeller", "blind_labeller"]  # only where people are asked
REWARD = dict(
    labels__num_train=800, batch_size=16, lr=0.003, normalize_samples=256, rollout_batch_size=64, run__save_interval=0
)
POLICY = dict(
    task__truncate_token="none",
    ppo__batch_size=32,
    ppo__total_episodes=32 * 24,
    rewards__kl_coef=0.11,
    run__save_interval=0,
)
SFT = dict(run__save_interval=0)
DPO = dict(labels__num_train=800, batch_size=16, epochs=1, lr=0.003, run__save_interval=0)

ILQL = dict(labels__num_train=800, batch_size=16, epochs=3, lr=0.01, ilql__alpha=0.05, run__save_interval=0)


def make_sick_world(parent: Path) -> Path:
    """The small world with 900 labels, labels broken in several ways, few documents, and a healthy reward model in
    runs/reward.
    """
    folder, rng = make_world(parent, n_labels=900), random.Random(0)

    def write(name, value):
        (folder / name).write_text(json.dumps(value))

    labels, ratings = (
        json.loads((folder / "labels.json").read_text()),
        json.loads((folder / "ratings.json").read_text()),
    )
    shuffled = [label | {"best": rng.randrange(4)} for label in labels]
    write("shuffled.json", shuffled)
    write("repeated.json", shuffled[:8] * 100 + shuffled[800:])
    write("constant.json", [rating | {"score": 3.0} for rating in ratings])
    write(
        "liked_last.json", [rating | {"score": rating["score"] + 2.0 * (i >= 800)} for i, rating in enumerate(ratings)]
    )
    write("noise.json", [rating | {"score": rng.random()} for rating in ratings])
    write(
        "padded.json",
        [
            {
                "query": label["query"][:1] + [PAD] * 39,
                "best": label["best"],
                **{f"sample{i}": [rng.randrange(26)] + [PAD] * 11 for i in range(4)},
            }
            for label in labels
        ],
    )
    documents = [[rng.randrange(26) for _ in range(20)] + [26] for _ in range(26)]
    splits = {
        name: write_token_file(folder / "few", name, part)
        for name, part in (("train", documents[:6]), ("valid", documents[6:]))
    }
    write_meta(folder / "few", source="made up", licence="none", splits=splits, encoding="letters")
    assert run(folder, "train_reward", "reward", reward_flags(folder), **REWARD).healthy
    model = RewardModel.load(folder / "runs/reward/reward_model")
    with torch.no_grad():
        model.gain *= 10
    model.save(folder / "loud_reward_model")
    return folder


def run(folder, stage: str, name: str, words: list[str], **changes) -> Diagnosis:
    """A run of the stage in this process, and what the doctor says about it; its advice must name flags that exist."""
    try:
        run_here(stage, "movies", name, *words, *flags(**changes))
    except UserError as error:
        assert "start anew with a lower" in str(error)
    diagnosis = examine(folder / "runs" / name)
    known = set(_all_names(PARAMS[stage])) | set(_all_names(RewardTrainingParams))
    for finding in diagnosis.findings:
        advised = re.findall(r"--([\w.]+)", finding.change)
        assert set(advised) <= known and (advised or finding.check == "kl_negative") and finding.saw and finding.why
    return diagnosis


def in_world(world, stage: str) -> tuple[list[str], dict]:
    """A stage's flags and the settings under which a run of it is healthy."""
    if stage == "train_policy":
        return policy_flags(world, world / "runs/reward/reward_model"), POLICY
    return {
        "train_reward": (reward_flags(world), REWARD),
        "train_sft": (sft_flags(world), SFT),
        "train_dpo": (dpo_flags(world), DPO),
        "train_ilql": (ilql_flags(world), ILQL),
    }[stage]


def found(diagnosis: Diagnosis) -> set[str]:
    return {finding.check for finding in diagnosis.findings}


def recorded(stage: str) -> tuple[list[dict], dict, dict]:
    """Metrics, parameters and result of a run of the demo, numbers rounded. The reward run is older than the metrics on
    padding.
    """
    rows = read_jsonl(RECORDED / f"{stage}.jsonl")
    about = json.loads((RECORDED / "about.json").read_text())[stage]
    return rows, about["parameters"], about["result"]
