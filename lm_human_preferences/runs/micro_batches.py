"""How much memory each stage needs, predicted from shapes; micro-batches that fit, found from it and on a GPU tried.

All numbers are bytes on one device. The formulas count what PyTorch keeps: docs/scaling.md compares them with
measurements. Shapes: C channels, L layers, V vocabulary, T tokens in a row.
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
from lm_human_preferences.compute.optim import allocate_state
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2Config, count_parameters
from lm_human_preferences.language.logprobs import CHUNK_ROWS, KEPT_BYTES
from lm_human_preferences.runs.params import RunParams

GIB = 2**30
_PROGRAM = {"cpu": 350 * 2**20, "cuda": 600 * 2**20}  # Python, PyTorch and its libraries; the CUDA context
SHARE = 0.85  # of the memory that is free: predictions err, and other programs come and go
_MOST_ROWS = {"cpu": 64, "cuda": 512}  # the most that is chosen by itself
_FEW_ROWS = 8  # below so many in training, recomputing activations is worth its price


@dataclass(frozen=True)
class Pass:
    """One kind of pass over the model: what it takes whatever its rows, what each row adds, and how many rows there are
    to do on a device.
    """

    fixed: int
    per_row: int
    rows: int
    step: int = 1  # rows come in multiples of this
    gradients: int = (
        0  # of the weights, if they come and go: those of earlier micro-batches, which a single one does not have
    )

    def bytes(self, rows: int) -> int:
        """In a single micro-batch gradients only grow while the rows' activations go."""
        return self.fixed + (
            max(rows * self.per_row, self.gradients) if rows >= self.rows else rows * self.per_row + self.gradients
        )

    def fitting(self, free: int, most: int) -> int:
        """The largest micro-batch within `free` bytes and `most` rows that cuts the rows evenly; 0 if not even the
        smallest fits.
        """
        if self.rows <= most and self.bytes(self.rows) <= free:
            return self.rows
        fit = (
            min(int((free - self.fixed - self.gradients) // self.per_row), most, self.rows - 1) // self.step * self.step
        )
        if fit < self.step:
            return 0
        even = -(-self.rows // -(-self.rows // fit))
        return min(-(-even // self.step) * self.step, fit)


@dataclass(frozen=True)
class StageMemory:
    """What a stage needs on one device."""

    held: dict[str, int]  # all the time
    rollout: Pass | None  # sampling responses
    scoring: Pass  # passes without gradient
    training: Pass
    recomputing: Pass  # training with activations recomputed

    def peak(self, sizes: "MicroBatches") -> int:
        """Most bytes at once with these micro-batches."""
        training = self.recomputing if sizes.recompute else self.training
        passes = [self.scoring.bytes(sizes.scoring), training.bytes(sizes.training)]
        return sum(self.held.values()) + max(passes + ([self.rollout.bytes(sizes.rollout)] if self.rollout else []))


@dataclass(frozen=True)
class MicroBatches:
    """Rows in memory at once in each kind of pass, on each rank."""

    rollout: int
    scoring: int
    training: int
    recompute: bool = False

    def describe(self) -> str:
        rollout = f"{self.rollout} rows sampled at once, " if self.rollout else ""
        return f"{rollout}{self.scoring} scored, {self.training} trained on{', activations recomputed' if self.recompute else ''}"

    def state(self, world: World) -> dict[str, Any]:
        """What a checkpoint remembers of them."""
        return asdict(self) | {"ranks": world.size}


# --- what passes take ---


def _bytes_a_number(bfloat16: bool) -> int:
    return 2 if bfloat16 else 4


def weights(config: GPT2Config) -> int:
    """float32 parameters."""
    return 4 * count_parameters(config)["total"]


def frozen_weights(config: GPT2Config, bfloat16: bool) -> int:
    """A model that is only asked: blocks as autocast reads them, embeddings in float32."""
    sizes = count_parameters(config)
    return _bytes_a_number(bfloat16) * sizes["blocks"] + 4 * sizes["embeddings"]


def _activations(config: GPT2Config, bfloat16: bool) -> int:
    """Kept for the backward pass by one block for one token: two inputs of norms in float32; outputs of norms, queries,
    keys, values, attention's output and the MLP's two wide layers in the precision of the blocks.
    """
    return config.n_embd * (2 * 4 + 14 * _bytes_a_number(bfloat16))


def _passing(config: GPT2Config, bfloat16: bool) -> int:
    """Held for a moment by one block for one token: its input and what stands beside it where the MLP is widest."""
    return config.n_embd * (2 * 4 + 9 * _bytes_a_number(bfloat16))


def _logits(config: GPT2Config, device: str, copies: int) -> int:
    return CHUNK_ROWS[device] * config.n_vocab * 4 * copies


def rollout_pass(config: GPT2Config, context: int, response: int, rows: int, bfloat16: bool, whole: int = 0) -> Pass:
    """Sampling: keys and values of all tokens, the context's pass, and four tables as wide as the vocabulary; `whole`:
    of a sharded model, or of one whose projections are rounded for all tokens at once.
    """
    cache = 2 * config.n_layer * config.n_embd * (context + response) * _bytes_a_number(bfloat16)
    return Pass(whole, cache + context * _passing(config, bfloat16) + 4 * 4 * config.n_vocab, rows)


def scoring_pass(config: GPT2Config, tokens: int, rows: int, bfloat16: bool, device: str, logits: bool = True) -> Pass:
    """A pass without gradient over rows of `tokens`; `logits` unless only a head is asked."""
    return Pass(_logits(config, device, 2) if logits else 0, tokens * _passing(config, bfloat16), rows)


def training_pass(
    config: GPT2Config,
    tokens: int,
    rows: int,
    bfloat16: bool,
    device: str,
    gradients: int,
    recompute: bool,
    step: int = 1,
    scored: int | None = None,
) -> Pass:
    """Forward and backward over rows of `tokens`, of which `scored` have logits (None: all): activations, logits in
    chunks, what is kept of them and their gradient of the whole embedding.
    """
    C, L, scored = config.n_embd, config.n_layer, tokens if scored is None else scored
    block = _activations(config, bfloat16) + 8 * C * _bytes_a_number(
        bfloat16
    )  # and its gradients where the MLP is widest
    per_token = (L * 4 * C + block) if recompute else (L - 1) * _activations(config, bfloat16) + block
    copies = (
        2 * count_parameters(config)["blocks"] // (L if recompute else 1) if bfloat16 else 0
    )  # the projections as autocast rounds them
    embedding, kept = 4 * config.n_vocab * C, min(KEPT_BYTES[device], 4 * config.n_vocab * rows * scored)
    return Pass(
        (_logits(config, device, 2) + kept if scored else 0) + embedding + copies,
        tokens * (per_token + 4 * 4 * C),
        rows,
        step,
        gradients,
    )


def _held(
    config: GPT2Config, frozen: dict[str, GPT2Config], bfloat16: bool, device: str, ranks: int, sharding: str
) -> dict[str, int]:
    """Weights, optimizer, frozen models; gradients only with DDP, which keeps them in its messages' buffers."""
    parts = ranks if sharding == "fsdp" else 1
    held = {"weights": weights(config) // parts, "optimizer": 2 * weights(config) // parts}
    if ranks > parts:
        held["gradients"] = weights(config)
    held |= {name: frozen_weights(other, bfloat16) // parts for name, other in frozen.items()}
    return held | {"program": _PROGRAM[device]}


def _training_passes(
    config: GPT2Config,
    ranks: int,
    sharding: str,
    tokens: int,
    rows: int,
    bfloat16: bool,
    device: str,
    step: int = 1,
    scored: int | None = None,
) -> list[Pass]:
    """Training with activations kept, and with activations recomputed. DDP's gradients are held all the time; sharded
    ones are whole while micro-batches add up, and embeddings and two blocks are gathered.
    """
    sizes, sharded = count_parameters(config), ranks > 1 and sharding == "fsdp"
    gradients = weights(config) if ranks == 1 or sharded else 0
    gathered = 4 * (sizes["embeddings"] + 2 * sizes["blocks"] // config.n_layer) if sharded else 0
    passes = [
        training_pass(config, tokens, rows, bfloat16, device, gradients, recompute, step, scored)
        for recompute in (False, True)
    ]
    return [replace(kind, fixed=kind.fixed + gathered) for kind in passes]


def _gathered(config: GPT2Config, bfloat16: bool, ranks: int, sharding: str, frozen: bool = False) -> int:
    """A sharded model that samples is whole on every rank."""
    if ranks == 1 or sharding == "ddp":
        return 0
    return frozen_weights(config, bfloat16) if frozen else weights(config)


# --- the stages ---


def policy_training_memory(
    params: Any, config: GPT2Config, precision: Precision, ranks: int, prefix: int = 0, reward: GPT2Config | None = None
) -> StageMemory:
    """PPO. params: PolicyTrainingParams; prefix: tokens of the task's prefix and suffix; reward: the reward model, None
    for one like the policy.
    """
    task, device, bf16 = params.task, precision.device.type, precision.bfloat16
    context, R = task.query_length + prefix, task.response_length
    rows, minibatch = -(-params.ppo.batch_size // ranks), -(-params.ppo.batch_size // params.ppo.nminibatches // ranks)
    train = _training_passes(config, ranks, params.run.sharding, context + R, minibatch, bf16, device, scored=R)
    whole = _gathered(config, bf16, ranks, params.run.sharding) + (
        2 * count_parameters(config)["blocks"] if bf16 else 0
    )
    return StageMemory(
        _held(
            config, {"reference": config, "reward model": reward or config}, bf16, device, ranks, params.run.sharding
        ),
        rollout_pass(config, context, R, rows, bf16, whole),
        scoring_pass(config, context + R, rows, bf16, device),
        *train,
    )


def reward_training_memory(
    params: Any, config: GPT2Config, responses: int, precision: Precision, ranks: int, prefix: int = 0
) -> StageMemory:
    """Reward training. params: RewardTrainingParams; responses: of a label, which share their query. Rows are
    responses.
    """
    task, device, bf16 = params.task, precision.device.type, precision.bfloat16
    Q, R = task.query_length, task.response_length
    rows, labelled, shared = (
        -(-params.rollout_batch_size // ranks),
        -(-params.batch_size // ranks) * responses,
        -(-Q // responses) + R,
    )
    train = _training_passes(config, ranks, params.run.sharding, shared, labelled, bf16, device, responses, scored=0)
    return StageMemory(
        _held(config, {"language model": config}, bf16, device, ranks, params.run.sharding),
        rollout_pass(
            config, Q + prefix, R, rows, bf16, _gathered(config, bf16, ranks, params.run.sharding, frozen=True)
        ),
        scoring_pass(config, Q + R, max(rows, labelled), bf16, device, logits=False),
        *train,
    )


def supervised_training_memory(
    params: Any, config: GPT2Config, tokens: int, precision: Precision, ranks: int
) -> StageMemory:
    """Supervised training on rows of `tokens`. params: SFTParams."""
    device, bf16, rows = precision.device.type, precision.bfloat16, -(-params.optimizer.batch_size // ranks)
    train = _training_passes(config, ranks, params.run.sharding, tokens, rows, bf16, device)
    held = _held(config, {}, bf16, device, ranks, params.run.sharding)
    if params.optimizer.method == "muon":  # it has one number for each of the blocks' matrices where AdamW has two
        held["optimizer"] -= (
            4 * 12 * config.n_layer * config.n_embd**2 // (ranks if params.run.sharding == "fsdp" else 1)
        )
    return StageMemory(held, None, scoring_pass(config, tokens, _MOST_ROWS[device], bf16, device), *train)


# --- what fits ---


def free_memory(device: torch.device, world: World = World()) -> int:
    """Bytes that this process may have in all on its device: what it has and its part of what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    own = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    return own + max(0, free) // world.local_size


def peak_memory(device: torch.device) -> float:
    """The most that this process has had so far, in GiB: resident memory on a CPU, what PyTorch has reserved on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    usage = psutil.Process().memory_info()
    if hasattr(usage, "peak_wset"):  # Windows
        return usage.peak_wset / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _cgroup_number(name: str) -> int | None:
    """A number of this container's memory controller, if it is in one."""
    path = Path("/sys/fs/cgroup") / name
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def fitting_micro_batches(run: RunParams, memory: StageMemory, budget: int, device: str) -> MicroBatches:
    """What the user gave, and for the rest what fits into `budget` bytes by prediction, or else the smallest there is."""
    free, most = budget - sum(memory.held.values()), _MOST_ROWS[device]
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


def choose_micro_batches(run: RunParams, memory: StageMemory, precision: Precision, world: World) -> MicroBatches:
    """What the user gave, and for the rest what fits; the same on every rank. Warns on standard error where even the
    smallest may not.
    """
    budget = world.min_over_ranks(int(SHARE * free_memory(precision.device, world)))
    sizes = fitting_micro_batches(run, memory, budget, precision.device.type)
    if memory.peak(sizes) > budget and world.is_main:
        print(
            f"warning: this needs about {memory.peak(sizes) / GIB:.1f} GiB a process, {budget / GIB:.1f} GiB can be counted on; python launch.py plan shows "
            "what takes it",
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
    optimizer: torch.optim.Optimizer,
    world: World,
) -> MicroBatches:
    """What was chosen, halved where a pass over so many rows runs out of memory on any rank; what the user gave stays.

    attempts: by kind of pass. Only where running out raises `torch.OutOfMemoryError` (CUDA), and only without sharding:
    a sharded pass waits for the other ranks, of which one may have failed.
    """
    allocate_state(optimizer)
    flags = {"rollout": "micro_batch_rollout", "scoring": "micro_batch_scoring", "training": "micro_batch"}
    found = {
        kind: getattr(run, flags[kind])
        or _halve_until_it_runs(getattr(sizes, kind), attempt, optimizer, world, f"--run.{flags[kind]}")
        for kind, attempt in attempts.items()
    }
    return replace(sizes, **found)


def _halve_until_it_runs(
    rows: int, attempt: Callable[[int], None], optimizer: torch.optim.Optimizer, world: World, flag: str
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
                f"out of memory with a single row ({flag} 1): take a smaller model, shorter rows, --run.recompute_activations on, or more GPUs with "
                "--run.sharding fsdp"
            )
        rows = -(-rows // 2)
