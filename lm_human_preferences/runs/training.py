"""A module in training, as all stages have it: spread over the ranks, with its optimizer, the micro-batches that fit,
and what a checkpoint holds of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.nn as nn

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.hardware import describe_computing
from lm_human_preferences.compute.optim import CombinedOptimizer, allocate_state, optimizer_tensors
from lm_human_preferences.compute.parallel import Parallel
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.support import packed_size
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.micro_batches import choose_micro_batches, micro_batches_of_checkpoint, try_micro_batches
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import StageMemory


@dataclass
class TrainedPartParams:
    """What of the model is trained."""

    train_top: int | None = param(
        None,
        "train the last so many blocks and what follows them, and leave the others and the embeddings as they are; "
        "none trains everything",
    )


def check_trained_part(params: TrainedPartParams) -> None:
    """UserError, naming the flag, for a number of blocks that no model has."""
    if params.train_top is not None and params.train_top < 1:
        raise UserError(f"--model.train_top {params.train_top}: must be at least 1, or none")


def train_part(transformer: GPT2, params: TrainedPartParams) -> None:
    """Freeze what is not to be trained. UserError, naming the flag, if the model has fewer blocks."""
    if params.train_top is None:
        return
    if params.train_top > transformer.config.n_layer:
        raise UserError(
            f"--model.train_top {params.train_top}: the model has {transformer.config.n_layer} blocks; give at most "
            "that, or none"
        )
    transformer.train_only_top(params.train_top)


Probes = dict[str, Callable[[int], None]]  # kind of pass -> a pass over that many rows that changes nothing


Part = TypeVar("Part")
AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer | CombinedOptimizer)


class Training(Generic[AnyOptimizer]):
    """What every stage trains with. `parallel` is called as the module itself; the rest is named by its field."""

    def __init__(
        self,
        module: nn.Module,
        memory: StageMemory,
        make_optimizer: Callable[[Parallel], AnyOptimizer],
        params: RunParams,
        precision: Precision,
        world: World,
        methods: tuple[str, ...] = (),
    ):
        """module: has a `transformer`; methods: those besides `forward` that read parameters (sharded ones gather)."""
        self.module, self.params, self.precision, self.world = module, params, precision, world
        self.micro_batches = choose_micro_batches(params, memory, precision, world)
        self.transformer.recompute_activations(self.micro_batches.recompute)
        self.parallel = Parallel(module, world, precision, params.sharding, methods)
        self.optimizer = make_optimizer(self.parallel)
        self.beside: dict[str, Training[Any]] = {}  # other modules in training, in the same checkpoints, by name

    @property
    def transformer(self) -> GPT2:
        transformer = self.module.transformer
        assert isinstance(transformer, GPT2)
        return transformer

    def in_words(self) -> str:
        """Device, precision and micro-batches, for the line that a run begins with."""
        return f"{self.precision.describe()}, {self.micro_batches.describe()}"

    def computed(self) -> dict[str, Any]:
        """What `auto` and empty parameters came to, for config.json: device, precision, threads, micro-batches."""
        rows = asdict(self.micro_batches)
        recompute = rows.pop("recompute")
        return describe_computing(self.precision) | {"micro_batches": rows, "recompute_activations": recompute}

    def update(
        self, parts: Sequence[Part], lr: float, losses_of: Callable[[Part], Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """One optimizer step over this rank's micro-batches `parts`. `losses_of` a part gives first its share in the
        loss of the global batch, then tensors of its rows, [rows, ...]; returns these for the whole global batch, in
        rank order, as they were before the step.
        """
        rows = []
        for part in self.parallel.micro_batches(parts):
            loss, *tensors = losses_of(part)
            self.parallel.backward(loss)
            rows.append([tensor.detach() for tensor in tensors])
        self.optimizer.step(lr)  # type: ignore[call-arg]  # TensorFlowAdam's takes the rate
        self.optimizer.zero_grad(set_to_none=True)
        return [self.world.gather(torch.cat(column)) for column in zip(*rows, strict=True)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds: parameters and the optimizer's state, by name."""
        tensors = dict(self.module.named_parameters()) | optimizer_tensors(self.optimizer, self.module)
        for name, other in self.beside.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in other.tensors().items()}
        return tensors

    def state(self) -> dict[str, Any]:
        """What a checkpoint's loop state says of it, as plain values."""
        return {"micro_batches": self.micro_batches.state(self.world)}

    def restore(self, load: Callable[[dict[str, torch.Tensor]], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Fill the tensors from the checkpoint that `load` reads (Checkpoints.load) and take over its micro-batches;
        returns its loop state, None if there is none.
        """
        for training in (self, *self.beside.values()):
            allocate_state(training.optimizer)
        state = load(self.tensors())
        if state is not None:
            self.micro_batches = micro_batches_of_checkpoint(self.micro_batches, self.params, state, self.world)
            for training in (self, *self.beside.values()):
                training.transformer.recompute_activations(self.micro_batches.recompute)
        return state

    def try_micro_batches(self, probes: Probes) -> None:
        """On a GPU, halve what was chosen until `probes` run; sharded passes wait for other ranks and are not tried."""
        if self.precision.device.type == "cuda" and not self.parallel.sharded:
            self.micro_batches = try_micro_batches(self.micro_batches, self.params, probes, self.optimizer, self.world)


def blank_rows(task: TaskParams, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """One made-up query int64 [1, Q] and response int64 [1, R] of full length, for probes to expand."""
    lengths = (task.query_length, task.response_length)
    queries, responses = (torch.zeros(1, length, dtype=torch.int64, device=device) for length in lengths)
    return queries, responses


def rollout_probe(policy: Policy, task: TaskParams, precision: Precision) -> Callable[[int], None]:
    """Samples responses to that many made-up queries, as a rollout does."""
    queries, _ = blank_rows(task, precision.device)

    def rollout(rows: int) -> None:
        uniforms = torch.zeros(rows, task.response_length, device=precision.device)
        with torch.no_grad(), precision.autocast():
            policy.respond(queries.expand(rows, -1), uniforms)

    return rollout


def policy_probes(
    parallel: Parallel,
    policy: Policy,
    reference: Policy,
    rewards: Sequence[RewardModel],
    task: TaskParams,
    precision: Precision,
    recompute: bool,
) -> Probes:
    """For each kind of pass of policy training a function that does one over made-up rows: it takes the memory of the
    largest pass, and changes nothing. rewards: models of ours alone, never a user's function; recompute: whether the
    policy's log-probabilities are made again when responses are scored.
    """
    queries, responses = blank_rows(task, precision.device)
    support: torch.Tensor | None = None
    if policy.top_k or policy.top_p < 1:
        size = packed_size(policy.transformer.config.n_vocab)
        support = torch.full((*responses.shape, size), 255, dtype=torch.uint8, device=precision.device)

    def of(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        among = None if support is None else support.expand(rows, -1, -1)
        return queries.expand(rows, -1), responses.expand(rows, -1), among

    def scoring(rows: int) -> None:
        q, r, among = of(rows)
        with torch.no_grad(), precision.autocast():
            reference.analyze(q, r, entropies=False)
            if recompute:
                policy.analyze(q, r, entropies=False, support=among)
            for model in rewards:
                model(q, r)

    def training(rows: int) -> None:
        q, r, among = of(rows)
        with parallel.micro_batch(last=False):
            with precision.autocast():
                analysis = parallel(q, r, support=among)
            parallel.backward(analysis.logprobs.sum() + analysis.values.sum())

    return {"rollout": rollout_probe(policy, task, precision), "scoring": scoring, "training": training}
