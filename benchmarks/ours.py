"""The project's own trainers at work: random weights in memory, random tokens as texts; only the encoding is read."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import RESPONSES, Case
from benchmarks.clock import PhaseClock
from lm_human_preferences import train_sft
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.labels import LabelBatch, LabelParams
from lm_human_preferences.data.queries import QueryStream, TokenFile, write_token_file
from lm_human_preferences.data.rows import Rows
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.flops import (
    TRAINING,
    choice_flops,
    choice_logprob_flops,
    forward_flops,
    response_flops,
)
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.logprobs import slices
from lm_human_preferences.learning.direct_preference import ChoicePolicy
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import PPOParams, Rollout
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.train_dpo import DPOParams, DPOTrainer
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer, RewardsParams
from lm_human_preferences.train_reward import RewardTrainer, RewardTrainingParams

SEED = 1
RLOO = {"estimator": "rloo", "responses_per_query": RESPONSES, "advantage_scale": "none"}


@dataclass
class Subject:
    """Something to measure: `work` does one repetition; `flops` and `tokens` say how much its last one needed."""

    work: Callable[[], object]
    rows: int  # episodes, choices or rows of a repetition
    tokens: Callable[[], int]  # real tokens: drawn ones of rollout and update, of queries and responses elsewhere
    flops: Callable[[], int]


def make(case: Case, precision: Precision, clock: PhaseClock) -> Subject:
    """The case's models and data, ready to work."""
    if case.kind in OF_A_TRAINER:
        return OF_A_TRAINER[case.kind](policy_trainer(case, precision), clock)
    makers = {"reward": _reward, "dpo": _dpo, "supervised": _supervised}
    return makers[case.kind](case, precision, clock)


def random_model(config: GPT2Config, purpose: str, device: torch.device) -> GPT2:
    """Random weights, on a GPU drawn there: a host takes half a minute for 774M's three models."""
    if device.type == "cpu":
        return GPT2(config).initialise(generator_for(SEED, f"benchmark/{purpose}"))
    with torch.device(device):
        return GPT2(config).initialise(torch.Generator(device).manual_seed(SEED + len(purpose)))


# --- policy training ---


def query_documents(case: Case, query_length: int) -> list[np.ndarray]:
    """One random document a query of a batch; their lengths run evenly from 1 - 2 * padding to 1 of `query_length`."""
    random = np.random.default_rng(SEED)
    shares = np.linspace(1 - 2 * case.padding, 1, case.batch) if case.batch > 1 else np.array([1 - case.padding])
    return [
        random.integers(0, case.config().n_vocab - 1, max(1, round(share * query_length))).astype(np.uint16)
        for share in shares
    ]


def policy_trainer(case: Case, precision: Precision, run: RunParams | None = None, epochs: int = 4) -> PPOTrainer:
    """A trainer of the case's shape; `run` None: micro-batches as a run would choose them."""
    task, config, encoding = case.task_params(), case.config(), get_encoding("gpt2")

    formatter = QueryFormatter.of(task, encoding)
    policy = random_model(config, "policy", precision.device)
    reference = copy.deepcopy(policy)
    reward_model = RewardModel(random_model(config, "reward", precision.device))
    reward_model.head.initialise(generator_for(SEED, "benchmark/head"))
    params = PolicyTrainingParams(
        task=task,
        rewards=RewardsParams(),
        run=run or RunParams(seed=SEED, captured_decoding="on" if case.captured else "off"),
        ppo=PPOParams(
            total_episodes=1000 * case.batch,
            batch_size=case.batch,
            noptepochs=epochs,
            lr=1e-6,
            whiten_rewards=case.task == "style",
            **(RLOO if case.kind == "rloo" else {}),
        ),
    )
    queries = QueryStream(
        query_documents(case, task.query_length), length=task.query_length, padding_token=config.padding_token
    )
    temperature = task.policy.temperature
    return PPOTrainer(
        Policy(policy, formatter, temperature),
        Policy(reference, formatter, temperature),
        reward_model,
        queries,
        params,
        precision,
        encoding,
    )


