"""Supervised language-model training: from scratch or onward, on token files.

Stage by stage: rows of tokens in a seeded order -> loss of the next token -> AdamW under warm-up and cosine decay ->
validation perplexity -> the best weights become the run's `lm/` model folder.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import (
    METHODS,
    SCHEDULES,
    adamw,
    allocate_state,
    muon_and_adamw,
    optimizer_tensors,
    set_rates,
    warmup_cosine,
    warmup_stable_decay,
)
from lm_human_preferences.compute.parallel import Parallel
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import dataset_folder
from lm_human_preferences.data.rows import ROWS, Rows, make_rows
from lm_human_preferences.data.tasks import TaskParams, padding_share
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.dropout import RowDropout, row_seeds
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config, count_parameters
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.language.model_folders import load_model, save_model
from lm_human_preferences.language.sampled_vocabulary import SampledVocabulary
from lm_human_preferences.runs.description import describe_run
from lm_human_preferences.runs.folder import Run, go_on_after_restart
from lm_human_preferences.runs.micro_batches import (
    MicroBatches,
    choose_micro_batches,
    micro_batches_of_checkpoint,
    peak_memory,
    supervised_training_memory,
    try_micro_batches,
)
from lm_human_preferences.runs.params import RunParams, check_run_params, start_computing
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import NullTracker, TrackingParams, check_tracking
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class ModelParams:
    """Where the weights start."""

    initial: str | None = param(
        None, "model folder to start from; none trains from scratch with the sizes below", "path"
    )
    encoding: str = param("gpt2", "encoding of a model from scratch: gpt2 or letters")
    n_ctx: int = param(128, "longest context in tokens (from scratch)")
    n_embd: int = param(256, "width (from scratch)")
    n_head: int = param(4, "attention heads (from scratch)")
    n_layer: int = param(7, "blocks (from scratch)")


@dataclass
class DataParams:
    """What is read, and how it is cut into rows."""

    dataset: str = param("movies", "name of a folder in datasets/, or a path to one")
    rows: str = param(
        "documents",
        "packed: the stream of all tokens cut every `block` tokens; documents: each row begins a document; "
        "references: a row is a query of the task with its reference, which alone is learnt",
    )
    block: int = param(64, "tokens in a row; references have the task's lengths instead")


@dataclass
class SFTOptimizerParams:
    """The optimizer and its schedule."""

    method: str = param(
        "adamw",
        "adamw; or muon, for the blocks' matrices, with adamw for embeddings and vectors: a better model after as many tokens",
    )
    epochs: float = param(1.0, "passes over the training split")
    batch_size: int = param(32, "rows in an optimizer step, over all ranks")
    lr: float = param(1e-3, "peak learning rate")
    muon_lr: float = param(6e-3, "peak learning rate of muon's matrices")
    schedule: str = param(
        "cosine",
        "after the warm-up: cosine falls from then on; wsd stays at the peak and falls in a straight line at the end",
    )
    decay: float = param(0.3, "wsd: the share of all steps in which the rate falls")
    warmup: int = param(20, "steps of linear warm-up")
    final_lr_fraction: float = param(0.1, "the last step's share of the peak rate")
    weight_decay: float = param(0.1, "decay of matrices; with muon of the blocks' alone")
    beta2: float = param(0.99, "decay rate of the second moment")
    clip_norm: float = param(1.0, "largest norm of the gradient; 0 does not clip")
    dropout: float = param(0.0, "dropout of embeddings and of what attention and MLP add")
    sampled_vocabulary: int = param(
        0, "estimate the softmax's normaliser from about so many tokens of the vocabulary; 0 uses all of it"
    )


@dataclass
class ValidationParams:
    """When and on what to validate."""

    interval: int = param(100, "steps between validations")
    rows: int = param(512, "rows of the valid split to validate on (its first ones); 0 uses all")
    patience: int = param(0, "stop after so many validations without a better perplexity; 0 never stops early")


@dataclass
class SFTParams:
    """Everything a supervised run can be told."""

    task: TaskParams | None = param(
        None, "of references: how a query is cut and what surrounds it; the data set is data.dataset"
    )
    model: ModelParams = param(ModelParams, "")
    data: DataParams = param(DataParams, "")
    optimizer: SFTOptimizerParams = param(SFTOptimizerParams, "")
    validation: ValidationParams = param(ValidationParams, "")
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")


def check(params: SFTParams) -> None:
    """Raises UserError, naming the flag and the number, for parameters that cannot work."""
    check_run_params(params.run)
    check_tracking(params.tracking)
    o, d, v = params.optimizer, params.data, params.validation
    for name, value in (
        ("optimizer.batch_size", o.batch_size),
        ("data.block", d.block),
        ("validation.interval", v.interval),
    ):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if d.rows not in ROWS:
        raise UserError(f"--data.rows {d.rows}: must be {', '.join(ROWS)}")
    if (d.rows == "references") != (params.task is not None):
        raise UserError(
            "--data.rows references learns the references of a task: --task on gives it one"
            if params.task is None
            else f"--data.rows {d.rows} has no use for a task: --task off, or --data.rows references"
        )
    for name, value in (("epochs", o.epochs), ("lr", o.lr), ("muon_lr", o.muon_lr)):
        if not value > 0:
            raise UserError(f"--optimizer.{name} {value}: must be positive")
    for name, value, known in (("method", o.method, METHODS), ("schedule", o.schedule, SCHEDULES)):
        if value not in known:
            raise UserError(f"--optimizer.{name} {value}: must be {' or '.join(known)}")
    for name, value in (("decay", o.decay), ("final_lr_fraction", o.final_lr_fraction)):
        if not 0 <= value <= 1:
            raise UserError(f"--optimizer.{name} {value}: must lie between 0 and 1")
    if o.sampled_vocabulary < 0:
        raise UserError(f"--optimizer.sampled_vocabulary {o.sampled_vocabulary}: must not be negative")
    if not 0 <= o.dropout < 1:
        raise UserError(f"--optimizer.dropout {o.dropout}: must lie in [0, 1)")
    if params.model.initial is None and params.model.n_embd % params.model.n_head:
        raise UserError(f"--model.n_embd {params.model.n_embd} is no multiple of --model.n_head {params.model.n_head}")


class NextTokenLoss(nn.Module):
    """A language model and its loss in one module, so that all parameters are read inside one forward pass."""

    def __init__(self, transformer: GPT2):
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        dropout: RowDropout | None = None,
        sampled: SampledVocabulary | None = None,
        step: int = 0,
    ) -> torch.Tensor:
        """Negative log-likelihoods float32 [N] of the labels that are no padding; inputs and labels int64 [B, T]."""
        hidden = self.transformer(inputs, dropout=dropout)
        real = labels != self.transformer.config.padding_token
        hidden, labels = hidden[real], labels[real]
        if sampled is not None:
            return sampled.losses(self.transformer, hidden, labels, step)
        return -token_logprobs(self.transformer, hidden, labels, entropies=False)[0]


def train(params: SFTParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `lm/` model folder. Raises UserError before anything is written if something cannot
    work.
    """
    check(params)
    precision = start_computing(params.run)
    with distributed.world(precision.device.type, params.run.timeout) as world:
        go_on_after_restart(params.run, Path(params.run.save_dir) / experiment, world)
        return SFTTrainer.prepare(params, precision, world).run(task, experiment)


