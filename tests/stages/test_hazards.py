"""Mistakes that reimplementations of this method are known to make, where no test of a single room stands against them.

docs/implementation_details.md lists all of them with their tests.
"""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import QueryStream, query_stream, select_query, write_token_file
from lm_human_preferences.data.tasks import (
    QueryFormatter,
    TaskParams,
    responses_are_valid,
    single_token,
    truncate_responses,
)
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding, gpt2_encoding
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.model_folders import save_model
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.learning.scoring import Scorer

from conftest import TINY_CONFIG, Goldens, tensor
from params import EXPERIMENTS
from recorded import make_reward_model, ppo_trainer, run_both, small_ppo, small_reward

# --- frozen models, dropout (hazards 4, 12) ---


def test_frozen_models_stay_frozen(goldens):
    trainer = small_ppo(goldens)
    frozen = {"reference": trainer.reference, "reward model": trainer.scorer.rewards}
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
    for model in (trainer.policy, trainer.reference, trainer.scorer.rewards):
        assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    results = []
    for mode in (True, False):
        trainer.policy.train(mode)
        trainer.scorer.rewards.train(mode)
        results.append(
            (
                trainer.policy.analyze(queries, responses).logprobs,
                trainer.policy.respond(queries, uniforms).logprobs,
                trainer.scorer.rewards(queries, responses),
            )
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# --- who sees what (hazards 5, 6) ---


def same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    return sorted(one.tolist()) == sorted(other.tolist())


def test_only_the_policies_see_prefix_and_suffix(goldens):
    """And only the score sees truncated responses; the normalisation of the reward model sees raw ones."""
    trainer, seen = small_ppo(goldens), {"policy": [], "reference": [], "reward": []}
    models = {
        "policy": trainer.policy.transformer,
        "reference": trainer.reference.transformer,
        "reward": trainer.scorer.rewards,
    }
    for name, model in models.items():
        model.register_forward_pre_hook(lambda _, arguments, name=name: seen[name].append(torch.cat(arguments, 1)))
    rollout, formatter = trainer.sample(0), trainer.policy.formatter
    scored = torch.cat(seen["reward"])
    assert len(formatter.prefix) and len(formatter.suffix)
    assert same_rows(
        torch.cat(seen["reference"]), torch.cat([formatter(rollout.queries), rollout.responses[:, :-1]], 1)
    )
    truncated = trainer.scorer(rollout.queries, rollout.responses)[2]
    assert (truncated == 99).any() and not (rollout.responses == 99).any()
    assert same_rows(scored, torch.cat([rollout.queries, truncated], 1))
    trainer.train_minibatch(rollout, torch.zeros(16, 6), torch.arange(16), 0.0)
    assert same_rows(torch.cat(seen["policy"]), torch.cat([formatter(rollout.queries), rollout.responses[:, :-1]], 1))

    reward_trainer, rows, drawn = small_reward(goldens), [], []
    reward_trainer.params.task.truncate_token = 13
    respond = reward_trainer.policy.respond
    reward_trainer.policy.respond = lambda q, u: drawn.append(respond(q, u)) or drawn[-1]
    reward_trainer.model.register_forward_pre_hook(lambda _, arguments: rows.append(torch.cat(arguments, 1)))
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


def _one_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    with distributed.world("cpu") as world:
        torch.save(run_both(Goldens(), world), Path(folder) / f"{rank}.pt")


def test_two_ranks_agree_with_each_other_and_with_one(goldens, tmp_path):
    """KL coefficient, normalisation, gain and bias, statistics and all weights: equal on both ranks, and those of a
    single process.
    """
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
    """CombinedOptimizer the ranks take the same labels in the same order, whatever their number; none twice."""
    orders, used = {}, []
    for rank in range(size):
        trainer = small_reward(goldens)
        trainer.world = World(rank, size, local_rank=rank % 2)  # as on machines of two GPUs
        orders[rank] = trainer.order(0)
        used.append(orders[rank][trainer.world.share(6, "--batch_size")])
    assert all(torch.equal(orders[0], order) for order in orders.values())
    assert torch.equal(torch.cat(used), small_reward(goldens).order(0)) and sorted(torch.cat(used).tolist()) == list(
        range(6)
    )


def test_draws_depend_on_seed_purpose_and_step_only(goldens):
    trainers = [small_ppo(goldens), small_ppo(goldens)]
    trainers[1].world = World(1, 2, local_rank=0)  # the second machine's only rank
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
    assert {value.dtype for value in (rollout.logprobs, rollout.values, rollout.ref_logprobs, rollout.scores)} == {
        torch.float32
    }
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
    config = replace(TINY_CONFIG, n_vocab=27, padding_token=27, encoding="letters")
    save_model(tmp_path / "lm", GPT2(config).initialise(generator_for(0, "test")))
    heads = torch.cat(
        [
            RewardModel.from_language_model(tmp_path / "lm", generator_for(seed, "reward/head")).head.weight.detach()
            for seed in range(60)
        ]
    )
    assert heads.std(correction=0).item() == pytest.approx(33**-0.5, rel=0.05)
    model = RewardModel.from_language_model(tmp_path / "lm", generator_for(0, "reward/head"))
    assert (model.head.bias.item(), model.gain.item(), model.bias.item()) == (0.0, 1.0, 0.0)
    from lm_human_preferences.learning.policy import Policy

    value = Policy.load(tmp_path / "lm", QueryFormatter([], []), 1.0).value_head
    assert not value.weight.any() and not value.bias.any()


# --- padding (hazard 1) ---


def test_padding_inserted_anywhere_changes_no_real_token(goldens):
    model = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"]).policy.transformer
    tokens, random = tensor(goldens("forward")["a/tokens"]), np.random.default_rng(0)
    hidden = model(tokens)
    padded, places = torch.full((len(tokens), 24), 99), []
    for row in range(len(tokens)):
        places.append(
            torch.from_numpy(np.sort(np.append(0, 1 + random.choice(23, tokens.shape[1] - 1, replace=False))))
        )
        padded[row, places[-1]] = tokens[row]
    spread = model(padded)
    for row, columns in enumerate(places):
        torch.testing.assert_close(spread[row, columns], hidden[row], atol=1e-5, rtol=0)
        last = (torch.arange(24)[:, None] >= columns).sum(1) - 1  # the last real token up to each place
        torch.testing.assert_close(spread[row], hidden[row, last], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="starts with padding"):
        model(torch.cat([torch.full((1, 1), 99), tokens[:1]], 1))


def test_a_full_context_may_be_followed_by_padding(goldens):
    """The original fails here; more real tokens than the context are refused by both."""
    model = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"]).policy.transformer
    row = torch.arange(TINY_CONFIG.n_ctx)[None] % 97
    assert torch.equal(model(torch.cat([row, torch.full((1, 3), 99)], 1))[:, -1], model(row)[:, -1])
    with pytest.raises(ValueError, match="context is 64"):
        model(torch.cat([row, row[:, :1]], 1))


# --- truncation and penalty (hazards 17, 18) ---


def test_truncation_and_filter_of_the_original(goldens):
    g = goldens("tasks")
    for setting in Goldens.json("hparams")["tasks"]:
        token, name = setting["truncate_token"], setting["index"]
        ends = Ends(() if token is None else (token,), setting["truncate_after"])
        truncated = truncate_responses(tensor(g["responses"]), ends, 99)
        assert torch.equal(truncated, tensor(g[f"{name}/postprocessed"])), setting
        assert torch.equal(responses_are_valid(tensor(g["responses"]), ends), tensor(g[f"{name}/valid"])), setting
        assert torch.equal(responses_are_valid(truncated, ends), tensor(g[f"{name}/valid_after_postprocess"])), setting


@pytest.mark.parametrize("name", ["score_trunc", "score_none"])
def test_the_penalty_replaces_the_normalised_score(goldens, name):
    g, settings = goldens("tasks"), Goldens.json("hparams")[name]
    scorer = Scorer(make_reward_model(goldens("weights")), TaskParams(**settings), padding_token=99)
    scores, valid, truncated = scorer(tensor(g["score/queries"]), tensor(g["score/responses"]))
    assert torch.equal(truncated, tensor(g[f"{name}/postprocessed"]))
    np.testing.assert_allclose(scores, g[f"{name}/scores"], rtol=0, atol=5e-5)
    assert (scores[~valid] == -1).all() and bool(valid.all()) == (name == "score_none")


# --- data (hazards 26, 27) ---


def test_queries_of_the_original():
    """Every text of the recorded cases gives the recorded query, or none."""
    cases = Goldens.json("datasets")["cases"]
    for case in cases:
        config = case["config"]
        for text in case["texts"]:
            query = select_query(
                np.array(text["tokens"]), config["start_token"], config["end_token"], config["sequence_length"]
            )
            row = None if query is None else query.tolist() + [99] * (config["sequence_length"] - len(query))
            assert row == text["query"], (config, text)
    assert sum(text["query"] is None for case in cases for text in case["texts"]) > 3


def test_batches_of_queries_run_over_the_ends_of_epochs():
    q = Goldens.json("datasets")["query_sampler"]
    stream = QueryStream(
        [np.array(text) for text in q["texts"]],
        length=q["query_length"],
        padding_token=99,
        start_token=q["start_token"],
        end_token=q["end_token"],
    )
    assert [stream.batch(q["batch_size"]).tolist() for _ in q["batches"]] == q["batches"]


def test_the_queries_of_all_ranks_of_the_original_are_one_stream():
    """There rank r has every ranks-th query of the endless stream, from the r-th; together they are ours (which ranks
    share out in slices).
    """
    data = Goldens.json("datasets")
    q, groups = data["query_sampler"], {}
    for shard in data["sharding"]:
        groups.setdefault(shard["ranks"], {})[shard["rank"]] = shard["queries"]
    whole = [query for batch in q["batches"] for query in batch]
    stream = QueryStream(
        [np.array(text) for text in q["texts"]],
        length=q["query_length"],
        padding_token=99,
        start_token=q["start_token"],
        end_token=q["end_token"],
    )
    ours = stream.batch(60).tolist()
    assert ours[: len(whole)] == whole and {rank for ranks in groups.values() for rank in ranks} > {0, 1}
    for ranks, shards in groups.items():
        for rank, queries in shards.items():
            assert queries == ours[rank::ranks][: len(queries)]


def test_an_epoch_has_each_document_once_in_an_order_of_its_own(tmp_path):
    """A small file makes no endless search, and the position is all that a resumed run needs."""
    write_token_file(tmp_path / "data", "train", [[i, 26] for i in range(11)])
    task = TaskParams(query_dataset=str(tmp_path / "data"), query_length=2)

    def make(seed: int) -> QueryStream:
        return query_stream(task, get_encoding("letters"), seed, "policy")

    stream = make(1)
    epochs = [stream.batch(11)[:, 0].tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert make(1).batch(33)[:, 0].tolist() == sum(epochs, []) and make(2).batch(11)[:, 0].tolist() != epochs[0]
    later = make(1)
    later.position = (1, 4)
    assert later.batch(7)[:, 0].tolist() == epochs[1][4:]
    task.start_text = "z"
    with pytest.raises(UserError, match="no document"):
        make(1).batch(1)


def test_a_full_stop_after_a_space_is_another_token():
    """13 ends a sentence in the tasks on books; text that is spaced before its full stops shows 764 instead."""
    encoding, task = gpt2_encoding(), EXPERIMENTS["train_policy"]["sentiment"]().task
    assert (
        single_token(task.end_text, encoding, "end_text")
        == task.truncate_token
        == encoding.encode("It ends.")[-1]
        == 13
    )
    assert encoding.encode("It ends .")[-1] == 764
    assert select_query(np.array(encoding.encode("One . Two . Three")), 13, 13, 64) is None
    with pytest.raises(UserError, match="exactly one"):
        single_token("two words", encoding, "end_text")
