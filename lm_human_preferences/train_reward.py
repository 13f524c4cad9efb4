"""Reward training: a model of people's choices (sections 2 and 3.1 of the paper; original: train_reward.py).

From top to bottom: labels and queries -> normalise the untrained head's rewards -> one pass over the labels ->
normalise again, now to mean 0 and deviation 1 under the language model -> accuracy on held-out labels -> the run's
`reward_model/` folder.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import TensorFlowAdam, allocate_state, linear_decay, optimizer_tensors
from lm_human_preferences.compute.parallel import Parallel, gathered, place_frozen
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.label_files import load_labels
from lm_human_preferences.data.labels import LabelBatch, LabelParams, LabelType, label_type
from lm_human_preferences.data.queries import QueryStream, query_stream
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, check_task, padding_share
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.learning.label_losses import label_losses, label_statistics
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.checkpoints import check_finite
from lm_human_preferences.runs.description import describe_run
from lm_human_preferences.runs.folder import Run, go_on_after_restart
from lm_human_preferences.runs.micro_batches import (
    choose_micro_batches,
    micro_batches_of_checkpoint,
    peak_memory,
    reward_training_memory,
    try_micro_batches,
)
from lm_human_preferences.runs.params import RunParams, check_run_params, start_computing
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import NullTracker, Tracker, TrackingParams, check_tracking
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class RewardTrainingParams:
    """Everything a reward-training run can be told; defaults are the original's."""

    task: TaskParams = param(TaskParams, "")
    labels: LabelParams = param(LabelParams, "")
    batch_size: int = param(32, "labels in an optimizer step, over all ranks")
    lr: float = param(
        5e-5, "learning rate of the first step; it falls linearly to batch_size / num_train of it at the last"
    )
    rollout_batch_size: int = param(512, "responses sampled at once for normalisation, over all ranks")
    normalize_samples: int = param(
        256, "responses that a normalisation looks at, rounded up to whole batches; 0 does not normalise"
    )
    normalize_before: bool = param(
        True, "normalise the untrained model, to the labels' mean and deviation (0 and 1 for choices)"
    )
    normalize_after: bool = param(True, "normalise the trained model to mean 0 and deviation 1")
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")


def check(params: RewardTrainingParams) -> LabelType:
    """The label type; raises UserError, naming the flag and the numbers, for parameters that cannot work."""
    check_run_params(params.run)
    check_tracking(params.tracking)
    for name in ("batch_size", "rollout_batch_size"):
        if getattr(params, name) < 1:
            raise UserError(f"--{name} {getattr(params, name)}: must be at least 1")
    if params.labels.num_train < 1 or params.labels.num_train % params.batch_size:
        raise UserError(
            f"--labels.num_train {params.labels.num_train} does not divide by --batch_size {params.batch_size}"
        )
    if params.lr <= 0 or params.normalize_samples < 0:
        raise UserError(
            f"--lr {params.lr} must be positive and --normalize_samples {params.normalize_samples} not negative"
        )
    if not params.labels.source:
        raise UserError("this task has no labels yet: give a file with --labels.source")
    return label_type(params.labels.type)


def read_labels(
    params: RewardTrainingParams, kind: LabelType, encoding: Encoding
) -> tuple[LabelBatch, LabelBatch | None]:
    """Training labels (the first num_train) and held-out ones, None if there are none. UserError if there are too few."""
    p = params.labels
    from_source = (
        0 if p.valid_source else p.num_valid
    )  # held-out labels that follow the training labels in the same file
    labels = load_labels(p.source, kind, params.task, encoding, limit=p.num_train + from_source)
    if len(labels) < p.num_train:
        raise UserError(f"{p.source} has {len(labels)} labels, --labels.num_train asks for {p.num_train}")
    if p.valid_source and p.num_valid:
        return labels, load_labels(p.valid_source, kind, params.task, encoding, limit=p.num_valid)
    train, valid = labels.rows(slice(p.num_train)), labels.rows(slice(p.num_train, None))
    return train, valid if len(valid) else None


