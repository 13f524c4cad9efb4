"""The whole command line on a very small world: train_sft, train_reward, train_policy, sample, report; seeds, resume,
world sizes.

Hazards 10, 11, 14, 23-25, 29; DESIGN's invariant that a run is a function of configuration, data and code.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.learning.reward_model import RewardModel

from small import (
    LAUNCH,
    ROOT,
    dpo_flags,
    flags,
    ilql_flags,
    launch,
    make_world,
    metrics,
    policy_flags,
    reward_flags,
    sft_flags,
)

STAGES = {
    "train_reward": (reward_flags, "reward_model"),
    "train_policy": (policy_flags, "policy"),
    "train_sft": (sft_flags, "lm"),
    "train_dpo": (dpo_flags, "policy"),
    "train_ilql": (ilql_flags, "policy"),
}
RUNS = {stage: stage.removeprefix("train_") for stage in STAGES}  # the runs in the small world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a finished run of each stage: runs/reward, runs/policy, runs/sft, runs/dpo, runs/ilql."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    launch("train_reward", "movies", "reward", *reward_flags(folder))
    launch("train_policy", "movies", "policy", *policy_flags(folder, folder / "runs/reward/reward_model"))
    launch("train_sft", "movies", "sft", *sft_flags(folder))
    launch("train_dpo", "movies", "dpo", *dpo_flags(folder))
    launch("train_ilql", "movies", "ilql", *ilql_flags(folder))
    return folder


def stage_words(world, stage: str) -> list[str]:
    make, _ = STAGES[stage]
    return make(world, world / "runs/reward/reward_model") if stage == "train_policy" else make(world)


def weights(folder) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    if (folder / "heads.safetensors").exists():
        tensors |= load_file(folder / "heads.safetensors")
    return tensors


def assert_same_weights(one, other, atol: float = 0.0):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        if atol and name.endswith(
            "c_attn.bias"
        ):  # the keys' part has gradient 0 in exact arithmetic (softmax does not see it): Adam makes steps of noise
            query, _, value = one[name].chunk(3)
            other_query, _, other_value = other[name].chunk(3)
            one[name], other[name] = torch.cat([query, value]), torch.cat([other_query, other_value])
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=name)


def test_perplexity_is_that_of_validation(world):
    said = launch(
        "perplexity",
        "sft",
        world / "data",
        "--rows",
        "documents",
        "--block",
        "16",
        "--save_dir",
        world / "runs",
        "--device",
        "cpu",
        "--precision",
        "float32",
    ).stdout
    expected = json.loads((world / "runs/sft/result.json").read_text())["valid_perplexity"]
    assert f"valid: perplexity {expected:.1f} (" in said
    part = launch(
        "perplexity", world / "runs/sft/lm", world / "data", "--limit", "2", "--split", "train", "--micro_batch", "1"
    ).stdout.splitlines()
    assert len(part) == 1 and "train: perplexity" in part[0] and "2 rows of 32 tokens" in part[0]
    for words, expected in (
        ([], "takes a model and a data set"),
        ([world / "data", "--rows", "references"], "--rows references: must be packed, documents or single"),
        ([world / "data", "--block", "64"], "longer than the model's context of 32"),
        ([world / "data", "--limit", "-1"], "--limit -1: must be at least 0"),
    ):
        failed = launch("perplexity", world / "runs/sft/lm", *words, check=False)
        assert failed.returncode == 2 and expected in failed.stderr and len(failed.stderr.splitlines()) == 1, (
            failed.stderr
        )


def test_deterministic_operations_change_no_more_than_rounding(world):
    """Every operation of a policy run is allowed there; only the sums over probabilities are others on a CPU."""
    launch(
        "train_policy",
        "movies",
        "deterministic",
        *policy_flags(world, world / "runs/reward/reward_model"),
        "--run.deterministic",
        "on",
    )
    losses = [
        [row["ppo/loss/total"] for row in metrics(world / "runs" / name) if "ppo/loss/total" in row]
        for name in ("policy", "deterministic")
    ]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)


def test_reward_training(world):
    run = world / "runs/reward"
    rows = metrics(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(
        [row["train/lr"] for row in rows[:4]], [0.01, 0.0075, 0.005, 0.0025]
    )  # full rate first, 1/4 of it last
    assert {"normalize_before/mean", "normalize_before/std"} <= rows[0].keys()
    assert {"normalize_after/mean", "normalize_after/std", "validation/accuracy"} <= rows[4].keys()
    result = json.loads((run / "result.json").read_text())
    assert result["choices"] == 8 and result["chance"] == 0.25  # what the file has beyond num_train
    assert RewardModel.load(run / "reward_model").gain.item() == pytest.approx(rows[4]["normalize_after/gain"])
    config = json.loads((run / "config.json").read_text())
    assert (
        config["stage"] == "train_reward"
        and config["parameters"]["lr"] == 0.01
        and "torch" in config["versions"]
        and "--lr" in config["command"]
    )
    assert not (run / "checkpoints").exists()


def test_the_normalised_reward_model_has_mean_0_and_deviation_1(world):
    """Scores of the initial language model's raw responses on fresh queries: near 0 and 1 (16 samples set the
    scale).
    """
    rows = metrics(world / "runs/policy")
    assert abs(rows[0]["objective/score"]) < 1.5


def test_policy_training(world):
    run = world / "runs/policy"
    rows = metrics(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]  # ceil(64 / 16)
    np.testing.assert_allclose([row["lr"] for row in rows], [0.003, 0.00225, 0.0015, 0.00075])
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)  # policy = reference
    assert rows[0]["ppo/val/mean"] == 0  # the value head starts at zero
    assert rows[-1]["objective/kl"] != rows[0]["objective/kl"]  # it has moved; a sampled estimate may be below 0
    assert all(row["ppo/ratio/std_before"] < 1e-5 for row in rows)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {"step", "query", "response", "score", "kl", "total"} <= samples[0].keys()
    for row in samples[-4:]:  # the total uses the current coefficient (hazard 19)
        assert row["total"] == pytest.approx(row["score"] - rows[-1]["objective/kl_coef"] * row["kl"], abs=1e-6)
    result = json.loads((run / "result.json").read_text())
    assert result["before"]["kl"] == pytest.approx(0, abs=1e-5) and result["after"]["kl"] != 0
    assert len((run / "evaluation.jsonl").read_text().splitlines()) == 8


def test_supervised_training_learns(world):
    rows = metrics(world / "runs/sft")
    perplexities = [row["valid/perplexity"] for row in rows if "valid/perplexity" in row]
    assert perplexities[-1] < perplexities[0]
    assert json.loads((world / "runs/sft/result.json").read_text())["valid_perplexity"] == pytest.approx(
        min(perplexities)
    )


@pytest.mark.parametrize("run", RUNS.values())
def test_every_metric_is_explained(world, run):
    rows = [json.loads(line) for line in (world / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    explained = set(re.findall(r"`([a-z_0-9/]+)`", (ROOT / "docs/metrics.md").read_text()))
    assert set().union(*rows) - explained == set()


@pytest.mark.parametrize("stage", STAGES)
def test_same_seed_same_run_other_seed_other_run(world, stage):
    name = RUNS[stage]
    launch(stage, "movies", f"again_{name}", *stage_words(world, stage), PYTHONHASHSEED="7")  # sets of another order
    launch(stage, "movies", f"other_{name}", *stage_words(world, stage), "--run.seed", 2)
    runs = world / "runs"
    assert metrics(runs / f"again_{name}") == metrics(runs / name)
    assert_same_weights(runs / f"again_{name}" / STAGES[stage][1], runs / name / STAGES[stage][1])
    assert metrics(runs / f"other_{name}") != metrics(runs / name)


@pytest.mark.parametrize("stage", STAGES)
def test_resume_after_kill_equals_an_uninterrupted_run(world, stage):
    """Killed as soon as a checkpoint exists; the metrics have no gap and no double, the weights are bitwise the
    same.
    """
    name, runs = RUNS[stage], world / "runs"
    words = [*LAUNCH, stage, "movies", f"killed_{name}", *map(str, stage_words(world, stage))]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        not list((runs / f"killed_{name}" / "checkpoints").glob("0*"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (
        runs / f"killed_{name}" / "result.json"
    ).exists():  # it was faster than we: continuing a finished run must do no harm either
        (runs / f"killed_{name}" / "result.json").unlink()
    launch(stage, "movies", f"killed_{name}", *stage_words(world, stage), "--run.resume")
    assert metrics(runs / f"killed_{name}") == metrics(runs / name)
    assert_same_weights(runs / f"killed_{name}" / STAGES[stage][1], runs / name / STAGES[stage][1])


def signalled(process: subprocess.Popen, run: Path, number: int, pids: Callable[[], list[int]]) -> subprocess.Popen:
    """Send a signal to processes of a run as soon as it has logged two steps; the run then ends by itself."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 2:
            for pid in pids():
                os.kill(pid, number)
            break
        time.sleep(0.002)
    process.out, process.err = process.communicate(timeout=120)
    return process


