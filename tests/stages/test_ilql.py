"""Implicit language Q-learning as a stage: what it learns, how its policy writes and is measured, what it refuses. The
losses' own tests are in learning/test_implicit_q.py; resume, ranks and micro-batches in test_stages.py.
"""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from lm_human_preferences.commands.evaluate import path_and_beta
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.configuration import apply_overrides
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.model_folders import load_heads
from lm_human_preferences.learning.steered_policy import SteeredPolicy, load_policy
from lm_human_preferences.runs.micro_batches import MicroBatches, try_micro_batches
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.train_ilql import ILQLParams, ILQLTrainer

from params import EXPERIMENTS
from small import flags, ilql_flags, make_world, metrics, policy_flags, run_here


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with many ratings, which count the letter a, and a run that learned them."""
    folder = make_world(tmp_path_factory.mktemp("ilql"), n_labels=900)
    run_here("train_ilql", "movies", "counted", *words_of(folder))
    return folder


def words_of(world: Path, **changes) -> list[str]:
    values = dict(labels__num_train=800, batch_size=16, epochs=3, lr=0.01, ilql__alpha=0.05, beta=3)
    return [*ilql_flags(world), *flags(**values | changes)]


def trainer_of(world: Path, **changes) -> ILQLTrainer:
    words = words_of(world, **changes)
    values = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    params = apply_overrides(EXPERIMENTS["train_ilql"]["movies"](), values)
    assert isinstance(params, ILQLParams)
    return ILQLTrainer.prepare(params, choose_precision("cpu", "float32"), World())


def refused(*words) -> str:
    with pytest.raises(UserError) as caught:
        run_here(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what it learns ---


def test_q_knows_the_scores_of_texts_it_has_not_seen(world):
    rows = metrics(world / "runs/counted")
    result = json.loads((world / "runs/counted/result.json").read_text())
    assert result["labels"] == 100 and result["corr"] > 0.5
    assert "train/corr" not in rows[0] and rows[0]["train/q"] == 0  # Q is 0 at first
    assert rows[0]["train/loss_cql"] == pytest.approx(2 * math.log(27), abs=1e-4)
    assert rows[-2]["train/loss_q"] < rows[0]["train/loss_q"]
    assert rows[-1]["validation/corr"] == result["corr"]


def letters_a(world: Path, beta: float | None) -> float:
    """Of 500 responses, the mean number of a's."""
    policy = load_policy(world / "runs/counted/policy", QueryFormatter([], []), 1.0, beta)
    queries = torch.randint(0, 26, (500, 4), generator=torch.Generator().manual_seed(1))
    drawn = policy.respond(queries, torch.rand(500, 5, generator=torch.Generator().manual_seed(2))).tokens
    return float((drawn == 0).sum(1).float().mean())


def test_steering_writes_what_scores_high(world):
    """More of it the stronger it is; without strength it is the language model, which imitates the texts."""
    counts = [letters_a(world, beta) for beta in (0.0, 1.0, None)]
    assert counts[0] < 0.4 and counts[1] > 1.5 * counts[0] and counts[2] > 1.5 * counts[1]


# --- the target copies ---


@pytest.mark.parametrize("interval", [1, 2])
def test_target_copies_follow_after_each_step(world, interval):
    """They are neither left behind (stale) nor moved before the optimizer's step or by it."""
    trainer = trainer_of(world, ilql__alpha=0.25, ilql__sync_interval=interval)
    heads = trainer.model.heads
    assert len(trainer.optimizer.param_groups) == 1  # one group, and no target copy in it
    learned = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in learned for p in heads.target_q_heads.parameters())
    expected = [p.detach().clone() for p in heads.target_q_heads.parameters()]
    for step in range(4):
        trainer.step(step, torch.arange(16 * step, 16 * step + 16))
        if (step + 1) % interval == 0:
            own = heads.q_heads.parameters()
            expected = [0.25 * q.detach() + 0.75 * old for q, old in zip(own, expected, strict=True)]
        for target, value in zip(heads.target_q_heads.parameters(), expected, strict=True):
            torch.testing.assert_close(target, value, rtol=0, atol=1e-6)
    assert max(float(value.abs().max()) for value in expected) > 0


def test_a_checkpoint_has_the_copies(world):
    names = trainer_of(world).training.tensors()
    assert {f"heads.target_q_heads.{i}.{layer}.weight" for i in (0, 1) for layer in (0, 2)} <= names.keys()


def test_one_q_head(world):
    run_here("train_ilql", "movies", "one", *ilql_flags(world), "--ilql.two_qs", "off")
    stored = load_heads(world / "runs/one/policy")
    assert not any(name.startswith(("q_heads", "target_q_heads.1")) for name in stored) and stored["steering.beta"] == 2
    assert metrics(world / "runs/one")[0]["train/loss_cql"] == pytest.approx(math.log(27), abs=1e-4)
    assert isinstance(load_policy(world / "runs/one/policy", QueryFormatter([], []), 1.0), SteeredPolicy)