def train(params: RewardTrainingParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `reward_model/` folder. Raises UserError before anything is written if something
    cannot work.
    """
    check(params)
    precision = start_computing(params.run)
    with distributed.world(precision.device.type, params.run.timeout) as world:
        go_on_after_restart(params.run, Path(params.run.save_dir) / experiment, world)
        return RewardTrainer.prepare(params, precision, world).run(task, experiment)


class RewardTrainer:
    """Holds what the stage works on; `run` reads from top to bottom."""

    def __init__(
        self,
        model: RewardModel,
        policy: Policy,
        queries: QueryStream,
        train: LabelBatch,
        valid: LabelBatch | None,
        params: RewardTrainingParams,
        precision: Precision,
        world: World = World(),
    ):
        self.queries = queries
        self.train_labels, self.valid_labels = train, valid
        self.params, self.precision, self.world = params, precision, world
        self.kind = label_type(params.labels.type)
        self.seed = params.run.seed
        memory = reward_training_memory(
            params, model.transformer.config, self.kind.n_responses, precision, world.size, policy.formatter.length
        )
        self.sizes = choose_micro_batches(params.run, memory, precision, world)
        model.transformer.recompute_activations(self.sizes.recompute)
        self.model, self.trained = model, Parallel(model, world, precision, params.run.sharding)
        self.policy = place_frozen(policy, world, precision, params.run.sharding, methods=("analyze", "respond"))
        self.optimizer = TensorFlowAdam(self.trained.parameter_groups())
        world.share(params.batch_size, "--batch_size")
        world.share(params.rollout_batch_size, "--rollout_batch_size")

    @classmethod
    def prepare(cls, params: RewardTrainingParams, precision: Precision, world: World) -> "RewardTrainer":
        """Read model, labels and queries; UserError if one of them does not fit."""
        kind, folder = check(params), Path(params.task.policy.initial_model)
        model = RewardModel.from_language_model(folder, generator_for(params.run.seed, "reward/head"))
        encoding = get_encoding(model.transformer.config.encoding)
        check_task(params.task, encoding, model.transformer.config.n_ctx)
        train, valid = read_labels(params, kind, encoding)
        policy = Policy.load(folder, QueryFormatter.of(params.task, encoding), params.task.policy.temperature)
        queries = query_stream(params.task, encoding, params.run.seed, "reward")
        return cls(model, policy, queries, train, valid, params, precision, world)

    @property
    def steps(self) -> int:
        return self.params.labels.num_train // self.params.batch_size

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `reward_model/` folder."""
        run = Run(Path(self.params.run.save_dir) / experiment, self.params.run, self.world)
        run.open(describe_run("train_reward", task, experiment, to_dict(self.params)))
        with run.explained():
            return self._run(run, task, experiment)

    def _run(self, run: Run, task: str, experiment: str) -> Path:
        first = self._resume(run) if self.params.run.resume else 0
        if self.precision.device.type == "cuda" and not self.trained.sharded:
            self.sizes = try_micro_batches(self.sizes, self.params.run, self.attempts(), self.optimizer, self.world)
        self._say(
            f"{experiment}: {self.params.labels.num_train:,} labels ({self.kind.name}), {self.steps:,} steps, {self.precision.describe()}, {self.sizes.describe()}"
        )
        tracker = (
            open_watched(run.folder, self.params, "train_reward", experiment, first)
            if self.world.is_main
            else NullTracker()
        )
        with tracker:
            metrics = self.label_padding() if first == 0 else {}
            if first == 0 and self.params.normalize_before:
                metrics |= self.normalize("before", *self.kind.target_mean_std(self.train_labels.target))
            self.train_on_labels(run, tracker, first, metrics)
            metrics = self.normalize("after", 0.0, 1.0) if self.params.normalize_after else {}
            result = self.evaluate()
            tracker.log(
                self.steps,
                metrics | {f"validation/{name}": value for name, value in result.items() if name != "choices"},
            )
        folder = run.folder / "reward_model"
        check_finite(dict(self.model.named_parameters()), "reward model", self.world)
        self.model.save(folder, note={"stage": "train_reward", "task": task, **result}, world=self.world)
        if self.world.is_main:
            write_json(run.folder / "result.json", result)
            run.checkpoints.drop()
            self._say(describe_result(result, self.kind) + f"\nreward model in {folder}")
        self.world.barrier()
        return folder

    def attempts(self) -> dict[str, Callable[[int], None]]:
        """Passes over so many rows that take as much memory as any in training; they change nothing."""
        device, task, N = self.precision.device, self.params.task, self.kind.n_responses
        queries, responses = (
            torch.zeros(1, length, dtype=torch.int64, device=device)
            for length in (task.query_length, task.response_length)
        )

        def rollout(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.policy.respond(queries.expand(rows, -1), torch.zeros(rows, task.response_length, device=device))

        def scoring(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.model(queries.expand(rows, -1), responses.expand(rows, -1))

        def training(rows: int) -> None:
            labels = max(1, rows // N)
            with self.trained.micro_batch(last=False):
                part = LabelBatch(
                    queries.expand(labels, -1), responses.expand(labels, N, -1), torch.zeros(labels, device=device)
                )
                self.trained.backward(label_rewards(self.trained, part, self.precision).sum())

        return {"rollout": rollout, "scoring": scoring, "training": training}

    def label_padding(self) -> dict[str, float]:
        """How much of the training labels' queries and responses is padding."""
        padding = self.model.transformer.config.padding_token
        return {
            "labels/query_padding": padding_share(self.train_labels.queries, padding),
            "labels/response_padding": padding_share(self.train_labels.responses, padding),
        }

    def train_on_labels(self, run: Run, tracker: Tracker | NullTracker, first: int, metrics: dict[str, float]) -> None:
        """One pass over the labels in a random order, the same on every rank."""
        interval = self.params.run.save_interval
        with (
            StopRequest(self.world) as stop,
            tqdm(total=self.steps, initial=first, desc="reward", unit="step", disable=not self.world.is_main) as bar,
        ):
            for step in range(first, self.steps):
                started = time.perf_counter()
                stats = self.step(step, self.order(step))
                metrics |= {f"train/{name}": value for name, value in stats.items()}
                tracker.log(
                    step,
                    metrics
                    | {
                        "labels_per_second": self.params.batch_size / (time.perf_counter() - started),
                        "memory/peak": peak_memory(self.precision.device),
                    },
                )
                if not math.isfinite(stats["loss"]):
                    raise UserError(
                        f"step {step}: the loss is {stats['loss']}; if that comes again, start anew with a lower --lr than {self.params.lr}"
                    )
                metrics = {}
                bar.update()
                bar.set_postfix_str(f"loss {stats['loss']:.3f}")
                if step + 1 == self.steps:
                    break
                asked = stop.agreed()
                if asked or interval and (step + 1) % interval == 0:
                    tracker.flush()
                    run.checkpoints.save(
                        step + 1,
                        self._tensors(),
                        {"queries": list(self.queries.position), "micro_batches": self.sizes.state(self.world)},
                    )
                if asked:
                    raise stop.interrupted(step + 1, self.steps)

    def order(self, step: int) -> torch.Tensor:
        """Indices of the labels of global batch `step` [batch_size]: a slice of one permutation of all labels."""
        permutation = torch.randperm(self.params.labels.num_train, generator=generator_for(self.seed, "reward/order"))
        return permutation[step * self.params.batch_size : (step + 1) * self.params.batch_size]

    def step(self, step: int, indices: torch.Tensor) -> dict[str, float]:
        """One optimizer step on the labels at `indices`; statistics of the whole global batch before the update."""
        lr = linear_decay(self.params.lr, step * self.params.batch_size, self.params.labels.num_train)
        batch = self.train_labels.rows(indices)
        mine = batch.rows(self.world.share(self.params.batch_size, "--batch_size")).to(self.precision.device)
        rewards, micro_batches = [], _micro_batches(mine, self.sizes.training)
        for number, part in enumerate(micro_batches, 1):
            with self.trained.micro_batch(last=number == len(micro_batches)):
                part_rewards = label_rewards(self.trained, part, self.precision)
                self.trained.backward(label_losses(self.kind, part_rewards, part.target).sum() / len(batch))
            rewards.append(part_rewards.detach())
        self.optimizer.step(lr)
        self.optimizer.zero_grad(set_to_none=True)
        stats = label_statistics(self.kind, self.world.gather(torch.cat(rewards)).cpu(), batch.target)
        return stats | {"lr": lr, "gain": float(self.model.gain.detach()), "bias": float(self.model.bias.detach())}

    @torch.no_grad()
    def normalize(self, when: str, target_mean: float, target_std: float) -> dict[str, float]:
        """Set gain and bias so that raw responses of the initial language model get rewards of the target's mean and
        deviation.

        The responses are not truncated (as in the original), and what is sampled does not depend on the ranks.
        """
        if not self.params.normalize_samples:
            return {}
        self.model.reset_scale()
        mean, std = self.reward_mean_std(when)
        self.model.set_scale(mean, std, target_mean, target_std)
        return {
            f"normalize_{when}/mean": mean,
            f"normalize_{when}/std": std,
            f"normalize_{when}/gain": float(self.model.gain),
            f"normalize_{when}/bias": float(self.model.bias),
        }

    @torch.no_grad()
    def reward_mean_std(self, when: str) -> tuple[float, float]:
        """Mean and biased deviation of the rewards of ceil(normalize_samples / rollout_batch_size) batches of sampled
        responses.
        """
        rewards, size = [], self.params.rollout_batch_size
        for number in range(math.ceil(self.params.normalize_samples / size)):
            queries = self.queries.batch(size)
            uniforms = torch.rand(
                size,
                self.params.task.response_length,
                generator=generator_for(self.seed, f"reward/normalize_{when}", number),
            )
            mine = self.world.share(size, "--rollout_batch_size")
            part_rewards = []
            with gathered(self.policy):
                for q, u in zip(
                    queries[mine].split(self.sizes.rollout), uniforms[mine].split(self.sizes.rollout), strict=True
                ):
                    q, u = q.to(self.precision.device), u.to(self.precision.device)
                    with self.precision.autocast():
                        responses = self.policy.respond(q, u).tokens
                        part_rewards += [
                            self.model(*rows)
                            for rows in zip(
                                q.split(self.sizes.scoring), responses.split(self.sizes.scoring), strict=True
                            )
                        ]
            rewards.append(self.world.gather(torch.cat(part_rewards)))
        values = torch.cat(rewards).double()
        return float(values.mean()), float(values.std(correction=0))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Quality on the held-out labels: for choices the accuracy with its standard error against chance; else loss
        and correlation.
        """
        if self.valid_labels is None:
            return {}
        labels = self.valid_labels
        rewards = rewards_of(self.model, labels, self.precision, self.sizes.scoring, self.world)
        if not self.kind.is_choice:
            return label_statistics(self.kind, rewards, labels.target) | {"labels": len(labels)}
        accuracy = float((rewards.argmax(1) == labels.target).float().mean())
        return {
            "accuracy": accuracy,
            "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(labels)),
            "choices": len(labels),
            "chance": 1 / self.kind.n_responses,
            "loss": label_statistics(self.kind, rewards, labels.target)["loss"],
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters()) | optimizer_tensors(self.optimizer, self.model)

    def _resume(self, run: Run) -> int:
        allocate_state(self.optimizer)
        state = run.checkpoints.load(self._tensors())
        if state is None:
            return 0
        self.sizes = micro_batches_of_checkpoint(self.sizes, self.params.run, state, self.world)
        self.model.transformer.recompute_activations(self.sizes.recompute)
        self.queries.position = tuple(state["queries"])
        return state["step"]

    def _say(self, text: str) -> None:
        if self.world.is_main:
            print(text)


def label_rewards(model: RewardModel | Parallel, labels: LabelBatch, precision: Precision) -> torch.Tensor:
    """Rewards float32 [B, N] of each label's responses, on the model's device."""
    with precision.autocast():
        return model(labels.queries, labels.responses)


@torch.no_grad()
def rewards_of(
    model: RewardModel, labels: LabelBatch, precision: Precision, micro_batch: int, world: World = World()
) -> torch.Tensor:
    """Rewards float32 [B, N] of all labels' responses, `micro_batch` responses at a time, the ranks sharing the work;
    on the CPU.
    """
    mine = labels.rows(world.share_of(torch.arange(len(labels))))
    rewards = torch.cat(
        [label_rewards(model, part.to(precision.device), precision).cpu() for part in _micro_batches(mine, micro_batch)]
    )
    return world.gather(rewards)[: len(labels)]


def _micro_batches(labels: LabelBatch, rows: int) -> list[LabelBatch]:
    """Parts of at most `rows` responses (at least one label) each."""
    size = max(1, rows // labels.responses.shape[1])
    return [labels.rows(slice(start, start + size)) for start in range(0, len(labels), size)]


def describe_result(result: dict[str, float], kind: LabelType) -> str:
    """The held-out quality in one line for people."""
    if not result:
        return "warning: there are no labels beyond num_train to measure on; nothing tells whether the reward model learned"
    if kind.is_choice:
        return (
            f"held-out accuracy {result['accuracy']:.1%} +- {result['standard_error']:.1%} (standard error) on {result['choices']:,} choices "
            f"among {kind.n_responses}; chance is {result['chance']:.1%}"
        )
    return f"held-out mean squared error {result['loss']:.3f} on {result['labels']:,} labels"
