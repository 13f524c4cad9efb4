"""What examples/ shows is the real thing: its numbers are the trainers', and a mistake in it would be seen."""

import types

import numpy as np
import pytest
import torch

from lm_human_preferences import train_policy
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.labels import LabelBatch, LabelParams
from lm_human_preferences.data.queries import QueryStream
from lm_human_preferences.data.tasks import PolicyParams, QueryFormatter, TaskParams
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import PPOParams
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer, RewardsParams
from lm_human_preferences.train_reward import RewardTrainer, RewardTrainingParams

from small import CONFIG, PAD, QUERY, RESPONSE, ROOT

EXAMPLE = ROOT / "examples/ppo_from_preferences.py"
CPU, B, END, LR, STEPS = choose_precision("cpu", "float32"), 16, 26, 0.003, 2
TASK = TaskParams(
    query_length=QUERY,
    response_length=RESPONSE,
    truncate_token=END,
    truncate_after=1,
    policy=PolicyParams(temperature=0.7),
)
POLICY_PARAMS = PolicyTrainingParams(
    task=TASK,
    rewards=RewardsParams(kl_coef=0.15, trained_model="x"),
    ppo=PPOParams(total_episodes=B * STEPS, batch_size=B, lr=LR),
)
REWARD_PARAMS = RewardTrainingParams(
    task=TASK,
    labels=LabelParams(type="best_of_4", num_train=B * STEPS),
    batch_size=B,
    lr=LR,
    rollout_batch_size=B,
    normalize_samples=B,
)


def draw(purpose: str) -> torch.Generator:
    return generator_for(5, f"examples/{purpose}")


def queries() -> QueryStream:
    """Of one to six letters."""
    random = np.random.default_rng(3)
    documents = [random.integers(0, 26, 1 + i % QUERY).astype(np.uint16) for i in range(2 * B)]
    return QueryStream(documents, length=QUERY, padding_token=PAD)


def labels() -> LabelBatch:
    """Choices among four responses, some of them padded."""
    responses = torch.randint(27, (B * STEPS, 4, RESPONSE), generator=draw("responses"))
    responses[::3, :, 3:] = PAD
    best = torch.randint(4, (B * STEPS,), generator=draw("best"))
    return LabelBatch(queries().batch(B * STEPS), responses, best)


def policy_of(purpose: str) -> Policy:
    """Random, and its value head too: no number of a step is 0 by chance."""
    policy = Policy(GPT2(CONFIG).initialise(draw(purpose)), QueryFormatter([], []), TASK.policy.temperature)
    policy.value_head.initialise(draw(f"{purpose}/value"))
    return policy


def reward_model() -> RewardModel:
    model = RewardModel(GPT2(CONFIG).initialise(draw("reward")))
    model.head.initialise(draw("reward/head"))
    return model


def reward_trainer() -> RewardTrainer:
    return RewardTrainer(reward_model(), policy_of("reference"), queries(), labels(), None, REWARD_PARAMS, CPU)


def policy_trainer() -> PPOTrainer:
    models = policy_of("policy"), policy_of("reference"), reward_model()
    return PPOTrainer(*models, queries(), POLICY_PARAMS, CPU)


def weights(name: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}/{key}": value.detach().clone() for key, value in module.named_parameters()}


@pytest.fixture(scope="module")
def trainers() -> dict[str, torch.Tensor]:
    """What the trainers compute in two steps each, by name."""
    numbers, trainer = {}, reward_trainer()
    trainer.normalize("before", 0.0, 1.0)
    for step in range(STEPS):
        numbers[f"reward/loss {step}"] = torch.tensor(trainer.step(step, trainer.order(step))["loss"])
    trainer.normalize("after", 0.0, 1.0)
    numbers |= weights("reward", trainer.model)
    trainer = policy_trainer()
    for step in range(STEPS):
        with pytest.MonkeyPatch.context() as patch:
            seen = {}

            def keep(name, function, seen=seen):
                return lambda *arguments: seen.setdefault(name, function(*arguments))

            for name in ("compute_rewards", "minibatch_targets"):
                patch.setattr(train_policy, name, keep(name, getattr(train_policy, name)))
            patch.setattr(trainer, "order", lambda step, epoch: torch.arange(B))  # so that rows can be compared
            metrics, rollout = trainer.step(step)
        numbers |= {
            f"scores {step}": rollout.scores,
            f"rewards {step}": seen["compute_rewards"][0],
            f"advantages {step}": seen["minibatch_targets"].advantages,
            f"losses {step}": torch.tensor([metrics["ppo/loss/policy"], metrics["ppo/loss/value"]]),
            f"kl {step}": torch.tensor(metrics["objective/kl"]),
        }
    return numbers | weights("policy", trainer.policy)


