"""Peak memory of policy training, phase by phase, beside what `plan` predicts: `python -m benchmarks.memory --help`.

Each case runs in a process of its own. On a CPU the peak is the process's resident memory, reset before each phase
(Linux only); on a GPU it is what PyTorch's allocator had reserved, without the CUDA context.
"""

# ruff: noqa: E402  # as in launch.py, threads and memory are set before the imports that load PyTorch

import argparse
import json
import subprocess
import sys
from pathlib import Path

from lm_human_preferences.foundation import process

process.tune_threads_and_memory()

import torch

from benchmarks.cases import BATCHES, TASKS, Case
from benchmarks.ours import policy_trainer
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.optim import allocate_state
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.foundation.errors import exit_on_user_error
from lm_human_preferences.language import logprobs
from lm_human_preferences.language.gpt2 import GPT2, SHAPES
from lm_human_preferences.learning.ppo import Rollout
from lm_human_preferences.runs.micro_batches import GIB
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import policy_training_memory
from lm_human_preferences.train_policy import PPOTrainer

# each with those before it
MEASURES = ["none", "logits in chunks", "frozen models in bfloat16", "micro-batches", "activations recomputed"]


def build(args: argparse.Namespace) -> PPOTrainer:
    """A trainer with random weights in memory whose micro-batches are the case's."""
    case, level = Case("update", args.model, args.task, args.batch), MEASURES.index(args.measure)
    if level < 1:
        everything = args.batch * case.task_params().response_length
        logprobs.CHUNK_ROWS.update(dict.fromkeys(logprobs.CHUNK_ROWS, everything))
        logprobs.KEPT_BYTES.update(dict.fromkeys(logprobs.KEPT_BYTES, 4 * case.config().n_vocab * everything))
    if level < 2:
        GPT2.round_projections = lambda self: None
    rows, rollout = (args.micro_batch, args.micro_batch_rollout) if level >= 3 else (args.batch, args.batch)
    run = RunParams(
        micro_batch=rows,
        micro_batch_rollout=rollout,
        micro_batch_scoring=rows,
        recompute_activations="on" if level >= 4 else "off",
    )
    return policy_trainer(case, choose_precision(args.device, args.precision), run, epochs=1)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(args: argparse.Namespace) -> dict[str, int]:
    """Peaks in bytes of each phase of a step with one epoch, in this process, and what is predicted for it."""
    trainer = build(args)
    allocate_state(trainer.optimizer)  # as from the second step on
    device, config, sizes = trainer.precision.device, trainer.policy.transformer.config, trainer.training.micro_batches
    memory = policy_training_memory(trainer.params, config, trainer.precision, 1, trainer.policy.formatter.length)
    held, training = sum(memory.held.values()), memory.recomputing if sizes.recompute else memory.training
    predicted = {
        "rollout": memory.rollout.bytes(sizes.rollout),
        "scoring": memory.scoring.bytes(sizes.scoring),
        "training": training.bytes(sizes.training),
    }
    queries = trainer.queries.batch(args.batch)
    device_queries, real = queries.to(device), queries != config.padding_token
    uniforms = trainer.uniforms(0).to(device)
    responses = torch.randint(
        config.n_vocab - 1, (args.batch, trainer.params.task.response_length), generator=generator_for(1, "responses")
    ).to(device)
    zeros = torch.zeros(responses.shape, device=device)

    def rollout() -> None:
        with torch.no_grad(), trainer.precision.autocast():
            trainer.policy.respond(device_queries[: sizes.rollout], uniforms[: sizes.rollout])

    def scoring() -> None:
        with torch.no_grad():
            trainer.score(
                device_queries[: sizes.scoring],
                responses[: sizes.scoring],
                zeros[: sizes.scoring],
                zeros[: sizes.scoring],
                real[: sizes.scoring],
            )

    def training_step() -> None:
        whole = Rollout(
            device_queries, responses, zeros - 1, zeros, zeros - 1, zeros[:, 0], zeros[:, 0] > -1, responses, real
        )
        rows = min(args.batch, 2 * sizes.training) if args.quick else args.batch
        trainer.train_minibatch(whole, zeros, torch.arange(rows), 1e-6)

    found = {}
    for name, work in (("rollout", rollout), ("scoring", scoring), ("training", training_step)):
        reset_peak(device)
        work()
        found[name] = {"measured": peak(device), "predicted": held + predicted[name]}
    return found


def table(title: str, found: dict[str, dict[str, int]]) -> str:
    cells = []
    for name, row in found.items():
        off = row["predicted"] / row["measured"] - 1
        cells.append(f"{name} {row['measured'] / GIB:6.2f} ({row['predicted'] / GIB:.2f}, {off:+.0%})")
    return f"{title:60} " + "  ".join(cells)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="124M", choices=list(SHAPES))
    parser.add_argument("--task", default="summary", choices=list(TASKS), help="its lengths, prefix and suffix")
    parser.add_argument("--batch", type=int, default=BATCHES["cuda"]["summary"], help="episodes of a step")
    parser.add_argument(
        "--micro_batch", type=int, default=8, help="rows trained on and scored at once from `micro-batches` onward"
    )
    parser.add_argument(
        "--micro_batch_rollout", type=int, default=32, help="rows sampled at once from `micro-batches` onward"
    )
    parser.add_argument("--measures", nargs="+", default=MEASURES, choices=MEASURES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--quick", action="store_true", help="less work with the same peaks: train on two micro-batches"
    )
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    print(f"{args.model}, {args.task}, batch {args.batch}: measured GiB (predicted, off by)")
    for name in args.measures:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--measure", name],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}, out of memory?"])[-1]
            print(f"{name:60} failed: {reason}", flush=True)
            continue
        print(table(name, json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