class SFTTrainer:
    """Holds what the stage works on; `run` reads from top to bottom."""

    def __init__(
        self, model: GPT2, rows: dict[str, Rows], params: SFTParams, precision: Precision, world: World = World()
    ):
        """rows: of the splits `train` and `valid`."""
        o = params.optimizer
        world.share(o.batch_size, "--optimizer.batch_size")
        self.config, self.rows, self.params, self.precision, self.world = model.config, rows, params, precision, world
        memory = supervised_training_memory(params, model.config, rows["train"].block, precision, world.size)
        self.sizes: MicroBatches = choose_micro_batches(params.run, memory, precision, world)
        model.recompute_activations(self.sizes.recompute)
        self.loss = NextTokenLoss(model)
        self.trained = Parallel(self.loss, world, precision, params.run.sharding)
        betas = (0.9, o.beta2)
        if o.method == "muon":
            self.optimizer = muon_and_adamw(
                self.loss.named_parameters(), o.muon_lr, o.lr, betas, o.weight_decay, precision.bfloat16
            )
        else:
            self.optimizer = adamw(self.loss.parameters(), o.lr, betas, o.weight_decay)
        self.sampled = None
        if 0 < o.sampled_vocabulary < model.config.n_vocab:
            self.sampled = SampledVocabulary(
                rows["train"].learnt, model.config.n_vocab, o.sampled_vocabulary, params.run.seed
            )
        self.total = max(1, math.ceil(o.epochs * len(rows["train"]) / o.batch_size))
        self.best, self.waited = math.inf, 0  # validation loss; validations since

    @classmethod
    def prepare(cls, params: SFTParams, precision: Precision, world: World) -> "SFTTrainer":
        """Read or draw the model, read the rows; UserError if one of them does not fit."""
        model, data = _initial_model(params), params.data
        folder = dataset_folder(data.dataset)
        rows = {
            split: make_rows(folder, split, data.rows, data.block, model.config, params.task)
            for split in ("train", "valid")
        }
        return cls(model, rows, params, precision, world)

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `lm/` folder."""
        run = Run(Path(self.params.run.save_dir) / experiment, self.params.run, self.world)
        run.open(describe_run("train_sft", task, experiment, to_dict(self.params)))
        with run.explained():
            return self._run(run, task, experiment)

    def _run(self, run: Run, task: str, experiment: str) -> Path:
        p, main = self.params, self.world.is_main
        first = self._resume(run) if p.run.resume else 0
        if self.precision.device.type == "cuda" and not self.trained.sharded:
            self.sizes = try_micro_batches(self.sizes, p.run, self.attempts(), self.optimizer, self.world)
        sizes, result = count_parameters(self.config), run.folder / "lm"
        if main:
            print(
                f"{experiment}: {sizes['blocks']:,} parameters and {sizes['embeddings']:,} in embeddings, {len(self.rows['train']):,} rows of "
                f"{self.rows['train'].block} tokens, {self.total:,} steps, {self.precision.describe()}, {self.sizes.describe()}"
            )
        tracker = open_watched(run.folder, p, "train_sft", experiment, first) if main else NullTracker()
        with (
            tracker,
            StopRequest(self.world) as stop,
            tqdm(total=self.total, initial=first, desc=experiment, unit="step", disable=not main) as bar,
        ):
            for step in range(first, self.total):
                started = time.perf_counter()
                metrics = self.step(step)
                metrics["memory/peak"] = peak_memory(self.precision.device)
                metrics["tokens_per_second"] = (
                    p.optimizer.batch_size * self.rows["train"].block / (time.perf_counter() - started)
                )
                if not math.isfinite(metrics["train/loss"]):
                    tracker.log(step, metrics)
                    raise UserError(
                        f"step {step}: the loss is {metrics['train/loss']}; if that comes again, start anew with a lower --optimizer.lr than {p.optimizer.lr}"
                    )
                last = step + 1 == self.total
                if (step + 1) % p.validation.interval == 0 or last:
                    metrics |= self._validate(step, task, result)
                tracker.log(step, metrics)
                bar.update()
                bar.set_postfix_str(f"loss {metrics['train/loss']:.3f}")
                if last or p.validation.patience and self.waited >= p.validation.patience:
                    break
                asked = stop.agreed()
                if asked or p.run.save_interval and (step + 1) % p.run.save_interval == 0:
                    tracker.flush()
                    run.checkpoints.save(
                        step + 1,
                        self._tensors(),
                        {
                            "best": self.best if math.isfinite(self.best) else None,
                            "waited": self.waited,
                            "micro_batches": self.sizes.state(self.world),
                        },
                    )
                if asked:
                    raise stop.interrupted(step + 1, self.total)
        if main:
            write_json(run.folder / "result.json", {"valid_loss": self.best, "valid_perplexity": math.exp(self.best)})
            print(f"best validation perplexity {math.exp(self.best):.2f}; model in {result}")
        run.checkpoints.drop()
        return result

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the global batch: its mean loss in nats per token before the update, the share of
        padding in it, the learning rate.
        """
        o, seed = self.params.optimizer, self.params.run.seed
        rate = learning_rate(o, step, self.total)
        inputs, labels = self.rows["train"].batch(batch_rows(seed, len(self.rows["train"]), o.batch_size, step))
        padding = self.rows["train"].padding
        n_tokens, share = int((labels != padding).sum()), padding_share(inputs, padding)
        seeds = row_seeds(o.batch_size, generator_for(seed, "sft/dropout", step))
        total = torch.zeros((), device=self.precision.device)
        mine = torch.arange(o.batch_size)[self.world.share(o.batch_size, "--optimizer.batch_size")].split(
            self.sizes.training
        )
        for number, rows in enumerate(mine, 1):
            dropout = RowDropout(o.dropout, [seeds[row] for row in rows], inputs.shape[1]) if o.dropout else None
            with self.trained.micro_batch(last=number == len(mine)):
                with self.precision.autocast():
                    losses = self.trained(
                        inputs[rows].to(self.precision.device),
                        labels[rows].to(self.precision.device),
                        dropout,
                        self.sampled,
                        step,
                    )
                loss = losses.sum() / n_tokens
                self.trained.backward(loss)
            total += loss.detach()
        self.world.sum_([total])
        if o.clip_norm:
            nn.utils.clip_grad_norm_(self.loss.parameters(), o.clip_norm)
        set_rates(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"train/loss": float(total), "train/padding": share, "lr": rate * o.lr}

    def attempts(self) -> dict[str, Callable[[int], None]]:
        """Passes over so many rows that take as much memory as any in training; they change nothing."""
        tokens = torch.zeros(1, self.rows["train"].block, dtype=torch.int64, device=self.precision.device)

        def scoring(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.loss(tokens.expand(rows, -1), tokens.expand(rows, -1))

        def training(rows: int) -> None:
            with self.trained.micro_batch(last=False):
                with self.precision.autocast():
                    losses = self.trained(tokens.expand(rows, -1), tokens.expand(rows, -1), None, self.sampled, 0)
                self.trained.backward(losses.sum())

        return {"scoring": scoring, "training": training}

    def _validate(self, step: int, task: str, folder: Path) -> dict[str, float]:
        """Validation loss and perplexity; the best weights so far become the result."""
        valid = validate(
            self.loss, self.rows["valid"], self.params.validation.rows, self.precision, self.sizes.scoring, self.world
        )
        if not math.isfinite(valid):
            raise UserError(
                f"step {step}: the validation loss is {valid}; if that comes again, start anew with a lower --optimizer.lr than "
                f"{self.params.optimizer.lr}"
            )
        self.waited = 0 if valid < self.best else self.waited + 1
        if valid < self.best:
            self.best = valid
            note = {"stage": "train_sft", "step": step + 1, "valid_perplexity": math.exp(valid)}
            save_model(folder, self.loss.transformer, note=note, world=self.world)
        if self.world.is_main:
            tqdm.write(f"step {step + 1}: validation perplexity {math.exp(valid):.2f}")
        return {"valid/loss": valid, "valid/perplexity": math.exp(valid)}

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.loss.named_parameters()) | optimizer_tensors(self.optimizer, self.loss)

    def _resume(self, run: Run) -> int:
        allocate_state(self.optimizer)
        state = run.checkpoints.load(self._tensors())
        if state is None:
            return 0
        self.sizes = micro_batches_of_checkpoint(self.sizes, self.params.run, state, self.world)
        self.loss.transformer.recompute_activations(self.sizes.recompute)
        self.best, self.waited = math.inf if state["best"] is None else state["best"], state["waited"]
        return state["step"]


