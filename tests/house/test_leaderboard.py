"""The leaderboard's row: minutes of both trainings, what counts, and the whole of it on a stand-in for training."""

import re
import sys

import pytest

from benchmarks import leaderboard, runner
from benchmarks.demo_seeds import Member
from benchmarks.leaderboard import HEADER, Outcome, outcome_of, row, why_not
from benchmarks.runner import SECONDS
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json, write_json

from small import ROOT


def outcome(seed=1, minutes=10.0, preferred=0.9, kl=7.0, commit="abc", processor="P", threads=2, precision="float32"):
    return Outcome(seed, minutes, preferred, kl, commit, processor, threads, precision)


def write_seed(folder, seed, preferred=0.86, kl=7.5, timed=True):
    """The finished runs of a seed."""
    member = Member("float32", seed, folder)
    interval = lambda value: {"mean": value, "low": value - 0.01, "high": value + 0.01}  # noqa: E731  # used thrice
    figures = {"scores": {}, "kl": interval(kl), "no_valid_end": interval(0.1), "distinct_2": interval(0.3)}
    wins = [{"judge": "sentences", "policy": "after", "against": "before", "share": interval(preferred)}]
    results = {"reward": {}, "policy": {}, "evaluation": {"policies": {"after": figures}, "wins": wins}}
    for stage, result in results.items():
        config = {"commit": "0123456789abcdef", "computed": {"processor": "P", "threads": 2}}
        write_json(folder / member.name(stage) / "config.json", config)
        write_json(folder / member.name(stage) / "result.json", result)
    if timed:
        path = folder / SECONDS
        before = read_json(path) if path.exists() else {}
        write_json(path, before | {member.name("reward"): 240.0, member.name("policy"): 480.0 + 60 * seed})
    return member


def test_a_row_has_both_trainings_minutes_and_the_gold_judges_share(tmp_path):
    members = [write_seed(tmp_path, seed) for seed in (1, 2, 3)]
    found = [outcome_of(member) for member in members]
    assert [one.minutes for one in found] == [13.0, 14.0, 15.0] and why_not(found) is None
    line = row(found, "2026-01-02", "a larger step")
    assert line == (
        "| 2026-01-02 | 01234567 | 14.0 (13.0 to 15.0) | 86.0% | 7.5 | 3 | P | a larger step |"
    ) and line.count("|") == HEADER[0].count("|")
    assert outcome_of(Member("float32", 4, tmp_path)) is None


@pytest.mark.parametrize(
    "outcomes, said",
    [
        ([outcome(1), outcome(2)], "2 of the 3 seeds"),
        ([outcome(s, precision=p) for s in (1, 2) for p in ("float32", "bfloat16")], "2 of the 3 seeds"),
        ([outcome(1), outcome(2), outcome(3, precision="bfloat16")], "not all were trained in one precision"),
        ([outcome(1), outcome(2, kl=8.1), outcome(3)], "seed 2 has not 85% preferred at 8 nats or less"),
        ([outcome(1, preferred=0.849), outcome(2, kl=9), outcome(3)], "seed 1, 2 has not"),
        ([outcome(1, threads=8), outcome(2), outcome(3)], "2 threads"),
        ([outcome(1, commit="abc+"), outcome(2), outcome(3)], "no commit has"),
    ],
)
def test_what_does_not_count(outcomes, said):
    assert said in why_not(outcomes)


def test_a_training_that_was_interrupted_has_no_time(tmp_path):
    member = write_seed(tmp_path, 1, timed=False)
    with pytest.raises(UserError, match="reward_float32_1 was interrupted"):
        outcome_of(member)


def test_the_whole_of_it_on_a_stand_in(tmp_path, monkeypatch, capsys):
    """Every command is run once, in its order, and what is timed are the trainings; called again nothing runs."""
    for seed in (1, 2):
        write_seed(tmp_path / "prepared", seed, timed=False)
    (tmp_path / "launch.py").write_text(
        "import shutil, sys\n"
        "words = sys.argv[1:]\n"
        "with open('said.txt', 'a') as file: print(*words, file=file)\n"
        "after = lambda flag: words[words.index(flag) + 1]\n"
        "judging = words[0] == 'evaluate'\n"
        "name = after('--experiment') if judging else words[2]\n"
        "folder = after('--save_dir' if judging else '--run.save_dir')\n"
        "shutil.copytree(f'prepared/{name}', f'{folder}/{name}')\n"
    )
    monkeypatch.setattr(runner, "project_root", lambda: tmp_path)
    words = ["--folder", str(tmp_path / "runs"), "--seeds", "1,2", "--what", "nothing", "--", "--ppo.lr", "2e-4"]
    for _ in range(2):
        leaderboard.main.__wrapped__(words)
        said = capsys.readouterr().out
        assert re.search(r"^seed 2: 0.\d minutes, 86.0% preferred at 7.5 nats: reached$", said, re.MULTILINE)
        assert re.search(r"^\| 20\d\d-.* \| 2 \| P \| nothing \|$", said, re.MULTILINE)
        assert "does not count: 2 of the 3 seeds" in said
    for more in ([], ["--only_report"]):
        with pytest.raises(
            UserError, match="policy_float32_1 was made with --ppo.lr 2e-4 and is asked for with --ppo.lr"
        ):
            leaderboard.main.__wrapped__([*more, *words[:-1], "1e-4"])
    run = (tmp_path / "said.txt").read_text().splitlines()
    assert [line.split()[0] for line in run] == ["train_reward", "train_policy", "evaluate"] * 2
    assert [line.endswith("--ppo.lr 2e-4") for line in run] == [False, True, False] * 2
    assert all("--run.threads 2" in line for line in run if line.startswith("train"))


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no seed of"):
        leaderboard.main.__wrapped__(["--only_report", "--folder", str(tmp_path)])
    with pytest.raises(UserError, match="--precision float32,bfloat16: must be float32 or bfloat16"):
        leaderboard.main.__wrapped__(["--dry_run", "--precision", "float32,bfloat16"])
    with pytest.raises(UserError, match="expected whole numbers"):
        leaderboard.main.__wrapped__(["--seeds", "one"])
    monkeypatch.setattr(sys, "argv", ["leaderboard", "--dry_run", "--seeds", "7"])
    leaderboard.main.__wrapped__()


def test_the_page_has_only_rows_that_count():
    """Each row of docs/leaderboard.md has three seeds or more, 85% or more and 8 nats or less."""
    text = (ROOT / "docs/leaderboard.md").read_text()
    lines = text.splitlines()
    start = lines.index(HEADER[0])
    assert lines[start + 1] == HEADER[1]
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        preferred, kl, seeds = (re.findall(r"[\d.]+", cell) for cell in cells[3:6])
        assert min(map(float, preferred)) >= 85 and max(map(float, kl)) <= 8.04 and int(seeds[0]) >= 3, line
