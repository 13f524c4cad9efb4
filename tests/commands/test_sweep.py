"""`launch.py sweep` on a very small world: what is trained again and what not, its refusals; best-of-n and reweighting
against enumeration.
"""

import html
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lm_human_preferences.commands import command_line
from lm_human_preferences.commands.sweep import SweepParams, open_folder
from lm_human_preferences.commands.sweep_figures import Member, Scores, figures_of
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.frontier import best_of_n_kl, best_of_n_weights, betas_for, means, optimal_policy
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.reports.report import write_report
from lm_human_preferences.reports.sweep_report import sweep_table, verdict_lines, write_sweep_figure
from lm_human_preferences.runs.locks import locked
from lm_human_preferences.train_policy import PPOTrainer

from params import EXPERIMENTS
from small import CONFIG, flags, make_world, metrics, policy_flags, reward_flags, run_here

JUDGES = "vowels=sweep_scores:vowels,varied=lm_human_preferences.judging.text_metrics:unrepeated"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a reward model, reward/, and a module of functions."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    reward = RewardModel(GPT2(CONFIG).initialise(generator_for(0, "test/reward")))
    reward.head.initialise(generator_for(0, "test/head"))
    reward.save(folder / "reward")
    (folder / "sweep_scores.py").write_text(
        "def vowels(queries, responses):\n    return [sum(c in 'aeiou' for c in r) for r in responses]\n"
    )
    return folder


