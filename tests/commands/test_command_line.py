"""Bad input on the command line: one line on standard error that says what to mend, exit status 2, nothing
half-written. And help, dry runs.

DESIGN's invariant 6; hazards 20, 23, 25, 29, 30.
"""

import contextlib
import io
import json
import os
import shutil
from dataclasses import replace

import pytest

from lm_human_preferences.commands import command_line
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.configuration import apply_overrides, flatten, from_dict, to_dict
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.train_policy import PolicyTrainingParams

from params import EXPERIMENTS
from small import CONFIG, PAD, ROOT, flags, launch, make_world, policy_flags, reward_flags, run_here, sft_flags


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("world"))
    run_here("train_reward", "movies", "reward", *reward_flags(folder))
    return folder


def refused(*words) -> str:
    """The one line with which the command line refuses, in this process; checks its form and the exit status."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        exit_on_user_error(command_line.run)([str(word) for word in words], EXPERIMENTS)
    assert end.value.code == 2, said.getvalue()
    [line] = [line for line in said.getvalue().splitlines() if line.strip()]
    assert line.startswith("error: "), line
    return line


def printed(*words) -> str:
    """What the command line prints on standard output, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command_line.run([str(word) for word in words], EXPERIMENTS)
    return said.getvalue()


def test_a_mistake_is_one_line_and_status_2():
    """The whole program, as a user starts it; the other tests are in this process."""
    done = launch("train_polcy", "movies", "x", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown command 'train_polcy'; did you mean train_policy?\n"


@pytest.mark.parametrize(
    "words, says",
    [
        (["train_polcy", "movies", "x"], "did you mean train_policy"),
        (["train_reward", "movie", "x"], "did you mean movies"),
        (["train_reward", "movies"], "takes a task and a name"),
        (["train_reward", "movies", "x", "y"], "what is 'y'"),
        (["train_reward", "movies", "../x"], "cannot be a run's name"),
        (
            ["train_policy", "movies", "x", "--ppo.learning_rate", "1"],
            "unknown parameter --ppo.learning_rate; did you mean --ppo.lr?",
        ),
        (["train_policy", "movies", "x", "--ppo.batchsize", "1"], "did you mean --ppo.batch_size"),
        (["train_policy", "movies", "x", "--kl_coef", "1"], "did you mean --rewards.kl_coef"),
        (["train_policy", "movies", "x", "--ppo.lr", "fast"], "--ppo.lr fast: expected a number"),
        (["train_policy", "movies", "x", "--ppo.batch_size", "2.5"], "expected a whole number"),
        (["train_policy", "movies", "x", "--ppo.whiten_rewards", "maybe"], "expected on or off"),
        (["train_policy", "movies", "x", "--ppo", "3"], "group of parameters"),
        (
            ["train_policy", "sentiment", "x", "--rewards.adaptive_kl", "off", "--rewards.adaptive_kl.target", "3"],
            "the group rewards.adaptive_kl is off",
        ),
        (["train_policy", "movies", "x", "-lr", "3"], "two dashes"),
        (["report", "no_such_run"], "there is no run"),
        (["sample", "no_such_run"], "there is no run"),
        (["doctor", "no_such_run"], "there is no run"),
        (["tasks", "movis"], "did you mean movies"),
        (["train_policy", "sentiment", "x"], "saved_models/124M"),
        (["train_reward", "cnndm", "x"], "datasets/cnndm"),
    ],
)
def test_refusals(words, says):
    assert says in refused(*words)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(labels__num_train=33), "--labels.num_train 33 does not divide by --batch_size 8"),
        (dict(labels__num_train=4000, batch_size=8), "has 40 labels, --labels.num_train asks for 4000"),
        (dict(task__response_length=4), "the task's length is 4"),
        (dict(labels__type="best_of_x"), "must be best_of_N"),
        (dict(labels__type="scalar_rating"), "'sample' is missing"),
        (dict(task__start_text="ab"), "must be exactly one"),
        (dict(run__captured_decoding="on"), "only policy training samples at each step"),
    ],
)
def test_reward_training_refuses(world, change, says):
    line = refused("train_reward", "movies", "bad", *reward_flags(world), *flags(**change))
    assert says in line
    assert not (world / "runs/bad").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(task__response_length=60), "context is 64"),
        (dict(ppo__batch_size=18, ppo__nminibatches=4), "does not divide by --ppo.nminibatches 4"),
        (dict(ppo__batch_size=16, ppo__nminibatches=4, ppo__whiten_rewards="on"), "minibatches of at least 8"),
        (dict(rewards__trained_model="nowhere"), "there is no model folder nowhere"),
        (dict(run__save_dir="/proc/nowhere"), "cannot write"),
        (dict(run__resume="on"), "there is no run"),
        (dict(run__resume="on", run__overwrite="on"), "exclude each other"),
        (
            dict(run__captured_decoding="on", run__device="cpu"),
            "a CUDA graph needs a CUDA device, this run computes on cpu; leave it off",
        ),
        (dict(run__captured_decoding="maybe"), "--run.captured_decoding maybe: must be auto, on or off"),
        (
            dict(run__compiled=True, run__deterministic=True),
            "--run.compiled on does not go with --run.deterministic on",
        ),
        (dict(run__compiled=True, run__sharding="fsdp"), "--run.compiled on does not go with --run.sharding fsdp"),
    ],
)
def test_policy_training_refuses(world, change, says):
    line = refused(
        "train_policy", "movies", "bad", *policy_flags(world, world / "runs/reward/reward_model"), *flags(**change)
    )
    assert says in line
    assert not (world / "runs/bad").exists()


