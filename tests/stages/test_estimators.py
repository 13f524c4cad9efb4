"""Policy training with other estimators than PPO's own: resume, micro-batches and ranks change nothing; what each needs
and has not.
"""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.foundation.errors import Interrupted, UserError
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import read_jsonl

from scaling import distance
from scaling import run as run_on
from small import ROOT, flags, make_world, metrics, policy_flags, reward_flags, run_here

VARIANTS = {
    "rloo": dict(ppo__estimator="rloo", ppo__responses_per_query=4),
    "grpo": dict(ppo__estimator="grpo", ppo__responses_per_query=2, ppo__nminibatches=2),
    "separate": dict(value__model="separate", value__lr=0.01, ppo__nminibatches=2),
    "reward_value": dict(value__model="reward"),
    "expert": dict(ppo__responses_per_query=4, ppo__noptepochs=2, ppo__nminibatches=2, rewards__kl_coef=0),
    "stops": dict(
        task__stop_tokens="b,2",
        task__after_stop="ignore",
        task__top_k=9,
        value__model="separate",
        ppo__nminibatches=2,
        rewards__scale="running",
        rewards__clip=2,
    ),
    "nucleus": dict(
        ppo__estimator="grpo",
        ppo__responses_per_query=2,
        task__stop_tokens='["c"]',
        task__after_stop="ignore",
        task__top_p=0.8,
        task__penalty_reward_value="none",
        rewards__scale="normalised",
        rewards__scale_samples=32,
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a reward model and a run of each variant."""
    folder = make_world(tmp_path_factory.mktemp("estimators"))
    run_here("train_reward", "movies", "reward", *reward_flags(folder))
    for name in VARIANTS:
        run_here(stage_of(name), "movies", name, *words_of(folder, name))
    return folder


def stage_of(name: str) -> str:
    return "expert_iteration" if name == "expert" else "train_policy"


def words_of(world, name: str, **changes) -> list[str]:
    return policy_flags(world, world / "runs/reward/reward_model") + flags(**VARIANTS[name] | changes)


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run / "policy/model.safetensors") | load_file(run / "policy/heads.safetensors")


@pytest.mark.parametrize("name", VARIANTS)
def test_resume_equals_an_uninterrupted_run(world, name):
    """Stopped after the second step; bit for bit."""
    count, words = itertools.count(1), words_of(world, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda request: next(count) == 2)
        with pytest.raises(Interrupted):
            run_here(stage_of(name), "movies", f"stopped_{name}", *words)
    run_here(stage_of(name), "movies", f"stopped_{name}", *words, "--run.resume", "on")
    runs = world / "runs"
    assert metrics(runs / f"stopped_{name}") == metrics(runs / name)
    ours, theirs = weights(runs / f"stopped_{name}"), weights(runs / name)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_change_only_rounding(world, name):
    more = dict(run__micro_batch=3, run__micro_batch_rollout=5, run__micro_batch_scoring=7)
    run_here(stage_of(name), "movies", f"micro_{name}", *words_of(world, name, **more))
    found = distance(stage_of(name), world / f"runs/micro_{name}", world / f"runs/{name}")
    assert found["loss"] < 1e-4 and found["weights"] < 5e-5 and found["same responses"] == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_equal_one(world, name):
    """A query's responses may lie on two ranks."""
    shutil.rmtree(world / f"runs/ranks_{name}", ignore_errors=True)
    more = flags(**VARIANTS[name], ppo__total_episodes=64)
    together = run_on(stage_of(name), f"ranks_{name}", world, 2, *map(str, more))
    found = distance(stage_of(name), together, world / f"runs/{name}")
    assert found["loss"] < 1e-4 and found["weights"] < 5e-5 and found["same responses"] == 1


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_there_is_no_value_function(world, name):
    rows, heads = metrics(world / "runs" / name), load_file(world / f"runs/{name}/policy/heads.safetensors")
    assert not any(metric.startswith(("ppo/val", "ppo/returns")) for metric in rows[0])
    assert float(heads["value.weight"].abs().max()) == 0
    assert rows[0]["ppo/ratio/std_before"] < 1e-5 and rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["objective/advantage_std"] > 0 and 0 <= rows[0]["objective/equal_groups"] <= 1


def test_a_query_is_sampled_once_for_its_responses(world):
    """Neighbours have one query and different responses; as many queries as batch / k leave the stream."""
    rows = [row for row in read_jsonl(world / "runs/rloo/samples.jsonl") if row["step"] == 0]
    assert len({row["query"] for row in rows}) == 1 and len({row["response"] for row in rows}) > 1


def test_responses_that_stop(world):
    """The first ratio is 1; nothing of what follows an end is in samples; scores are on their scale and within their
    bounds, or normalised at first; KL at first is the price of drawing among few tokens.
    """
    stops, nucleus = metrics(world / "runs/stops"), metrics(world / "runs/nucleus")
    for rows in (stops, nucleus):
        assert rows[0]["ppo/ratio/std_before"] < 1e-5 and rows[0]["objective/kl"] > 0.1
        assert rows[0]["objective/reward_divisor"] > 0 and np.isfinite(rows[-1]["ppo/loss/total"])
        assert 0 < rows[0]["objective/response_padding"] < 1
    divisors = [row["objective/reward_divisor"] for row in stops]
    assert len(set(divisors)) == len(divisors) and len({row["objective/reward_divisor"] for row in nucleus}) == 1
    assert abs(nucleus[0]["objective/score"]) < 1 and 0.4 < nucleus[0]["objective/score_std"] < 2.5
    for row in read_jsonl(world / "runs/stops/samples.jsonl"):
        assert all(row["response"].find(end, 1) in (-1, len(row["response"]) - 1) for end in "bc."), row["response"]
        assert -2 <= row["score"] <= 2


def test_an_end_that_is_ignored_makes_another_run_than_one_that_counts(world):
    run_here("train_policy", "movies", "counts", *words_of(world, "nucleus", task__after_stop="penalise"))
    ours, theirs = metrics(world / "runs/counts"), metrics(world / "runs/nucleus")
    assert ours[0]["objective/score"] == pytest.approx(theirs[0]["objective/score"], abs=1e-5)  # it ends there anyway
    assert ours[0]["objective/kl"] > theirs[0]["objective/kl"] + 0.01
    assert ours[0]["objective/response_padding"] == theirs[0]["objective/response_padding"]


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(task__stop_tokens="xy"), "--task.stop_tokens 'xy' is 2 tokens; it must be exactly one"),
        (dict(task__stop_tokens="27"), "--task.stop_tokens 27: must lie in 0..26"),
        (dict(task__stop_tokens="[1.5]"), "--task.stop_tokens [1.5]: expected ids or texts"),
        (dict(task__after_stop="count"), "--task.after_stop count: must be penalise or ignore"),
        (dict(task__after_stop="ignore", task__truncate_token="none"), "nothing ends a response; say what does"),
        (dict(task__top_k=-1), "--task.top_k -1: must not be negative"),
        (dict(task__top_p=0), "--task.top_p 0.0: must lie above 0"),
        (dict(rewards__scale="ref"), "--rewards.scale ref: must be none, running or normalised"),
        (dict(rewards__clip=-1), "--rewards.clip -1.0: must be positive"),
    ],
)
def test_what_cannot_be_is_one_line(world, changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        run_here(
            "train_policy", "movies", "bad", *policy_flags(world, world / "runs/reward/reward_model"), *flags(**changes)
        )
    assert not (world / "runs/bad").exists()


def test_scales_and_directions_differ(world):
    """Each option changes the run."""
    first = metrics(world / "runs/grpo")[1]["objective/score"], metrics(world / "runs/grpo")[-1]["objective/kl"]
    options = (dict(ppo__advantage_scale="none"), dict(ppo__advantage_scale="batch"), dict(ppo__unbiased_kl="on"))
    for number, change in enumerate(options):
        run_here("train_policy", "movies", f"option_{number}", *words_of(world, "grpo", **change))
        rows = metrics(world / f"runs/option_{number}")
        assert (rows[1]["objective/score"], rows[-1]["objective/kl"]) != first
        assert np.isfinite(rows[-1]["ppo/loss/total"])


def test_a_value_model_of_its_own(world):
    """From the policy's weights its first values are 0, from the reward model's they are rewards; the policy's own head
    stays 0.
    """
    separate, reward = (metrics(world / "runs" / name) for name in ("separate", "reward_value"))
    assert separate[0]["ppo/val/mean"] == 0 and abs(reward[0]["ppo/val/mean"]) > 0.01
    assert separate[-1]["ppo/val/mean"] != 0
    for name in ("separate", "reward_value"):
        heads = load_file(world / f"runs/{name}/policy/heads.safetensors")
        assert float(heads["value.weight"].abs().max()) == 0


def test_expert_iteration_keeps_the_best_and_its_control_any(world):
    """The kept score above the mean only where the best are kept; every metric explained; the control is a run."""
    run_here("expert_iteration", "movies", "both", *words_of(world, "expert"), "--control", "on")
    best, control = (metrics(world / "runs" / name) for name in ("both", "both_control"))
    assert [row["objective/score_kept"] > row["objective/score"] for row in best] == [True] * len(best)
    assert best[0]["objective/score"] == control[0]["objective/score"]  # the same queries and draws at first
    assert np.mean([row["objective/score_kept"] - row["objective/score"] for row in control]) < np.mean(
        [row["objective/score_kept"] - row["objective/score"] for row in best]
    )
    assert best == metrics(world / "runs/expert")
    explained = set(re.findall(r"`([a-z_0-9/]+)`", (ROOT / "docs/metrics.md").read_text()))
    for name in VARIANTS:
        assert {key for row in metrics(world / "runs" / name) for key in row} - explained == set()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(keep="worst"), "--keep worst: must be best or random"),
        (dict(keep="random", control="on"), "--control on is for --keep best"),
        (dict(ppo__responses_per_query=1), "there is no best among fewer than 2 responses"),
        (dict(ppo__nminibatches=8), "the 4 responses that are kept of --ppo.batch_size 16 do not divide by"),
        (dict(ppo__estimator="rloo"), "expert iteration has neither advantages nor values"),
    ],
)
def test_what_cannot_work_in_expert_iteration_is_refused(world, changes, says):
    with pytest.raises(UserError, match=says):
        run_here("expert_iteration", "movies", "refused", *words_of(world, "expert", **changes))
    assert not (world / "runs/refused").exists()