@pytest.fixture(autouse=True)
def in_the_world(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def undrawn(monkeypatch):
    """Sweeps without their figure, which takes longer than training them."""
    monkeypatch.setattr("lm_human_preferences.reports.sweep_report.write_sweep_figure", lambda result, folder: None)


def words_for(world: Path, experiment: str, **changes) -> list[str]:
    values = (
        dict(rewards__kl_coef="0.1,0", judges=JUDGES, samples=20, split="valid", responses=16, min_effective=3)
        | changes
    )
    base = policy_flags(world, world / "reward")
    at = base.index("--evaluation.samples")
    return [
        "movies",
        experiment,
        *base[:at],
        *base[at + 4 :],
        *flags(**{name: value for name, value in values.items() if value is not None}),
    ]


def run(*words) -> None:
    """The command line in this process, which need not import torch again."""
    run_here("sweep", *words)


def refused(*words) -> str:
    with pytest.raises(UserError) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# --- a sweep ---


def test_a_sweep_goes_on_where_it_stopped(world, capsys, monkeypatch):
    """Finished policies are skipped, one that was cut short is continued, and all is as if it had never stopped."""
    run(*words_for(world, "whole"))
    printed, step = capsys.readouterr().out, PPOTrainer.step
    assert (
        "policy 2 of 2, kl_0_seed_1: training" in printed
        and "best of 16" in printed
        and "is the reward gamed?" in printed
    )

    def cut_short(self, number):
        if self.params.rewards.kl_coef == 0 and number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "step", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run(*words_for(world, "parts"))
    parts, whole = world / "runs/parts", world / "runs/whole"
    assert (parts / "kl_0_seed_1/checkpoints/00000002").is_dir() and not (parts / "result.json").exists()
    finished = (parts / "kl_0.1_seed_1/policy/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    run(*words_for(world, "parts"))
    printed = capsys.readouterr().out
    assert (
        "kl_0.1_seed_1: finished already, skipped" in printed
        and "kl_0_seed_1: was cut short, goes on from its newest checkpoint" in printed
    )
    assert (parts / "kl_0.1_seed_1/policy/model.safetensors").stat().st_mtime_ns == finished
    assert result_of(parts) | {"experiment": "whole"} == result_of(whole)
    for name in ("kl_0_seed_1", "kl_0.1_seed_1"):
        assert metrics(parts / name) == metrics(whole / name) and len(metrics(whole / name)) == 4
        assert not (whole / name / "result.json").exists()  # no comparison of its own
    assert (parts / "evaluation.jsonl").read_bytes() == (whole / "evaluation.jsonl").read_bytes()
    assert (parts / "sweep.png").read_bytes()[1:4] == b"PNG" and b"</svg>" in (parts / "sweep.svg").read_bytes()

    for changes, says in [
        (dict(ppo__lr=0.1), "started with ppo.lr 0.003, now it is 0.1"),
        (dict(seeds=2), "started with seeds 1, now it is 2"),
        (dict(rewards__kl_coef="0.1,0,1"), "started with rewards.kl_coef [0.1, 0.0], now it is [0.1, 0.0, 1.0]"),
        (dict(run__seed=2), "started with run.seed 1, now it is 2"),
    ]:
        assert says in refused(*words_for(world, "parts", **changes))
    run(
        *words_for(world, "parts", judges="vowels=sweep_scores:vowels", samples=10, shown=0)
    )  # what measures may change
    again = result_of(parts)
    assert (
        again["judges"] == ["vowels"]
        and again["queries"] == 10
        and capsys.readouterr().out.count("finished already") == 2
    )


def test_the_figures_of_a_sweep(world, undrawn):
    """Against the lines of evaluation.jsonl; each seed has a policy of its own."""
    run(*words_for(world, "seeds", rewards__kl_coef="0.05", seeds=2, ppo__total_episodes=32))
    result, folder = result_of(world / "runs/seeds"), world / "runs/seeds"
    rows = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert list(result["policies"]) == ["kl_0.05_seed_1", "kl_0.05_seed_2"] and len(rows) == 20
    assert metrics(folder / "kl_0.05_seed_1") != metrics(folder / "kl_0.05_seed_2")
    for name, side in result["policies"].items():
        answers = [row["policies"][name] for row in rows]
        assert side["kl"]["mean"] == pytest.approx(np.mean([answer["kl"] for answer in answers]))
        assert side["proxy"]["mean"] == pytest.approx(np.mean([answer["proxy"] for answer in answers]))
        assert side["gold"]["vowels"]["mean"] == np.mean(
            [sum(c in "aeiou" for c in answer["response"]) for answer in answers]
        )
        assert side["gold"]["varied"]["mean"] == pytest.approx(
            np.mean([answer["gold"]["varied"] for answer in answers])
        )
    assert [point["n"] for point in result["best_of_n"]] == [1, 2, 4, 8, 16]
    assert result["best_of_n"][0]["proxy"]["mean"] == pytest.approx(result["reference_policy"]["proxy"]["mean"])
    proxies = [point["proxy"]["mean"] for point in result["optimal"]]
    assert proxies == sorted(proxies) and all(
        point["shown"] == (point["effective"] >= 3) for point in result["optimal"]
    )
    assert all(row["policies"]["reference"]["kl"] == 0 for row in rows)


def test_a_failed_policy_does_not_stop_the_others(world, capsys, undrawn, monkeypatch):
    step = PPOTrainer.step

    def fails(error, everywhere=False):
        def wrapped(self, number):
            if everywhere or self.params.rewards.kl_coef == 0.1:
                raise error
            return step(self, number)

        return wrapped

    monkeypatch.setattr(PPOTrainer, "step", fails(UserError("step 0: objective/kl is nan")))
    run(*words_for(world, "failing"))
    printed = capsys.readouterr()
    assert "kl_0.1_seed_1: FAILED: step 0: objective/kl is nan" in printed.err and "Traceback" not in printed.err
    assert "kl_0.1_seed_1: failed: step 0: objective/kl is nan" in printed.out
    result = result_of(world / "runs/failing")
    assert list(result["policies"]) == ["kl_0_seed_1"] and result["failed"] == {
        "kl_0.1_seed_1": "step 0: objective/kl is nan"
    }
    monkeypatch.setattr(PPOTrainer, "step", fails(RuntimeError("out of memory"), everywhere=True))
    assert "none of the 2 policies" in refused(*words_for(world, "hopeless"))
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(PPOTrainer, "step", step)
    run(*words_for(world, "failing"))
    assert "kl_0.1_seed_1: was cut short" in capsys.readouterr().out and not result_of(world / "runs/failing")["failed"]


def test_one_reward_model_for_all(world, capsys, undrawn):
    """Without a reward model the sweep trains one first, as train_policy does, and only once."""
    words = reward_flags(world)
    nested = [
        f"--rewards.train_new_model.{word[2:]}"
        if word.startswith("--") and not word.startswith(("--run", "--task"))
        else word
        for word in words
        if word
    ]
    skip = {i + offset for i, word in enumerate(nested) if word.startswith(("--run", "--task")) for offset in (0, 1)}
    base = words_for(world, "fresh", ppo__total_episodes=16)
    at = base.index("--rewards.trained_model")
    words = [*base[:at], *base[at + 2 :], *(word for i, word in enumerate(nested) if i not in skip)]
    run(*words)
    assert (world / "runs/fresh/fresh_reward/reward_model/model.safetensors").exists()
    assert result_of(world / "runs/fresh")["proxy"].endswith("fresh_reward/reward_model")
    before = (world / "runs/fresh/fresh_reward/metrics.jsonl").read_bytes()
    run(*words)
    assert (world / "runs/fresh/fresh_reward/metrics.jsonl").read_bytes() == before and capsys.readouterr().out.count(
        "finished already"
    ) == 2


def test_replaced_only_when_asked(world, capsys, undrawn):
    (world / "runs/training").mkdir(parents=True)
    (world / "runs/training/config.json").write_text('{"stage": "train_policy"}')
    assert "holds no sweep" in refused(*words_for(world, "training", run__overwrite="on"))
    run(*words_for(world, "replaced", ppo__total_episodes=16))
    run(*words_for(world, "replaced", ppo__total_episodes=32, run__overwrite="on"))
    assert "skipped" not in capsys.readouterr().out and len(metrics(world / "runs/replaced/kl_0_seed_1")) == 2


@pytest.fixture
def opened(tmp_path):
    """A sweep's folder with a run two levels deep, and what opens it anew."""
    folder, params = tmp_path / "swept", SweepParams()
    (folder / "share_0.5/kl_0_seed_1").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    params.run.overwrite = True
    return folder, lambda: open_folder(folder, {"stage": "sweep"}, params, World())


@pytest.mark.parametrize("place", [".", "share_0.5", "share_0.5/kl_0_seed_1"])
def test_nothing_is_deleted_while_a_process_works_on_a_part(opened, place):
    folder, open_anew = opened
    lock = locked(folder / place)
    with pytest.raises(UserError, match=f"another process is working on {folder / place};"):
        open_anew()
    assert (folder / "share_0.5/kl_0_seed_1").is_dir()
    lock.release()
    open_anew()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_sweep_that_is_half_deleted_can_be_begun_anew(opened, monkeypatch):
    folder, open_anew = opened

    def cut_short(path, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, **more: cut_short(path) if Path(path).exists() else None)
        with pytest.raises(KeyboardInterrupt):
            open_anew()
    assert not folder.exists()
    open_anew()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_sweep_in_a_folder_that_is_a_link(opened):
    folder, open_anew = opened
    end = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(end)
    open_anew()
    assert folder.is_symlink() and [path.name for path in end.iterdir()] == ["config.json"]


def test_another_call_may_compute_otherwise(world, undrawn):
    """The reward training of a sweep has a copy of how the sweep computes, `--run.overwrite` included."""
    words = words_for(world, "otherwise", rewards__kl_coef="0.1", ppo__total_episodes=16)
    at = words.index("--rewards.trained_model")
    nested = dict(labels__source=world / "labels.json", labels__valid_source="none", labels__num_train=32, batch_size=8)
    nested |= dict(rollout_batch_size=16, normalize_samples=16)
    words = [*words[:at], *words[at + 2 :], *flags(**{f"rewards__train_new_model__{k}": v for k, v in nested.items()})]
    run(*words, "--run.overwrite", "on")
    run(*words, "--run.threads", "1")


@pytest.mark.parametrize(
    "changes, says",
    [
        (
            dict(rewards__kl_coef=None),
            "nothing to sweep over: give the coefficients, as in --rewards.kl_coef 0.01,0.03",
        ),
        (dict(rewards__kl_coef="0.1,x"), "'x' is not a number of 0 or more"),
        (dict(rewards__kl_coef="0.1,-1"), "'-1' is not a number of 0 or more"),
        (dict(rewards__kl_coef="0.1,"), "'' is not a number of 0 or more"),
        (dict(rewards__kl_coef="0.1,1e-1"), "has a number twice"),
        (dict(seeds=0), "--seeds and --samples must be at least 1"),
        (dict(responses=1), "no choice among fewer than 2"),
        (dict(min_effective=17), "--min_effective 17: must lie between 1 and --responses 16"),
        (dict(rewards__adaptive_kl="on"), "give --rewards.adaptive_kl off"),
        (dict(judges=None), "sentences.jsonl does not exist, so no human ratings can judge"),
        (dict(judges="nobody"), "there is no judge 'nobody'"),
        (dict(samples=41), "has only 40 documents with a query"),
        (dict(split="tset"), "tset.bin does not exist"),
        (dict(rewards__trained_model="nowhere"), "nowhere"),
        (dict(task__response_length=60), "context is 64"),
        (dict(ppo__lr=0), "--ppo.lr 0.0: must be positive"),
        (dict(run__captured_decoding="on"), "--run.captured_decoding on"),
        (dict(ppo__learning_rate=1), "did you mean --ppo.lr?"),
        (dict(sedes=1), "did you mean --seeds?"),
        (dict(task__policy__initial_model="missing"), "needs the model missing"),
    ],
)
def test_refusals(world, changes, says):
    assert says in refused(*words_for(world, "bad", **changes))
    assert not (world / "runs/bad").exists()


def test_it_needs_a_task_and_a_name(world):
    assert "sweep takes a task and a name" in refused("movies", "--rewards.kl_coef", "1")
    assert "what is 'more'?" in refused("movies", "a", "more")
    assert "cannot be a run's name" in refused("movies", "../a", "--rewards.kl_coef", "1")


def test_help_is_true(capsys):
    assert command_line.prepare(["sweep", "cnndm", "--help"], EXPERIMENTS) is None
    text = capsys.readouterr().out
    assert (
        text.count("  --rewards.kl_coef C,C,...\n") == text.count("\n  --rewards.kl_coef") == 1
        and "--task.query_length 500" in text
    )
    assert "--seeds 1" in text and "--evaluation.samples 0" in text and "--ppo.lr 2e-06" in text


# --- best-of-n ---


def test_best_of_n_against_all_choices():
    """Mean over all subsets of n of the N responses, the best of equals drawn at random."""
    random = np.random.default_rng(0)
    proxy = np.concatenate(
        [random.normal(size=(3, 7)), random.integers(0, 3, (3, 7)).astype(float)]
    )  # the latter with ties
    gold = random.normal(size=proxy.shape)
    for n in range(1, 8):
        weights = best_of_n_weights(proxy, n)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
        for row in range(len(proxy)):
            best = [max(proxy[row, list(chosen)]) for chosen in itertools.combinations(range(7), n)]
            theirs = [
                np.mean([gold[row, i] for i in chosen if proxy[row, i] == top])
                for chosen, top in zip(itertools.combinations(range(7), n), best, strict=True)
            ]
            found = means({"proxy": proxy[row : row + 1], "gold": gold[row : row + 1]}, weights[row : row + 1])
            assert found["proxy"][0] == pytest.approx(np.mean(best)) and found["gold"][0] == pytest.approx(
                np.mean(theirs)
            )
    with pytest.raises(ValueError):
        best_of_n_weights(proxy, 8)


def test_the_weights_stay_exact_for_many_responses():
    weights = best_of_n_weights(np.arange(200.0)[None], 64)[0]
    expected = [math.comb(i, 63) / math.comb(200, 64) for i in range(200)]
    np.testing.assert_allclose(weights, expected, rtol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 4, 64])
def test_the_kl_of_best_of_n(n):
    """The best of n of a continuous score has the density n u^(n-1) at the quantile u; of K equally likely ones it
    comes near and is below.
    """
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(np.maximum(density, 1e-300))), abs=1e-4)
    K = 1000
    p = (np.arange(1, K + 1) / K) ** n - (np.arange(K) / K) ** n
    exact = float(np.sum(p * np.log(np.maximum(p, 1e-300) * K)))
    assert exact - 1e-12 <= best_of_n_kl(n) <= exact + 0.01


