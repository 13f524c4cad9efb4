"""Commands that are given a folder of another kind, or whose config.json is JSON of another shape: one line each."""

import json
import shutil

import pytest

from lm_human_preferences.foundation.errors import UserError

from small import flags, make_world, run_here

CONFIGS = {
    "a_list": [1],
    "nothing": None,
    "task_is_a_list": {"stage": "train_policy", "parameters": {"task": [1]}},
    "task_of_other_types": {"stage": "train_policy", "parameters": {"task": {"query_length": "ten"}}},
    "group_is_a_list": {"stage": "train_policy", "parameters": {"task": {"policy": [1]}}},
    "parameters_are_a_list": {"stage": "train_policy", "parameters": [1]},
    "reward": {"stage": "train_reward", "parameters": {"labels": 3}},
    "evaluation": {"stage": "evaluate", "parameters": {}},
    "a_sweep": {"stage": "sweep", "parameters": {}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run folder for each of CONFIGS, with a model where runs have one, and results of another shape."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    for name, config in CONFIGS.items():
        run = folder / "runs" / name
        model = "reward_model" if name == "reward" else "kl_1_seed_1/policy" if name == "a_sweep" else "policy"
        if name != "evaluation":
            shutil.copytree(folder / "model", run / model)
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(config))
        if name in ("evaluation", "a_sweep"):
            (run / "result.json").write_text('{"task": "movies"}')
        (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "lr": 1.0}}\n' for step in range(2)))
    return folder


def refused(command, *words) -> str:
    with pytest.raises(UserError) as caught:
        run_here(command, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, says",
    [
        ("a_list", "config.json holds a list, not a JSON object"),
        ("nothing", "config.json holds null, not a JSON object"),
        ("task_is_a_list", "[1] is not a group of TaskParams"),
        ("task_of_other_types", "query_length is 'ten', which TaskParams does not take"),
        ("group_is_a_list", "[1] is not a group of"),
        ("reward", "trains a reward model, which writes no text"),
        ("evaluation", "holds results of evaluate, not a model"),
        ("a_sweep", "name one of them, such as a_sweep/kl_1_seed_1"),
    ],
)
def test_no_samples_and_no_comparison_of_it(world, name, says):
    where = flags(save_dir=world / "runs", device="cpu")
    assert says in refused("sample", name, "--prompt", "abc", *where)
    assert says in refused("evaluate", "movies", "--policies", f"a={name}", *where)


@pytest.mark.parametrize(
    "name, says",
    [
        ("reward", "3 is not a group of LabelParams"),
        ("a_list", "neither a run of train_reward nor a reward-model folder"),
        ("evaluation", "neither a run of train_reward nor a reward-model folder"),
    ],
)
def test_no_quality_of_it(world, name, says):
    assert says in refused("reward_quality", name, *flags(save_dir=world / "runs", device="cpu"))


@pytest.mark.parametrize(
    "name, says",
    [
        ("a_list", "has no metrics yet"),
        ("evaluation", "has no 'policies': run evaluate again, with this version"),
        ("a_sweep", "has no 'policies': run sweep again, with this version"),
    ],
)
def test_no_page_of_it(world, name, says):
    assert says in refused("report", name, *flags(save_dir=world / "runs"))
    assert not (world / "runs" / name / "report").exists()


def test_a_page_without_parameters(world):
    run_here("report", "parameters_are_a_list", *flags(save_dir=world / "runs"))
    assert "<summary>Parameters</summary>" in (world / "runs/parameters_are_a_list/report/index.html").read_text()


def test_a_flag_of_the_other_kind_of_command(world):
    """Runs have their flags in groups, commands that make no run have them bare; each names the other's."""
    assert "did you mean --device?" in refused("sample", "a_list", "--run.device", "cpu")
    assert "did you mean --run.device?" in refused("train_reward", "movies", "x", "--device", "cpu")
