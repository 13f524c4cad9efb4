"""Implicit language Q-learning: from texts with scores, without a reward model and without sampling, a language model
and heads that value its tokens; together they write better than the texts do on the whole (Snell et al. 2022, arXiv
2206.11871).

Begin with `ILQLTrainer.run`, from top to bottom: texts and their scores, normalised -> passes over them: losses of Q, V
and the language model, then the Q heads' target copies follow -> how well Q knows the scores of held-out texts -> the
run's `policy/` folder, whose heads steer the writing with the strength `beta`.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import TensorFlowAdam, linear_decay
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.labels import LabelBatch, LabelParams, label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.implicit_q import (
    Actions,
    ImplicitQ,
    ImplicitQParams,
    ValueHeads,
    check_implicit_q,
    implicit_q_losses,
    implicit_q_statistics,
    normalised_returns,
    return_scale,
    rewards_of_texts,
    text_sums,
)
from lm_human_preferences.learning.reward_model import label_parts
from lm_human_preferences.learning.steered_policy import SteeredPolicy
from lm_human_preferences.runs.folder import Run, open_run, started
from lm_human_preferences.runs.from_labels import (
    batch_of_epochs,
    check_at_least_1,
    check_positive,
    check_stage,
    inputs_of,
    label_padding,
    read_labels,
    settled,
    write_result,
)
from lm_human_preferences.runs.loop import Loop
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import implicit_q_memory
from lm_human_preferences.runs.tracking import TrackingParams
from lm_human_preferences.runs.training import Probes, Training, blank_rows
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class ILQLParams:
    """Everything a run of implicit language Q-learning can be told."""

    task: TaskParams = param(TaskParams, "")
    labels: LabelParams = param(LabelParams, "")
    ilql: ImplicitQParams = param(ImplicitQParams, "")
    beta: float = param(
        1.0, "strength of steering that is stored with the policy: what a deviation of the scores adds to a logit"
    )
    epochs: int = param(1, "passes over the training texts")
    batch_size: int = param(32, "texts in an optimizer step, over all ranks")
    lr: float = param(1e-5, "learning rate of the first step; it falls linearly to lr / steps at the last")
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")


def settle(params: ILQLParams) -> ILQLParams:
    """What a run will use: a copy in which a run that was named as start model has become its model folder."""
    return settled(params)


def check(params: ILQLParams) -> None:
    """Raises UserError, naming the flag and the numbers, for parameters that cannot work."""
    kind = check_stage(params)
    if kind.answer != "score":
        raise UserError(f"--labels.type {params.labels.type}: train_ilql learns from texts with scores, scalar_rating")
    check_implicit_q(params.ilql)
    check_at_least_1(params, "epochs")
    check_positive(params, "lr")
    if not 0 <= params.beta < math.inf:
        raise UserError(f"--beta {params.beta}: must not be negative")


def train(params: ILQLParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `policy/` folder. Raises UserError before anything is written if something cannot
    work.
    """
    params = settle(params)
    check(params)
    with started(params.run, experiment) as (precision, world):
        return ILQLTrainer.prepare(params, precision, world).run(task, experiment)