def example_numbers(source: str) -> dict[str, torch.Tensor]:
    """The same, computed by the example's functions from the same weights, queries and draws."""
    example = types.ModuleType("example")
    example.__file__ = str(EXAMPLE)
    exec(compile(source, EXAMPLE, "exec"), example.__dict__)
    example.PADDING, example.END, example.FIRST_END = PAD, END, TASK.truncate_after

    def taken_over(kind, module):
        mine = kind(GPT2(CONFIG))
        mine.load_state_dict(module.state_dict())
        return mine

    numbers, trainer, given = {}, reward_trainer(), labels()
    model = taken_over(example.RewardModel, reward_model())
    reference = taken_over(example.Policy, policy_of("reference")).requires_grad_(False)
    optimizer, stream = example.Adam(model), queries()

    def normalise(when: str) -> None:
        uniforms = torch.rand(B, RESPONSE, generator=generator_for(trainer.seed, f"reward/normalize_{when}", 0))
        example.normalise(model, reference, stream.batch(B), uniforms)

    normalise("before")
    for step in range(STEPS):
        batch, lr = given.rows(trainer.order(step)), LR * (1 - step / STEPS)
        loss = example.reward_step(model, optimizer, batch.queries, batch.responses, batch.target, lr)
        numbers[f"reward/loss {step}"] = torch.tensor(loss)
    normalise("after")
    numbers |= weights("reward", model)
    trainer, stream = policy_trainer(), queries()
    policy, model = taken_over(example.Policy, policy_of("policy")), taken_over(example.RewardModel, reward_model())
    optimizer = example.Adam(policy)
    for step in range(STEPS):
        lr, uniforms = LR * (1 - step / STEPS), trainer.uniforms(step)
        seen = example.ppo_step(policy, reference, model, optimizer, stream.batch(B), uniforms, lr)
        numbers |= {f"{name} {step}": seen[name].detach() for name in ("scores", "rewards", "advantages", "kl")}
        numbers[f"losses {step}"] = torch.tensor(seen["losses"]).mean(0)
    return numbers | weights("policy", policy)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=1e-4, atol=1e-5, check_dtype=False, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_example_equals_the_trainers(trainers):
    """Scores, rewards, advantages, losses, KL, and every weight after two steps, of reward and policy training."""
    assert_equal(example_numbers(EXAMPLE.read_text()), trainers)


MUTATIONS = [
    ("nn.functional.cross_entropy(rewards", "nn.functional.cross_entropy(-rewards"),
    ("model.bias.copy_(-mean / std)", "model.bias.copy_(mean / std)"),
    ("rewards = -KL_COEF", "rewards = KL_COEF"),
    ("rewards[:, -1] += scores", "rewards[:, -1] -= scores"),
    ("- values  #", "+ values  #"),
    ("GAMMA * LAMBDA * following", "GAMMA * following"),
    ("torch.maximum(-advantages", "torch.minimum(-advantages"),
    ("torch.exp(logprobs - old_logprobs)", "torch.exp(old_logprobs - logprobs)"),
    ("old_values - VALUE_CLIP", "old_values - 9"),
    ("logits(states) / TEMPERATURE", "logits(states)"),
    ("temperature=TEMPERATURE", "temperature=1.0"),
    ("rewards = whiten(rewards, keep_mean=True)", "pass"),
    ("keep_mean=True)", "keep_mean=False)"),
    ("return whiten(advantages)", "return advantages"),
    ("x.var(correction=0)", "x.var(correction=1)"),
    (">= FIRST_END", "> FIRST_END"),
    ("ends_before > 0", "ends_before > 9"),
    ("(v.sqrt() + epsilon)", "(v.sqrt() + 1e-8)"),
    ("** 0.5 / (1 - beta1", "** 0.5 * (1 - beta1"),
]


@pytest.mark.parametrize("right, wrong", MUTATIONS, ids=[wrong for _, wrong in MUTATIONS])
def test_a_mistake_in_the_example_is_found(trainers, right, wrong):
    source = EXAMPLE.read_text()
    assert source.count(right) == 1
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(example_numbers(source.replace(right, wrong)), trainers)


def test_the_example_is_short_and_uses_the_language_room_alone():
    lines = EXAMPLE.read_text().splitlines()
    imported = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    ours = [name for name in imported if name.startswith("lm_human_preferences")]
    assert len(lines) <= 200 and ours
    assert [name for name in ours if not name.startswith("lm_human_preferences.language.")] == []
