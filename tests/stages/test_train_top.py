"""--model.train_top: only the last blocks are trained, with the gradients that they have when all are."""

from pathlib import Path

import pytest
import torch

from lm_human_preferences import train_policy
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.memory import Shape
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.next_token import NextTokenLoss
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.training import TrainedPartParams, train_part

from small import CONFIG, flags, make_world, policy_flags, run_here, sft_flags

TRAINED = ("h.1.", "ln_f.")  # of two blocks the upper one


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    RewardModel.from_language_model(folder / "model", generator_for(0, "head")).save(folder / "reward")
    return folder


def only_the_top_changed(model: Path, initial: Path) -> None:
    before, after = load_model(initial).state_dict(), load_model(model).state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) != name.startswith(TRAINED), name


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_a_policy(world, value):
    words = [*policy_flags(world, world / "reward"), *flags(model__train_top=1, value__model=value)]
    run_here("train_policy", "movies", f"top_{value}", *words)
    only_the_top_changed(world / f"runs/top_{value}/policy", world / "model")


def test_a_policy_that_is_resumed(world, monkeypatch):
    words = [*policy_flags(world, world / "reward"), *flags(model__train_top=1)]
    run_here("train_policy", "movies", "whole", *words)
    step = train_policy.PPOTrainer.step

    def stopping(self, number):
        if number == 3:
            raise RuntimeError("stopped")
        return step(self, number)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(train_policy.PPOTrainer, "step", stopping)
        run_here("train_policy", "movies", "in_two", *words)
    run_here("train_policy", "movies", "in_two", *words, "--run.resume")
    one, two = (load_model(world / f"runs/{name}/policy").state_dict() for name in ("whole", "in_two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_a_language_model(world, method):
    words = sft_flags(world) + flags(model__train_top=1, model__initial=world / "model", optimizer__method=method)
    run_here("train_sft", "movies", f"lm_{method}", *words)
    only_the_top_changed(world / f"runs/lm_{method}/lm", world / "model")


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_training_everything(recompute):
    tokens = torch.randint(26, (3, 20), generator=generator_for(0, "test"))
    grads = []
    for top in (None, 1):
        model = GPT2(CONFIG).initialise(generator_for(0, "model"))
        model.recompute_activations(recompute)
        train_part(model, TrainedPartParams(top))
        NextTokenLoss(model)(tokens[:, :-1], tokens[:, 1:]).mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    everything, upper = grads
    assert {name for name, grad in upper.items() if grad is not None} == {
        n for n in everything if n.startswith(TRAINED)
    }
    for name, grad in upper.items():
        assert grad is None or torch.allclose(grad, everything[name], rtol=1e-6, atol=1e-9), name


def test_all_blocks_still_leave_the_embeddings():
    model = GPT2(CONFIG)
    train_part(model, TrainedPartParams(2))
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"wte.weight", "wpe.weight"}


@pytest.mark.parametrize("stage", ["train_policy", "train_sft"])
def test_numbers_that_no_model_has(world, stage):
    words = policy_flags(world, world / "reward") if stage == "train_policy" else sft_flags(world)
    for number, says in ((0, "--model.train_top 0: must be at least 1"), (3, "--model.train_top 3: the model has 2")):
        with pytest.raises(UserError, match=says):
            run_here(stage, "movies", "bad", *words, *flags(model__train_top=number))
    assert not (world / "runs/bad").exists()


def test_memory_that_is_predicted():
    """Of GPT-2 124M two blocks of twelve are 14.2 million parameters: 57 MB instead of 498."""
    every, upper = (Shape(GPT2Config(), False, "cpu", top) for top in (None, 2))
    assert upper.weights() == every.weights() == every.trained()
    model = GPT2(GPT2Config(n_vocab=27, padding_token=27))
    model.train_only_top(2)
    assert upper.trained() == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) == 56_709_120
    kept = [shape.training(64, 8, 0, recompute=False).per_row for shape in (every, upper)]
    assert kept[1] < kept[0] / 4
