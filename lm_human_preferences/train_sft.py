"""Supervised language-model training: from scratch or onward, on token files.

Stage by stage: rows of tokens in a seeded order -> loss of the next token -> AdamW under warm-up and cosine decay -> validation
perplexity -> the best weights become the run's `lm/` model folder.
"""

import math
import time

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lm_human_preferences import distributed
from lm_human_preferences.configuration import param, to_dict
from lm_human_preferences.doctor import open_watched
from lm_human_preferences.errors import UserError
from lm_human_preferences.files import write_json
from lm_human_preferences.language.checkpoints import load_model, save_model
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config, count_parameters
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.optim import adamw, warmup_cosine
from lm_human_preferences.precision import Precision, choose_precision
from lm_human_preferences.queries import DATASETS_FOLDER
from lm_human_preferences.rows import ROWS, Rows, make_rows
from lm_human_preferences.runs import Run, RunParams, check_run_params, describe_run, go_on_after_restart, optimizer_tensors, restore_optimizer
from lm_human_preferences.stopping import StopRequest
from lm_human_preferences.tasks import TaskParams
from lm_human_preferences.tracking import NullTracker, TrackingParams, check_tracking


@dataclass
class ModelParams:
    """Where the weights start."""

    initial: str | None = param(None, "model folder to start from; none trains from scratch with the sizes below")
    encoding: str = param("gpt2", "encoding of a model from scratch: gpt2 or letters")
    n_ctx: int = param(128, "longest context in tokens (from scratch)")
    n_embd: int = param(256, "width (from scratch)")
    n_head: int = param(4, "attention heads (from scratch)")
    n_layer: int = param(7, "blocks (from scratch)")


@dataclass
class DataParams:
    """What is read, and how it is cut into rows."""

    dataset: str = param("movies", "name of a folder in datasets/, or a path to one")
    rows: str = param("documents", "packed: the stream of all tokens cut every `block` tokens; documents: each row begins a document; "
                                   "references: a row is a query of the task with its reference, which alone is learnt")
    block: int = param(64, "tokens in a row; references have the task's lengths instead")


@dataclass
class SFTOptimizerParams:
    """AdamW and its schedule."""

    epochs: float = param(1.0, "passes over the training split")
    batch_size: int = param(32, "rows in an optimizer step, over all ranks")
    lr: float = param(1e-3, "peak learning rate")
    warmup: int = param(20, "steps of linear warm-up")
    final_lr_fraction: float = param(0.1, "the last step's share of the peak rate (cosine decay)")
    weight_decay: float = param(0.1, "decay of matrices")
    beta2: float = param(0.99, "decay rate of the second moment")
    clip_norm: float = param(1.0, "largest norm of the gradient; 0 does not clip")
    dropout: float = param(0.0, "dropout of embeddings, attention and residual branches")
    sampled_vocabulary: int = param(0, "estimate the softmax's normaliser from about so many tokens of the vocabulary; 0 uses all of them")


@dataclass
class ValidationParams:
    """When and on what to validate."""

    interval: int = param(100, "steps between validations")
    rows: int = param(512, "rows of the valid split to validate on (its first ones); 0 uses all")
    patience: int = param(0, "stop after so many validations without a better perplexity; 0 never stops early")


@dataclass
class SFTParams:
    """Everything a supervised run can be told."""

    task: TaskParams | None = param(None, "of references: how a query is cut and what surrounds it; the data set is data.dataset")
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
    for name, value in (("optimizer.batch_size", o.batch_size), ("data.block", d.block), ("validation.interval", v.interval)):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if d.rows not in ROWS:
        raise UserError(f"--data.rows {d.rows}: must be {', '.join(ROWS)}")
    if (d.rows == "references") != (params.task is not None):
        raise UserError("--data.rows references learns the references of a task: --task on gives it one" if params.task is None else
                        f"--data.rows {d.rows} has no use for a task: --task off, or --data.rows references")
    if o.epochs <= 0 or o.lr <= 0:
        raise UserError(f"--optimizer.epochs {o.epochs} and --optimizer.lr {o.lr} must be positive")
    if not 0 <= o.dropout < 1:
        raise UserError(f"--optimizer.dropout {o.dropout}: must lie in [0, 1)")
    if params.model.initial is None and params.model.n_embd % params.model.n_head:
        raise UserError(f"--model.n_embd {params.model.n_embd} is no multiple of --model.n_head {params.model.n_head}")


