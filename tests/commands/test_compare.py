"""`launch.py compare` on a very small world: every method trained and measured, what is done is skipped, the tables,
figure and page; its refusals.
"""

import copy
import dataclasses
import html
import json
import re

import pytest
import torch

from lm_human_preferences.commands import command_line, compare
from lm_human_preferences.commands.inputs import missing
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.reports import compare_report
from lm_human_preferences.reports.report import write_report
from lm_human_preferences.runs.micro_batches import forget_peak_memory

from params import EXPERIMENTS
from small import CONFIG, flags, make_world, policy_flags, run_here

JUDGES = "varied=lm_human_preferences.judging.text_metrics:unrepeated"
METHODS = ("ppo", "rloo", "grpo", "expert_iteration", "dpo", "ilql")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a reward model, and a comparison of all methods."""
    folder = make_world(tmp_path_factory.mktemp("compare"))
    reward = RewardModel(GPT2(CONFIG).initialise(generator_for(0, "test/reward")))
    reward.head.initialise(generator_for(0, "test/head"))
    reward.save(folder / "reward")
    run_here("compare", "movies", "all", *words_of(folder))
    return folder


def words_of(world, **changes) -> list[str]:
    values = dict(
        strengths="0.5,1",
        matched="0.001,1000",
        judges=JUDGES,
        samples=20,
        split="valid",
        responses=8,
        min_effective=2,
        rewards__kl_coef=0.1,
        ppo__total_episodes=32,
        dpo__labels__source=world / "labels.json",
        dpo__labels__valid_source="none",
        dpo__labels__num_train=16,
        dpo__batch_size=8,
        dpo__lr=0.01,
        ilql__labels__source=world / "ratings.json",
        ilql__labels__valid_source="none",
        ilql__labels__num_train=32,
        ilql__batch_size=8,
        ilql__lr=0.01,
        ilql__beta=8,
        expert__batch_size=16,
        expert__total_episodes=16,
        expert__responses_per_query=4,
        expert__whiten_rewards="off",
    )
    base = policy_flags(world, world / "reward")
    at = base.index("--evaluation.samples")
    return [*base[:at], *base[at + 4 :], *flags(**values | changes)]


def result_of(world, name: str = "all") -> dict:
    return json.loads((world / "runs" / name / "result.json").read_text())


def test_every_method_is_trained_at_each_strength(world):
    """Each with its own knob; measured on the same queries; what it cost is known."""
    result, run = result_of(world), world / "runs/all"
    assert result["methods"] == [*METHODS, "best_of_n"] and not result["failed"]
    assert set(result["policies"]) == {f"{method}_{s}_seed_1" for method in METHODS for s in ("0.5", "1")}

    def parameters(name: str) -> dict:
        return json.loads((run / name / "config.json").read_text())["parameters"]

    assert [parameters(f"ppo_{s}_seed_1")["rewards"]["kl_coef"] for s in ("0.5", "1")] == [0.05, 0.1]
    assert [parameters(f"dpo_{s}_seed_1")["beta"] for s in ("0.5", "1")] == [0.2, 0.4]
    assert [parameters(f"expert_iteration_{s}_seed_1")["ppo"]["total_episodes"] for s in ("0.5", "1")] == [32, 16]
    assert parameters("rloo_1_seed_1")["ppo"]["estimator"] == "rloo"
    assert parameters("grpo_1_seed_1")["ppo"]["advantage_scale"] == "group"
    for side in result["policies"].values():
        assert side["seconds"] > 0 and side["memory"] is None and side["kl"]["low"] <= side["kl"]["high"]
    assert result["policies"]["dpo_1_seed_1"]["labels"] == 16
    half, whole = (result["policies"][f"ilql_{s}_seed_1"] for s in ("0.5", "1"))
    assert half["run"] == whole["run"] == "ilql_seed_1" and half["seconds"] == whole["seconds"]
    assert half["labels"] == 32 and half["kl"]["mean"] > whole["kl"]["mean"] > 0  # steered by 16, by 8
    assert not (run / "ilql_1_seed_1").exists() and len(list(run.glob("*/policy"))) == 11
    near, far = result["matched"]["best_of_n"]["varied"]
    assert near["mean"] is not None and far["mean"] is None  # log 8 nats are far from 1000
    assert len((run / "evaluation.jsonl").read_text().splitlines()) == 20


def test_what_is_done_is_skipped(world, capsys):
    """Called again with a method and a seed fewer or a setting more, it trains what is missing alone."""
    written = {path: path.stat().st_mtime_ns for path in (world / "runs/all").glob("*/policy/model.safetensors")}
    run_here("compare", "movies", "all", *words_of(world, methods="dpo,best_of_n", strengths="1,2"))
    said = capsys.readouterr().out
    assert "dpo_1_seed_1: finished already, skipped" in said and "dpo_2_seed_1: training" in said
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    assert result_of(world)["methods"] == ["dpo", "best_of_n"]
    assert "at 0.001 nats" in said and "gold: varied" in said
    run_here("compare", "movies", "all", *words_of(world))
    with pytest.raises(UserError, match="ppo.lr"):
        run_here("compare", "movies", "all", *words_of(world, ppo__lr=0.5))


def test_memory_is_told_of_a_gpu_alone(tmp_path, monkeypatch):
    """On a CPU the peak is that of all that the process has trained; on a GPU each policy's begins anew."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "memory/peak": 2.5}\n{"step": 1, "memory/peak": 3.5}\n')
    for device, told in (("cpu", None), ("cuda", 3.5)):
        (tmp_path / "config.json").write_text(json.dumps({"computed": {"device": device}}))
        assert compare.peak_memory_of(tmp_path) == told
    forgotten = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device, name=name: forgotten.append(name))
    forget_peak_memory(torch.device("cpu"))
    forget_peak_memory(torch.device("cuda"))
    assert forgotten == ["empty_cache", "reset_peak_memory_stats"]