@pytest.mark.parametrize(
    "stage, number",
    [
        ("train_sft", signal.SIGTERM),
        ("train_reward", signal.SIGTERM),
        ("train_policy", signal.SIGINT),
        ("train_ilql", signal.SIGTERM),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_end(world, stage, number):
    name, runs = RUNS[stage], world / "runs"
    words = [stage, "movies", f"asked_{name}", *map(str, stage_words(world, stage)), "--run.save_interval", "0"]
    process = subprocess.Popen([*LAUNCH, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signalled(process, runs / f"asked_{name}", number, lambda: [process.pid])
    assert process.returncode == 0, process.err
    if not (runs / f"asked_{name}" / "result.json").exists():  # else it was faster than we
        assert (
            "all saved; the same command with --run.resume goes on" in process.out
            and "finishing this step and saving" in process.err
        )
        [saved] = (runs / f"asked_{name}" / "checkpoints").iterdir()
        assert int(saved.name) == len(metrics(runs / f"asked_{name}"))
        launch(*words, "--run.resume")
    assert metrics(runs / f"asked_{name}") == metrics(runs / name)
    assert_same_weights(runs / f"asked_{name}" / STAGES[stage][1], runs / name / STAGES[stage][1])


def test_ranks_stop_together_when_one_is_asked(world):
    run = world / "runs/asked_ranks"
    words = [
        "train_policy",
        "movies",
        "asked_ranks",
        *map(str, stage_words(world, "train_policy")),
        "--ppo.total_episodes",
        "1600",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "launch.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def ranks() -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    signalled(process, run, signal.SIGTERM, lambda: ranks()[-1:])
    assert process.returncode == 0, process.err
    assert process.out.count("all saved") == 1
    assert int(sorted((run / "checkpoints").iterdir())[-1].name) == len(metrics(run))


def test_damaged_checkpoints_are_skipped(world):
    """The newest checkpoint is cut short: resume names it, goes on from the one before, and ends at the same
    weights.
    """
    runs = world / "runs"
    words = stage_words(world, "train_policy") + flags(run__save_interval=1, run__keep_checkpoints=3)
    code = (
        "import sys, lm_human_preferences.runs.checkpoints as c\nc.Checkpoints.drop = lambda self: sys.exit(3)\n"
        f"sys.argv = {['launch.py', 'train_policy', 'movies', 'damaged', *map(str, words)]!r}\nimport runpy; "
        "runpy.run_path('launch.py', run_name='__main__')"
    )
    stopped = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert stopped.returncode == 3, stopped.stderr
    checkpoints = sorted((runs / "damaged/checkpoints").iterdir())
    assert [folder.name for folder in checkpoints] == ["00000001", "00000002", "00000003"]
    [newest] = checkpoints[-1].glob("*.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])
    (checkpoints[-2] / "state.json").write_text("{")
    resumed = launch("train_policy", "movies", "damaged", *words, "--run.resume")
    assert "skipping checkpoint 00000003" in resumed.stderr and "skipping checkpoint 00000002" in resumed.stderr
    assert_same_weights(runs / "damaged/policy", runs / "policy/policy")
    assert metrics(runs / "damaged") == metrics(runs / "policy")


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_change_only_rounding(world, stage):
    name, runs = RUNS[stage], world / "runs"
    launch(stage, "movies", f"micro_{name}", *stage_words(world, stage), "--run.micro_batch", 5)
    assert_same_weights(runs / f"micro_{name}" / STAGES[stage][1], runs / name / STAGES[stage][1], atol=5e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one(world, stage):
    name, runs = RUNS[stage], world / "runs"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "launch.py",
            stage,
            "movies",
            f"ranks_{name}",
            *map(str, stage_words(world, stage)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_weights(runs / f"ranks_{name}" / STAGES[stage][1], runs / name / STAGES[stage][1], atol=5e-5)
    ours, theirs = metrics(runs / f"ranks_{name}"), metrics(runs / name)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-3, atol=2e-5)


def test_policy_training_trains_a_reward_model_first(world):
    skipped = ("run.save_dir", "run.device", "run.precision", "run.save_interval")
    words = policy_flags(world)
    reward = reward_flags(world)
    for flag, value in zip(reward[::2], reward[1::2], strict=True):
        if not flag.startswith("--task.") and not any(flag.endswith(name) for name in skipped):
            words += [f"--rewards.train_new_model.{flag[2:]}", value]
    launch("train_policy", "movies", "both", *words)
    assert_same_weights(world / "runs/both_reward/reward_model", world / "runs/reward/reward_model")
    assert_same_weights(world / "runs/both/policy", world / "runs/policy/policy")


def test_noise_makes_training_labels_wrong_and_those_alone(world):
    """None is as ever, bit for bit; with it other labels are learned, the same by all members of an ensemble."""
    for name, noise in (("quiet", 0), ("noisy", 0.25)):
        launch("train_reward", "movies", name, *reward_flags(world), *flags(labels__noise=noise))
    runs = world / "runs"
    assert metrics(runs / "quiet") == metrics(runs / "reward")
    ours, theirs = metrics(runs / "noisy")[0], metrics(runs / "reward")[0]
    assert (
        ours["normalize_before/mean"] == theirs["normalize_before/mean"] and ours["train/loss"] != theirs["train/loss"]
    )
    assert json.loads((runs / "noisy/result.json").read_text())["choices"] == 8
    launch("train_reward", "movies", "members", *reward_flags(world), *flags(labels__noise=0.25, members=2))
    seeds = [
        json.loads((runs / f"members/member_{number}/config.json").read_text())["parameters"]["labels"]["noise_seed"]
        for number in (1, 2)
    ]
    assert seeds == [1, 1]
    assert_same_weights(runs / "members/member_1/reward_model", runs / "noisy/reward_model")


@pytest.mark.parametrize(
    "kind, source",
    [("scalar_rating", "ratings.json"), ("scalar_compare", "comparisons.json"), ("best_of_4", "labels.jsonl")],
)
def test_other_label_types(world, kind, source):
    launch(
        "train_reward",
        "movies",
        f"type_{source}",
        *reward_flags(world),
        *flags(labels__type=kind, labels__source=world / source),
    )
    result = json.loads((world / f"runs/type_{source}/result.json").read_text())
    assert ("accuracy" in result) == (kind == "best_of_4") and np.isfinite(result["loss"])


def test_ppo_starts_from_a_supervised_model_and_from_a_policy(world):
    """'Initial model' and 'resume' are two things (hazard 23)."""
    for name, model in (("from_sft", "runs/sft/lm"), ("from_policy", "runs/policy/policy")):
        launch(
            "train_policy",
            "movies",
            name,
            *policy_flags(world, world / "runs/reward/reward_model"),
            *flags(task__policy__initial_model=world / model, task__query_length=6, ppo__total_episodes=16),
        )
        assert metrics(world / "runs" / name)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_sample_and_report(world):
    save = flags(save_dir=world / "runs", device="cpu", precision="float32")
    first = launch("sample", "policy", *save, "--count", 3).stdout
    assert first.count("|") == 3 and first == launch("sample", "policy", *save, "--count", 3).stdout
    assert launch("sample", "sft", *save, "--prompt", "hello", "--length", 7, "--top_k", 1).stdout.startswith("hello|")
    for run in RUNS.values():
        assert "index.html" in launch("report", run, *flags(save_dir=world / "runs")).stdout
        page = (world / "runs" / run / "report/index.html").read_text()
        assert "<img" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_nothing_random_is_left_to_the_rank(world):
    """Seeds come from the run alone: the same draws whatever rank or world size asks (hazard 11)."""
    from lm_human_preferences.compute.distributed import generator_for

    draws = [torch.rand(3, generator=generator_for(1, "policy/rollout", step)) for step in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("loss", ["ipo", "ipo_mean", "cdpo", "robust"])
def test_other_losses_of_direct_preference_optimisation(world, loss):
    """Each starts from the reference, where all implicit rewards are 0, and goes its own way."""
    launch("train_dpo", "movies", loss, *dpo_flags(world), *flags(loss=loss))
    ours, theirs = metrics(world / "runs" / loss), metrics(world / "runs/dpo")
    assert ours[0]["train/accuracy"] == theirs[0]["train/accuracy"] == pytest.approx(0.25)
    assert theirs[0]["train/loss"] == pytest.approx(np.log(4), abs=1e-5) and ours[0]["train/margin"] == 0
    assert ours[-2]["train/loss"] != theirs[-2]["train/loss"]


def test_the_policy_of_direct_training_is_a_policy_like_any_other(world):
    """It trains on from, is sampled from, and its distance from the reference is measured."""
    launch(
        "train_policy",
        "movies",
        "from_dpo",
        *policy_flags(world, world / "runs/reward/reward_model"),
        *flags(task__policy__initial_model=world / "runs/dpo", ppo__total_episodes=16),
    )
    assert metrics(world / "runs/from_dpo")[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    rows = metrics(world / "runs/dpo")
    np.testing.assert_allclose([row["train/lr"] for row in rows[:-1]], [0.003 * (1 - i / 8) for i in range(8)])
    assert rows[-1]["validation/choices"] == 8 and rows[-2]["train/margin"] > rows[0]["train/margin"] == 0
