"""Supervised language-model training: from scratch or onward, on token files.

Begin with `SFTTrainer.run`: rows of tokens in a seeded order -> loss of the next token -> AdamW, or Muon beside it,
under a schedule -> validation perplexity -> the best weights become the run's `lm/` model folder.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.optim import Optimizer
from tqdm import tqdm

from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import (
    METHODS,
    SCHEDULES,
    CombinedOptimizer,
    adamw,
    muon_and_adamw,
    set_rates,
    warmup_cosine,
    warmup_stable_decay,
)
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import dataset_folder
from lm_human_preferences.data.rows import ROWS, ReferenceRows, Rows, make_rows
from lm_human_preferences.data.tasks import TaskParams, padding_share
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.dropout import RowDropout, row_seeds
from lm_human_preferences.language.encoding import ENCODINGS, get_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config, count_parameters
from lm_human_preferences.language.model_folders import load_model, save_model
from lm_human_preferences.language.sampled_vocabulary import SampledVocabulary
from lm_human_preferences.learning.next_token import NextTokenLoss, validate
from lm_human_preferences.runs.folder import Run, model_folder, open_run, started
from lm_human_preferences.runs.loop import Loop
from lm_human_preferences.runs.params import RunParams, check_run_params
from lm_human_preferences.runs.stage_memory import supervised_training_memory
from lm_human_preferences.runs.tracking import TrackingParams, check_tracking
from lm_human_preferences.runs.training import Probes, TrainedPartParams, Training, check_trained_part, train_part
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class ModelParams(TrainedPartParams):
    """Where the weights start, and which of them are trained."""

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
        "references: a row is a query of the task with its reference, which alone is learned",
    )
    block: int = param(64, "tokens in a row; references have the task's lengths instead")


@dataclass
class SFTOptimizerParams:
    """The optimizer and its schedule."""

    method: str = param(
        "adamw",
        "adamw; or muon, for the blocks' matrices, with adamw for embeddings and vectors: a better model after as many "
        "tokens",
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
        0, "estimate the softmax's normaliser from about this many tokens of the vocabulary; 0 uses all of it"
    )


@dataclass
class ValidationParams:
    """When and on what to validate."""

    interval: int = param(100, "steps between validations")
    rows: int = param(512, "rows of the valid split to validate on (its first ones); 0 uses all")
    patience: int = param(0, "stop after this many validations without a better perplexity; 0 never stops early")


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


def settle(params: SFTParams) -> SFTParams:
    """What a run will use: a copy in which a run that was named as start model has become its model folder."""
    params = copy.deepcopy(params)
    if params.model.initial is not None:
        params.model.initial = model_folder(params.model.initial, params.run.save_dir, ("lm", "policy"))
    return params


def check(params: SFTParams) -> None:
    """Raises UserError, naming the flag and the number, for parameters that cannot work."""
    check_run_params(params.run)
    check_tracking(params.tracking)
    check_trained_part(params.model)
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
    for name in ("epochs", "lr", "muon_lr"):
        if not 0 < getattr(o, name) < math.inf:
            raise UserError(f"--optimizer.{name} {getattr(o, name)}: must be positive")
    for name, known in (("method", METHODS), ("schedule", SCHEDULES)):
        if getattr(o, name) not in known:
            raise UserError(f"--optimizer.{name} {getattr(o, name)}: must be {' or '.join(known)}")
    for name in ("decay", "final_lr_fraction"):
        if not 0 <= getattr(o, name) <= 1:
            raise UserError(f"--optimizer.{name} {getattr(o, name)}: must lie between 0 and 1")
    for name in ("sampled_vocabulary", "warmup", "weight_decay", "clip_norm"):
        if not 0 <= getattr(o, name) < math.inf:
            raise UserError(f"--optimizer.{name} {getattr(o, name)}: must not be negative")
    for name in ("rows", "patience"):
        if getattr(v, name) < 0:
            raise UserError(f"--validation.{name} {getattr(v, name)}: must not be negative")
    for name in ("dropout", "beta2"):
        if not 0 <= getattr(o, name) < 1:
            raise UserError(f"--optimizer.{name} {getattr(o, name)}: must lie in [0, 1)")
    if params.model.initial is None:
        check_from_scratch(params.model)


def check_from_scratch(m: ModelParams) -> None:
    """Raises UserError, naming the flag, for a model that cannot be made."""
    if m.encoding not in ENCODINGS:
        raise UserError(f"--model.encoding {m.encoding}: must be {' or '.join(ENCODINGS)}")
    for name in ("n_ctx", "n_embd", "n_head", "n_layer"):
        if getattr(m, name) < 1:
            raise UserError(f"--model.{name} {getattr(m, name)}: must be at least 1")
    if m.n_embd % m.n_head:
        raise UserError(f"--model.n_embd {m.n_embd} is not a multiple of --model.n_head {m.n_head}")


def train(params: SFTParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `lm/` model folder. Raises UserError before anything is written if something cannot
    work.
    """
    params = settle(params)
    check(params)
    with started(params.run, experiment) as (precision, world):
        return SFTTrainer.prepare(params, precision, world).run(task, experiment)