# --- reweighting ---


def toy():
    """A distribution over six responses and their rewards."""
    return (
        np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03]),
        np.array([-1.0, 0.5, 0.0, 1.0, 2.0, 1.5]),
        np.array([0.0, 1.0, 2.0, 0.5, -1.0, 3.0]),
    )


@pytest.mark.parametrize("beta", [0.4, 1.0, 5.0])
def test_reweighting_against_enumeration(beta):
    reference, reward, gold = toy()
    exact = reference * np.exp(reward / beta)
    exact /= exact.sum()
    drawn = np.random.default_rng(0).choice(6, size=(2, 200_000), p=reference)
    point = optimal_policy(reward[drawn], beta)
    found = means({"proxy": reward[drawn], "gold": gold[drawn]}, point.weights)
    np.testing.assert_allclose(point.weights.sum(1), 1)
    np.testing.assert_allclose(found["proxy"], exact @ reward, atol=0.02)
    np.testing.assert_allclose(found["gold"], exact @ gold, atol=0.03)
    np.testing.assert_allclose(point.kl, exact @ np.log(exact / reference), atol=0.02)
    np.testing.assert_allclose(point.effective / 200_000, 1 / (exact**2 / reference).sum(), rtol=0.03)


def test_reweighting_is_exact_where_each_response_is_there_once():
    """And nothing of the same KL has more reward: the optimal policy's is above best-of-n's."""
    rewards = np.random.default_rng(1).normal(size=(1, 64))
    for beta in betas_for(rewards):
        point, exact = optimal_policy(rewards, beta), np.exp(rewards[0] / beta)
        exact /= exact.sum()
        np.testing.assert_allclose(point.weights[0], exact, rtol=1e-9)
        assert point.kl[0] == pytest.approx(float((exact * np.log(exact * 64)).sum()))
    assert optimal_policy(np.full((1, 8), 1e6), 1e-3).effective[0] == pytest.approx(8)  # nothing to prefer, no overflow
    points = [optimal_policy(rewards, beta) for beta in betas_for(rewards)]
    kls, proxies = [point.kl[0] for point in points], [(point.weights * rewards).sum() for point in points]
    for n in (2, 4, 8):
        assert np.interp(best_of_n_kl(n), kls, proxies) > (best_of_n_weights(rewards, n) * rewards).sum()