def test_a_control_that_exists_is_said_before_the_run_is_trained(world):
    (world / "runs/again_control").mkdir()
    (world / "runs/again_control/kept.txt").touch()
    with pytest.raises(UserError, match="again_control exists already"):
        run_here("expert_iteration", "movies", "again", *words_of(world, "expert", control="on"))
    assert not (world / "runs/again").exists()


def test_reward_training_goes_on_from_a_reward_model(world):
    """With its head and scale: at the least rate nothing but the scale's normalisation changes; members would all be
    alike, and are refused.
    """
    words = [*reward_flags(world), *flags(initial_reward="reward", lr=1e-30)]
    run_here("train_reward", "movies", "gone_on", *words)
    before, after = (load_file(world / f"runs/{name}/reward_model/model.safetensors") for name in ("reward", "gone_on"))
    assert all(torch.equal(before[name], value) for name, value in after.items())
    first, last = metrics(world / "runs/gone_on")[0], metrics(world / "runs/reward")[-1]
    assert first["train/gain"] == pytest.approx(last["normalize_after/gain"]) and "normalize_before/gain" not in first
    config = json.loads((world / "runs/gone_on/config.json").read_text())
    assert (
        config["parameters"]["initial_reward"].endswith("reward/reward_model") and "initial_reward" in config["inputs"]
    )
    for more, said in (
        (dict(members=2), "would make all --members alike"),
        (dict(initial_reward=world / "model"), "holds no reward model"),
    ):
        with pytest.raises(UserError, match=said):
            run_here("train_reward", "movies", "refused", *words, *flags(**more))
        assert not (world / "runs/refused").exists()


