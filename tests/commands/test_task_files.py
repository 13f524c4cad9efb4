"""Tasks described in a file, given where a command takes a task."""

import json

import pytest

from lm_human_preferences.commands import command_line
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


def test_other_commands_take_it_too(file, capsys):
    command_line.run(["tasks", file], EXPERIMENTS)
    assert "task.query_length = 7" in capsys.readouterr().out
    command_line.run(["plan", file], EXPERIMENTS)
    assert "train_reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"like": "movie"}, "there is no task 'movie' to be like; did you mean movies?"),
        ({"task.query_lenght": 3}, "no stage of own has the parameter 'task.query_lenght'; did you mean"),
        ({"task.query_length": "long"}, "--task.query_length long: expected a whole number"),
        ({"train_reward": {"rate": 1}}, "train_reward: unknown parameter --rate"),
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
