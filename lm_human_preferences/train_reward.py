"""Reward training: a model of people's choices (sections 2 and 3.1 of the paper; original: train_reward.py).

Begin with `RewardTrainer.run`, from top to bottom: labels and queries -> normalise the untrained head's rewards -> one
pass over the labels, or several -> normalise again, now to mean 0 and deviation 1 under the language model -> accuracy
on held-out labels -> the run's `reward_model/` folder.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import TensorFlowAdam, linear_decay
from lm_human_preferences.compute.parallel import gathered, place_frozen
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.labels import LabelBatch, LabelParams, LabelType, label_type
from lm_human_preferences.data.queries import QueryStream, query_stream
from lm_human_preferences.data.tasks import TaskParams, check_drawing_repeats, truncate_responses
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json, write_json
from lm_human_preferences.judging.training_rewards import check_reward_model
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.model_folders import load_config
from lm_human_preferences.learning.label_losses import chance_accuracy, label_losses, label_statistics
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel, label_parts, label_rewards, rewards_of
from lm_human_preferences.runs.folder import Run, model_folder, open_run, same_finished_run, started
from lm_human_preferences.runs.from_labels import (
    batch_of_epochs,
    check_at_least_1,
    check_stage,
    choice_error,
    inputs_of,
    label_padding,
    noise_seed,
    read_labels,
    settled,
    write_result,
)
from lm_human_preferences.runs.loop import Loop
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import reward_training_memory
from lm_human_preferences.runs.tracking import TrackingParams
from lm_human_preferences.runs.training import Probes, Training, blank_rows, rollout_probe
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class RewardTrainingParams:
    """Everything a reward-training run can be told; defaults are the original's."""

    task: TaskParams = param(TaskParams, "")
    labels: LabelParams = param(LabelParams, "")
    epochs: int = param(1, "passes over the training labels; held-out labels are looked at after each")
    batch_size: int = param(32, "labels in an optimizer step, over all ranks")
    lr: float = param(5e-5, "learning rate of the first step; it falls linearly to lr / steps at the last")
    rollout_batch_size: int = param(512, "responses sampled at once for normalisation, over all ranks")
    normalize_samples: int = param(
        256, "responses that a normalisation looks at, rounded up to whole batches; 0 does not normalise"
    )
    normalize_before: bool = param(
        True, "normalise the untrained model, to the labels' mean and deviation (0 and 1 for choices)"
    )
    normalize_after: bool = param(True, "normalise the trained model to mean 0 and deviation 1")
    initial_reward: str | None = param(
        None, "reward model or run to go on from, with its head and scale; none begins from the language model", "path"
    )
    members: int = param(
        1, "reward models to train, of the seeds run.seed, run.seed + 1, ..., each on all labels: an ensemble"
    )
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")


def settle(params: RewardTrainingParams) -> RewardTrainingParams:
    """What a run will use: a copy in which a run that was named as start model has become its model folder."""
    params = settled(params)
    if params.initial_reward is not None:
        params.initial_reward = model_folder(params.initial_reward, params.run.save_dir, ("reward_model",))
    return params


def check(params: RewardTrainingParams) -> LabelType:
    """The label type; raises UserError, naming the flag and the numbers, for parameters that cannot work."""
    kind = check_stage(params)
    check_at_least_1(params, "epochs", "members", "rollout_batch_size")
    if params.members > 1 and params.initial_reward is not None:
        raise UserError("--initial_reward would make all --members alike: give one member, or none to go on from")
    if not 0 < params.lr < math.inf or params.normalize_samples < 0:
        raise UserError(
            f"--lr {params.lr} must be positive and --normalize_samples {params.normalize_samples} not negative"
        )
    return kind