class ILQLTrainer:
    """What the stage works on; `run` is the stage from start to end, `step` one optimizer step."""

    def __init__(
        self,
        model: ImplicitQ,
        train: LabelBatch,
        valid: LabelBatch | None,
        params: ILQLParams,
        precision: Precision,
        world: World = World(),
    ):
        """train, valid: texts with their scores; held-out ones are None if there are none. UserError where all scores
        are the same.
        """
        self.model, self.params, self.precision, self.world = model, params, precision, world
        self.scale = return_scale(train.target)
        if not self.scale[1] > 0:
            raise UserError(f"{params.labels.source}: all texts to train on have the score {self.scale[0]:g}")
        self.train_labels = self.with_returns(train)
        self.valid_labels = None if valid is None else self.with_returns(valid)
        self.steps = params.epochs * params.labels.num_train // params.batch_size
        world.share(params.batch_size, "--batch_size")
        memory = implicit_q_memory(params, model.transformer.config, precision, world.size, model.formatter.length)
        self.training = Training(
            model, memory, lambda p: TensorFlowAdam(p.parameter_groups()), params.run, precision, world
        )
        self.parallel, self.optimizer = self.training.parallel, self.training.optimizer

    def with_returns(self, labels: LabelBatch) -> LabelBatch:
        """The same texts with their scores in deviations of the training texts' from their mean."""
        return dataclasses.replace(labels, target=normalised_returns(labels.target, *self.scale))

    @classmethod
    def prepare(cls, params: ILQLParams, precision: Precision, world: World) -> "ILQLTrainer":
        """Read model and labels, draw the heads; UserError if something does not fit. params: settled."""
        check(params)
        transformer, kind = load_model(Path(params.task.policy.initial_model)), label_type(params.labels.type)
        formatter, train, valid = read_labels(params, kind, transformer.config)
        heads = ValueHeads(transformer.config.n_embd, transformer.config.n_vocab, params.ilql.two_qs)
        heads.initialise(generator_for(params.run.seed, "ilql/heads"))
        return cls(ImplicitQ(transformer, heads, formatter), train, valid, params, precision, world)

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `policy/` folder."""
        p = self.params
        with open_run("train_ilql", task, experiment, p, inputs_of(p), self.world) as run:
            if (finished := run.finished("policy")) is not None:
                return finished
            first = self.resume(run) if p.run.resume else 0
            self.training.try_micro_batches(self.memory_probes())
            run.record_computed(self.training.computed())
            run.say(
                f"{experiment}: {p.labels.num_train:,} texts with scores of {self.scale[0]:.2f} +- {self.scale[1]:.2f} "
                f"(deviation), {self.steps:,} steps, {self.training.in_words()}"
            )
            with open_watched(run, p, "train_ilql", experiment, first) as tracker:
                padding = self.model.transformer.config.padding_token
                metrics = label_padding(self.train_labels, padding) if first == 0 else {}
                remedy = f"--lr than {p.lr}"
                with Loop(
                    run, tracker, self.training, self.steps, experiment, first, self.state, remedy, ["train/loss"]
                ) as loop:
                    for step in loop:
                        stats = self.step(step, batch_of_epochs(p, "ilql/order", step))
                        metrics |= {f"train/{name}": value for name, value in stats.items()}
                        metrics["labels_per_second"] = p.batch_size / loop.seconds
                        loop.log(metrics, f"loss {stats['loss']:.3f}")
                        metrics = {}
                result = self.evaluate()
                tracker.log(self.steps, {f"validation/{name}": value for name, value in result.items()})
            return self.finish(run, task, result)

    # --- one step ---

    def step(self, step: int, indices: torch.Tensor) -> dict[str, float]:
        """One optimizer step on the texts at `indices`; statistics of the whole global batch before the update. Then
        the target copies follow, if it is their turn.
        """
        lr, ilql = linear_decay(self.params.lr, step, self.steps), self.params.ilql
        batch = self.train_labels.rows(indices)
        n_tokens = max(1, int((batch.responses != self.model.transformer.config.padding_token).sum()))
        mine = batch.rows(self.world.share(len(indices), "--batch_size"))

        def losses_of(part: LabelBatch) -> tuple[torch.Tensor, torch.Tensor]:
            part = part.to(self.precision.device)
            total, sums = self.losses_and_sums(part, self.actions(self.parallel, part))
            return total / n_tokens, sums

        parts = label_parts(mine, self.training.micro_batches.training)
        [sums] = self.training.update(parts, lr, losses_of)
        if (step + 1) % ilql.sync_interval == 0:
            self.model.heads.sync_targets(ilql.alpha)
        return implicit_q_statistics(sums.cpu(), batch.target) | {"lr": lr}

    def actions(self, model: object, texts: LabelBatch) -> Actions:
        """What `model`, the module itself or the parallel one, says of the texts' tokens."""
        assert callable(model)
        with self.precision.autocast():
            actions: Actions = model(texts.queries, texts.responses[:, 0])
        return actions

    def losses_and_sums(self, texts: LabelBatch, actions: Actions) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the losses of the texts' tokens, and of each text what statistics are made of."""
        real = texts.responses[:, 0] != self.model.transformer.config.padding_token
        losses = implicit_q_losses(actions, rewards_of_texts(texts.target, real), real, self.params.ilql)
        return losses.total(self.params.ilql).sum(), text_sums(actions, losses, real, self.params.ilql)

    # --- around the steps ---

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The same statistics on the held-out texts; `corr` says how well Q of a text's last token knows its score."""
        if self.valid_labels is None:
            return {}
        labels, count = self.valid_labels, len(self.valid_labels)
        mine, sums = labels.rows(self.world.share_of(torch.arange(count))), []
        for part in label_parts(mine, self.training.micro_batches.scoring):
            part = part.to(self.precision.device)
            sums.append(self.losses_and_sums(part, self.actions(self.model, part))[1].cpu())
        stats = implicit_q_statistics(self.world.gather(torch.cat(sums))[:count], labels.target)
        return stats | {"return_mean": float(labels.target.mean()), "labels": count}

    def finish(self, run: Run, task: str, result: dict[str, float]) -> Path:
        """Write the policy and drop the checkpoints; returns the `policy/` folder."""
        model, temperature = self.model, self.params.task.policy.temperature
        policy = SteeredPolicy(model.transformer, model.heads, model.formatter, temperature, self.params.beta)
        return write_result(
            run,
            "policy",
            model,
            lambda folder, note: policy.save(folder, note=note, world=self.world),
            {"stage": "train_ilql", "task": task},
            result,
            f"{describe_result(result)}\npolicy, which is steered by beta {self.params.beta:g},",
            self.world,
        )

    def state(self) -> dict[str, object]:
        """The loop state of a checkpoint: a step is a function of its number and the weights, the copies among them."""
        return {}

    def resume(self, run: Run) -> int:
        """Go back to the newest checkpoint; returns the step to go on at."""
        state = self.training.restore(run.checkpoints.load)
        return 0 if state is None else int(state["step"])

    def memory_probes(self) -> Probes:
        """For each kind of pass a function that does one over made-up rows: it takes the memory of the largest pass in
        training, and changes nothing.
        """
        queries, responses = blank_rows(self.params.task, self.precision.device)

        def texts(rows: int) -> LabelBatch:
            target = torch.zeros(rows, device=self.precision.device)
            return LabelBatch(queries.expand(rows, -1), responses.expand(rows, -1)[:, None], target)

        def scoring(rows: int) -> None:
            with torch.no_grad():
                self.actions(self.model, texts(rows))

        def training(rows: int) -> None:
            with self.parallel.micro_batch(last=False):
                part = texts(rows)
                self.parallel.backward(self.losses_and_sums(part, self.actions(self.parallel, part))[0])

        return {"scoring": scoring, "training": training}


def describe_result(result: dict[str, float]) -> str:
    """The held-out quality in one line for people."""
    if not result:
        return "warning: there are no texts beyond num_train to measure on; nothing tells whether Q learned the scores"
    if "corr" not in result:
        return f"warning: the scores of the {result['labels']:,} held-out texts, or Q of these, are all the same"
    error = result["labels"] ** -0.5
    return (
        f"Q of the last token correlates {result['corr']:.2f} +- {error:.2f} (standard error) with the scores of "
        f"{result['labels']:,} held-out texts, whose tokens cost {result['nll']:.2f} nats; chance is 0"
    )