class SFTTrainer:
    """What the stage works on; `run` is the stage from start to end, `step` one optimizer step."""

    def __init__(
        self,
        model: GPT2,
        rows: Mapping[str, Rows | ReferenceRows],
        params: SFTParams,
        precision: Precision,
        world: World = World(),
    ):
        """rows: of the splits `train` and `valid`."""
        o = params.optimizer
        world.share(o.batch_size, "--optimizer.batch_size")
        self.config, self.rows, self.params, self.precision, self.world = model.config, rows, params, precision, world
        self.loss = NextTokenLoss(model)
        memory = supervised_training_memory(params, model.config, rows["train"].block, precision, world.size)
        self.training = Training(
            self.loss, memory, lambda _: make_optimizer(self.loss, o, precision.bfloat16), params.run, precision, world
        )
        self.parallel, self.optimizer = self.training.parallel, self.training.optimizer
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
        model, data = initial_model(params.model, params.run.seed), params.data
        train_part(model, params.model)
        folder, splits = dataset_folder(data.dataset), ("train", "valid")
        rows = {split: make_rows(folder, split, data.rows, data.block, model.config, params.task) for split in splits}
        return cls(model, rows, params, precision, world)

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `lm/` folder."""
        p, train = self.params, self.rows["train"]
        inputs = {"model.initial": p.model.initial, "data.dataset": p.data.dataset}
        with open_run("train_sft", task, experiment, p, inputs, self.world) as run:
            if (finished := run.finished("lm")) is not None:
                return finished
            first, result = self.resume(run) if p.run.resume else 0, run.folder / "lm"
            self.training.try_micro_batches(self.memory_probes())
            run.record_computed(self.training.computed())
            counts = count_parameters(self.config)
            run.say(
                f"{experiment}: {counts['blocks']:,} parameters and {counts['embeddings']:,} in embeddings, "
                f"{len(train):,} rows of {train.block} tokens, {self.total:,} steps, {self.training.in_words()}"
            )
            remedy = f"--optimizer.lr than {p.optimizer.lr}"
            watched = ("train/loss", "valid/loss", "valid/perplexity")
            with (
                open_watched(run, p, "train_sft", experiment, first) as tracker,
                Loop(run, tracker, self.training, self.total, experiment, first, self.state, remedy, watched) as loop,
            ):
                for step in loop:
                    metrics = self.step(step)
                    metrics["tokens_per_second"] = p.optimizer.batch_size * train.block / loop.seconds
                    if (step + 1) % p.validation.interval == 0 or loop.last:
                        metrics |= self.validation()
                    loop.log(metrics, f"loss {metrics['train/loss']:.3f}")
                    if "valid/loss" in metrics:
                        self.keep_if_best(step, metrics, result)
                        if p.validation.patience and self.waited >= p.validation.patience:
                            loop.end()
            perplexity = perplexity_of(self.best)
            if self.world.is_main:
                write_json(run.folder / "result.json", {"valid_loss": self.best, "valid_perplexity": perplexity})
            run.say(f"best validation perplexity {perplexity:.2f}; model in {result}")
            run.checkpoints.drop()
            return result

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the global batch: its mean loss in nats per token before the update, the share of
        padding in it, the learning rate.
        """
        o, seed, rows = self.params.optimizer, self.params.run.seed, self.rows["train"]
        rate = learning_rate(o, step, self.total)
        inputs, labels = rows.batch(batch_rows(seed, len(rows), o.batch_size, step))
        n_tokens = int((labels != rows.padding).sum())
        seeds = row_seeds(o.batch_size, generator_for(seed, "sft/dropout", step))
        total, device = torch.zeros((), device=self.precision.device), self.precision.device
        mine = torch.arange(o.batch_size)[self.world.share(o.batch_size, "--optimizer.batch_size")]
        for part in self.parallel.micro_batches(mine.split(self.training.micro_batches.training)):
            dropout = RowDropout(o.dropout, [seeds[row] for row in part], inputs.shape[1]) if o.dropout else None
            with self.precision.autocast():
                losses = self.parallel(inputs[part].to(device), labels[part], dropout, self.sampled, step)
            loss = losses.sum() / n_tokens
            self.parallel.backward(loss)
            total += loss.detach()
        self.world.sum_([total])
        if o.clip_norm:
            nn.utils.clip_grad_norm_(self.loss.parameters(), o.clip_norm)
        set_rates(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"train/loss": float(total), "train/padding": padding_share(inputs, rows.padding), "lr": rate * o.lr}

    def validation(self) -> dict[str, float]:
        """Loss and perplexity on the valid split."""
        rows, micro_batch = self.params.validation.rows, self.training.micro_batches.scoring
        valid = validate(self.loss, self.rows["valid"], rows, self.precision, micro_batch, self.world)
        return {"valid/loss": valid, "valid/perplexity": perplexity_of(valid)}

    def keep_if_best(self, step: int, metrics: dict[str, float], folder: Path) -> None:
        """The best weights so far become the result."""
        valid, perplexity = metrics["valid/loss"], metrics["valid/perplexity"]
        self.waited = 0 if valid < self.best else self.waited + 1
        if valid < self.best:
            self.best = valid
            note = {"stage": "train_sft", "step": step + 1, "valid_perplexity": perplexity}
            save_model(folder, self.loss.transformer, note=note, world=self.world)
        if self.world.is_main:
            tqdm.write(f"step {step + 1}: validation perplexity {perplexity:.2f}")

    def state(self) -> dict[str, object]:
        """The loop state of a checkpoint."""
        return {"best": self.best if math.isfinite(self.best) else None, "waited": self.waited}

    def resume(self, run: Run) -> int:
        """Go back to the newest checkpoint; returns the step to go on at."""
        state = self.training.restore(run.checkpoints.load)
        if state is None:
            return 0
        self.best, self.waited = math.inf if state["best"] is None else state["best"], state["waited"]
        return int(state["step"])

    def memory_probes(self) -> Probes:
        """For each kind of pass a function that does one over made-up rows: it takes the memory of the largest pass in
        training, and changes nothing.
        """
        tokens = torch.zeros(1, self.rows["train"].block, dtype=torch.int64, device=self.precision.device)

        def scoring(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.loss(tokens.expand(rows, -1), tokens.expand(rows, -1))

        def training(rows: int) -> None:
            with self.parallel.micro_batch(last=False):
                with self.precision.autocast():
                    losses = self.parallel(tokens.expand(rows, -1), tokens.expand(rows, -1), None, self.sampled, 0)
                self.parallel.backward(losses.sum())

        return {"scoring": scoring, "training": training}


def make_optimizer(loss: NextTokenLoss, o: SFTOptimizerParams, bfloat16: bool) -> Optimizer | CombinedOptimizer:
    """AdamW, or Muon for the blocks' matrices beside it."""
    betas = (0.9, o.beta2)
    trained = {name: p for name, p in loss.named_parameters() if p.requires_grad}
    if o.method == "muon":
        return muon_and_adamw(trained.items(), o.muon_lr, o.lr, betas, o.weight_decay, bfloat16)
    return adamw(trained.values(), o.lr, betas, o.weight_decay)


def initial_model(m: ModelParams, seed: int) -> GPT2:
    """The model that training starts from: read, or drawn. UserError if it cannot be read."""
    if m.initial is not None:
        return load_model(Path(m.initial))
    return GPT2(config_from_scratch(m)).initialise(generator_for(seed, "sft/weights"))


def perplexity_of(loss: float) -> float:
    """exp of a loss in nats per token; infinite where no float is as large."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


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
    epochs, places = np.divmod(wanted, n_rows)
    return np.concatenate([row_order(seed, n_rows, epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)])


@lru_cache(maxsize=2)
def row_order(seed: int, n_rows: int, epoch: int) -> np.ndarray:
    """The seeded permutation of all rows in which an epoch reads them."""
    order: np.ndarray = torch.randperm(n_rows, generator=generator_for(seed, "sft/order", epoch)).numpy()
    return order