# --- how its policy is measured ---


def evaluated(world: Path, name: str, policies: str, **changes) -> dict:
    words = flags(
        task__query_dataset=world / "data",
        task__query_length=6,
        task__response_length=5,
        task__truncate_token=26,
        task__truncate_after=1,
        policies=policies,
        samples=30,
        split="valid",
        save_dir=world / "runs",
        experiment=name,
        device="cpu",
        precision="float32",
        **changes,
    )
    run_here("evaluate", "movies", *words)
    return json.loads((world / "runs" / name / "result.json").read_text())["policies"]


def test_the_kl_of_evaluation_is_the_steered_distributions(world):
    """By name with its own strength, with another, and with none, which is the reference here: KL 0 bit for bit."""
    sides = evaluated(world, "betas", "plain=counted#0,own=counted,weak=counted#0.5,same=counted#3")
    kls = {name: side["kl"]["mean"] for name, side in sides.items()}
    assert kls["plain"] == 0 and kls["own"] == kls["same"] and 0 < kls["weak"] < kls["own"]
    rows = [json.loads(line) for line in (world / "runs/betas/evaluation.jsonl").read_text().splitlines()]
    steered, plain = (load_policy(world / "runs/counted/policy", QueryFormatter([], []), 0.7, b) for b in (3.0, 0.0))
    letters = "abcdefghijklmnopqrstuvwxyz."
    whole = [row for row in rows if len(row["policies"]["own"]["response"]) == 5][:3]
    for row in whole:  # all of whose tokens are to be seen
        query, response = (
            torch.tensor([[letters.index(c) for c in text]])
            for text in (row["query"], row["policies"]["own"]["response"])
        )
        with torch.no_grad():
            expected = (steered.analyze(query, response).logprobs - plain.analyze(query, response).logprobs).sum()
        assert row["policies"]["own"]["kl"] == pytest.approx(float(expected), abs=1e-3)
    assert whole


def test_a_strength_that_is_none(world):
    assert path_and_beta("runs/a#4.5") == ("runs/a", 4.5) and path_and_beta("runs/a") == ("runs/a", None)
    assert path_and_beta("some#folder/a") == ("some#folder/a", None)
    for text in ("a#x", "a#-1", "a#inf", "a#"):
        with pytest.raises(UserError, match=f"--policies {text}: what follows # is the strength"):
            path_and_beta(text)
    with pytest.raises(UserError, match=r"model has no value heads that a beta \(4\) could steer by"):
        evaluated(world, "none", f"a={world / 'model'}#4")


def test_who_is_steered(world, tmp_path):
    """collect's writers take a strength too; a policy without value heads is steered by nothing."""
    from lm_human_preferences.learning.steered_policy import is_steered

    assert is_steered(world / "runs/counted/policy") and not is_steered(world / "model")
    said = refused(
        "collect",
        "movies",
        "study",
        *flags(
            task__query_dataset=world / "data",
            task__query_length=6,
            task__response_length=5,
            labellers="ann",
            policies=f"a={world / 'model'}#2,b={world / 'model'}",
            count=2,
            split="valid",
            save_dir=tmp_path,
        ),
    )
    assert "no value heads that a beta (2) could steer by" in said


def test_samples_with_another_strength(world, capsys):
    save = flags(save_dir=world / "runs", device="cpu", precision="float32", count=20)
    said = []
    for more in ([], ["--beta", "3"], ["--beta", "0"]):
        run_here("sample", "counted", *save, *more)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2] and said[0].count("a") > said[2].count("a")
    assert "--beta -1.0: must not be negative" in refused("sample", "counted", *save, "--beta", "-1")
    assert "no value heads" in refused("sample", world / "model", *save, "--beta", "1", "--prompt", "abc")


def test_other_stages_start_from_its_language_model(world):
    """Which is what they train, and what their KL is against."""
    words = policy_flags(world) + flags(
        rewards__function="lm_human_preferences.judging.text_metrics:unrepeated",
        rewards__train_new_model="off",
        task__policy__initial_model="counted",
        ppo__total_episodes=16,
    )
    run_here("train_policy", "movies", "onward", *words)
    assert metrics(world / "runs/onward")[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert not any("q_heads" in name for name in load_heads(world / "runs/onward/policy"))


# --- memory; what it refuses ---


def test_memory_probes_run_and_change_nothing(world):
    trainer = trainer_of(world)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    sizes = MicroBatches(0, 4, 4)
    assert try_micro_batches(sizes, RunParams(), trainer.memory_probes(), trainer.optimizer, World()) == sizes
    assert all(torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_texts_that_all_have_one_score(world):
    ratings = json.loads((world / "ratings.json").read_text())
    (world / "same.json").write_text(json.dumps([row | {"score": 2.0} for row in ratings]))
    said = refused("train_ilql", "movies", "same", *words_of(world, labels__source=world / "same.json"))
    assert re.search(r"same\.json: all texts to train on have the score 2$", said)
    assert not (world / "runs/same").exists()
