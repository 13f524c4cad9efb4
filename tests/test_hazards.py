"""Mistakes that reimplementations of this method are known to make, where no test of a single room stands against them.

docs/implementation_details.md lists all of them with their tests.
"""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from conftest import TINY_CONFIG, Goldens, tensor
from lm_human_preferences import distributed
from lm_human_preferences.distributed import World, generator_for
from lm_human_preferences.labels import label_type
from lm_human_preferences.language.checkpoints import save_model
from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.precision import Precision
from lm_human_preferences.reward_model import RewardModel
from lm_human_preferences.tasks import QueryFormatter
from lm_human_preferences.train_policy import PPOTrainer
from lm_human_preferences.train_reward import RewardTrainer
from params import EXPERIMENTS
from test_cycles import loss_labels, make_reward_trainer, ppo_trainer


def small_ppo(goldens, world: World = World(), precision: Precision | None = None) -> PPOTrainer:
    """The trainer of the recorded PPO cycle on its first queries, with draws of its own."""
    trainer = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"], micro_batch=3)
    queries = tensor(goldens("ppo_cycle")["step0/queries"])
    trainer.queries.batch = lambda size: queries
    trainer.world, trainer.precision = world, precision or trainer.precision
    trainer.recompute = trainer.precision.bfloat16
    return trainer


def small_reward(goldens, world: World = World()) -> RewardTrainer:
    trainer = make_reward_trainer(goldens, loss_labels(goldens("reward"), label_type("best_of_4")), "best_of_4", batch_size=6, lr=1e-3,
                                  rollout_batch_size=6, normalize_samples=12)
    queries = tensor(goldens("reward")["queries"])
    trainer.queries.batch = lambda size: queries
    trainer.params.run.micro_batch, trainer.world = 8, world  # two labels of four responses at once
    return trainer


# --- frozen models, dropout (hazards 4, 12) ---

def test_frozen_models_stay_frozen(goldens):
    trainer = small_ppo(goldens)
    frozen = {"reference": trainer.reference, "reward model": trainer.scorer.reward_model}
    before = {name: [p.clone() for p in model.parameters()] for name, model in frozen.items()}
    policy_before = [p.detach().clone() for p in trainer.policy.parameters()]
    trainer.step(0)
    for name, model in frozen.items():
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters()), name
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before[name], strict=True)), name
    assert not any(torch.equal(p, old) for p, old in zip(trainer.policy.parameters(), policy_before, strict=True))
    reward_trainer = small_reward(goldens)
    reward_trainer.step(0, torch.arange(6))
    assert not any(p.requires_grad or p.grad is not None for p in reward_trainer.policy.parameters())


def test_train_mode_turns_no_dropout_on(goldens):
    trainer = small_ppo(goldens)
    queries, responses = tensor(goldens("policy")["queries"]), tensor(goldens("policy")["responses"])
    uniforms = torch.rand(6, 6, generator=generator_for(0, "test"))
    for model in (trainer.policy, trainer.reference, trainer.scorer.reward_model):
        assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    results = []
    for mode in (True, False):
        trainer.policy.train(mode)
        trainer.scorer.reward_model.train(mode)
        results.append((trainer.policy.analyze(queries, responses).logprobs, trainer.policy.respond(queries, uniforms).logprobs,
                        trainer.scorer.reward_model(queries, responses)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# --- who sees what (hazards 5, 6) ---

def same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    return sorted(one.tolist()) == sorted(other.tolist())


def test_only_the_policies_see_prefix_and_suffix(goldens):
    """And only the score sees truncated responses; the normalisation of the reward model sees raw ones."""
    trainer, seen = small_ppo(goldens), {"policy": [], "reference": [], "reward": []}
    models = {"policy": trainer.policy.transformer, "reference": trainer.reference.transformer, "reward": trainer.scorer.reward_model.transformer}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda _, arguments, name=name: seen[name].append(arguments[0]))
    rollout, formatter = trainer.sample(0), trainer.policy.formatter
    scored = torch.cat(seen["reward"])
    assert len(formatter.prefix) and len(formatter.suffix)
    assert same_rows(torch.cat(seen["reference"]), torch.cat([formatter(rollout.queries), rollout.responses], 1))
    truncated = trainer.scorer(rollout.queries, rollout.responses)[2]
    assert (truncated == 99).any() and not (rollout.responses == 99).any()
    assert same_rows(scored, torch.cat([rollout.queries, truncated], 1))
    trainer.train_minibatch(rollout, torch.zeros(16, 6), torch.arange(16), 0.0)
    assert same_rows(torch.cat(seen["policy"]), torch.cat([formatter(rollout.queries), rollout.responses], 1))

    reward_trainer, rows, drawn = small_reward(goldens), [], []
    reward_trainer.params.task.truncate_token = 13
    respond = reward_trainer.policy.respond
    reward_trainer.policy.respond = lambda q, u: drawn.append(respond(q, u)) or drawn[-1]
    reward_trainer.model.transformer.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0]))
    reward_trainer.normalize("before", 0.0, 1.0)
    assert same_rows(torch.cat(rows)[:, 10:], torch.cat([sample.tokens for sample in drawn]))


