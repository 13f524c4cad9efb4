"""What each stage needs on one device: what it holds all the time, and what its passes add. Bytes, predicted."""

from dataclasses import dataclass, replace
from typing import Any

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.language.memory import Pass, Shape
from lm_human_preferences.language.support import packed_size

PROGRAM = {"cpu": 350 * 2**20, "cuda": 600 * 2**20}  # Python, PyTorch and its libraries; the CUDA context
MOST_ROWS = {"cpu": 64, "cuda": 512}  # of a micro-batch, unless the user gives more


@dataclass(frozen=True)
class StageMemory:
    """What a stage needs on one device."""

    held: dict[str, int]  # all the time
    rollout: Pass | None  # sampling responses
    scoring: Pass  # passes without gradient
    training: Pass
    recomputing: Pass  # training with activations recomputed


@dataclass(frozen=True)
class Layout:
    """How a model in training lies on the ranks."""

    ranks: int
    sharding: str  # ddp or fsdp

    @property
    def sharded(self) -> bool:
        return self.ranks > 1 and self.sharding == "fsdp"

    @property
    def parts(self) -> int:
        """In how many parts weights and optimizer lie."""
        return self.ranks if self.sharding == "fsdp" else 1

    def held(self, shape: Shape, frozen: dict[str, GPT2Config]) -> dict[str, int]:
        """Weights, optimizer, frozen models; gradients only with DDP, which keeps them in its messages' buffers."""
        held = {"weights": shape.weights() // self.parts, "optimizer": 2 * shape.trained() // self.parts}
        if self.ranks > self.parts:
            held["gradients"] = shape.trained()
        held |= {name: replace(shape, config=other).frozen_weights() // self.parts for name, other in frozen.items()}
        return held | {"program": PROGRAM[shape.device]}

    def training(self, shape: Shape, tokens: int, rows: int, step: int = 1, scored: int | None = None) -> list[Pass]:
        """Training with activations kept, and with activations recomputed.

        DDP's gradients are held all the time; sharded ones are whole while micro-batches add up, and embeddings and two
        blocks are gathered.
        """
        gradients = shape.trained() if self.ranks == 1 or self.sharded else 0
        gathered = 4 * (shape.embeddings + 2 * shape.blocks // shape.config.n_layer) if self.sharded else 0
        passes = [shape.training(tokens, rows, gradients, recompute, step, scored) for recompute in (False, True)]
        return [replace(kind, fixed=kind.fixed + gathered) for kind in passes]


def policy_training_memory(
    params: Any,
    config: GPT2Config,
    precision: Precision,
    ranks: int,
    prefix: int = 0,
    reward: GPT2Config | None = None,
    members: int = 1,
    captured: bool = False,
) -> StageMemory:
    """PPO. params: PolicyTrainingParams; prefix: tokens of the task's prefix and suffix; reward: the reward model, None
    for one like the policy, and `members` of its size; captured: whether decoding is, whose cache then stays. A value
    model of its own is as large as what it starts from, and its pass smaller than the policy's.
    """
    shape = Shape(config, precision.bfloat16, precision.device.type, params.model.train_top)
    layout = Layout(ranks, params.run.sharding)
    context, R = params.task.query_length + prefix, params.task.response_length
    rows, minibatch = -(-params.ppo.batch_size // ranks), -(-params.ppo.batch_size // params.ppo.nminibatches // ranks)
    whole = shape.weights() if layout.sharded else 0  # a sharded policy that samples is whole on every rank
    held = layout.held(shape, {"reference": config, "reward model": reward or config})
    held["reward model"] *= members
    if params.value.model != "shared":
        value = replace(shape, config=config if params.value.model == "separate" else reward or config, top=None)
        own = layout.held(value, {})
        held["value model"] = sum(own.values()) - own["program"]
    if captured:
        at_once = min(rows, params.run.micro_batch_rollout or MOST_ROWS[shape.device])
        held["captured decoding"] = at_once * shape.cache(context + R)
    if params.task.top_k or params.task.top_p < 1:
        held["tokens drawn among"] = params.ppo.batch_size * R * packed_size(config.n_vocab)
    return StageMemory(
        held,
        shape.rollout(context, R, rows, whole + shape.rounded_blocks()),
        shape.scoring(context + R, rows),
        *layout.training(shape, context + R, minibatch, scored=R),
    )


def reward_training_memory(
    params: Any, config: GPT2Config, responses: int, precision: Precision, ranks: int, prefix: int = 0
) -> StageMemory:
    """Reward training. params: RewardTrainingParams; responses: of a label, which share their query. Rows are
    responses.
    """
    shape, layout = Shape(config, precision.bfloat16, precision.device.type), Layout(ranks, params.run.sharding)
    Q, R = params.task.query_length, params.task.response_length
    rows, labelled = -(-params.rollout_batch_size // ranks), -(-params.batch_size // ranks) * responses
    tokens = -(-Q // responses) + R  # of a response and its part of the query
    return StageMemory(
        layout.held(shape, {"language model": config}),
        shape.rollout(Q + prefix, R, rows, shape.frozen_weights() if layout.sharded else 0),
        shape.scoring(Q + R, max(rows, labelled), logits=False),
        *layout.training(shape, tokens, labelled, responses, scored=0),
    )


def direct_training_memory(
    params: Any, config: GPT2Config, responses: int, precision: Precision, ranks: int, prefix: int = 0
) -> StageMemory:
    """Direct preference optimisation. params: DPOParams; responses: of a label, which share their query. Rows are
    responses. The reference is there before the first step only.
    """
    shape, layout = Shape(config, precision.bfloat16, precision.device.type), Layout(ranks, params.run.sharding)
    Q, R = params.task.query_length + prefix, params.task.response_length
    labelled = -(-params.batch_size // ranks) * responses
    tokens = -(-Q // responses) + R  # of a response and its part of the query
    return StageMemory(
        layout.held(shape, {"reference": config}),
        None,
        shape.scoring(tokens, MOST_ROWS[shape.device]),
        *layout.training(shape, tokens, labelled, responses, scored=R),
    )


def implicit_q_memory(
    params: Any, config: GPT2Config, precision: Precision, ranks: int, prefix: int = 0
) -> StageMemory:
    """Implicit language Q-learning. params: ILQLParams. The value heads are whole on every rank however the trunk lies,
    and as wide as the vocabulary; each Q head has logits of its own.
    """
    shape, layout = Shape(config, precision.bfloat16, precision.device.type), Layout(ranks, params.run.sharding)
    context, R = params.task.query_length + prefix, params.task.response_length
    rows, count = -(-params.batch_size // ranks), 2 if params.ilql.two_qs else 1
    head = 4 * 2 * config.n_embd * (config.n_embd + config.n_vocab + 1)  # bytes of one Q head, which V's adds little to
    held = layout.held(shape, {})
    held["value heads"] = 3 * count * head  # themselves and their optimizer
    held["target copies"] = count * head
    if layout.ranks > 1:
        held["value heads' gradients"] = count * head
    training = [
        replace(
            kind,
            fixed=kind.fixed + count * (shape.kept_logits(rows * R) + 2 * head),  # with the bias beside the weight
            gradients=kind.gradients + (count * head if ranks == 1 else 0),
        )
        for kind in layout.training(shape, context + R, rows, scored=R)
    ]
    scoring = shape.scoring(context + R, MOST_ROWS[shape.device])
    return StageMemory(held, None, replace(scoring, fixed=scoring.fixed + head), *training)


def supervised_training_memory(
    params: Any, config: GPT2Config, tokens: int, precision: Precision, ranks: int
) -> StageMemory:
    """Supervised training on rows of `tokens`. params: SFTParams."""
    top = params.model.train_top
    shape = Shape(config, precision.bfloat16, precision.device.type, top)
    layout = Layout(ranks, params.run.sharding)
    held = layout.held(shape, {})
    if params.optimizer.method == "muon":  # it has one number for each of the blocks' matrices where AdamW has two
        held["optimizer"] -= 4 * 12 * (top or config.n_layer) * config.n_embd**2 // layout.parts
    training = layout.training(shape, tokens, -(-params.optimizer.batch_size // ranks))
    return StageMemory(held, None, shape.scoring(tokens, MOST_ROWS[shape.device]), *training)
