"""Direct preference optimisation: the policy learns people's choices itself, without a reward model and without
sampling (Rafailov et al. 2023, arXiv 2305.18290, and its kin).

Begin with `DPOTrainer.run`, from top to bottom: labels -> the reference's log-probabilities of all their responses,
once -> passes over the labels, in which responses that share a query share its pass -> accuracy of the implicit rewards
on held-out labels -> the run's `policy/` folder.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.optim import TensorFlowAdam, linear_decay
from lm_human_preferences.compute.parallel import place_frozen
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.labels import LabelBatch, LabelParams, label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.model_folders import load_model, save_model
from lm_human_preferences.learning.direct_preference import (
    LOSSES,
    SMOOTHED,
    ChoicePolicy,
    preference_losses,
    preference_statistics,
)
from lm_human_preferences.learning.label_losses import chance_accuracy
from lm_human_preferences.learning.reward_model import label_parts
from lm_human_preferences.runs.folder import Run, open_run, started
from lm_human_preferences.runs.from_labels import (
    batch_of_epochs,
    check_at_least_1,
    check_positive,
    check_stage,
    choice_error,
    inputs_of,
    label_padding,
    read_labels,
    settled,
    write_result,
)
from lm_human_preferences.runs.loop import Loop
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import direct_training_memory
from lm_human_preferences.runs.tracking import TrackingParams
from lm_human_preferences.runs.training import Probes, Training, blank_rows
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class DPOParams:
    """Everything a run of direct preference optimisation can be told."""

    task: TaskParams = param(TaskParams, "")
    labels: LabelParams = param(LabelParams, "")
    loss: str = param(
        "dpo",
        "dpo: Plackett and Luce's probability of the choice; ipo: squared distance of log ratios from 1 / (2 beta), "
        "ipo_mean: the same of log ratios per token; cdpo and robust: dpo where some labels are wrong",
    )
    beta: float = param(0.1, "price of a nat of KL to the reference: the smaller, the further the policy may go")
    label_smoothing: float = param(0.1, "share of labels that are wrong, for the losses cdpo and robust")
    epochs: int = param(1, "passes over the training labels")
    batch_size: int = param(32, "labels in an optimizer step, over all ranks")
    lr: float = param(1e-5, "learning rate of the first step; it falls linearly to lr / steps at the last")
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")


def settle(params: DPOParams) -> DPOParams:
    """What a run will use: a copy in which a run that was named as start model has become its model folder."""
    return settled(params)


def check(params: DPOParams) -> None:
    """Raises UserError, naming the flag and the numbers, for parameters that cannot work."""
    kind = check_stage(params)
    if not kind.is_choice:
        raise UserError(f"--labels.type {params.labels.type}: train_dpo learns from choices, best_of_N")
    if params.loss not in LOSSES:
        raise UserError(f"--loss {params.loss}: must be {', '.join(LOSSES[:-1])} or {LOSSES[-1]}")
    check_at_least_1(params, "epochs")
    check_positive(params, "lr", "beta")
    chance = 1 - 1 / kind.n_responses  # as many labels are wrong where they say nothing
    if params.loss in SMOOTHED and not 0 <= params.label_smoothing < chance:
        raise UserError(
            f"--label_smoothing {params.label_smoothing}: must lie in [0, {chance:g}); labels among "
            f"{kind.n_responses} that are wrong as often say nothing"
        )


def train(params: DPOParams, task: str, experiment: str) -> Path:
    """Run the stage; returns the `policy/` folder. Raises UserError before anything is written if something cannot
    work.
    """
    params = settle(params)
    check(params)
    with started(params.run, experiment) as (precision, world):
        return DPOTrainer.prepare(params, precision, world).run(task, experiment)


class DPOTrainer:
    """What the stage works on; `run` is the stage from start to end, `step` one optimizer step."""

    def __init__(
        self,
        policy: ChoicePolicy,
        reference: ChoicePolicy,
        train: LabelBatch,
        valid: LabelBatch | None,
        params: DPOParams,
        precision: Precision,
        world: World = World(),
    ):
        """valid: held-out labels, None if there are none."""
        self.policy, self.train_labels, self.valid_labels = policy, train, valid
        self.params, self.precision, self.world, self.seed = params, precision, world, params.run.seed
        self.steps = params.epochs * params.labels.num_train // params.batch_size
        world.share(params.batch_size, "--batch_size")
        config, K = policy.transformer.config, train.responses.shape[1]
        memory = direct_training_memory(params, config, K, precision, world.size, policy.formatter.length)
        self.training = Training(
            policy, memory, lambda p: TensorFlowAdam(p.parameter_groups()), params.run, precision, world
        )
        self.parallel, self.optimizer = self.training.parallel, self.training.optimizer
        self.reference: ChoicePolicy | None = place_frozen(reference, world, precision, params.run.sharding)

    @classmethod
    def prepare(cls, params: DPOParams, precision: Precision, world: World) -> "DPOTrainer":
        """Read model and labels; UserError if one of them does not fit. params: settled."""
        check(params)
        folder, temperature = Path(params.task.policy.initial_model), params.task.policy.temperature
        transformer, kind = load_model(folder), label_type(params.labels.type)
        formatter, train, valid = read_labels(params, kind, transformer.config)
        policy, reference = (ChoicePolicy(model, formatter, temperature) for model in (transformer, load_model(folder)))
        return cls(policy, reference, train, valid, params, precision, world)

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `policy/` folder."""
        p = self.params
        with open_run("train_dpo", task, experiment, p, inputs_of(p), self.world) as run:
            if (finished := run.finished("policy")) is not None:
                return finished
            first = self.resume(run) if p.run.resume else 0
            self.training.try_micro_batches(self.memory_probes())
            run.record_computed(self.training.computed())
            run.say(
                f"{experiment}: {p.labels.num_train:,} labels ({p.labels.type}), loss {p.loss} at beta {p.beta:g}, "
                f"{self.steps:,} steps, {self.training.in_words()}"
            )
            self.ask_reference()
            with open_watched(run, p, "train_dpo", experiment, first) as tracker:
                padding = self.policy.transformer.config.padding_token
                metrics = label_padding(self.train_labels, padding) if first == 0 else {}
                remedy = f"--lr than {p.lr}"
                with Loop(
                    run, tracker, self.training, self.steps, experiment, first, self.state, remedy, ["train/loss"]
                ) as loop:
                    for step in loop:
                        stats = self.step(step, batch_of_epochs(p, "dpo/order", step))
                        metrics |= {f"train/{name}": value for name, value in stats.items()}
                        metrics["labels_per_second"] = p.batch_size / loop.seconds
                        loop.log(metrics, f"loss {stats['loss']:.3f}")
                        metrics = {}
                result = self.evaluate()
                tracker.log(self.steps, {f"validation/{name}": value for name, value in result.items()})
            return self.finish(run, task, result)

    # --- the reference, once ---

    def ask_reference(self) -> None:
        """The reference's log-probabilities of all labels' responses; then its weights are let go."""
        assert self.reference is not None
        self.train_reference = self.logprobs_of(self.reference, self.train_labels)
        if self.valid_labels is not None:
            self.valid_reference = self.logprobs_of(self.reference, self.valid_labels)
        self.reference = None

    @torch.no_grad()
    def logprobs_of(self, model: ChoicePolicy, labels: LabelBatch) -> torch.Tensor:
        """Summed log-probabilities float32 [n, K] of all labels' responses, the ranks sharing the work; on the CPU."""
        mine = labels.rows(self.world.share_of(torch.arange(len(labels))))
        parts = []
        for part in label_parts(mine, self.training.micro_batches.scoring):
            part = part.to(self.precision.device)
            with self.precision.autocast():
                parts.append(model(part.queries, part.responses).sum(2).cpu())
        return self.world.gather(torch.cat(parts))[: len(labels)]

    # --- one step ---

    def step(self, step: int, indices: torch.Tensor) -> dict[str, float]:
        """One optimizer step on the labels at `indices`; statistics of the whole global batch before the update."""
        lr, device = linear_decay(self.params.lr, step, self.steps), self.precision.device
        batch, reference = self.train_labels.rows(indices), self.train_reference[indices]
        share = self.world.share(len(indices), "--batch_size")
        mine, before = batch.rows(share), reference[share].to(device)
        labels = label_parts(mine, self.training.micro_batches.training)
        references = before.split([len(part) for part in labels])

        def losses_of(part: tuple[LabelBatch, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            micro_batch, reference_logprobs = part[0].to(device), part[1]
            with self.precision.autocast():
                logprobs = self.parallel(micro_batch.queries, micro_batch.responses)
            log_ratios = logprobs.sum(2) - reference_logprobs
            return self.losses(log_ratios, micro_batch).sum() / len(batch), log_ratios

        [whole] = self.training.update(list(zip(labels, references, strict=True)), lr, losses_of)
        whole = whole.cpu()
        return preference_statistics(self.losses(whole, batch), whole, batch.target, self.params.beta) | {"lr": lr}

    def losses(self, log_ratios: torch.Tensor, labels: LabelBatch) -> torch.Tensor:
        """The loss of each label, float32 [B], from log pi - log rho of its responses, float32 [B, K]."""
        p, lengths = self.params, (labels.responses != self.policy.transformer.config.padding_token).sum(2)
        return preference_losses(p.loss, log_ratios, lengths, labels.target, p.beta, p.label_smoothing)

    # --- around the steps ---

    def evaluate(self) -> dict[str, float]:
        """Quality on the held-out labels: how often the implicit reward picks what people did, its standard error and
        chance; loss, margin and log ratios.
        """
        if self.valid_labels is None:
            return {}
        labels, count = self.valid_labels, len(self.valid_labels)
        log_ratios = self.logprobs_of(self.policy, labels) - self.valid_reference
        stats = preference_statistics(self.losses(log_ratios, labels), log_ratios, labels.target, self.params.beta)
        error = choice_error(stats["accuracy"], count)
        chance = chance_accuracy(labels.target, labels.responses.shape[1])
        return stats | {"standard_error": error, "choices": count, "chance": chance}

    def finish(self, run: Run, task: str, result: dict[str, float]) -> Path:
        """Write the policy and drop the checkpoints; returns the `policy/` folder."""
        return write_result(
            run,
            "policy",
            self.policy,
            lambda folder, note: save_model(folder, self.policy.transformer, note=note, world=self.world),
            {"stage": "train_dpo", "task": task},
            result,
            f"{describe_result(result)}\npolicy",
            self.world,
        )

    def state(self) -> dict[str, object]:
        """The loop state of a checkpoint: a step is a function of its number and the weights."""
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
        K = self.train_labels.responses.shape[1]

        def of(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
            labels = max(1, rows // K)
            return queries.expand(labels, -1), responses.expand(labels, K, -1)

        def scoring(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.policy(*of(rows))

        def training(rows: int) -> None:
            with self.parallel.micro_batch(last=False):
                with self.precision.autocast():
                    logprobs = self.parallel(*of(rows))
                self.parallel.backward(logprobs.sum())

        return {"scoring": scoring, "training": training}


def describe_result(result: dict[str, float]) -> str:
    """The held-out quality in one line for people."""
    if not result:
        return "warning: there are no labels beyond num_train to measure on; nothing tells whether the policy learned"
    return (
        f"the implicit reward picks people's choice in {result['accuracy']:.1%} +- {result['standard_error']:.1%} "
        f"(standard error) of {result['choices']:,} held-out labels; chance is {result['chance']:.1%}"
    )