def _initial_model(params: SFTParams) -> GPT2:
    if params.model.initial is not None:
        return load_model(Path(params.model.initial))
    return GPT2(config_from_scratch(params.model)).initialise(generator_for(params.run.seed, "sft/weights"))


def learning_rate(o: SFTOptimizerParams, step: int, total: int) -> float:
    """The share of the peak rates that step `step` of `total` has."""
    if o.schedule == "cosine":
        return warmup_cosine(step, total, o.warmup, o.final_lr_fraction)
    return warmup_stable_decay(step, total, o.warmup, o.final_lr_fraction, o.decay)


def config_from_scratch(m: ModelParams) -> GPT2Config:
    """The architecture of a model that is not read from a folder."""
    encoding = get_encoding(m.encoding)
    return GPT2Config(
        n_vocab=encoding.n_vocab,
        n_ctx=m.n_ctx,
        n_embd=m.n_embd,
        n_head=m.n_head,
        n_layer=m.n_layer,
        padding_token=encoding.padding_token,
        encoding=m.encoding,
    )


def batch_rows(seed: int, n_rows: int, batch_size: int, step: int) -> np.ndarray:
    """The rows of global batch `step`: consecutive slices of seeded permutations, one an epoch; a batch may span two
    epochs.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: torch.randperm(n_rows, generator=generator_for(seed, "sft/order", epoch)).numpy()
        for epoch in np.unique(wanted // n_rows)
    }
    return np.array([orders[i // n_rows][i % n_rows] for i in wanted])


@torch.no_grad()
def validate(
    model: NextTokenLoss,
    rows: Rows,
    limit: int,
    precision: Precision,
    micro_batch: int,
    world: World = World(),
    describe: str | None = None,
) -> float:
    """Mean loss in nats per token over the first `limit` rows (all if 0), with the whole vocabulary; the ranks share
    the work.

    describe: what a progress bar is to be called; none shows none.
    """
    count = min(limit or len(rows), len(rows))
    sums, mine = [], world.share_of(torch.arange(count))
    with tqdm(total=len(mine), desc=describe, unit="row", disable=describe is None) as bar:
        for part in mine.split(micro_batch):
            inputs, labels = rows.batch(part.numpy())
            with precision.autocast():
                losses = model(inputs.to(precision.device), labels.to(precision.device)).double().cpu()
            real = labels != rows.padding
            of_row = torch.arange(len(part))[:, None].expand_as(labels)[real]
            sums.append(
                torch.stack(
                    [torch.zeros(len(part), dtype=torch.float64).index_add_(0, of_row, losses), real.sum(1).double()],
                    dim=1,
                )
            )
            bar.update(len(part))
    total, n_tokens = world.gather(torch.cat(sums))[:count].sum(0).tolist()
    return total / n_tokens
