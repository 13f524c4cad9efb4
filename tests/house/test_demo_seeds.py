"""The demonstration over seeds: its commands are the Makefile's, it goes on where it stopped, and what it writes."""

import json
import math
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest

from benchmarks import demo_seeds, runner
from benchmarks.demo_seeds import Member, commands_of, course_table, members_of, readme_table, score_at
from benchmarks.runner import WORDS, Command, Runner, run_all
from lm_human_preferences.commands import command_line
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json, write_json
from lm_human_preferences.reports.expected import Figure, prediction_range

from params import EXPERIMENTS
from small import ROOT


def members(folder):
    return members_of("1,2", "float32,bfloat16", folder)


def test_its_commands_are_those_of_make_demo():
    """But for where runs lie, seed, device and precision."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    demo = [line.split() for line in re.findall(r"\$\(RUN\) launch.py (.*)", makefile)]
    for command in commands_of(Member("float32", 3, Path("F")), "cpu", 1, None):
        words = " ".join(command.words)
        for stage, name in demo_seeds.DEMO.items():
            words = words.replace(f"F/{stage}_float32_3", name).replace(f"{stage}_float32_3", name)
        words = words.replace(f"reward={'demo_reward'}", "reward=saved_models/demo_reward")
        words = words.replace("trained_model demo_reward", "trained_model saved_models/demo_reward")
        words = re.sub(r" --(run\.\w+|device|precision|save_dir) \S+", "", words).split()
        theirs = next(line for line in demo if line[0] == words[0])
        assert words == [word for word in theirs if word not in ("--run.overwrite", "--overwrite")]


def test_its_commands_resolve(capsys):
    for command in commands_of(Member("bfloat16", 3, Path("F")), "cpu", 1, 8.0):
        if command.words[0] in command_line.STAGES:
            command_line.run([*command.words, "--dry_run"], EXPERIMENTS)
            resolved = json.loads(capsys.readouterr().out)
            assert resolved["run"]["seed"] == 3 and resolved["run"]["precision"] == "bfloat16"
            if command.name.startswith("steered"):
                assert resolved["rewards"]["adaptive_kl"] == {"target": 8.0, "horizon": demo_seeds.HORIZON}


def test_what_is_finished_is_skipped_and_a_failure_ends_its_demonstration(tmp_path, capfd):
    def command(name, *words):
        return Command(name, list(words), tmp_path / name / "result.json")

    write_json(tmp_path / "finished/result.json", {})
    commands = [command("finished", "no such command"), command("fails", "no_such_command"), command("later", "tasks")]
    assert Runner(tmp_path).run(commands) == "fails"
    assert "fails: FAILED (exit status 2)" in capfd.readouterr().out and not (tmp_path / "logs/later.txt").exists()
    assert "no_such_command" in (tmp_path / "logs/fails.txt").read_text()
    stopped = Runner(tmp_path)
    stopped.stop()
    assert stopped.run([command("later", "tasks")]) == "later" and not (tmp_path / "logs/later").exists()


def test_a_run_that_was_stopped_is_not_done(tmp_path, monkeypatch, capfd):
    """It ends with status 0, and SIGTERM to the study stops what it has started."""
    (tmp_path / "launch.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "if sys.argv[1] == 'long': os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)\n"
    )
    monkeypatch.setattr(runner, "project_root", lambda: tmp_path)
    chain = [Command(name, [name], tmp_path / name / "result.json") for name in ("short", "later")]
    assert run_all([chain], tmp_path, 1) == ["short"]
    assert re.search("short: stopped after 0 s", capfd.readouterr().out) and not (tmp_path / "seconds.json").exists()

    @exit_on_user_error
    def study():
        run_all([[Command("long", ["long"], tmp_path / "long/result.json")]], tmp_path, 1)

    with pytest.raises(SystemExit) as ended:
        study()
    said = capfd.readouterr()
    assert ended.value.code == 2 and "stopped; the same command goes on from here" in said.err
    assert re.search("long: stopped after [0-9] s", said.out)


def test_what_was_made_otherwise_is_not_taken_as_the_answer(tmp_path, monkeypatch):
    """Not where it runs, how its folder is spelt, or on what; and a folder that does not say is taken as it is."""
    (tmp_path / "launch.py").write_text(
        "import pathlib, sys\n"
        "words = sys.argv[1:]\n"
        "folder = pathlib.Path(words[words.index('--run.save_dir') + 1], words[2])\n"
        "folder.mkdir(parents=True)\n"
        "(folder / 'result.json').write_text('{}')\n"
    )
    monkeypatch.setattr(runner, "project_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)

    def command(*words, name="policy_1", folder=Path("F")):
        told = ["train_policy", "movies", name, "--rewards.trained_model", str(folder / "reward_1"), *words]
        return Command(name, [*told, "--run.save_dir", str(folder)], folder / name / "result.json")

    folder = Path("F")
    assert run_all([[command("--kl", "6", "--run.threads", "1")]], folder, 1) == []
    assert read_json(folder / WORDS)["policy_1"] == {
        "": "train_policy movies policy_1",
        "--rewards.trained_model": "reward_1",
        "--kl": "6",
    }
    for alike in (["--kl", "6", "--run.threads", "2"], ["--run.device", "cuda", "--kl=6"]):
        assert run_all([[command(*alike)]], folder, 1) == []
    far = tmp_path / "F"
    assert run_all([[command("--kl", "6", folder=far)]], far, 1) == [], "spelt otherwise"
    for other, said in (
        (["--kl", "2"], "was made with --kl 6 and is asked for with --kl 2; take another --folder"),
        ([], "was made with --kl 6 and is asked for with no --kl"),
        (["--kl", "6", "--x", "1"], "was made with no --x and is asked for with --x 1"),
    ):
        for only_report in (False, True):
            with pytest.raises(UserError, match=f"F/policy_1 {said}"):
                run_all([[command("--y", "1", name="policy_2")], [command(*other)]], folder, 1, only_report)
    assert not (folder / "policy_2").exists(), "nothing is started"
    (folder / "policy_1/result.json").unlink()
    assert run_all([[command("--kl", "2")]], folder, 1) == ["policy_1"], "neither finished nor begun: another one"
    write_json(folder / "policy_1/config.json", {})
    with pytest.raises(UserError, match="was made with --kl 2"):
        run_all([[command("--kl", "6")]], folder, 1)
    write_json(folder / "policy_1/result.json", {})
    (folder / WORDS).unlink()
    assert run_all([[command("--kl", "6")]], folder, 1) == [], "an earlier version's folder"


def write_runs(members, kl=lambda member: 7.0 + member.seed):
    """Finished runs with figures that the seed decides."""
    for member in members:
        folder = member.folder
        config = {
            "commit": "c",
            "parameters": {"lr": 0.1, "run": {"seed": member.seed}},
            "computed": {"processor": "P", "precision": member.precision, "torch": "T"},
        }
        share = {"mean": 0.8 + 0.02 * member.seed, "low": 0.7, "high": 0.9}
        number = {"mean": kl(member), "low": kl(member) - 0.1, "high": kl(member) + 0.1}
        figures = {"scores": {"words": number}, "kl": number, "no_valid_end": share, "distinct_2": share}
        win = {"judge": "words", "policy": "after", "against": "before", "share": share}
        results = {
            "reward": {"accuracy": 0.6, "standard_error": 0.01},
            "policy": {"after": {"score": 2.0, "kl": kl(member), "valid": 0.9, "distinct_2": 0.3}},
            "evaluation": {"policies": {"after": figures}, "wins": [win]},
        }
        for stage, result in results.items():
            write_json(folder / member.name(stage) / "config.json", config)
            write_json(folder / member.name(stage) / "result.json", result)
        rows = [{"objective/kl": 0.25 * step, "objective/score": 0.5 * step + member.seed} for step in range(40)]
        path = folder / member.name("policy") / "metrics.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["demo_seeds", *map(str, words)])
    demo_seeds.main.__wrapped__()


def test_ranges_and_tables(tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy")
    write_runs(members(tmp_path / "runs"))
    output = tmp_path / "expected.json"
    run(monkeypatch, "--only_report", "--seeds", "1,2", "--folder", tmp_path / "runs", "--output", output)
    said, stored = capsys.readouterr().out, json.loads(output.read_text())
    assert stored["computed"] == [["P", "bfloat16", "T"], ["P", "float32", "T"]] and stored["commit"] == ["c"]
    evaluation = stored["runs"]["demo_evaluation"]
    assert evaluation["parameters"] == {"lr": 0.1}
    kl = evaluation["figures"]["after/kl"]["float32"]
    assert (kl["mean"], kl["least"], kl["most"], kl["seeds"], kl["values"]) == (8.5, 8.0, 9.0, [1, 2], [8.0, 9.0])
    assert kl["high"] - kl["mean"] == pytest.approx(63.657 * 0.5**0.5 * 1.5**0.5, rel=1e-4), "Student's t, one degree"
    for precision, rounding in (("float32", 0.25), ("bfloat16", 1.5)):  # which equal seeds still have
        accuracy = stored["runs"]["demo_reward"]["figures"]["accuracy"][precision]
        assert accuracy["high"] - accuracy["mean"] == pytest.approx(rounding * 0.0196)
    assert "| KL to the initial model, nats per response |  | 8.50 (8.00 to 9.00) |  | 8.50 (8.00 to 9.00) |" in said
    assert "preferred by the judge of words, ties split |  | 83.0% (82.0% to 84.0%)" in said
    assert "accuracy of the reward model, float32: 60.0%, 2 runs" in said


def test_another_machines_runs_count_too(tmp_path, monkeypatch, capsys):
    """Only those that are finished there, and the commands are the first machine's alone."""
    pytest.importorskip("scipy")
    write_runs(members(tmp_path / "here"))
    write_runs(members(tmp_path / "there")[:2], kl=lambda member: 9.5)
    words = ["--seeds", "1,2", "--folder", tmp_path / "here", "--also", tmp_path / "there"]
    output = tmp_path / "expected.json"
    run(monkeypatch, "--only_report", *words, "--output", output)
    kl = json.loads(output.read_text())["runs"]["demo_evaluation"]["figures"]["after/kl"]["float32"]
    assert sorted(zip(kl["seeds"], kl["values"], strict=True)) == [(1, 8.0), (1, 9.5), (2, 9.0)]
    assert (kl["mean"], kl["least"], kl["most"]) == (8.875, 8.0, 9.5), "seed 1 counts once, as 8.75"
    half = 63.657 * statistics.stdev([8.75, 9.0]) * 1.5**0.5
    assert kl["high"] - kl["mean"] == pytest.approx(half, rel=1e-4), "two seeds, one degree of freedom"
    assert "| 8.88 (8.00 to 9.50) |" in capsys.readouterr().out
    with pytest.raises(UserError, match="two seeds at least, 1 is done"):
        run(monkeypatch, "--only_report", "--seeds", "1", *words[2:], "--output", output)
    run(monkeypatch, "--dry_run", *words)
    assert "there" not in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no such folder"):
        run(monkeypatch, "--only_report", "--also", tmp_path / "nowhere", "--output", output)