def test_prefix_and_suffix_are_encoded_alone():
    encoding, task = gpt2_encoding(), EXPERIMENTS["train_policy"]["cnndm"]().task
    assert (task.query_prefix, task.query_suffix) == ("Article:\n\n", "\n\nTL;DR:")
    formatter, text = QueryFormatter.of(task, encoding), "One sentence.\n"
    context = formatter(torch.tensor([encoding.encode(text)]))[0].tolist()
    assert context == encoding.encode(task.query_prefix) + encoding.encode(text) + encoding.encode(task.query_suffix)
    assert context != encoding.encode(task.query_prefix + text + task.query_suffix)
    assert encoding.decode(context) == task.query_prefix + text + task.query_suffix


# --- ranks (hazards 7-11) ---

KL_TARGET = 0.55  # nats; close to this step's KL, so that the controller's clipping hides no difference between ranks


def run_both(goldens, world: World) -> dict[str, torch.Tensor]:
    """One PPO step, one normalisation and one reward step: everything that steers or results."""
    ppo, reward = small_ppo(goldens, world), small_reward(goldens, world)
    ppo.kl_controller.params.target = KL_TARGET
    metrics, rollout = ppo.step(0)
    norms = reward.normalize("before", 0.0, 1.0)
    stats = reward.step(0, torch.tensor([3, 0, 5, 1, 4, 2]))
    result = {f"policy.{name}": p.detach() for name, p in ppo.policy.named_parameters()}
    result |= {f"reward.{name}": p.detach() for name, p in reward.model.named_parameters()}
    result |= {f"rollout.{name}": value for name, value in rollout._asdict().items()}
    numbers = {"kl_coef_after": ppo.kl_controller.value, **metrics, **norms, **stats}
    return result | {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def _one_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    with distributed.world("cpu") as world:
        torch.save(run_both(Goldens(), world), Path(folder) / f"{rank}.pt")


def test_two_ranks_agree_with_each_other_and_with_one(goldens, tmp_path):
    """KL coefficient, normalisation, gain and bias, statistics and all weights: equal on both ranks, and those of a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_rank, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = run_both(goldens, World())
    assert first.keys() == second.keys() == alone.keys()
    assert alone["kl_coef_after"] != 0.15 and alone["reward.gain"] != 1  # both did something
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_ranks_use_each_label_once(goldens, size):
    """Together the ranks take the same labels in the same order, whatever their number; none twice."""
    orders, used = {}, []
    for rank in range(size):
        trainer = small_reward(goldens, World(rank, size, local_rank=rank % 2))  # as on machines of two GPUs
        orders[rank] = trainer.order(0)
        used.append(orders[rank][trainer.world.share(6, "--batch_size")])
    assert all(torch.equal(orders[0], order) for order in orders.values())
    assert torch.equal(torch.cat(used), small_reward(goldens).order(0)) and sorted(torch.cat(used).tolist()) == list(range(6))


def test_draws_depend_on_seed_purpose_and_step_only(goldens):
    trainers = [small_ppo(goldens, World(rank, 2, local_rank=local)) for rank, local in ((0, 0), (1, 0))]
    for draw in (lambda t: t.uniforms(3), lambda t: t.order(3, 1)):
        assert torch.equal(*(draw(trainer) for trainer in trainers))
    one = trainers[0]
    assert not torch.equal(one.uniforms(3), one.uniforms(4)) and not torch.equal(one.order(3, 1), one.order(3, 2))
    torch.manual_seed(0)
    before = one.uniforms(3)
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(before, one.uniforms(3))
    one.seed += 1
    assert not torch.equal(before, one.uniforms(3))


# --- precision (hazard 2) ---

def test_bfloat16_keeps_ratios_near_one_and_results_float32(goldens):
    trainer = small_ppo(goldens, precision=Precision(torch.device("cpu"), bfloat16=True))
    metrics, rollout = trainer.step(0)
    assert metrics["ppo/ratio/std_before"] < 0.01
    assert {value.dtype for value in (rollout.logprobs, rollout.values, rollout.ref_logprobs, rollout.scores)} == {torch.float32}
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.float32}
    with trainer.precision.autocast():
        logits = trainer.policy.transformer.logits(torch.full((1, 32), 30.0, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_sampling_under_bfloat16_takes_the_ratio_from_a_training_pass(goldens):
    params = EXPERIMENTS["train_policy"]["sentiment"]().ppo
    assert params.old_logprobs == "auto"
    low, full = small_ppo(goldens, precision=Precision(torch.device("cpu"), bfloat16=True)), small_ppo(goldens)
    assert low.recompute and not full.recompute


# --- initial heads (hazard 22) ---

def test_initial_heads(goldens, tmp_path):
    save_model(tmp_path / "lm", GPT2(TINY_CONFIG).initialise(generator_for(0, "test")))
    heads = torch.cat([RewardModel.from_language_model(tmp_path / "lm", generator_for(seed, "reward/head")).head.weight.detach() for seed in range(60)])
    assert heads.std(correction=0).item() == pytest.approx(33 ** -0.5, rel=0.05)
    model = RewardModel.from_language_model(tmp_path / "lm", generator_for(0, "reward/head"))
    assert (float(model.head.bias), float(model.gain), float(model.bias)) == (0.0, 1.0, 0.0)
    from lm_human_preferences.policy import Policy
    value = Policy.load(tmp_path / "lm", QueryFormatter([], []), 1.0).value_head
    assert not value.weight.any() and not value.bias.any()
