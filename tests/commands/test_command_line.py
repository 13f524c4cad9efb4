"""Bad input on the command line: one line on standard error that says what to mend, exit status 2, nothing
half-written. And help, dry runs.

DESIGN's invariant 6; hazards 20, 23, 25, 29, 30.
"""

import contextlib
import io
import json
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
from small import CONFIG, PAD, flags, launch, make_world, policy_flags, reward_flags, run_here, sft_flags


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
        (lambda path: path.write_text("not JSON"), "is no JSON"),
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
    for p in (make() for name, make in policy.items() if name != "movies"):  # which is ours
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