def test_readmes_table_and_the_ranges_are_of_the_runs_in_expected_json(monkeypatch):
    """Each seed counts once in both, and what changes nothing is not stated."""
    t = pytest.importorskip("scipy.stats").t
    stored = read_json(ROOT / "static/expected.json")["runs"]
    for name, stage in stored.items():
        assert "evaluation.shown" not in stage["parameters"]
        for key, precision, figure in ((k, p, f) for k, by in stage["figures"].items() for p, f in by.items()):
            by_seed = {seed: [] for seed in figure["seeds"]}
            for seed, value in zip(figure["seeds"], figure["values"], strict=True):
                by_seed[seed].append(value)
            means = [statistics.fmean(values) for values in by_seed.values()]
            range_ = prediction_range(means, t.ppf(0.995, len(means) - 1), figure["high"] - figure["mean"])
            found = figure["mean"], figure["low"], figure["high"]
            assert found == pytest.approx(tuple(range_)), f"{name}: {key} in {precision}"

    def stored_figures(members, stage):
        forms = {"scores": "{:+.2f}", "kl": "{:.2f}"}
        return {
            key: {
                precision: {
                    Member(precision, seed, Path(str(number))): Figure(
                        figure["values"][number],
                        next((form for part, form in forms.items() if part in key.split("/")), "{:.1%}"),
                    )
                    for number, seed in enumerate(figure["seeds"])
                }
                for precision, figure in by_precision.items()
            }
            for key, by_precision in stored["demo_evaluation"]["figures"].items()
        }

    monkeypatch.setattr(demo_seeds, "figures_by_member", stored_figures)
    readme = (ROOT / "README.md").read_text()
    for line in readme_table([]):
        assert line.replace("|  |", "| |").replace("| 0.00 |", "| 0 |") in readme


