"""Policies, reward models and trainers with the weights that the original's recorded values belong to."""

import numpy as np
import torch

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.labels import LabelBatch, LabelParams, label_type
from lm_human_preferences.data.queries import QueryStream
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.sampling import exclude
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import AdaptiveKLParams, PPOParams
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer, RewardsParams
from lm_human_preferences.train_reward import RewardTrainer, RewardTrainingParams

from conftest import DEVICE, TINY_CONFIG, Goldens, load_original, tensor

CPU = choose_precision(str(DEVICE), "float32")
PREFIX, SUFFIX, TEMPERATURE = [70, 10, 21], [73, 9, 50, 28], 0.7
REWARD_EXTRA = ("model/heads/reward/w", "model/heads/reward/b", "reward_norm/gain", "reward_norm/bias")
KL_TARGET = 0.55  # nats; close to this step's KL, so that the controller's clipping hides no difference between ranks


def make_policy(weights, scope="policy", prefix=PREFIX, suffix=SUFFIX) -> Policy:
    policy = Policy(load_original(GPT2(TINY_CONFIG), weights, scope), QueryFormatter(prefix, suffix), TEMPERATURE)
    with torch.no_grad():
        policy.value_head.weight.copy_(tensor(weights[f"{scope}/model/heads/value/w"]))
        policy.value_head.bias.copy_(tensor(weights[f"{scope}/model/heads/value/b"]))
    return policy.to(DEVICE)


@torch.no_grad()
def uniforms_for(
    policy: Policy, queries: torch.Tensor, tokens: torch.Tensor, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """Uniforms [B, R] in the middle of each recorded token's interval: sampling must draw exactly these tokens."""
    contexts = policy.formatter(queries)
    start, R = contexts.shape[1] - 1, tokens.shape[1]
    hidden = policy.transformer(torch.cat([contexts, tokens], 1), columns=slice(start, start + R))
    probabilities = torch.softmax(
        exclude(policy.transformer.logits(hidden) / policy.temperature, top_k, top_p), -1
    ).double()
    upper = probabilities.cumsum(-1).gather(-1, tokens[..., None])
    return (upper - probabilities.gather(-1, tokens[..., None]) / 2)[..., 0].float()


def make_reward_model(weights) -> RewardModel:
    model = RewardModel(load_original(GPT2(TINY_CONFIG), weights, "reward_model"))
    with torch.no_grad():
        for parameter, name in zip(
            (model.head.weight, model.head.bias, model.gain, model.bias), REWARD_EXTRA, strict=True
        ):
            parameter.copy_(tensor(weights[f"reward_model/{name}"]))
    return model.to(DEVICE)


def loss_labels(g, kind) -> LabelBatch:
    name = {"best_of_4": "best", "best_of_2": "best2", "scalar_rating": "score", "scalar_compare": "difference"}[
        kind.name
    ]
    responses = torch.stack([tensor(g[f"loss/sample{i}"]) for i in range(kind.n_responses)], 1)
    return LabelBatch(tensor(g["loss/query"]), responses, tensor(g[f"loss/{name}"]))


def make_reward_trainer(
    goldens, labels: LabelBatch, type_name: str, queries: list | None = None, world: World = World(), **arguments
) -> RewardTrainer:
    params = RewardTrainingParams(
        task=TaskParams(query_length=10, response_length=6),
        labels=LabelParams(type=type_name, num_train=len(labels)),
        **arguments,
    )
    stream = QueryStream(
        [row.numpy() for row in queries] if queries is not None else [np.array([1])], length=10, padding_token=99
    )
    return RewardTrainer(
        make_reward_model(goldens("weights")),
        make_policy(goldens("weights"), "ref_policy"),
        stream,
        labels.to(torch.device("cpu")),  # where label files are read to
        None,
        params,
        CPU,
        world,
    )


def ppo_trainer(goldens, settings, precision: Precision = CPU, world: World = World(), **run) -> PPOTrainer:
    params = PolicyTrainingParams(
        task=TaskParams(
            query_length=10,
            response_length=6,
            truncate_token=settings["truncate_token"],
            truncate_after=settings["truncate_after"],
            penalty_reward_value=settings["penalty"],
        ),
        rewards=RewardsParams(
            kl_coef=settings["kl_coef"], adaptive_kl=AdaptiveKLParams(**settings["adaptive"]), trained_model="x"
        ),
        ppo=PPOParams(
            **{
                name: settings[name]
                for name in (
                    "total_episodes",
                    "batch_size",
                    "nminibatches",
                    "noptepochs",
                    "lr",
                    "vf_coef",
                    "cliprange",
                    "cliprange_value",
                    "gamma",
                    "lam",
                    "whiten_rewards",
                )
            }
        ),
    )
    for name, value in run.items():
        setattr(params.run, name, value)
    weights = goldens("weights")
    return PPOTrainer(
        make_policy(weights),
        make_policy(weights, "ref_policy"),
        make_reward_model(weights),
        QueryStream([np.array([1])], length=10, padding_token=99),
        params,
        precision,
        world=world,
    )


def small_ppo(goldens, world: World = World(), precision: Precision | None = None, sharding: str = "ddp") -> PPOTrainer:
    """The trainer of the recorded PPO cycle on its first queries, with draws of its own."""
    trainer = ppo_trainer(
        goldens, Goldens.json("hparams")["ppo_cycle"], precision or CPU, world, micro_batch=3, sharding=sharding
    )
    queries = tensor(goldens("ppo_cycle")["step0/queries"])
    trainer.queries.batch = lambda size: queries
    return trainer


def small_reward(goldens, world: World = World(), sharding: str = "ddp") -> RewardTrainer:
    trainer = make_reward_trainer(
        goldens,
        loss_labels(goldens("reward"), label_type("best_of_4")),
        "best_of_4",
        batch_size=6,
        lr=1e-3,
        rollout_batch_size=6,
        normalize_samples=12,
        world=world,
        run=RunParams(micro_batch=8, sharding=sharding),
    )  # two labels
    queries = tensor(goldens("reward")["queries"])
    trainer.queries.batch = lambda size: queries
    return trainer


def run_both(goldens, world: World, sharding: str = "ddp") -> dict[str, torch.Tensor]:
    """One PPO step, one normalisation and one reward step: everything that steers or results."""
    ppo, reward = small_ppo(goldens, world, sharding=sharding), small_reward(goldens, world, sharding)
    ppo.kl_controller.params.target = KL_TARGET
    metrics, rollout = ppo.step(0)
    norms = reward.normalize("before", 0.0, 1.0)
    stats = reward.step(0, torch.tensor([3, 0, 5, 1, 4, 2]))
    result = {f"policy.{name}": distributed.whole(p.detach()) for name, p in ppo.policy.named_parameters()}
    result |= {f"reward.{name}": distributed.whole(p.detach()) for name, p in reward.model.named_parameters()}
    result |= {f"rollout.{name}": value for name, value in rollout._asdict().items() if value is not None}
    numbers = {"kl_coef_after": ppo.kl_controller.value, **metrics, **norms, **stats}
    return result | {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