def test_reward_training_of_several_passes(world):
    """Each pass has an order of its own; held-out labels are looked at after each; one that is stopped in the second
    pass goes on to the same end.
    """
    words = [*reward_flags(world), *flags(epochs=2)]
    run_here("train_reward", "movies", "passes", *words)
    rows, once = metrics(world / "runs/passes"), metrics(world / "runs/reward")
    assert [row["train/lr"] for row in rows[:8]] == pytest.approx([0.01 * (1 - step / 8) for step in range(8)])
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [3, 8]
    assert rows[0]["train/loss"] == once[0]["train/loss"]
    losses = [[row["train/loss"] for row in rows[start : start + 4]] for start in (0, 4)]
    assert sum(losses[1]) < sum(losses[0])
    count = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda request: next(count) == 6)
        with pytest.raises(Interrupted):
            run_here("train_reward", "movies", "stopped_passes", *words)
    run_here("train_reward", "movies", "stopped_passes", *words, "--run.resume", "on")
    assert metrics(world / "runs/stopped_passes") == rows
    with pytest.raises(UserError, match="--epochs 0: must be at least 1"):
        run_here("train_reward", "movies", "refused", *reward_flags(world), *flags(epochs=0))


def test_an_ensemble_is_trained_in_one_run_and_trained_against(world):
    """Members of different seeds, each with a run folder; one that is finished is not trained again; the run's name
    stands for all of them.
    """
    words = [*reward_flags(world), *flags(members=2)]
    run_here("train_reward", "movies", "pair", *words)
    pair, single = world / "runs/pair", world / "runs/reward"
    models = [load_file(pair / f"member_{n}/reward_model/model.safetensors") for n in (1, 2)]
    alone = load_file(single / "reward_model/model.safetensors")
    assert all(torch.equal(models[0][name], value) for name, value in alone.items())  # of the run's own seed
    assert not torch.equal(models[1]["transformer.wte.weight"], alone["transformer.wte.weight"])
    with pytest.raises(UserError, match="exists already"):
        run_here("train_reward", "movies", "pair", *words)
    written = (pair / "member_1/metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(pair / "member_2")
    run_here("train_reward", "movies", "pair", *words, "--run.resume", "on")
    assert (pair / "member_1/metrics.jsonl").stat().st_mtime_ns == written
    again = load_file(pair / "member_2/reward_model/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in models[1].items())

    for more in (dict(labels__num_train=400), dict(labels__source=world / "ratings.json")):
        with pytest.raises(UserError):
            run_here("train_reward", "movies", "refused", *reward_flags(world), *flags(members=2, **more))
        assert not (world / "runs/refused").exists()

    words = policy_flags(world, "pair") + flags(rewards__ensemble="uwo", rewards__uncertainty=1)
    run_here("train_policy", "movies", "careful", *words)
    rows = metrics(world / "runs/careful")
    assert rows[0]["objective/disagreement"] > 0
    parameters = json.loads((world / "runs/careful/config.json").read_text())
    assert parameters["parameters"]["rewards"]["trained_model"].count("member_") == 2
    assert {"rewards.trained_model 1", "rewards.trained_model 2"} <= parameters["inputs"].keys()
    run_here("train_policy", "movies", "bold", *policy_flags(world, "pair"), *flags(rewards__ensemble="mean"))
    assert metrics(world / "runs/bold")[0]["objective/score"] > rows[0]["objective/score"]
    twice = f"{world / 'runs/reward'},{world / 'runs/reward/reward_model'}"
    run_here("train_policy", "movies", "twice", *policy_flags(world, twice))
    run_here("train_policy", "movies", "once", *policy_flags(world, world / "runs/reward"))
    assert metrics(world / "runs/twice")[-1]["objective/score"] == metrics(world / "runs/once")[-1]["objective/score"]
    assert metrics(world / "runs/twice")[0]["objective/disagreement"] == 0


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(rewards__ensemble="max"), "--rewards.ensemble max: must be mean, min or uwo"),
        (dict(rewards__uncertainty=-1), "--rewards.uncertainty -1.0: must not be negative"),
        (dict(rewards__trained_model=" , "), "--rewards.trained_model ' , ' names no reward model"),
        (dict(rewards__trained_model="a,hf:b"), "an ensemble has reward models of ours alone"),
        (dict(value__model="separate"), "--value.model separate: --ppo.estimator rloo has no values"),
        (dict(value__model="own"), "--value.model own: must be shared, separate or reward"),
        (dict(value__lr=0.1), "--value.lr 0.1: must be positive, and --value.model separate or reward"),
        (dict(ppo__estimator="reinforce"), "--ppo.estimator reinforce: must be gae, rloo or grpo"),
        (dict(ppo__responses_per_query=1), "give --ppo.responses_per_query 2 or more"),
        (dict(ppo__responses_per_query=3), "--ppo.batch_size 16 does not divide by --ppo.responses_per_query 3"),
        (dict(ppo__advantage_scale="group"), "--ppo.advantage_scale group has no part in --ppo.estimator rloo"),
        (dict(ppo__advantage_scale="all"), "--ppo.advantage_scale all: must be auto, none, group or batch"),
        (dict(ppo__unbiased_kl="on"), "--ppo.unbiased_kl has no part in --ppo.estimator rloo"),
    ],
)
def test_what_cannot_work_is_refused(world, changes, says):
    with pytest.raises(UserError, match=says):
        run_here("train_policy", "movies", "refused", *words_of(world, "rloo", **changes))
    assert not (world / "runs/refused").exists()