def test_a_range_needs_two_seeds_that_were_told_the_same(tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    write_runs(members(tmp_path)[:3])
    words = ["--only_report", "--seeds", "1,2", "--folder", tmp_path, "--output", tmp_path / "expected.json"]
    with pytest.raises(UserError, match="bfloat16: a range needs two seeds at least, 1 is done"):
        run(monkeypatch, *words)
    write_runs(members(tmp_path)[3:])
    path = tmp_path / members(tmp_path)[3].name("reward") / "config.json"
    path.write_text(path.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(UserError, match="reward_float32_1 and .*reward_bfloat16_2 were told different parameters"):
        run(monkeypatch, *words)
    assert not (tmp_path / "expected.json").exists()


def test_the_course_at_equal_kl(tmp_path):
    """Between the smoothed steps, and nothing where a run never comes so far."""
    rows = [{"objective/kl": float(step), "objective/score": 2.0 * step} for step in range(10)]
    assert score_at(rows, 4.25) == pytest.approx(8.5) and math.isnan(score_at(rows, 9.0))
    assert math.isnan(score_at(rows[:3], 1.0))
    write_runs(members(tmp_path))
    assert course_table(members(tmp_path))[2].startswith("| float32 | +5.50 (+5.00 to +6.00), 2 of 2 |")
    assert readme_table(members(tmp_path), "steered_evaluation") == ["no finished steered_evaluation"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["--seeds", "1,x"], "expected whole numbers"),
        (["--seeds", "1,1"], "none of them twice"),
        (["--precisions", "float16"], "float16 is neither"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--target_kl", "0"], "--target_kl 0.0: must be positive"),
    ],
)
def test_refusals(monkeypatch, words, says):
    with pytest.raises(UserError, match=says):
        run(monkeypatch, *words)


def test_the_documented_command_is_one():
    text = (ROOT / "docs/evaluation.md").read_text()
    (line,) = re.findall(r"^    python -m benchmarks\.demo_seeds (.*)$", text, re.MULTILINE)
    arguments = demo_seeds.parser().parse_args(shlex.split(line))
    assert len(members_of(arguments.seeds, arguments.precisions, Path("F"))) == 10 and arguments.target_kl == 8