def train(params: RewardTrainingParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `reward_model/` folder. Raises UserError before anything is written if something
    cannot work.
    """
    params = settle(params)
    check(params)
    with started(params.run, experiment) as (precision, world):
        if params.members > 1:
            return train_members(params, precision, world, task, experiment)
        return RewardTrainer.prepare(params, precision, world).run(task, experiment)


def train_members(params: RewardTrainingParams, precision: Precision, world: World, task: str, experiment: str) -> Path:
    """Train an ensemble, member by member: each is a run of its own, `member_1/` and so on, in the run's folder, which
    is returned. When it is resumed, members that are finished are not trained again. UserError, before the folder is
    made, for labels and batches that no member can work with.
    """
    world.share(params.batch_size, "--batch_size")
    world.share(params.rollout_batch_size, "--rollout_batch_size")
    read_labels(params, check(params), load_config(Path(params.task.policy.initial_model)))
    inputs = {"task.policy.initial_model": params.task.policy.initial_model, "labels.source": params.labels.source}
    with open_run("train_reward", task, experiment, params, inputs, world) as run:
        results = []
        for number in range(params.members):
            name = f"member_{number + 1}"
            own = dataclasses.replace(
                params.run,
                seed=params.run.seed + number,
                save_dir=str(run.folder),
                overwrite=False,
                resume=world.from_main((run.folder / name / "config.json").is_file()),
            )
            mine = dataclasses.replace(params, members=1, run=own)
            if params.labels.noise:  # the same labels are wrong for all members
                mine.labels = dataclasses.replace(params.labels, noise_seed=noise_seed(params))
            if world.from_main((run.folder / name / "result.json").is_file()):
                same_finished_run(run.folder / name, "train_reward", task, to_dict(mine), world)
                run.say(f"{experiment}/{name}: finished already, skipped")
            else:
                run.say(f"{experiment}: member {number + 1} of {params.members}")
                RewardTrainer.prepare(mine, precision, world).run(task, name)
            results.append(world.from_main(read_json(run.folder / name / "result.json") if world.is_main else None))
        if world.is_main:
            write_json(run.folder / "result.json", {"members": results})
        run.say(f"--rewards.trained_model {experiment} names all {params.members} reward models")
        return run.folder


class RewardTrainer:
    """What the stage works on; `run` is the stage from start to end, `step` one optimizer step."""

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
        """valid: held-out labels, None if there are none."""
        self.model, self.queries, self.train_labels, self.valid_labels = model, queries, train, valid
        self.params, self.precision, self.world, self.seed = params, precision, world, params.run.seed
        self.kind = label_type(params.labels.type)
        self.steps_of_epoch = params.labels.num_train // params.batch_size
        self.steps = params.epochs * self.steps_of_epoch
        world.share(params.batch_size, "--batch_size")
        world.share(params.rollout_batch_size, "--rollout_batch_size")
        config, prefix = model.transformer.config, policy.formatter.length
        memory = reward_training_memory(params, config, self.kind.n_responses, precision, world.size, prefix)
        self.training = Training(
            model, memory, lambda p: TensorFlowAdam(p.parameter_groups()), params.run, precision, world
        )
        self.parallel, self.optimizer = self.training.parallel, self.training.optimizer
        self.policy = place_frozen(policy, world, precision, params.run.sharding, methods=("analyze", "respond"))

    @classmethod
    def prepare(cls, params: RewardTrainingParams, precision: Precision, world: World) -> "RewardTrainer":
        """Read model, labels and queries; UserError if one of them does not fit."""
        kind, folder = check(params), Path(params.task.policy.initial_model)
        if params.initial_reward is None:
            model = RewardModel.from_language_model(folder, generator_for(params.run.seed, "reward/head"))
        else:
            model = RewardModel.load(Path(params.initial_reward))
        encoding = get_encoding(model.transformer.config)
        formatter, train, valid = read_labels(params, kind, model.transformer.config)
        check_drawing_repeats(params.task, precision.device.type)
        policy = Policy.load(folder, formatter, params.task.policy.temperature).for_task(params.task, encoding)
        check_reward_model(model.transformer.config, policy.transformer.config, params.task)
        queries = query_stream(params.task, encoding, params.run.seed, "reward")
        return cls(model, policy, queries, train, valid, params, precision, world)

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `reward_model/` folder."""
        p = self.params
        inputs = inputs_of(p) | {"task.query_dataset": p.task.query_dataset}
        if p.initial_reward is not None:
            inputs["initial_reward"] = p.initial_reward
        with open_run("train_reward", task, experiment, p, inputs, self.world) as run:
            if (finished := run.finished("reward_model")) is not None:
                return finished
            first = self.resume(run) if p.run.resume else 0
            self.training.try_micro_batches(self.memory_probes())
            run.record_computed(self.training.computed())
            run.say(
                f"{experiment}: {p.labels.num_train:,} labels ({self.kind.name}), {self.steps:,} steps, "
                f"{self.training.in_words()}"
            )
            with open_watched(run, p, "train_reward", experiment, first) as tracker:
                padding = self.model.transformer.config.padding_token
                metrics = label_padding(self.train_labels, padding) if first == 0 else {}
                if first == 0 and p.normalize_before and p.initial_reward is None:
                    metrics |= self.normalize("before", *self.kind.target_mean_std(self.train_labels.target))
                remedy = f"--lr than {p.lr}"
                loop = Loop(
                    run, tracker, self.training, self.steps, "reward", first, self.state, remedy, ["train/loss"]
                )
                self.train_on_labels(loop, metrics)
                metrics = self.normalize("after", 0.0, 1.0) if p.normalize_after else {}
                result = self.evaluate()
                tracker.log(self.steps, metrics | held_out(result))
            return write_result(
                run,
                "reward_model",
                self.model,
                lambda folder, note: self.model.save(folder, note=note, world=self.world),
                {"stage": "train_reward", "task": task},
                result,
                f"{describe_result(result, self.kind)}\nreward model",
                self.world,
            )

    def train_on_labels(self, loop: Loop, metrics: dict[str, float]) -> None:
        """The passes over the labels, each in a random order, the same on every rank; `metrics` go into the first
        row, what held-out labels say after a pass into its last one.
        """
        with loop:
            for step in loop:
                stats = self.step(step, self.order(step))
                metrics |= {f"train/{name}": value for name, value in stats.items()}
                if (step + 1) % self.steps_of_epoch == 0 and step + 1 < self.steps:
                    metrics |= held_out(self.evaluate())
                metrics["labels_per_second"] = self.params.batch_size / loop.seconds
                loop.log(metrics, f"loss {stats['loss']:.3f}")
                metrics = {}

    def order(self, step: int) -> torch.Tensor:
        """Indices of the labels of global batch `step`, int64 [batch_size]: a slice of its pass's permutation."""
        return batch_of_epochs(self.params, "reward/order", step)

    def step(self, step: int, indices: torch.Tensor) -> dict[str, float]:
        """One optimizer step on the labels at `indices`; statistics of the whole global batch before the update."""
        lr = linear_decay(self.params.lr, step, self.steps)
        batch = self.train_labels.rows(indices)
        mine = batch.rows(self.world.share(self.params.batch_size, "--batch_size")).to(self.precision.device)
        rewards = []
        for part in self.parallel.micro_batches(label_parts(mine, self.training.micro_batches.training)):
            part_rewards = label_rewards(self.parallel, part, self.precision)
            self.parallel.backward(label_losses(self.kind, part_rewards, part.target).sum() / len(batch))
            rewards.append(part_rewards.detach())
        self.optimizer.step(lr)
        self.optimizer.zero_grad(set_to_none=True)
        stats = label_statistics(self.kind, self.world.gather(torch.cat(rewards)).cpu(), batch.target)
        return stats | {"lr": lr, "gain": float(self.model.gain.detach()), "bias": float(self.model.bias.detach())}

    # --- normalisation ---

    @torch.no_grad()
    def normalize(self, when: str, target_mean: float, target_std: float) -> dict[str, float]:
        """Set gain and bias so that raw responses of the initial language model get rewards of the target's mean and
        deviation. UserError where all rewards are equal.

        The responses are not truncated (as in the original), unless --task.after_stop ignore ends them; what is sampled
        does not depend on the ranks.
        """
        if not self.params.normalize_samples:
            return {}
        self.model.reset_scale()
        mean, std = self.reward_mean_std(when)
        if not std > 0:
            raise UserError(
                f"all {self.params.normalize_samples} responses that the normalisation looks at get the same reward "
                f"({mean:g}): raise --task.policy.temperature ({self.params.task.policy.temperature:g}) or "
                "--normalize_samples, or give 0 of them"
            )
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
        size, R = self.params.rollout_batch_size, self.params.task.response_length
        rows, mine, rewards = self.training.micro_batches, self.world.share(size, "--rollout_batch_size"), []
        padding = self.model.transformer.config.padding_token
        for number in range(math.ceil(self.params.normalize_samples / size)):
            queries = self.queries.batch(size)
            uniforms = torch.rand(size, R, generator=generator_for(self.seed, f"reward/normalize_{when}", number))
            part_rewards = []
            with gathered(self.policy):
                for q, u in zip(queries[mine].split(rows.rollout), uniforms[mine].split(rows.rollout), strict=True):
                    q, u = q.to(self.precision.device), u.to(self.precision.device)
                    with self.precision.autocast():
                        responses = self.policy.respond(q, u).tokens
                        responses = truncate_responses(responses, self.policy.stops, padding)
                        scored = zip(q.split(rows.scoring), responses.split(rows.scoring), strict=True)
                        part_rewards += [self.model(*pair) for pair in scored]
            rewards.append(self.world.gather(torch.cat(part_rewards)))
        values = torch.cat(rewards).double()
        return float(values.mean()), float(values.std(correction=0))

    # --- around the steps ---

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Quality on the held-out labels: for choices the accuracy with its standard error against chance; else loss
        and correlation.
        """
        if self.valid_labels is None:
            return {}
        labels, count = self.valid_labels, len(self.valid_labels)
        rewards = rewards_of(self.model, labels, self.precision, self.training.micro_batches.scoring, self.world)
        stats = label_statistics(self.kind, rewards, labels.target)
        if "accuracy" not in stats:
            return stats | {"labels": count}
        accuracy = stats["accuracy"]
        return {
            "accuracy": accuracy,
            "standard_error": choice_error(accuracy, count),
            "choices": count,
            "chance": chance_accuracy(labels.target, self.kind.n_responses),
            "loss": stats["loss"],
        }

    def state(self) -> dict[str, object]:
        """The loop state of a checkpoint."""
        return {"queries": list(self.queries.position)}

    def resume(self, run: Run) -> int:
        """Go back to the newest checkpoint; returns the step to go on at."""
        state = self.training.restore(run.checkpoints.load)
        if state is None:
            return 0
        self.queries.position = tuple(state["queries"])
        return int(state["step"])

    def memory_probes(self) -> Probes:
        """For each kind of pass a function that does one over made-up rows: it takes the memory of the largest pass in
        training, and changes nothing.
        """
        queries, responses = blank_rows(self.params.task, self.precision.device)
        N = self.kind.n_responses

        def scoring(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.model(queries.expand(rows, -1), responses.expand(rows, -1))

        def training(rows: int) -> None:
            labels = max(1, rows // N)
            targets = torch.zeros(labels, device=self.precision.device)
            part = LabelBatch(queries.expand(labels, -1), responses.expand(labels, N, -1), targets)
            with self.parallel.micro_batch(last=False):
                self.parallel.backward(label_rewards(self.parallel, part, self.precision).sum())

        rollout = rollout_probe(self.policy, self.params.task, self.precision)
        return {"rollout": rollout, "scoring": scoring, "training": training}


def held_out(result: dict[str, float]) -> dict[str, float]:
    """What `evaluate` found, as metrics."""
    return {f"validation/{name}": value for name, value in result.items()}


def describe_result(result: dict[str, float], kind: LabelType) -> str:
    """The held-out quality in one line for people."""
    if not result:
        return (
            "warning: there are no labels beyond num_train to measure on; nothing tells whether the reward model "
            "learned"
        )
    if "accuracy" in result:
        return (
            f"held-out accuracy {result['accuracy']:.1%} +- {result['standard_error']:.1%} (standard error) on "
            f"{result['choices']:,} choices among {kind.n_responses}; chance is {result['chance']:.1%}"
        )
    if not math.isfinite(result["corr"]):
        return (
            f"warning: the correlation with the {result['labels']:,} held-out labels has no value: the labels, or "
            "their rewards, are all equal"
        )
    return f"held-out correlation of rewards and labels {result['corr']:.2f}, on {result['labels']:,} labels"