class SampledVocabulary:
    """An unbiased estimate of the softmax's normaliser from a random part of the vocabulary (Poisson sampling, Horvitz-Thompson weights).

    Token v takes part with probability p(v) = min(1, 0.05 + c * count(v)^0.75) and then counts 1 / p(v)-fold, so frequent tokens are always
    in and the sum's expectation is exact. The 0.05 matters: tokens that are hardly ever drawn would never learn to be improbable.
    It saves most of a small model's work in training; validation always uses the whole vocabulary.
    """

    def __init__(self, tokens: np.ndarray, n_vocab: int, size: int):
        weights, floor = np.bincount(tokens, minlength=n_vocab).astype(np.float64) ** 0.75, min(0.05, size / n_vocab)
        low, high = 0.0, float(n_vocab)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(1, floor + middle * weights).sum() < size else (low, middle)
        self.probability = torch.from_numpy(np.minimum(1, floor + high * weights))
        self.position = torch.full((n_vocab,), -1)

    def losses(self, model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Estimated negative log-likelihoods [N] of `labels` [N] given hidden states [N, C]."""
        drawn = torch.rand(len(self.probability), generator=generator, dtype=torch.float64) < self.probability
        candidates = drawn.nonzero()[:, 0]
        self.position[candidates] = torch.arange(len(candidates))
        place = self.position[labels.cpu()].to(labels.device)
        self.position[candidates] = -1
        device, hidden = hidden.device, hidden.float()
        logits = hidden @ model.wte.weight[candidates.to(device)].t() - self.probability[candidates].log().float().to(device)  # [N, K]
        rows = (place >= 0).nonzero()[:, 0]
        logits = logits.index_put((rows, place[rows]), torch.tensor(-torch.inf, device=device))  # the label itself is added exactly
        label_logits = (hidden * model.wte.weight[labels]).sum(-1)
        return torch.logaddexp(torch.logsumexp(logits, dim=-1), label_logits) - label_logits


def train(params: SFTParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `lm/` model folder. Raises UserError before anything is written if something cannot work."""
    check(params)
    precision = choose_precision(params.run.device, params.run.precision)
    if params.run.threads:
        torch.set_num_threads(params.run.threads)
    with distributed.world(precision.device.type, params.run.timeout) as world:
        go_on_after_restart(params.run, Path(params.run.save_dir) / experiment, world)
        return _train(params, task, experiment, precision, world)


def _train(params: SFTParams, task: str, experiment: str, precision: Precision, world: distributed.World) -> Path:
    model = _initial_model(params).to(precision.device)
    data, o = params.data, params.optimizer
    world.share(o.batch_size, "--optimizer.batch_size")
    folder = Path(data.dataset) if Path(data.dataset).is_dir() else DATASETS_FOLDER / data.dataset
    rows = {split: make_rows(folder, split, data.rows, data.block, model.config, params.task) for split in ("train", "valid")}
    total = max(1, math.ceil(o.epochs * len(rows["train"]) / o.batch_size))

    run = Run(Path(params.run.save_dir) / experiment, params.run, world.is_main)
    run.open(describe_run("train_sft", task, experiment, to_dict(params), world.launch))
    with run.explained():
        return _fit(run, model, rows, total, params, experiment, precision, world)


def _fit(run: Run, model: GPT2, rows: dict[str, Rows], total: int, params: SFTParams, experiment: str, precision: Precision,
         world: distributed.World) -> Path:
    """The steps from the first, or where the run stopped, to the last of `total`; returns the `lm/` model folder."""
    o = params.optimizer
    optimizer = adamw(model, (0.9, o.beta2), o.weight_decay)
    names = [n for n, p in model.named_parameters() if p.ndim >= 2] + [n for n, p in model.named_parameters() if p.ndim < 2]
    first, best, waited = _resume(run, model, optimizer, names) if params.run.resume else (0, math.inf, 0)
    sizes = count_parameters(model.config)
    if world.is_main:
        print(f"{experiment}: {sizes['blocks']:,} parameters and {sizes['embeddings']:,} in embeddings, {len(rows['train']):,} rows of "
              f"{rows['train'].block} tokens, {total:,} steps, {precision.describe()}")
    sampled = SampledVocabulary(rows["train"].learnt, model.config.n_vocab, o.sampled_vocabulary) if o.sampled_vocabulary else None
    result = run.folder / "lm"
    tracker = open_watched(run.folder, params, "train_sft", experiment, first) if world.is_main else NullTracker()
    with tracker, StopRequest(world) as stop, tqdm(total=total, initial=first, desc=experiment, unit="step", disable=not world.is_main) as bar:
        for step in range(first, total):
            started = time.perf_counter()
            lr = warmup_cosine(o.lr, step, total, o.warmup, o.final_lr_fraction)
            loss, padding = _step(model, optimizer, rows["train"], sampled, params, precision, world, step, lr)
            metrics = {"train/loss": loss, "train/padding": padding, "lr": lr,
                       "tokens_per_second": o.batch_size * rows["train"].block / (time.perf_counter() - started)}
            if not math.isfinite(loss):
                tracker.log(step, metrics)
                raise UserError(f"step {step}: the loss is {loss}; if that comes again, start anew with a lower --optimizer.lr than {o.lr}")
            last = step + 1 == total
            if (step + 1) % params.validation.interval == 0 or last:
                valid = validate(model, rows["valid"], params.validation.rows, precision, params.run.micro_batch)
                if not math.isfinite(valid):
                    raise UserError(f"step {step}: the validation loss is {valid}; if that comes again, start anew with a lower --optimizer.lr than {o.lr}")
                metrics |= {"valid/loss": valid, "valid/perplexity": math.exp(valid)}
                waited = 0 if valid < best else waited + 1
                if valid < best and world.is_main:
                    save_model(result, model, note={"stage": "train_sft", "step": step + 1, "valid_perplexity": math.exp(valid)})
                best = min(best, valid)
                if world.is_main:
                    tqdm.write(f"step {step + 1}: validation perplexity {math.exp(valid):.2f}")
            tracker.log(step, metrics)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}")
            if last or params.validation.patience and waited >= params.validation.patience:
                break
            asked = stop.agreed()
            if asked or params.run.save_interval and (step + 1) % params.run.save_interval == 0:
                tracker.flush()
                run.save_checkpoint(step + 1, dict(model.named_parameters()) | optimizer_tensors(optimizer, names),
                                    {"best": best if math.isfinite(best) else None, "waited": waited})
            if asked:
                raise stop.interrupted(step + 1, total)
    if world.is_main:
        write_json(run.folder / "result.json", {"valid_loss": best, "valid_perplexity": math.exp(best)})
        print(f"best validation perplexity {math.exp(best):.2f}; model in {result}")
    run.drop_checkpoints()
    return result