# --- who games the reward ---


def made_up(n: int = 60, N: int = 8) -> dict:
    random = np.random.default_rng(0)
    pool = {"proxy": random.normal(size=(n, N)), "a": random.normal(size=(n, N)), "b": random.normal(size=(n, N))}
    sides = {
        name: Scores(
            random.normal(proxy, 0.1, n),
            {"a": random.normal(a, 0.1, n), "b": random.normal(b, 0.1, n)},
            np.full(n, kl),
            [],
        )
        for name, proxy, a, b, kl in (
            ("near", 1.0, 1.0, 1.0, 2.0),
            ("far", 2.0, 0.5, 1.0, 20.0),
            ("mad", 3.0, 1.5, -2.0, 90.0),
        )
    }
    trained = [Member("near", 0.3, 1), Member("far", 0.03, 1), Member("mad", 0.0, 1)]
    return {
        "split": "test",
        "queries": n,
        "responses": N,
        "judges": ["a", "b"],
        "failed": {},
        **figures_of(trained, sides, pool, 3, Bootstrap(n, 1)),
    }


def test_who_games_the_reward():
    result = made_up()
    found = {(row["policy"], row["judge"]): (row["verdict"], row["against"]) for row in result["verdicts"]}
    assert (
        found[("near", "a")] == (None, "reference")
        and found[("far", "a")] == ("gamed", "near")
        and found[("mad", "b")][0] == "gamed"
    )
    assert found[("far", "b")][0] in ("no gain", None) and found[("mad", "a")] == (None, "near")
    text = sweep_table(result)
    assert "far: GAMES THE REWARD. Against near: proxy +" in text and text.index("  near ") < text.index(
        "  far "
    ) < text.index("  mad ")
    assert (
        "no policy got more reward" in verdict_lines([row for row in result["verdicts"] if row["verdict"] is None])[0]
    )