def test_plain_language_model_as_reward_model(world):
    assert "holds no reward model" in refused("train_policy", "movies", "bad", *policy_flags(world, world / "model"))


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(n_ctx=10), "longer than the reward model's context of 10"),
        (dict(n_vocab=50257, padding_token=50259, encoding="gpt2"), "train both from models of one encoding"),
    ],
)
def test_a_reward_model_that_does_not_fit(world, change, says):
    """Query and response have 11 tokens, the policy's encoding is `letters`."""
    model = RewardModel(GPT2(replace(CONFIG, **change)).initialise(generator_for(0, "test")))
    model.save(world / "misfit")
    assert says in refused("train_policy", "movies", "bad", *policy_flags(world, world / "misfit"))
    assert not (world / "runs/bad").exists()


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda path: path.write_text("not JSON"), "is not JSON"),
        (lambda path: path.write_text("{}"), "label 0: the key 'query' is missing"),
        (lambda path: _edit(path, lambda rows: rows[3].pop("sample2")), "label 3: the key 'sample2' is missing"),
        (
            lambda path: _edit(path, lambda rows: rows[5]["sample1"].__setitem__(0, 99)),
            "label 5: sample1: token 99 is out of range",
        ),
        (lambda path: _edit(path, lambda rows: rows[7].update(best=4)), "label 7: 'best' is 4"),
        (lambda path: _edit(path, lambda rows: rows[2].update(query=[PAD] * 6)), "label 2: query is empty"),
        (lambda path: _edit(path, lambda rows: rows[35].update(best=9)), "label 35: 'best' is 9"),  # held out
        (lambda path: path.unlink(), "labels"),
    ],
)
def test_label_files(world, tmp_path, damage, says):
    path = tmp_path / "labels.json"
    shutil.copy(world / "labels.json", path)
    damage(path)
    assert says in refused("train_reward", "movies", "bad", *reward_flags(world), *flags(labels__source=path))
    assert not (world / "runs/bad").exists()