def _initial_model(params: SFTParams) -> GPT2:
    m = params.model
    if m.initial is not None:
        return load_model(Path(m.initial))
    encoding = get_encoding(m.encoding)
    config = GPT2Config(n_vocab=encoding.n_vocab, n_ctx=m.n_ctx, n_embd=m.n_embd, n_head=m.n_head, n_layer=m.n_layer,
                        padding_token=encoding.padding_token, encoding=m.encoding)
    return GPT2(config).initialise(distributed.generator_for(params.run.seed, "sft/weights"))


def _resume(run: Run, model: GPT2, optimizer: torch.optim.Optimizer, names: list[str]) -> tuple[int, float, int]:
    loaded = run.load_checkpoint()
    if loaded is None:
        return 0, math.inf, 0
    tensors, state = loaded
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    restore_optimizer(optimizer, names, tensors)
    return state["step"], state["best"] if state["best"] is not None else math.inf, state["waited"]


def batch_rows(seed: int, n_rows: int, batch_size: int, step: int) -> np.ndarray:
    """The rows of global batch `step`: consecutive slices of seeded permutations, one an epoch; a batch may span two epochs."""
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: torch.randperm(n_rows, generator=distributed.generator_for(seed, "sft/order", epoch)).numpy()
              for epoch in np.unique(wanted // n_rows)}
    return np.array([orders[i // n_rows][i % n_rows] for i in wanted])


def _step(model: GPT2, optimizer: torch.optim.Optimizer, rows: Rows, sampled: SampledVocabulary | None, params: SFTParams,
          precision: Precision, world: distributed.World, step: int, lr: float) -> tuple[float, float]:
    """One optimizer step over the global batch; returns its mean loss in nats per token and the share of padding in it."""
    o, seed = params.optimizer, params.run.seed
    chosen = batch_rows(seed, len(rows), o.batch_size, step)
    inputs, labels = rows.batch(chosen)
    n_tokens = int((labels != rows.padding).sum())
    padding = float((inputs == rows.padding).float().mean())
    mine = world.share(o.batch_size, "--optimizer.batch_size")
    inputs, labels = inputs[mine].to(precision.device), labels[mine].to(precision.device)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=precision.device)
    if o.dropout:
        torch.manual_seed(distributed.generator_for(seed, f"sft/dropout/{world.rank}", step).initial_seed())
    for i, l in zip(inputs.split(params.run.micro_batch), labels.split(params.run.micro_batch), strict=True):
        loss = _losses(model, i, l, o.dropout, precision, sampled, distributed.generator_for(seed, "sft/vocabulary", step)).sum() / n_tokens
        loss.backward()
        total += loss.detach()
    world.sum_([p.grad for p in model.parameters()] + [total])
    if o.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return float(total), padding


def _losses(model: GPT2, inputs: torch.Tensor, labels: torch.Tensor, dropout: float, precision: Precision,
            sampled: SampledVocabulary | None = None, generator: torch.Generator | None = None) -> torch.Tensor:
    """Negative log-likelihoods of the labels that are no padding [N]."""
    with precision.autocast():
        hidden = model(inputs, dropout=dropout)
        real = labels != model.config.padding_token
        hidden, labels = hidden[real], labels[real]
        if sampled is not None:
            return sampled.losses(model, hidden, labels, generator)
        return -token_logprobs(model, hidden, labels, entropies=False)[0]


@torch.no_grad()
def validate(model: GPT2, rows: Rows, limit: int, precision: Precision, micro_batch: int) -> float:
    """Mean loss in nats per token over the first `limit` rows (all if 0), with the whole vocabulary."""
    count = min(limit or len(rows), len(rows))
    total, n_tokens = 0.0, 0
    for part in np.array_split(np.arange(count), max(1, math.ceil(count / micro_batch))):
        inputs, labels = rows.batch(part)
        losses = _losses(model, inputs.to(precision.device), labels.to(precision.device), 0.0, precision)
        total, n_tokens = total + float(losses.sum(dtype=torch.float64)), n_tokens + len(losses)
    return total / n_tokens
