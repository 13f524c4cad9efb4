"""Tasks described in a file, given where a command takes a task."""

import json

import pytest

from lm_human_preferences.commands import command_line
from lm_human_preferences.commands.command import find_command
from lm_human_preferences.commands.task_files import with_task_files
from lm_human_preferences.foundation.errors import UserError

from params import EXPERIMENTS

TASK = {
    "task.query_length": 7,
    "task.query_suffix": "\n\nAnswer:",
    "labels.type": "scalar_rating",
    "labels.source": "some.csv",
    "rewards.adaptive_kl": True,
    "rewards.adaptive_kl.target": 5.5,
    "labels.valid_source": None,
    "train_reward": {"lr": 0.001, "batch_size": 16},
    "train_policy": {"ppo.lr": 3e-6},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(TASK))
    return str(path)


def resolved(capsys, *words):
    command_line.run([*words, "--dry_run"], EXPERIMENTS)
    return json.loads(capsys.readouterr().out)


def test_each_stage_takes_what_it_has(file, capsys):
    reward = resolved(capsys, "train_reward", file, "x")
    assert (reward["task"]["query_length"], reward["task"]["query_suffix"]) == (7, "\n\nAnswer:")
    assert (reward["labels"]["type"], reward["labels"]["source"]) == ("scalar_rating", "some.csv")
    assert (reward["lr"], reward["batch_size"], reward["task"]["query_dataset"]) == (0.001, 16, "own")
    policy = resolved(capsys, "train_policy", file, "x")
    assert policy["rewards"]["adaptive_kl"]["target"] == 5.5 and policy["ppo"]["lr"] == 3e-6
    new = policy["rewards"]["train_new_model"]
    assert (new["lr"], new["labels"]["type"], new["task"]["query_length"]) == (0.001, "scalar_rating", 7)


def test_flags_come_on_top_and_another_task_may_be_the_pattern(file, tmp_path, capsys):
    assert resolved(capsys, "train_reward", file, "x", "--task.query_length", "9")["task"]["query_length"] == 9
    (tmp_path / "like.json").write_text(json.dumps({"like": "tldr", "task.response_length": 60}))
    like = resolved(capsys, "train_reward", str(tmp_path / "like.json"), "x")
    assert (like["task"]["response_length"], like["task"]["query_dataset"]) == (60, "tldr")


@pytest.mark.parametrize("like", sorted(EXPERIMENTS["train_policy"]))
def test_every_task_may_be_the_pattern(tmp_path, like, monkeypatch):
    """A parameter holds where its group is on, and is left out where that is off."""
    file = str(tmp_path / "like.json")
    (tmp_path / "like.json").write_text(json.dumps({"like": like, "task.query_length": 8, "labels.num_train": 64}))
    command = find_command("train_policy", command_line.COMMANDS)
    entries = with_task_files(command, [file, "x"], EXPERIMENTS)
    policy = entries["train_policy"][file]()
    assert policy.task.query_length == 8
    new = policy.rewards.train_new_model
    assert new is None or new.labels.num_train == 64
    for stage in EXPERIMENTS:
        if like in EXPERIMENTS[stage] and stage != "train_sft":
            assert entries[stage][file]().task.query_length == 8


def test_it_may_stand_after_flags(file, capsys):
    assert resolved(capsys, "train_reward", "--run.seed", "3", file, "x", "--lr", "0.1")["task"]["query_length"] == 7
    command_line.run(["train_reward", file, "--help"], EXPERIMENTS)
    assert "--task.query_length 7" in capsys.readouterr().out


def test_other_commands_take_it_too(file, capsys):
    command_line.run(["tasks", file], EXPERIMENTS)
    assert "task.query_length = 7" in capsys.readouterr().out
    command_line.run(["plan", file], EXPERIMENTS)
    plan = capsys.readouterr().out
    assert "train_reward, " in plan and "train_dpo is left out: --labels.type scalar_rating" in plan
    assert "train_dpo, " not in plan


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"like": "movie"}, "there is no task 'movie' to be like; did you mean movies?"),
        ({"task.query_lenght": 3}, "no stage of own has the parameter 'task.query_lenght'; did you mean"),
        ({"task.query_length": "long"}, "--task.query_length long: expected a whole number"),
        ({"train_reward": {"rate": 1}}, "train_reward: unknown parameter --rate"),
        ({"like": "sentiment", "train_ilql": {"nonsense": 1}}, "sentiment has no train_ilql, only train_sft, train_"),
        (
            {"like": "imdb", "rewards.adaptive_kl": False, "rewards.adaptive_kl.target": 3},
            "'rewards.adaptive_kl.target': the group rewards.adaptive_kl is off; switch it on with",
        ),
        ({"train_reward": 5}, "'train_reward' must hold an object of parameters"),
        ([1], "holds a list, not a JSON object"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, settings, says):
    (tmp_path / "a.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as error:
        command_line.run(["train_reward", str(tmp_path / "a.json"), "x", "--dry_run"], EXPERIMENTS)
    assert "a.json" in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        command_line.run(["train_reward", str(tmp_path / "none.json"), "x", "--dry_run"], EXPERIMENTS)