def _edit(path, change):
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-50]
            ),
            "is damaged",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>404</html>"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "does not describe a GPT-2"),
        (lambda folder: shutil.rmtree(folder), "model"),
    ],
)
def test_model_folders(world, tmp_path, damage, says):
    folder = tmp_path / "model"
    shutil.copytree(world / "model", folder)
    damage(folder)
    assert says in refused(
        "train_reward", "movies", "bad", *reward_flags(world), *flags(task__policy__initial_model=folder)
    )
    assert not (world / "runs/bad").exists()


def test_token_file_shorter_than_its_index(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    path = tmp_path / "data/train.bin"
    path.write_bytes(path.read_bytes()[:-10])
    for stage, words in (
        ("train_reward", [*reward_flags(world), *flags(task__query_dataset=tmp_path / "data")]),
        ("train_sft", [*sft_flags(world), *flags(data__dataset=tmp_path / "data")]),
    ):
        assert "but its index says" in refused(stage, "movies", "bad", *words)
        assert not (world / "runs/bad").exists()


def test_token_file_of_another_encoding(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    path = tmp_path / "data/train.bin"
    path.write_bytes(b"\x28\0" + path.read_bytes()[2:])
    for stage, words in (
        ("train_reward", [*reward_flags(world), *flags(task__query_dataset=tmp_path / "data")]),
        ("train_sft", [*sft_flags(world), *flags(data__dataset=tmp_path / "data")]),
    ):
        assert "holds token 40, but the model's vocabulary has 27" in refused(stage, "movies", "bad", *words)
        assert not (world / "runs/bad").exists()


def test_an_existing_run_is_not_overwritten_by_accident(world):
    line = refused("train_reward", "movies", "reward", *reward_flags(world))
    assert "--run.resume" in line and "--run.overwrite" in line
    assert (world / "runs/reward/reward_model/model.safetensors").exists()
    assert "was started with lr 0.01" in refused(
        "train_reward", "movies", "reward", *reward_flags(world), "--run.resume", "--lr", "0.02"
    )


def test_dry_run_prints_the_resolved_configuration_and_writes_nothing(tmp_path):
    words = ["--dry_run", "--ppo.lr", "1e-5", "--run.save_dir", tmp_path / "runs"]
    resolved = json.loads(printed("train_policy", "cnndm", "x", *words))
    assert (
        resolved["ppo"]["lr"] == 1e-5
        and resolved["ppo"]["whiten_rewards"] is False
        and resolved["task"]["query_length"] == 500
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words, says",
    [
        (["--run.precision", "bf17"], "bf17"),
        (["--ppo.batch_size", "63", "--ppo.nminibatches", "2"], "does not divide by --ppo.nminibatches 2"),
        (["--rewards.kl_coef", "-1"], "must not be negative"),
        (["--ppo.lr"], "--ppo.lr needs a value"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(words, says):
    for more in ([], ["--dry_run"]):
        assert says in refused("train_policy", "movies", "x", *words, *more)


def test_a_dry_run_shows_what_a_run_would_use():
    """A new reward model is trained on the run's own task; where one is given none is trained."""
    words = ["train_policy", "movies", "x", "--task.query_length", "7", "--dry_run"]
    assert json.loads(printed(*words))["rewards"]["train_new_model"]["task"]["query_length"] == 7
    given = json.loads(printed(*words, "--rewards.trained_model", "saved_models/some"))
    assert given["rewards"]["train_new_model"] is None and given["task"]["query_length"] == 7


def test_a_dry_run_changes_no_later_one():
    before = printed("train_policy", "movies", "x", "--dry_run")
    printed("train_policy", "movies", "x", "--rewards.trained_model", "some", "--dry_run")
    assert printed("train_policy", "movies", "x", "--dry_run") == before


def test_that_a_name_is_taken_is_said_first(world, capsys):
    """Nothing is printed before it."""
    (world / "runs/taken").mkdir(exist_ok=True)
    (world / "runs/taken/config.json").write_text("{}")
    (world / "runs/file").touch()
    words = policy_flags(world, world / "runs/reward/reward_model")
    assert "exists already" in refused("train_policy", "movies", "taken", *words)
    assert "runs/file is a file" in refused("train_policy", "movies", "file", *words)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["x" * 201, "é" * 101, "a\0b"])
def test_names_that_no_folder_can_have(world, name):
    assert "cannot be a run's name" in refused("train_reward", "movies", name, *reward_flags(world))


@pytest.mark.parametrize(
    "command, words",
    [
        ("sample", ["x" * 300]),
        ("report", ["x" * 300]),
        ("sample", ["x", "--save_dir", "/proc/cpuinfo"]),
        ("train_reward", ["movies", "x", "--labels.source", "x" * 300]),
        ("train_reward", ["movies", "x", "--task.policy.initial_model", "x" * 300]),
        ("labels", ["inspect", "x" * 300]),
        ("labels", ["inspect", "/"]),
    ],
)
def test_paths_that_a_file_system_refuses(world, command, words):
    refused(command, *words)


TEXTS = ["help", "-5 degrees", "-x", "--", "none", "on", "-- x", "-", "--a text of several words", "a=b", " "]


@pytest.mark.parametrize("text", [*TEXTS, "-h", "--help", "--count", "--seed=3"])
def test_any_text_can_be_a_prompt(monkeypatch, text):
    """As a word of its own where it does not look like a flag, after = in any case."""
    taken = []
    monkeypatch.setattr(command_line.sample, "write_samples", lambda name, params, task: taken.append((name, params)))
    printed("sample", "run", f"--prompt={text}", "--count", "3")
    if text in TEXTS:
        printed("sample", "run", "--prompt", text, "--count", "3")
        printed("sample", "--count", "3", "--prompt", text, "run")
    for name, params in taken:
        assert (name, params.prompt, params.count) == ("run", text, 3)
    assert len(taken) == (3 if text in TEXTS else 1)


def test_a_text_of_a_task_may_look_like_anything():
    words = ["train_policy", "movies", "x", "--dry_run", "--task.query_prefix", "-- help", "--task.query_suffix", "-h "]
    task = json.loads(printed(*words, "--task.end_text", "none", "--task.start_text", "help"))["task"]
    assert (task["query_prefix"], task["query_suffix"]) == ("-- help", "-h ")
    assert (task["start_text"], task["end_text"]) == ("help", None)  # these may be left out, which `none` does


@pytest.mark.parametrize(
    "words, says",
    [
        (["--prompt"], "--prompt needs a value; one that looks like a flag is written --prompt=--TEXT"),
        (["--prompt", "--count", "3"], "--prompt needs a value"),
        (["--count", "-x"], "--count needs a value"),
        (["-x"], "-x: parameters are written with two dashes"),
        (["--"], "--: parameters are written with two dashes"),
        (["-"], "-: parameters are written with two dashes"),
    ],
)
def test_flags_without_their_value(words, says):
    assert says in refused("sample", "run", *words)


def test_help_wins_where_no_text_is_awaited():
    for words in (["--count", "help"], ["--count", "--help"], ["--prompt", "--help"], ["-h"], ["--unknown", "help"]):
        assert printed("sample", "run", *words).startswith("python launch.py sample EXPERIMENT")


def test_samples_are_printed_whatever_the_encoding(world):
    """A prompt that the terminal cannot show; bytes that the locale cannot read are the prompt all the same."""
    words = ["--count", "1", "--length", "2", "--device", "cpu", "--precision", "float32"]
    for environment, expected in (
        (dict(PYTHONIOENCODING="cp1252"), "A caf\ufffd ?"),  # launch reads UTF-8
        (dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"), "A caf? ?"),
    ):
        done = launch("sample", "saved_models/tiny", "--prompt", "A caf\u00e9 \u2192", *words, **environment)
        assert expected in done.stdout and done.stderr == ""


def test_a_run_whose_folder_is_a_link(world, tmp_path):
    """On another disk, say: written at the link's end, and replaced there with --run.overwrite, twice."""
    end, link = tmp_path / "disk/run", world / "runs/linked"
    end.mkdir(parents=True)
    link.symlink_to(end)
    for more in ([], ["--run.overwrite"], ["--run.overwrite"]):
        run_here("train_reward", "movies", "linked", *reward_flags(world), *more)
        assert link.is_symlink() and (end / "reward_model/model.safetensors").is_file()
    assert [path.name for path in end.parent.iterdir()] == ["run"]
    link.unlink()


# --- from another folder ---


@pytest.fixture
def project(world, tmp_path, monkeypatch):
    """A project of a task's data and model, and a folder elsewhere in which the user stands."""
    project, here = tmp_path / "project", tmp_path / "here"
    (project / "saved_models").mkdir(parents=True)
    here.mkdir()
    (project / "datasets").mkdir()
    shutil.copytree(world / "model", project / "saved_models/tiny")
    shutil.copy(world / "labels.json", project / "datasets/labels.json")
    monkeypatch.setenv("LMHP_HOME", str(project))
    monkeypatch.chdir(here)
    return project


def words_elsewhere(world) -> list[str]:
    """Reward training with the paths that params.py has: relative to the project."""
    words = reward_flags(world)
    for flag, value in (
        ("--task.policy.initial_model", "saved_models/tiny"),
        ("--labels.source", "datasets/labels.json"),
        ("--run.save_dir", "saved_models"),
    ):
        words[words.index(flag) + 1] = value
    return words


def test_a_command_given_from_another_folder(world, project, capsys):
    """Finds the project's model and labels, writes there, and goes on from the project's folder as from any other."""
    words = words_elsewhere(world)
    run_here("train_reward", "movies", "x", *words)
    assert (project / "saved_models/x/reward_model/model.safetensors").is_file()
    assert list(project.parent.joinpath("here").iterdir()) == []
    for name in ("x", "saved_models/x"):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):  # after so few steps it may find something
            run_here("doctor", name)
        assert "x (train_reward, " in capsys.readouterr().out
    os.chdir(project)
    run_here("train_reward", "movies", "x", *words, "--run.resume")  # the same run, by other paths
    assert "was started with lr" in refused("train_reward", "movies", "x", *words, "--run.resume", "--lr", "0.5")


def test_saved_models_where_the_user_stands_comes_first(world, project):
    here = project.parent / "here"
    (here / "saved_models").mkdir()
    run_here("train_reward", "movies", "x", *words_elsewhere(world))  # the model is the project's all the same
    assert (here / "saved_models/x/reward_model").is_dir() and not (project / "saved_models/x").exists()


def test_a_new_folder_is_made_where_the_user_stands(world, project):
    run_here("train_reward", "movies", "x", *words_elsewhere(world), "--run.save_dir", "mine")
    assert (project.parent / "here/mine/x/reward_model").is_dir()


def test_launch_py_from_another_folder(tmp_path, monkeypatch):
    """The program itself, with the shipped model."""
    words = ["--prompt", "The film", "--count", "1", "--length", "2", "--device", "cpu", "--precision", "float32"]
    assert "The film" in launch("sample", "tiny", *words, cwd=tmp_path).stdout
    monkeypatch.chdir(tmp_path)
    resolved = json.loads(printed("train_reward", "movies", "x", "--dry_run"))
    assert resolved["task"]["policy"]["initial_model"] == str(ROOT / "saved_models/tiny")
    assert resolved["run"]["save_dir"] == str(ROOT / "saved_models")
    assert list(tmp_path.iterdir()) == []


def test_help_is_for_people():
    assert printed() == printed("help") == printed("--help") == printed("-h")
    assert "train_policy TASK EXPERIMENT" in printed("--help") and "OMP_WAIT_POLICY=active" in printed("--help")
    text = printed("train_policy", "movies", "--help")
    assert "--rewards.kl_coef" in text and "price of a nat" in text
    assert "sentiment" in printed("tasks") and "ppo.lr = 1e-05" in printed("tasks", "sentiment")


@pytest.mark.parametrize("command", command_line.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(command):
    """Its line, and all its parameters, wherever the word for help stands."""
    text = printed(command.name, "--help")
    assert text.startswith(f"{command.line}: {command.help}\n") and text == printed(command.name, "help")
    names = flatten(command.params[0]()).keys() - set(command.hidden)
    assert [name for name in names if f"--{name}" not in text] == []
    assert command.line in printed("--help") and command.help in printed("--help")


def test_the_papers_tasks_have_the_originals_values():
    """ORIGINAL details 66, 84, 85; hazards 16, 20."""
    policy, reward = EXPERIMENTS["train_policy"], EXPERIMENTS["train_reward"]
    for name in ("sentiment", "descriptiveness"):
        p, r = policy[name](), reward[name]()
        assert (p.task.query_length, p.task.response_length, p.task.truncate_token, p.task.truncate_after) == (
            64,
            24,
            13,
            16,
        )
        assert (p.task.start_text, p.task.end_text, p.task.policy.temperature) == (".", ".", 0.7)
        assert (p.ppo.lr, p.ppo.batch_size, p.ppo.total_episodes, p.rewards.kl_coef, p.rewards.adaptive_kl.target) == (
            1e-5,
            512,
            1_000_000,
            0.15,
            6,
        )
        assert (r.batch_size, r.lr, r.labels.num_train, r.rollout_batch_size) == (
            32,
            5e-5,
            4992,
            512,
        ) and p.ppo.whiten_rewards
    for name, kl_coef, temperature in (("cnndm", 0.01, 0.5), ("tldr", 0.03, 0.7)):
        p, r = policy[name](), reward[name]()
        assert (p.task.query_length, p.task.response_length, p.task.truncate_token, p.task.truncate_after) == (
            500,
            75,
            198,
            55,
        )
        assert (p.task.query_suffix, p.task.policy.temperature, p.rewards.kl_coef, p.rewards.adaptive_kl) == (
            "\n\nTL;DR:",
            temperature,
            kl_coef,
            None,
        )
        assert (p.ppo.lr, p.ppo.batch_size, p.ppo.whiten_rewards) == (2e-6, 32, False)
        assert (r.batch_size, r.lr, r.labels.num_train, r.rollout_batch_size) == (16, 2.5e-5, 46_000, 128)
    assert policy["cnndm"]().task.query_prefix == "Article:\n\n" and policy["cnndm"]().task.end_text == "\n"
    papers = ("sentiment", "descriptiveness", "cnndm", "tldr")
    for p in (make() for name, make in policy.items() if name.startswith(papers)):
        assert (p.ppo.noptepochs, p.ppo.nminibatches, p.ppo.lam, p.ppo.gamma, p.ppo.vf_coef, p.ppo.cliprange_value) == (
            4,
            1,
            0.95,
            1.0,
            0.1,
            0.2,
        )


@pytest.mark.parametrize("stage, task", [(stage, task) for stage, tasks in EXPERIMENTS.items() for task in tasks])
def test_every_entry_survives_json(stage, task):
    params = EXPERIMENTS[stage][task]()
    assert from_dict(type(params), json.loads(json.dumps(to_dict(params)))) == params


def test_overrides_switch_groups_on_and_off_whatever_the_order():
    params = apply_overrides(PolicyTrainingParams(), {"rewards.adaptive_kl.target": "3", "rewards.adaptive_kl": "on"})
    assert params.rewards.adaptive_kl.target == 3
    assert apply_overrides(params, {"rewards.adaptive_kl": "off"}).rewards.adaptive_kl is None
    assert (
        apply_overrides(
            params, {"task.start_text": "none", "task.truncate_token": "None", "ppo.batch_size": "1e3"}
        ).ppo.batch_size
        == 1000
    )
    with pytest.raises(UserError, match="expected a number"):
        apply_overrides(params, {"ppo.lr": "nan"})
