"""What rounding the weights to bfloat16 does to policy training, and what helps.

    python -m benchmarks.rounding [--ways float32,nearest,dithered,stochastic] [--seeds 1,2,3]

Under bfloat16 each pass rounds the blocks' weights, and the shipped model's lie on bfloat16's numbers exactly: a first
small step is either rounded away or doubled. `nearest` is that; `dithered` begins from weights that lie anywhere
between two numbers and round to the same ones; `stochastic` rounds up or down at random, to the weight on average, anew
after each optimizer step; `float32` rounds nothing. One reward model for each seed, and policies of task movies at its
own KL coefficient. Called again it goes on where it stopped. It needs datasets/movies.py and datasets/movies_judge.py.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from benchmarks.runner import (
    Command,
    add_study_arguments,
    check_study_arguments,
    check_told,
    run_all,
    show,
    whole_numbers,
)
from benchmarks.tables import spread
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.foundation.root import project_root
from lm_human_preferences.language.gpt2 import Projection
from lm_human_preferences.language.model_folders import load_model, save_model
from lm_human_preferences.language.weight_files import WEIGHTS
from lm_human_preferences.reports.expected import START_MODEL, figures_of
from lm_human_preferences.runs.tracking import read_jsonl

WAYS = ("float32", "nearest", "dithered", "stochastic")
TRAIN = "--train"  # before the words of a policy training that rounds at random
EARLY = 8  # steps after which it is looked how far the policy has come
SAMPLES = 1000
FIGURES = {  # column -> figure of the evaluation and how it is written
    "KL": ("after/kl", "{:.1f}"),
    "gold rating": ("after/scores/sentences", "{:+.2f}"),
    "preferred to before": ("wins/sentences/after/before", "{:.1%}"),
    "distinct pairs": ("after/distinct_2", "{:.1%}"),
}


class Member(NamedTuple):
    """One policy."""

    way: str
    seed: int
    folder: Path

    def name(self, stage: str) -> str:
        return f"{stage}_{self.way}_{self.seed}"


# --- other weights and other roundings ---


def dithered(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Float32 weights spread evenly over all that round to the same bfloat16 numbers as `weight`, which lies on them.

    A float32 is a bfloat16 with sixteen more bits, and the order of the bits is that of the numbers: half a step is
    2^15 of them. Zeros stay.
    """
    bits = weight.float().contiguous().view(torch.int32)
    moved = torch.randint(-(2**15) + 1, 2**15, bits.shape, generator=generator, dtype=torch.int32)
    return torch.where(bits == 0, bits, bits + moved).view(torch.float32)


def dither(source: Path, folder: Path, seed: int = 0) -> None:
    """Write the model of `source` with dithered projections as float32."""
    model, generator = load_model(source), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Projection):
                module.weight.copy_(dithered(module.weight, generator))
    save_model(folder, model)


def rounded_at_random(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """bfloat16: each weight's neighbour below or above, the nearer one the likelier, so that the mean is the weight."""
    bits = weight.detach().contiguous().view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, generator=generator, dtype=torch.int32, device=weight.device)
    return (bits + noise).bitwise_and(-(2**16)).view(torch.float32).bfloat16()


