"""Runs with several ranks, sharded or not, beside runs on one: `python tests/scaling.py` prints how far they are apart.

Each stage trains on the very small world of small.py, in float32: policy training for ten updates.
tests/test_scaling.py runs parts of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from small import ROOT, flags, launch, make_world, metrics, policy_flags, reward_flags, sft_flags

RESULTS = {"train_sft": "lm", "train_reward": "reward_model", "train_policy": "policy", "expert_iteration": "policy"}
LOSSES = {
    "train_sft": "train/loss",
    "train_reward": "train/loss",
    "train_policy": "ppo/loss/total",
    "expert_iteration": "expert/loss",
}


def words_of(stage: str, world: Path) -> list[str]:
    """The stage's command line: ten updates of policy training, dropout in supervised training."""
    if stage in ("train_policy", "expert_iteration"):
        return policy_flags(world, world / "runs/reward/reward_model") + flags(ppo__total_episodes=160)
    return reward_flags(world) if stage == "train_reward" else sft_flags(world) + flags(optimizer__dropout=0.1)


def run(stage: str, name: str, world: Path, ranks: int, *more: str) -> Path:
    """Train on so many ranks; the run's folder."""
    words = [stage, "movies", name, *words_of(stage, world), *more]
    if ranks == 1:
        launch(*words)
    else:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
                str(ranks),
                "launch.py",
                *map(str, words),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return world / "runs" / name


def distance(stage: str, one: Path, other: Path) -> dict[str, float]:
    """How far two runs are apart: largest relative difference of a step's loss, largest difference of a weight, share
    of samples that are the same.
    """
    losses = [
        np.array([row[LOSSES[stage]] for row in metrics(folder) if LOSSES[stage] in row]) for folder in (one, other)
    ]
    tensors = [load_file(folder / RESULTS[stage] / "model.safetensors") for folder in (one, other)]
    # the keys' bias has gradient 0 in exact arithmetic (softmax does not see it): Adam makes steps of noise there
    weights = max(
        float((tensors[0][name] - value).abs().max())
        for name, value in tensors[1].items()
        if not name.endswith("c_attn.bias")
    )
    found = {"loss": float(np.max(np.abs(losses[0] - losses[1]) / np.abs(losses[1]))), "weights": weights}
    if stage in ("train_policy", "expert_iteration"):
        texts = [
            [
                (row["query"], row["response"])
                for row in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
            ]
            for folder in (one, other)
        ]
        found["same responses"] = float(np.mean([a == b for a, b in zip(*texts, strict=True)]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=list(RESULTS), choices=list(RESULTS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        run("train_reward", "reward", world, 1)
        for stage in arguments.stages:
            alone = run(stage, f"{stage}_alone", world, 1)
            for ranks in arguments.ranks:
                for sharding in ("ddp", "fsdp"):
                    together = run(stage, f"{stage}_{ranks}_{sharding}", world, ranks, "--run.sharding", sharding)
                    found = "  ".join(
                        f"{name} {value:.1e}" if name != "same responses" else f"{name} {value:.0%}"
                        for name, value in distance(stage, together, alone).items()
                    )
                    print(f"{stage:13} {ranks} ranks {sharding:4} against 1:  {found}", flush=True)
            micro = run(
                stage,
                f"{stage}_micro",
                world,
                1,
                "--run.micro_batch",
                "3",
                "--run.micro_batch_rollout",
                "5",
                "--run.micro_batch_scoring",
                "2",
                "--run.recompute_activations",
                "on",
            )
            print(
                f"{stage:13} micro-batches of 3, recomputed, against whole:  {distance(stage, micro, alone)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
