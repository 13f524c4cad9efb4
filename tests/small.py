"""A very small world for tests of whole stages: a random model, a data set and labels in their true formats, and the
command line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lm_human_preferences.commands import command_line
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.queries import write_meta, write_token_file
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import save_model

import warm
from params import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
CONFIG = GPT2Config(n_vocab=27, n_ctx=64, n_embd=16, n_head=2, n_layer=2, padding_token=27, encoding="letters")
QUERY, RESPONSE, PAD = 6, 5, 27
LAUNCH = [sys.executable, str(ROOT / "launch.py")]


def make_world(folder: Path, n_labels: int = 40, seed: int = 0) -> Path:
    """`folder` with model/, data/ (token files of documents and of queries) and labels.json, labels.jsonl,
    ratings.json, comparisons.json.
    """
    random = np.random.default_rng(seed)
    save_model(folder / "model", GPT2(CONFIG).initialise(generator_for(seed, "test/model")))
    documents = [random.integers(0, 26, random.integers(4, 30)).tolist() + [26] for _ in range(120)]
    splits = {
        split: write_token_file(folder / "data", split, documents[part])
        for split, part in (("train", slice(0, 80)), ("valid", slice(80, 120)))
    }
    write_meta(folder / "data", source="made up", licence="none", splits=splits, encoding="letters")

    def query() -> list[int]:
        length = int(random.integers(1, QUERY + 1))
        return random.integers(0, 26, length).tolist() + [PAD] * (QUERY - length)

    def response() -> list[int]:
        length = int(random.integers(1, RESPONSE + 1))
        return random.integers(0, 27, length).tolist() + [PAD] * (RESPONSE - length)

    choices = []
    for _ in range(n_labels):
        responses = [response() for _ in range(4)]
        best = int(np.argmax([row.count(0) - row.count(1) + random.normal() * 0.01 for row in responses]))
        choices.append(
            {
                "query": query(),
                **{f"sample{i}": row for i, row in enumerate(responses)},
                "best": best,
                "worker": "ignored",
            }
        )

    def write(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value))

    write("labels.json", choices)
    write(
        "ratings.json",
        [{"query": c["query"], "sample": c["sample0"], "score": float(c["sample0"].count(0))} for c in choices],
    )
    write(
        "comparisons.json",
        [
            {
                "query": c["query"],
                "sample0": c["sample0"],
                "sample1": c["sample1"],
                "difference": float(c["sample1"].count(0) - c["sample0"].count(0)),
            }
            for c in choices
        ],
    )
    letters = "abcdefghijklmnopqrstuvwxyz."

    def text(tokens: list[int]) -> str:
        return "".join(letters[t] for t in tokens if t != PAD)

    (folder / "labels.jsonl").write_text(
        "".join(
            json.dumps(
                {"query": text(c["query"]), "responses": [text(c[f"sample{i}"]) for i in range(4)], "best": c["best"]}
            )
            + "\n"
            for c in choices
        )
    )
    return folder


def flags(**values) -> list[str]:
    """Keyword arguments as command-line flags; '__' stands for a dot."""
    return [word for name, value in values.items() for word in (f"--{name.replace('__', '.')}", str(value))]


def task_flags(world: Path) -> list[str]:
    return flags(
        task__query_dataset=world / "data",
        task__query_length=QUERY,
        task__response_length=RESPONSE,
        task__truncate_token=26,
        task__truncate_after=1,
        task__policy__initial_model=world / "model",
    )


def reward_flags(world: Path) -> list[str]:
    return task_flags(world) + flags(
        labels__source=world / "labels.json",
        labels__valid_source="none",
        labels__num_train=32,
        batch_size=8,
        lr=0.01,
        rollout_batch_size=16,
        normalize_samples=16,
        run__save_dir=world / "runs",
        run__device="cpu",
        run__precision="float32",
        run__save_interval=2,
    )


def policy_flags(world: Path, reward_model: Path | None = None) -> list[str]:
    """With the original's PPO, whitening included, where task movies has values of its own."""
    words = task_flags(world) + flags(
        ppo__total_episodes=64,
        ppo__batch_size=16,
        ppo__lr=0.003,
        ppo__lam=0.95,
        ppo__vf_coef=0.1,
        ppo__cliprange_value=0.2,
        ppo__whiten_rewards="on",
        run__save_dir=world / "runs",
        run__device="cpu",
        run__precision="float32",
        run__save_interval=2,
        evaluation__samples=8,
        evaluation__split="valid",
    )
    return words + (flags(rewards__trained_model=reward_model) if reward_model else [])


def expert_flags(world: Path, reward_model: Path | None = None) -> list[str]:
    return policy_flags(world, reward_model) + flags(ppo__responses_per_query=4, ppo__noptepochs=2)


def dpo_flags(world: Path) -> list[str]:
    return task_flags(world) + flags(
        labels__source=world / "labels.json",
        labels__valid_source="none",
        labels__num_train=32,
        batch_size=8,
        epochs=2,
        lr=0.003,
        beta=0.1,
        run__save_dir=world / "runs",
        run__device="cpu",
        run__precision="float32",
        run__save_interval=2,
    )


def ilql_flags(world: Path) -> list[str]:
    return task_flags(world) + flags(
        labels__source=world / "ratings.json",
        labels__valid_source="none",
        labels__num_train=32,
        ilql__alpha=0.2,
        ilql__awac_beta=0.5,
        beta=2,
        batch_size=8,
        epochs=2,
        lr=0.003,
        run__save_dir=world / "runs",
        run__device="cpu",
        run__precision="float32",
        run__save_interval=2,
    )


def sft_flags(world: Path) -> list[str]:
    return flags(
        data__dataset=world / "data",
        data__block=16,
        model__initial="none",
        model__encoding="letters",
        model__n_ctx=32,
        model__n_embd=16,
        model__n_head=2,
        model__n_layer=2,
        optimizer__epochs=3,
        optimizer__batch_size=8,
        optimizer__lr=0.01,
        optimizer__warmup=2,
        optimizer__dropout=0,
        validation__interval=5,
        run__save_dir=world / "runs",
        run__device="cpu",
        run__precision="float32",
        run__save_interval=4,
    )


def _environment() -> dict[str, str]:
    """Of the processes that tests start: this one's, but for what differs from test to test."""
    mine = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {name: value for name, value in mine.items() if name != warm.PER_TEST}


_WARM = warm.Warm(_environment())


def launch(*words, cwd: Path = ROOT, check: bool = True, **environment) -> subprocess.CompletedProcess:
    """Run the command line as a user does, in a process of its own. With `check` a failure shows its output."""
    environment, words = _environment() | environment, list(map(str, words))
    if environment == _WARM.environment and sys.platform == "linux":
        result = _WARM.run(words, cwd, timeout=300)
    else:
        result = subprocess.run(
            [*LAUNCH, *words],
            cwd=cwd,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
            env=environment,
        )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def run_here(command: str, *words) -> None:
    """The command line in this process, which need not import torch again."""
    command_line.run([command, *map(str, words)], EXPERIMENTS)


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl without what measures time and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("elapsed/fps", "elapsed/time", "tokens_per_second", "labels_per_second", "memory/peak")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]