class _Copy(torch.autograd.Function):
    """The rounded copy, with the gradient of the weight itself."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        return copy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.float(), None


def round_at_random(seed: int) -> RemovableHandle:
    """Let all projections under autocast read copies that are rounded at random, new ones after each change; the handle
    ends the look at optimizers, whose fused steps leave a weight's version as it was. Not for captured decoding: a
    graph goes on reading the copies that it was made with.
    """
    generators: dict[torch.device, torch.Generator] = {}
    copies: dict[int, tuple[int, torch.Tensor]] = {}
    plain = Projection.forward

    def forward(self: Projection, x: torch.Tensor, outputs: slice | None = None) -> torch.Tensor:
        weight = self.weight
        if weight.dtype != torch.float32 or not torch.is_autocast_enabled(weight.device.type):
            return plain(self, x, outputs)
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        version, copy = copies.get(id(self), (-1, None))
        if copy is None or version != weight._version:
            copy = rounded_at_random(weight, generators[weight.device])
            copies[id(self)] = weight._version, copy
        of_weight, bias = _Copy.apply(weight, copy), self.bias  # type: ignore[no-untyped-call]  # PyTorch's
        if outputs is not None:
            of_weight, bias = of_weight[:, outputs], bias[outputs]
        return torch.addmm(bias, x, of_weight)

    Projection.forward = functools.wraps(plain)(forward)  # type: ignore[method-assign]
    handle: RemovableHandle = register_optimizer_step_post_hook(lambda optimizer, words, arguments: copies.clear())
    return handle


# --- the commands ---


def reward_command(seed: int, a: argparse.Namespace) -> Command:
    """The reward model of a seed, in float32."""
    name = f"reward_{seed}"
    return Command(name, ["train_reward", "movies", name, *_run(seed, "float32", a)], a.folder / name / "result.json")


def _run(seed: int, precision: str, a: argparse.Namespace) -> list[str]:
    words = ["--run.save_dir", str(a.folder), "--run.seed", str(seed), "--run.precision", precision]
    return words + ["--run.device", a.device, "--run.threads", str(a.threads)]


def commands_of(member: Member, a: argparse.Namespace) -> list[Command]:
    """A policy and its evaluation."""
    precision = "float32" if member.way == "float32" else "bfloat16"
    policy, evaluation = member.name("policy"), member.name("evaluation")
    words = ["train_policy", "movies", policy, "--rewards.trained_model", str(a.folder / f"reward_{member.seed}")]
    if member.way == "dithered":
        words += ["--task.policy.initial_model", str(a.folder / "dithered")]
    words += ["--evaluation.samples", "0", *_run(member.seed, precision, a)]
    judged = ["evaluate", "movies", "--policies", f"before={START_MODEL},after={a.folder / policy}"]
    judged += ["--samples", str(SAMPLES), "--judges", "sentences=embeddings:datasets/movies_judge"]
    judged += ["--experiment", evaluation, "--save_dir", str(a.folder), "--device", a.device, "--precision", precision]
    program: tuple[str, ...] = ("launch.py",)
    if member.way == "stochastic":
        words += ["--run.captured_decoding", "off"]
        program = ("-m", "benchmarks.rounding", TRAIN)
    return [
        Command(policy, words, a.folder / policy / "policy" / WEIGHTS, program),
        Command(evaluation, judged, a.folder / evaluation / "result.json"),
    ]


# --- what came of it ---


def table(members: Sequence[Member]) -> list[str]:
    """A row for each way: means over seeds with their extremes."""
    columns = [*FIGURES, f"KL of the first {EARLY} steps"]
    lines = ["| weights | seeds | " + " | ".join(columns) + " |", "|---|--:|" + "--:|" * len(columns)]
    for way in dict.fromkeys(member.way for member in members):
        finished = [m for m in members if m.way == way and (m.folder / m.name("evaluation") / "result.json").is_file()]
        if not finished:
            continue
        found = [figures_of(read_json_object(m.folder / m.name("evaluation") / "result.json")) for m in finished]
        cells = [spread([one[key].value for one in found], how) for key, how in FIGURES.values()]
        early = [
            sum(row["objective/kl"] for row in rows) / len(rows)
            for m in finished
            for rows in [read_jsonl(m.folder / m.name("policy") / "metrics.jsonl")[:EARLY]]
        ]
        lines.append(f"| {way} | {len(finished)} | " + " | ".join([*cells, spread(early, "{:.2f}")]) + " |")
    return lines


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--ways", default=",".join(WAYS), metavar="A,B", help=f"of {', '.join(WAYS)}")
    p.add_argument("--seeds", default="1,2,3", metavar="A,B", help="of reward models and policies")
    add_study_arguments(p, "policies", "saved_models/rounding")
    return p


def train(words: Sequence[str]) -> None:
    """A stage, as launch.py runs it, whose weights are rounded at random."""
    import launch

    round_at_random(int(words[words.index("--run.seed") + 1]))
    sys.argv = ["launch.py", *words]
    launch.main()


@exit_on_user_error
def main() -> None:
    a = parser().parse_args()
    seeds, ways = whole_numbers(a.seeds, "--seeds"), a.ways.split(",")
    check_study_arguments(a)
    for way in ways:
        if way not in WAYS:
            raise UserError(f"--ways {a.ways}: {way} is none of {', '.join(WAYS)}")
    members = [Member(way, seed, a.folder) for seed in seeds for way in ways]
    rewards, chains = [[reward_command(seed, a)] for seed in seeds], [commands_of(member, a) for member in members]
    if a.dry_run:
        return show([*rewards, *chains])
    check_told([*rewards, *chains], a.folder)
    failed = list[str]()
    if not a.only_report:
        if "dithered" in ways and not (a.folder / "dithered" / WEIGHTS).is_file():
            dither(project_root() / START_MODEL, a.folder / "dithered")
        failed = run_all(rewards, a.folder, a.jobs) or run_all(chains, a.folder, a.jobs)
    print("\n" + "\n".join(table(members)))
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the same command goes on")


if __name__ == "__main__":
    if TRAIN in sys.argv[1:2]:
        train(sys.argv[2:])
    else:
        main()