def test_who_is_past_the_peak():
    """Judge b likes the nearest as much as the next and the furthest far less; judge a has no fall to tell of."""
    result = made_up()
    fits = result["fits"]
    assert fits["b"]["policies"]["points"] == 3 and fits["b"]["policies"]["furthest"] == 90
    assert 2 < fits["b"]["policies"]["peak_kl"]["mean"] < 40 and fits["b"]["policies"]["has_peak"] == 1
    assert "mad" in fits["b"]["past"] and "near" not in fits["b"]["past"]
    said = sweep_table(result)
    assert "b: past the peak of the policies' fit: " in said and "a, best of n: d (α − β d)" in said.replace("\n", " ")
    del result["fits"]  # as in results of earlier versions
    assert "peak" not in sweep_table(result)


def test_the_figure_is_a_function_of_the_result(tmp_path):
    result = made_up()
    first, second = (
        write_sweep_figure(result, tmp_path / "one")[0].path,
        write_sweep_figure(json.loads(json.dumps(result)), tmp_path / "two")[0].path,
    )
    assert first.name == "sweep.png"
    for a, b in ((first, second), (first.with_suffix(".svg"), second.with_suffix(".svg"))):
        assert a.read_bytes() == b.read_bytes() and a.stat().st_size > 20_000


