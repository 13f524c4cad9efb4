"""`launch.py play`: what it loads, what is refused, the link that it prints, Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from lm_human_preferences.commands import play as command
from lm_human_preferences.commands.play import own_reward
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json, write_json
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import save_model
from lm_human_preferences.learning.reward_model import RewardModel

from small import LAUNCH, ROOT, flags, make_world, policy_flags, run_here


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """With a policy's run `mine`, of two steps, and the reward model that it was trained for."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    reward = RewardModel.from_language_model(folder / "model", generator_for(0, "test/reward"))
    reward.save(folder / "runs/reward/reward_model")
    words = policy_flags(folder, folder / "runs/reward/reward_model")
    run_here("train_policy", "movies", "mine", *words, *flags(ppo__total_episodes=32))
    return folder


def arguments(world, **more):
    return flags(**(dict(port=0, save_dir=world / "runs", device="cpu", precision="float32") | more))


@pytest.fixture
def served(monkeypatch):
    """What would be served, instead of serving it."""
    from lm_human_preferences.serving import play_page

    stages = []
    monkeypatch.setattr(play_page, "playing", stages.append)
    monkeypatch.setattr(command, "serve", lambda application, listener: None)
    return stages


def test_it_serves_until_ctrl_c(world):
    words = ["play", "mine", *arguments(world, beside=world / "model", prompt="a film")]
    process = subprocess.Popen(
        [*LAUNCH, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        said += line
    assert said.startswith("mine beside model; scores: reward\n")
    link = re.search(r"http://127\.0\.0\.1:\d+/play/\S+", said)[0]
    assert "a film" in urllib.request.urlopen(link, timeout=30).read().decode()
    body = dict(text="a film", temperature=1.0, seed=0, length=5, page="a page of a test", number=1)
    request = urllib.request.Request(f"{link}/write", json.dumps(body).encode(), {"Content-Type": "application/json"})
    events = [json.loads(line) for line in urllib.request.urlopen(request, timeout=30).read().splitlines()]
    assert events[0]["kind"] == "start" and set(events[-1]["scores"][0]) == {"reward"}
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out.endswith("stopped\n") and err == ""


def test_the_page_begins_as_the_task_has_it(world, served):
    run_here("play", "mine", *arguments(world, beside=world / "model"))
    players = served[0].players
    task = read_json(world / "runs/mine/config.json")["parameters"]["task"]
    assert list(players.models) == ["mine", "model"] and [judge.name for judge in players.judges] == ["reward"]
    assert (players.length, players.ends) == (task["response_length"], Ends((26,), 1))
    assert players.temperature == task["policy"]["temperature"] and players.capacity == 64


def test_a_model_folder_alone(world, served):
    run_here("play", str(world / "model"), *arguments(world))
    players = served[0].players
    assert (
        list(players.models) == ["model"]
        and players.judges == []
        and players.task is None
        and players.ends == Ends((26,))
    )


def test_judges_that_are_named(world, served, monkeypatch):
    judges = f"a={world / 'runs/reward'},b={world / 'runs/reward/reward_model'}"
    run_here("play", "mine", *arguments(world, judges=judges))
    run_here("play", "mine", *arguments(world, judges="none"))
    assert [[judge.name for judge in stage.players.judges] for stage in served] == [["a", "b"], []]


def test_a_reward_model_that_is_gone(world, served, tmp_path, capsys):
    shutil.copytree(world / "runs/mine", tmp_path / "mine")
    config = read_json(tmp_path / "mine/config.json")
    config["parameters"]["rewards"]["trained_model"] = "saved_models/not_there/reward_model"
    write_json(tmp_path / "mine/config.json", config)
    run_here("play", "mine", *arguments(world, save_dir=tmp_path))
    assert served[0].players.judges == []
    assert "no scores: the run's reward model saved_models/not_there/reward_model is gone" in capsys.readouterr().out


def test_a_run_that_asked_is_scored_by_what_learnt_last(world, served, tmp_path):
    """The highest count of labels among those that are finished."""
    shutil.copytree(world / "runs/mine", tmp_path / "mine")
    config = read_json(tmp_path / "mine/config.json")
    first = Path(config["parameters"]["rewards"]["trained_model"])
    for name in ("20", "100", "1000", "more"):
        shutil.copytree(first, tmp_path / f"mine_reward_{name}/reward_model")
        if name != "1000":
            (tmp_path / f"mine_reward_{name}/result.json").write_text("{}")
    for online, expected in ((None, first), ({"labels": 100}, tmp_path / "mine_reward_100/reward_model")):
        config["parameters"]["online"] = online
        write_json(tmp_path / "mine/config.json", config)
        assert own_reward("mine", str(tmp_path)).endswith(f"={expected}")


@pytest.mark.parametrize(
    "name, changed, said",
    [
        ("nothing", {}, "there is no run or model folder 'nothing'"),
        ("demo_policy", {}, "there is no run or model folder 'demo_policy' in .*; make demo trains it"),
        ("mine", dict(beside="nothing"), "there is no run or model folder 'nothing'"),
        ("mine", dict(beside="OTHER"), "encodings differ"),
        ("mine", dict(judges="nobody"), "there is no judge 'nobody'"),
        ("mine", dict(judges="choices:SHEET"), "they score no text"),
        ("mine", dict(port=70000), "--port 70000"),
        ("mine", dict(expires_hours=-1), "must be positive"),
        ("mine", dict(host="203.0.113.7"), "cannot listen on 203.0.113.7"),
        ("mine", dict(device="tpu"), "must be auto, cpu, cuda"),
        ("mine", dict(temperature=1), "temperature"),
    ],
)
def test_bad_input_is_one_line(world, served, name, changed, said):
    config = GPT2Config(n_vocab=50257, n_ctx=16, n_embd=4, n_head=1, n_layer=1, padding_token=50259, encoding="gpt2")
    if not (world / "OTHER").exists():
        save_model(world / "OTHER", GPT2(config).initialise(generator_for(0, "test/other")))
    row = {"query": "a", "first": "b", "second": "c", "choice": "first", "policies": ["x", "y"]}
    (world / "SHEET.jsonl").write_text(json.dumps(row) + "\n")
    put = {"OTHER": str(world / "OTHER"), "choices:SHEET": f"choices:{world / 'SHEET.jsonl'}"}
    changed = {key: put.get(value, value) for key, value in changed.items()}
    with pytest.raises(UserError, match=said) as raised:
        run_here("play", name, *arguments(world, **changed))
    assert "\n" not in str(raised.value) and served == []