def _batch(trainer: PPOTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and uniforms of a batch, on the device."""
    device = trainer.precision.device
    return trainer.queries.batch(trainer.params.ppo.batch_size).to(device), trainer.uniforms(0).to(device)


def _lengths(tokens: torch.Tensor, padding_token: int) -> list[int]:
    return (tokens != padding_token).sum(1).tolist()


def rollout(trainer: PPOTrainer, clock: PhaseClock) -> Subject:
    """Sampling the responses of a batch."""
    config, precision, B = trainer.policy.transformer.config, trainer.precision, trainer.params.ppo.batch_size
    queries, uniforms = _batch(trainer)
    real = (queries != config.padding_token).cpu()
    contexts, R = _lengths(trainer.policy.formatter(queries), config.padding_token), uniforms.shape[1]

    def work():
        rows = trainer.training.micro_batches.rollout
        with torch.no_grad(), precision.autocast():
            for q, u, r in zip(queries.split(rows), uniforms.split(rows), real.split(rows), strict=True):
                trainer.policy.respond(q, u, real=r)

    return Subject(work, B, lambda: B * R, lambda: sum(response_flops(config, context, R) for context in contexts))


def scoring(trainer: PPOTrainer, clock: PhaseClock) -> Subject:
    """Reference log-probabilities and rewards of a batch."""
    config, B = trainer.policy.transformer.config, trainer.params.ppo.batch_size
    rollout = trainer.sample(0)
    clock.watch(trainer.reference, "analyze", "reference")
    clock.watch(trainer.scorer, "measure", "reward")

    def work():
        with torch.no_grad():
            for rows in slices(0, B, trainer.training.micro_batches.scoring):
                trainer.score(*(column[rows] for column in rollout[:4]), rollout.real[rows])

    def flops() -> int:
        return _scoring_flops(trainer, rollout) + trainer.recompute * _analysis_flops(trainer, rollout)

    return Subject(
        work, B, lambda: int((rollout.queries != config.padding_token).sum()) + rollout.responses.numel(), flops
    )


def _analysis_flops(trainer: PPOTrainer, rollout: Rollout) -> int:
    """Of the log-probabilities of a rollout's responses."""
    config, R = trainer.policy.transformer.config, rollout.responses.shape[1]
    return sum(
        response_flops(config, context, R)
        for context in _lengths(trainer.policy.formatter(rollout.queries), config.padding_token)
    )


def _scoring_flops(trainer: PPOTrainer, rollout: Rollout) -> int:
    """Of a rollout's comparison with the reference and its rewards."""
    config, rows = trainer.policy.transformer.config, torch.cat([rollout.queries, rollout.truncated], dim=1)
    return _analysis_flops(trainer, rollout) + sum(
        forward_flops(config, length, outputs=1) for length in _lengths(rows, config.padding_token)
    )


def update(trainer: PPOTrainer, clock: PhaseClock) -> Subject:
    """A PPO step: rollout, scoring, epochs."""
    last = {}
    clock.watch(trainer.policy, "respond", "rollout")
    clock.watch(trainer.reference, "analyze", "reference")
    clock.watch(trainer.scorer, "measure", "reward")
    # what is left of the minibatches when forward passes and optimizer have taken their own
    minibatch = "train_minibatch" if trainer.params.ppo.estimator == "gae" else "train_group_minibatch"
    clock.watch(trainer, minibatch, "backward")
    clock.watch(trainer.policy, "analyze", "forward")
    clock.watch(trainer.optimizer, "step", "optimizer")

    def work():
        _, last["rollout"] = trainer.step(0)

    def flops() -> int:
        passes = 1 + trainer.recompute + TRAINING * trainer.params.ppo.noptepochs
        return passes * _analysis_flops(trainer, last["rollout"]) + _scoring_flops(trainer, last["rollout"])

    return Subject(work, trainer.params.ppo.batch_size, lambda: last["rollout"].responses.numel(), flops)


OF_A_TRAINER = {"rollout": rollout, "scoring": scoring, "update": update, "rloo": update}


# --- reward training, supervised training ---


def choices(case: Case) -> LabelBatch:
    """Random choices among four; responses run on after their end, as in the original's files."""
    task, config = case.task_params(), case.config()
    generator = generator_for(SEED, "benchmark/choices")
    queries = torch.full((case.batch, task.query_length), config.padding_token)
    for row, document in zip(queries, query_documents(case, task.query_length), strict=True):
        row[: len(document)] = torch.from_numpy(document.astype(np.int64))
    responses = torch.randint(config.n_vocab - 1, (case.batch, 4, task.response_length), generator=generator)
    return LabelBatch(queries, responses, torch.randint(4, (case.batch,), generator=generator))


def _reward(case: Case, precision: Precision, clock: PhaseClock) -> Subject:
    task, config = case.task_params(), case.config()
    labels = choices(case)
    model = RewardModel(random_model(config, "reward", precision.device))
    model.head.initialise(generator_for(SEED, "benchmark/head"))
    language_model = random_model(config, "policy", precision.device)  # for normalisations; no part of a step
    policy = Policy(language_model, QueryFormatter([], []), task.policy.temperature)
    params = RewardTrainingParams(
        task=task,
        labels=LabelParams(num_train=1000 * case.batch),
        batch_size=case.batch,
        lr=1e-6,
        run=RunParams(seed=SEED),
    )
    return _of_choices(RewardTrainer(model, policy, None, labels, None, params, precision), labels, choice_flops, clock)


def _dpo(case: Case, precision: Precision, clock: PhaseClock) -> Subject:
    """A step alone: the reference's log-probabilities are made once, before the first."""
    task, config = case.task_params(), case.config()
    labels = choices(case)
    formatter, temperature = QueryFormatter([], []), task.policy.temperature
    params = DPOParams(
        task=task,
        labels=LabelParams(num_train=1000 * case.batch),
        batch_size=case.batch,
        lr=1e-6,
        run=RunParams(seed=SEED),
    )
    policy = ChoicePolicy(random_model(config, "policy", precision.device), formatter, temperature)
    reference = ChoicePolicy(random_model(config, "policy", precision.device), formatter, temperature)
    trainer = DPOTrainer(policy, reference, labels, None, params, precision)
    trainer.ask_reference()
    return _of_choices(trainer, labels, choice_logprob_flops, clock)


def _of_choices(
    trainer: RewardTrainer | DPOTrainer,
    labels: LabelBatch,
    flops: Callable[[GPT2Config, int, list[int]], int],
    clock: PhaseClock,
) -> Subject:
    """A step on all labels; flops: of a forward pass of one of them."""
    clock.watch(trainer.optimizer, "step", "optimizer")
    config, everything = trainer.policy.transformer.config, torch.arange(len(labels))
    queries = _lengths(labels.queries, config.padding_token)
    lengths = [_lengths(responses, config.padding_token) for responses in labels.responses]
    return Subject(
        lambda: trainer.step(0, everything),
        len(labels),
        lambda: sum(queries) + sum(map(sum, lengths)),
        lambda: TRAINING * sum(flops(config, query, some) for query, some in zip(queries, lengths, strict=True)),
    )


def _supervised(case: Case, precision: Precision, clock: PhaseClock) -> Subject:
    task, config = case.task_params(), case.config()
    T = task.query_length + task.response_length
    params = train_sft.SFTParams(
        data=train_sft.DataParams(rows="packed", block=T),
        optimizer=train_sft.SFTOptimizerParams(batch_size=case.batch),
        run=RunParams(seed=SEED),
    )
    folder = tempfile.TemporaryDirectory()
    document = np.random.default_rng(SEED).integers(0, config.n_vocab - 1, case.batch * T + 1)
    write_token_file(Path(folder.name), "train", [document])
    rows = Rows(TokenFile(Path(folder.name), "train"), "packed", block=T, padding_token=config.padding_token)
    model = random_model(config, "policy", precision.device)
    trainer = train_sft.SFTTrainer(model, {"train": rows, "valid": rows}, params, precision)
    clock.watch(trainer.optimizer, "step", "optimizer")

    def work(folder=folder):  # the folder lives as long as the work
        trainer.step(0)

    return Subject(
        work,
        case.batch,
        lambda: case.batch * T,
        lambda: TRAINING * case.batch * forward_flops(config, T, outputs=T, logits=T),
    )