EVIL = "<script>alert(1)</script>"


def write_made_up(folder: Path, result: dict) -> Path:
    """A sweep's folder with that result, three queries, and a text that would like to be code."""
    folder.mkdir()
    config = {"stage": "sweep", "task": "movies", "experiment": folder.name, "parameters": {"seeds": 1}}
    result = result | {"task": "movies", "experiment": folder.name, "reference": "model", "proxy": "reward"}
    side = {"response": EVIL, "proxy": 1.5, "kl": 2.0, "gold": {"a": 0.25, "b": -1.0}}
    policies = dict.fromkeys(("reference", *result["policies"]), side)
    rows = [{"query": f"query {i}", "document": i, "policies": policies} for i in range(3)]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_sweep_has_a_page(tmp_path):
    """Verdicts, the figure, the table with failures and what was left out, samples of all policies."""
    result = made_up()
    result |= {
        "failed": {"kl_9_seed_1": f"died of {EVIL}"},
        "optimal": [point | {"shown": False} for point in result["optimal"]],
    }
    page = write_report(write_made_up(tmp_path / "my_sweep", result), samples=2)
    text = page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "gold_against_proxy.png",
        "gold_against_proxy.svg",
        "index.html",
        "sweep.png",
        "sweep.svg",
    ]
    titles = re.findall(r"<h2[^>]*>([^<]+)", text)
    shown = [
        "Is the reward gamed?",
        "Figure",
        "Where the gold score peaks",
        "Scores and KL",
        "Samples",
        "Configuration",
    ]
    assert titles == shown
    assert "far: GAMES THE REWARD <small>against near, by a</small>" in text and text.count("GAMES THE REWARD") >= 2
    for name in ("reference", "near", "far", "mad", "best of 8"):
        assert f"<tr><th>{name}</th>" in text
    assert f"kl_9_seed_1: failed: died of {html.escape(EVIL)}" in text and EVIL not in text
    assert "optimal policies at a beta of" in text and "optimal at" not in text
    assert "The first 2 of 3 queries" in text and text.count(f"<p>{html.escape(EVIL)}</p>") == 2 * 4
    assert "a, near less reference" in text and "python launch.py report my_sweep/near" in text
    honest = result | {"verdicts": [row | {"verdict": None} for row in result["verdicts"]]}
    text = write_report(write_made_up(tmp_path / "honest", honest)).read_text()
    assert "No policy got more reward than one nearer the reference" in text and "GAMES" not in text
    (tmp_path / "honest/result.json").unlink()
    with pytest.raises(UserError, match="has no result.json: run sweep again"):
        write_report(tmp_path / "honest")
