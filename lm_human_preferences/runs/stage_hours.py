"""How long each stage takes on so many devices: operations, bytes and messages of one step, by a device's rates.

What a model needs is counted (language/flops.py); what share of a large product's rate its passes reach is taken from
measurements (SHARES). Predictions are of steps in their plain form: full lengths, no early ends, nothing in common with
another program. `stage_memory.py` is its counterpart for memory.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from lm_human_preferences.compute.peaks import Peaks
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.language.flops import (
    TRAINING,
    choice_flops,
    choice_logprob_flops,
    forward_flops,
    response_flops,
)
from lm_human_preferences.language.gpt2 import GPT2Config, count_parameters
from lm_human_preferences.language.memory import Shape
from lm_human_preferences.runs.micro_batches import MicroBatches


class Shares(NamedTuple):
    """What passes reach, of the measured peaks."""

    training: float  # of a large product's rate
    scoring: float
    reading: float  # of a copy's rate: weights, keys and values that decoding reads


# docs/performance.md: 124M on two CPU cores; docs/log.md, 2026-11-26: 124M on one H200
SHARES = {"cpu": Shares(0.65, 0.7, 0.5), "cuda": Shares(0.3, 0.4, 0.5)}


@dataclass(frozen=True)
class Work:
    """What one step takes on one device of several."""

    training: float  # FLOP, forward and backward
    scoring: float  # FLOP of passes without gradient
    sampling: float  # seconds
    messages: float  # bytes that one device sends
    steps: int


@dataclass(frozen=True)
class Device:
    """What computes, and with what others."""

    peaks: Peaks
    bfloat16: bool
    kind: str  # cpu or cuda
    ranks: int = 1
    sharded: bool = False
    at_best: bool = False  # whether passes reach the peaks themselves

    @property
    def rate(self) -> float:
        """FLOP/s of a large product in the blocks' precision."""
        return self.peaks.bfloat16 if self.bfloat16 else self.peaks.float32

    @property
    def shares(self) -> Shares:
        return Shares(1.0, 1.0, 1.0) if self.at_best else SHARES[self.kind]


def decoding_seconds(config: GPT2Config, rows: int, at_once: int, context: int, response: int, device: Device) -> float:
    """Seconds to sample responses to `rows` contexts, `at_once` together: at each token a product takes what the device
    needs for its operations or for reading its weights, and keys and values are read; before that the contexts' pass.
    """
    shape, C, V = Shape(config, device.bfloat16, device.kind), config.n_embd, config.n_vocab
    blocks, reading = shape.blocks, device.peaks.copy * device.shares.reading
    seconds = 0.0
    for B in [at_once] * (rows // at_once) + ([rows % at_once] if rows % at_once else []):
        token = max(2 * B * blocks / (device.rate * device.shares.scoring), shape.block_number * blocks / reading)
        token += max(2 * B * C * V / (device.peaks.float32 * device.shares.scoring), (4 * V * C + 8 * B * V) / reading)
        token += B * shape.cache(1) * (context + response / 2) / reading
        seconds += response * token + B * forward_flops(config, context, outputs=1) / (
            device.rate * device.shares.scoring
        )
    return seconds


def messages(config: GPT2Config, device: Device, training: int, forward: int) -> float:
    """Bytes that one device sends in so many optimizer steps of `training` passes' micro-batches in all, and `forward`
    passes of frozen models. Copied: a ring's two rounds over the gradients once a step. Sharded: weights are gathered
    for each forward and each backward pass, gradients scattered once a step; all in float32.
    """
    if device.ranks == 1:
        return 0.0
    part = 4 * count_parameters(config)["total"] * (device.ranks - 1) / device.ranks
    if not device.sharded:
        return 2 * part * training
    return part * (3 * training + forward)


def stage_work(stage: str, entry: Any, config: GPT2Config, prefix: int, sizes: MicroBatches, device: Device) -> Work:
    """Of one step of a stage on one of `device.ranks`. entry: the stage's parameters; prefix: tokens of the task's
    prefix and suffix; sizes: its micro-batches.
    """
    ranks = device.ranks
    if stage == "train_sft":
        task = entry.task
        tokens = prefix + task.query_length + task.response_length - 1 if task else entry.data.block
        scored = task.response_length if task else tokens
        row = TRAINING * forward_flops(config, tokens, outputs=scored, logits=scored)
        return Work(entry.optimizer.batch_size * row / ranks, 0, 0, messages(config, device, 1, 0), 0)
    Q, R = entry.task.query_length, entry.task.response_length
    if stage == "train_reward":
        responses = label_type(entry.labels.type).n_responses
        row = TRAINING * choice_flops(config, Q, [R] * responses)
        steps = entry.epochs * entry.labels.num_train // entry.batch_size
        return Work(entry.batch_size * row / ranks, 0, 0, messages(config, device, 1, 0), steps)
    if stage == "train_dpo":
        responses = label_type(entry.labels.type).n_responses
        row = TRAINING * choice_logprob_flops(config, Q + prefix, [R] * responses)
        steps = entry.epochs * entry.labels.num_train // entry.batch_size
        return Work(entry.batch_size * row / ranks, 0, 0, messages(config, device, 1, 0), steps)
    if stage == "train_ilql":
        C, V, heads = config.n_embd, config.n_vocab, 2 if entry.ilql.two_qs else 1
        values = R * 2 * heads * (2 * C * C + 2 * C * V)  # FLOP of the Q heads forward; V's and the copies' are small
        row = TRAINING * (choice_logprob_flops(config, Q + prefix, [R]) + values)
        beside = 2 * 4 * heads * 2 * C * (C + V) * (ranks - 1) / ranks  # bytes: the heads lie whole on every rank
        sent = messages(config, device, 1, 0) + beside
        return Work(
            entry.batch_size * row / ranks, 0, 0, sent, entry.epochs * entry.labels.num_train // entry.batch_size
        )
    ppo, context = entry.ppo, Q + prefix
    rows = ppo.batch_size / ranks
    response = response_flops(config, context, R)
    learnt = rows / ppo.responses_per_query if stage == "expert_iteration" else rows  # those that are kept
    sampling = decoding_seconds(config, math.ceil(rows), sizes.rollout, context, R, device)
    return Work(
        ppo.noptepochs * learnt * TRAINING * response,
        rows * ((2 if device.bfloat16 else 1) * response + forward_flops(config, Q + R, outputs=1)),
        sampling,
        messages(config, device, ppo.noptepochs * ppo.nminibatches, 3 * math.ceil(rows / sizes.scoring)),
        math.ceil(ppo.total_episodes / ppo.batch_size),
    )


@dataclass(frozen=True)
class Times:
    """Seconds of a step."""

    sampling: float
    scoring: float
    training: float
    sending: float

    @property
    def step(self) -> float:
        """As if nothing were sent while something is computed."""
        return self.sampling + self.scoring + self.training + self.sending


def step_times(work: Work, device: Device, link: float) -> Times:
    """link: bytes/s that one device sends; it does not matter where there is one."""
    return Times(
        work.sampling,
        work.scoring / (device.rate * device.shares.scoring),
        work.training / (device.rate * device.shares.training),
        work.messages / link if work.messages else 0.0,
    )
