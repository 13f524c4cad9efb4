"""How many rows are in memory at once: what fits by prediction, on a GPU what was tried, and what a checkpoint
remembers.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.optim import CombinedOptimizer, allocate_state
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import MOST_ROWS, StageMemory

GIB = 2**30
SHARE = 0.85  # of the memory that is free: predictions err, and other programs come and go
_FEW_ROWS = 8  # with fewer in training, recomputing activations is worth its price


@dataclass(frozen=True)
class MicroBatches:
    """Rows in memory at once in each kind of pass, on each rank."""

    rollout: int
    scoring: int
    training: int
    recompute: bool = False

    def peak(self, memory: StageMemory) -> int:
        """Most bytes at once in a stage that needs `memory`."""
        training = memory.recomputing if self.recompute else memory.training
        passes = [memory.scoring.bytes(self.scoring), training.bytes(self.training)]
        if memory.rollout:
            passes.append(memory.rollout.bytes(self.rollout))
        return sum(memory.held.values()) + max(passes)

    def describe(self) -> str:
        rollout = f"{self.rollout} rows sampled at once, " if self.rollout else ""
        recomputed = ", activations recomputed" if self.recompute else ""
        return f"{rollout}{self.scoring} scored, {self.training} trained on{recomputed}"

    def state(self, world: World) -> dict[str, Any]:
        """What a checkpoint remembers of them."""
        return asdict(self) | {"ranks": world.size}


# --- what fits ---


def free_memory(device: torch.device, world: World = World()) -> int:
    """Bytes that this process may have in all on its device: what it has and its part of what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    own = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available
    groups = Path("/proc/self/cgroup")
    left = group_memory(groups.read_text(encoding="utf-8")) if groups.is_file() else None
    if left is not None:
        free = min(free, left)
    return int(own + max(0, free) // world.local_size)


def peak_memory(device: torch.device) -> float:
    """The most that this process has had so far, in GiB: resident memory on a CPU, what PyTorch has reserved on a
    GPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    usage = psutil.Process().memory_info()
    if hasattr(usage, "peak_wset"):  # Windows
        return float(usage.peak_wset / GIB)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew on a GPU, for another run in this process. A CPU's is the process's, and stays."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def group_memory(groups: str, root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the control groups of a process leave it: the least over its own group and those above it; None where
    there is no limit.

    groups: the text of its /proc/self/cgroup. Knows version 2 (a line `0::/path`) and version 1 (`n:memory:/path`), in
    which a container, a Slurm job or a systemd slice may have its limit at any level.
    """
    found = []
    for line in groups.splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            top, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            limit, used = (_number_in(top.joinpath(*parts[:depth], name)) for name in names)
            if limit is not None and used is not None:
                found.append(limit - used)
    return min(found, default=None)


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is no such group here, or no limit ("max")
        return None


def fitting_micro_batches(run: RunParams, memory: StageMemory, budget: int, device: str) -> MicroBatches:
    """What the user gave, and for the rest what fits into `budget` bytes by prediction, or else the smallest there
    is.
    """
    free, most = budget - sum(memory.held.values()), MOST_ROWS[device]
    too_few = memory.training.fitting(free, most) < min(_FEW_ROWS, memory.training.rows)
    recompute = run.recompute_activations == "on" or (
        run.recompute_activations == "auto" and run.micro_batch is None and too_few
    )
    training = memory.recomputing if recompute else memory.training
    return MicroBatches(
        (run.micro_batch_rollout or memory.rollout.fitting(free, most) or 1) if memory.rollout else 0,
        run.micro_batch_scoring or memory.scoring.fitting(free, most) or 1,
        run.micro_batch or training.fitting(free, most) or training.step,
        recompute,
    )


def captures(run: RunParams, memory: Callable[..., StageMemory], precision: Precision, world: World) -> bool:
    """Whether decoding is captured; the same on every rank. `auto`: on a GPU, where weights stay where they are, if
    every pass has as many rows beside the cache that stays. memory: policy_training_memory but for `captured`.
    """
    if run.captured_decoding != "auto":
        return run.captured_decoding == "on"
    if precision.device.type != "cuda" or run.sharding != "ddp":
        return False
    budget = world.min_over_ranks(int(SHARE * free_memory(precision.device, world)))
    without, beside = (
        fitting_micro_batches(run, memory(captured=captured), budget, precision.device.type)
        for captured in (False, True)
    )
    return without == beside


def choose_micro_batches(run: RunParams, memory: StageMemory, precision: Precision, world: World) -> MicroBatches:
    """What the user gave, and for the rest what fits; the same on every rank. Warns on standard error where even the
    smallest may not.
    """
    budget = world.min_over_ranks(int(SHARE * free_memory(precision.device, world)))
    sizes = fitting_micro_batches(run, memory, budget, precision.device.type)
    if sizes.peak(memory) > budget and world.is_main:
        print(
            f"warning: this needs about {sizes.peak(memory) / GIB:.1f} GiB a process, {budget / GIB:.1f} GiB can be "
            "counted on; python launch.py plan shows what takes it",
            file=sys.stderr,
        )
    return sizes


def micro_batches_of_checkpoint(
    sizes: MicroBatches, run: RunParams, state: dict[str, Any], world: World
) -> MicroBatches:
    """The micro-batches of the run that is resumed on as many ranks, so that not even rounding changes; what the user
    gives now comes first.
    """
    stored = state.get("micro_batches", {})
    if stored.get("ranks") != world.size:
        return sizes
    recompute = stored["recompute"] if run.recompute_activations == "auto" else sizes.recompute
    return MicroBatches(
        run.micro_batch_rollout or stored["rollout"],
        run.micro_batch_scoring or stored["scoring"],
        run.micro_batch or stored["training"],
        recompute,
    )


def try_micro_batches(
    sizes: MicroBatches,
    run: RunParams,
    attempts: dict[str, Callable[[int], None]],
    optimizer: torch.optim.Optimizer | CombinedOptimizer,
    world: World,
) -> MicroBatches:
    """What was chosen, halved where a pass over this many rows runs out of memory on any rank; what the user gave
    stays.

    attempts: by kind of pass. Only where running out raises `torch.OutOfMemoryError` (CUDA), and only without sharding:
    a sharded pass waits for the other ranks, of which one may have failed.
    """
    allocate_state(optimizer)
    flags = {"rollout": "micro_batch_rollout", "scoring": "micro_batch_scoring", "training": "micro_batch"}
    for kind, attempt in attempts.items():
        given: int | None = getattr(run, flags[kind])
        rows = given or _halve_until_it_runs(getattr(sizes, kind), attempt, optimizer, world, f"--run.{flags[kind]}")
        sizes = replace(sizes, **{kind: rows})  # type: ignore[arg-type]  # the kinds are its fields of whole numbers
    return sizes


def _halve_until_it_runs(
    rows: int,
    attempt: Callable[[int], None],
    optimizer: torch.optim.Optimizer | CombinedOptimizer,
    world: World,
    flag: str,
) -> int:
    """The largest of rows, rows / 2, rows / 4 ... that runs on every rank. UserError if not even one row does."""
    while True:
        try:
            attempt(rows)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if world.min_over_ranks(int(fits)):
            return rows
        if rows == 1:
            raise UserError(
                f"out of memory with a single row ({flag} 1): take a smaller model, shorter rows, "
                "--run.recompute_activations on, or more GPUs with --run.sharding fsdp"
            )
        rows = -(-rows // 2)