def test_labels_of_all_methods_are_there_before_training(world):
    for name in ("dpo", "ilql"):
        with pytest.raises(UserError, match=f"needs the labels no_{name}.json"):
            words = words_of(world, **{f"{name}__labels__source": f"no_{name}.json"})
            run_here("compare", "movies", "refused", *words)
    params = command_line.comparison_of("movies", EXPERIMENTS)
    params.methods, params.dpo.labels.source = "ppo, best_of_n", "no_dpo.json"
    assert not any("no_dpo" in lack for lack in missing(params))
    assert not (world / "runs/refused").exists()


def test_more_responses_to_each_query_are_another_comparison(world):
    with pytest.raises(UserError, match="responses_per_query"):
        run_here("compare", "movies", "all", *words_of(world, ppo__responses_per_query=2))


def test_a_comparison_has_a_page(world):
    page = write_report(world / "runs/all", samples=2)
    text = html.unescape(page.read_text())
    assert sorted(path.name for path in page.parent.iterdir()) == ["compare.png", "compare.svg", "index.html"]
    titles = re.findall(r"<h2[^>]*>([^<]+)", text)
    assert titles == [
        "At equal distance",
        "Figure",
        "What each method costs",
        "All policies",
        "Samples",
        "Configuration",
    ]
    assert all(method in text for method in METHODS) and "no difference is seen" in text


def interval(mean: float | None, half: float = 0.1) -> dict:
    ends = {"low": None, "high": None} if mean is None else {"low": mean - half, "high": mean + half}
    return {"mean": mean} | ends


def test_what_is_said_at_equal_distance():
    """Who gains most where, and from whom no difference is seen; costs of runs that strengths share count once."""
    gains = {"ppo": (0.2, 0.5), "dpo": (0.35, 0.1), "ilql": (-0.5, None)}
    result = {
        "targets": [2.0, 4.0],
        "methods": [*gains, "best_of_n"],
        "matched": {name: {"j": [interval(value) for value in values]} for name, values in gains.items()}
        | {"best_of_n": {"j": [interval(None), interval(None)]}},
        "policies": {
            name: dict(method=name[:-2], run=run, kl=interval(kl), seconds=60.0, memory=1.5, labels=7)
            for name, run, kl in (("ppo_1", "ppo_1", 3.0), ("ilql_1", "ilql", 9.0), ("ilql_2", "ilql", 4.4))
        },
    }
    assert compare_report.leaders(result, "j") == [
        "at 2 nats dpo gains most, of 3 methods that go as far; no difference is seen from ppo",
        "at 4 nats ppo gains most, of 2 methods that go as far",
    ]
    costs = {row[0].text: [cell.text for cell in row[1:]] for row in compare_report._costs(result)}
    assert costs["ilql"] == costs["ppo"] == ["1", "1.0", "1.0", "1.5", "7"]
    assert costs["best_of_n"] == ["0", "-", "-", "-", "-"]
    rows = [{"policies": dict.fromkeys(["reference", *result["policies"]])}]
    [row] = compare_report.one_of_each_method(result, rows)
    assert list(row["policies"]) == ["reference", "ppo_1", "ilql_2"]


def test_a_task_without_scored_texts_has_no_ilql():
    params = command_line.comparison_of("sentiment", EXPERIMENTS)
    assert "ilql" not in params.methods.split(",") and params.ilql is None
    with pytest.raises(UserError, match="--methods ilql: this task has no texts with scores"):
        compare.check(dataclasses.replace(params, methods="ilql", judges=JUDGES))


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(methods="ppo,kto"), "--methods ppo,kto: expected some of ppo, rloo"),
        (dict(methods="ppo,ppo"), "each once"),
        (dict(strengths="1,x"), "--strengths 1,x: 'x' is not a positive number"),
        (dict(matched="0"), "--matched 0: '0' is not a positive number"),
        (dict(strengths="1,1"), "has a number twice"),
        (dict(rewards__kl_coef=0), "--rewards.kl_coef 0 has no multiples"),
        (dict(responses_per_query=3), "does not divide by --ppo.responses_per_query 3"),
        (dict(dpo__batch_size=7), "--labels.num_train 16 does not divide by --batch_size 7"),
        (dict(run__captured_decoding="on"), "--run.captured_decoding on"),
    ],
)
def test_what_cannot_work_is_refused(world, changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        run_here("compare", "movies", "refused", *words_of(world, **changes))
    assert not (world / "runs/refused").exists()


def test_shares_of_the_ranks_are_looked_at_before_a_reward_model_is_trained(world):
    """A batch that three ranks cannot share is one line, whichever method it belongs to."""
    params = command_line.comparison_of("movies", EXPERIMENTS)
    params.task.policy.initial_model = str(world / "model")
    precision, ranks = choose_precision("cpu", "float32"), World(rank=0, size=3)
    for method, batch, says in (
        ("ppo", "ppo", "--ppo.batch_size"),
        ("dpo", "dpo", "--dpo.batch_size"),
        ("ppo", "rewards.train_new_model", "--rewards.train_new_model.batch_size"),
    ):
        mine = copy.deepcopy(params)
        mine.methods, mine.rewards.train_new_model.rollout_batch_size = method, 48
        for batches in (mine.ppo, mine.dpo, mine.rewards.train_new_model):
            batches.batch_size = 48
        compare.check_on(mine, precision, ranks)
        part = mine
        for name in batch.split("."):
            part = getattr(part, name)
        part.batch_size = 32
        with pytest.raises(UserError, match=re.escape(says)):
            compare.check_on(mine, precision, ranks)
