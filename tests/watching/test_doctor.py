"""The doctor: warnings while a run goes on, after it was resumed and on several ranks; the command, its exit status and
the page.
"""

import re
import shutil
import subprocess
import sys
import time

import pytest

from lm_human_preferences.foundation.configuration import _all_names
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.train_policy import PPOTrainer
from lm_human_preferences.watching.checks import CHECKS, checks_of
from lm_human_preferences.watching.doctor import Examination, examine
from lm_human_preferences.watching.doctor_page import SECTIONS, doctor_page
from lm_human_preferences.watching.history import STAGES, History

from sick import PARAMS, in_world, recorded, run
from small import ROOT, flags, launch, metrics, run_here


@pytest.fixture(scope="module")
def world(sick_world):
    return sick_world


# --- while a run goes on ---


@pytest.fixture(scope="module")
def collapsed(world):
    """The flags of a run that collapses, and its folder: reports at several steps."""
    words, settings = in_world(world, "train_policy")
    words = words + flags(**settings | dict(rewards__kl_coef=0, ppo__lr=0.01, run__save_interval=5))
    run(world, "train_policy", "collapsed", words)
    return words, world / "runs/collapsed"


@pytest.mark.parametrize("stop", [9, 12, 19])
def test_a_resumed_run_neither_repeats_nor_loses_warnings(world, collapsed, monkeypatch, capsys, stop):
    words, whole = collapsed
    name, step = f"stopped_{stop}", PPOTrainer.step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            PPOTrainer,
            "step",
            lambda self, number: step(self, number) if number < stop else (_ for _ in ()).throw(KeyboardInterrupt),
        )
        run(world, "train_policy", name, words)
    capsys.readouterr()
    run(world, "train_policy", name, words + ["--run.resume", "on"])
    assert (world / "runs" / name / "warnings.jsonl").read_text() == (whole / "warnings.jsonl").read_text()
    assert metrics(world / "runs" / name) == metrics(whole)
    said_again = [int(number) for number in re.findall(r"(?:WARNING|SEVERE) \w+, step (\d+)", capsys.readouterr().err)]
    steps = [row["step"] for row in read_jsonl(whole / "warnings.jsonl")]
    assert (
        said_again == [number for number in steps if number >= stop // 5 * 5]
        and 0 < len(said_again) < len(steps)
        or stop == 9
    )


def test_only_the_first_rank_speaks(world, collapsed):
    words, whole = collapsed
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "launch.py",
            "train_policy",
            "movies",
            "two_ranks",
            *map(str, words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    alone, together = (
        [(row["check"], row["severe"]) for row in read_jsonl(world / f"runs/{name}/warnings.jsonl")]
        for name in ("collapsed", "two_ranks")
    )
    assert alone == together and len(re.findall(r"(?:WARNING|SEVERE) \w+, step", result.stderr)) == len(together)


def test_the_checks_cost_next_to_nothing():
    rows, config, _ = recorded("policy")
    examination, started = Examination(History("train_policy", config)), time.perf_counter()
    for step in range(2000):
        examination.see(rows[step % len(rows)] | {"step": step % len(rows)})
    assert (time.perf_counter() - started) / 2000 < 2e-3  # 0.1 ms on an idle core, against steps of 10 ms and more


# --- the command ---


def test_exit_status_and_output(world, collapsed, capsys):
    sick = launch("doctor", "collapsed", "--save_dir", world / "runs", check=False)
    assert sick.returncode == 1 and sick.stderr == ""
    assert (
        "SEVERE kl_exploding, step" in sick.stdout
        and "(first seen at step" in sick.stdout
        and "--rewards.kl_coef (now 0.0)" in sick.stdout
    )
    fine = next(line for line in sick.stdout.splitlines() if line.startswith("fine: "))
    assert (
        "ratio" in fine
        and "kl_exploding" not in fine
        and sick.stdout.count("\n  change  ") == sick.stdout.count("SEVERE") + sick.stdout.count("WARNING")
    )
    run_here("doctor", "reward", "--save_dir", world / "runs")  # status 0: nothing is raised
    assert "healthy" in capsys.readouterr().out
    for words, says in ((("nothing",), "there is no run"), ((), "takes one name")):
        with pytest.raises(UserError, match=says):
            run_here("doctor", *words, "--save_dir", world / "runs")


@pytest.mark.parametrize(
    "file, content, says",
    [
        ("metrics.jsonl", "", "no metrics yet"),
        ("metrics.jsonl", None, "no metrics yet"),
        ("config.json", "{}", "not that of a run"),
        ("config.json", "{", "not readable as JSON"),
        ("metrics.jsonl", "{\n{}\n", "damaged in line 1"),
    ],
)
def test_what_is_no_run_is_one_line(world, tmp_path, file, content, says):
    shutil.copytree(world / "runs/reward", tmp_path / "run")
    if content is None:
        (tmp_path / "run" / file).unlink()
    else:
        (tmp_path / "run" / file).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        examine(tmp_path / "run")
    assert "\n" not in str(caught.value)


# --- the page ---


def test_the_page_is_what_the_checks_say():
    """If this fails: python -m lm_human_preferences.watching.doctor_page > docs/doctor.md."""
    assert (ROOT / "docs/doctor.md").read_text() == doctor_page()


def test_the_page_has_every_check():
    assert [check for _, checks in SECTIONS for check in checks] == list(CHECKS)


def test_no_stage_has_two_checks_of_one_name():
    for stage in STAGES:
        names = [check.name for check in checks_of(stage)]
        assert len(names) == len(set(names)) and names


def test_the_page_names_flags_and_metrics_that_exist():
    text = doctor_page()
    known = set().union(*(_all_names(kind) for kind in PARAMS.values())) | {"save_dir"}
    assert set(re.findall(r"--([\w.]*\w)", text)) <= known
    assert set(
        re.findall(r"`((?:objective|ppo|online|train|validation|valid|labels|normalize_\w+)/[\w/]+)`", text)
    ) <= set(re.findall(r"`([a-z_0-9/]+)`", (ROOT / "docs/metrics.md").read_text()))
    assert max(len(line) for line in text.splitlines()) <= 120
