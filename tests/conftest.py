"""Shared by the tests: the recorded values of the original, and GPT-2 models that carry their weights."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # for the processes that tests start too: bitwise comparisons need one number of threads

import numpy as np
import pytest
import torch

from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.tensorflow_checkpoints import original_name

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cpu"))  # of what is recorded: benchmarks/gpu/right.py names a GPU
GOLDENS = Path(__file__).parent / "data" / "goldens"
TINY_CONFIG = GPT2Config(n_vocab=97, n_ctx=64, n_embd=32, n_head=4, n_layer=3, padding_token=99)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests, and processes that they start, leave among the temporary files (locks, torchrun's logs) goes where
    pytest keeps those of its last three runs.
    """
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def sick_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the tests of the doctor."""
    from sick import make_sick_world

    return make_sick_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def stopped_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the tests of faults."""
    from faults import make_stopped_world

    return make_stopped_world(tmp_path_factory.mktemp("faults"))


class Goldens:
    """`goldens("ppo")["whiten/loss"]`: the recorded arrays by file."""

    def __init__(self):
        self.files: dict[str, dict[str, np.ndarray]] = {}

    def __call__(self, name: str) -> dict[str, np.ndarray]:
        if name not in self.files:
            with np.load(GOLDENS / f"{name}.npz") as file:
                self.files[name] = {key: file[key] for key in file.files}
        return self.files[name]

    @staticmethod
    def json(name: str):
        return json.loads((GOLDENS / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens()


def tensor(array) -> torch.Tensor:
    """A recorded array as a tensor; integers as int64."""
    result = torch.from_numpy(np.array(array))
    return (result.long() if result.dtype in (torch.int32, torch.int16) else result).to(DEVICE)


def load_original(model: GPT2, weights: dict[str, np.ndarray], scope: str) -> GPT2:
    """Copy the recorded weights of `scope` ('policy', 'ref_policy', 'reward_model') into `model`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            array = weights[f"{scope}/{original_name(name)}"]
            parameter.copy_(tensor(array).reshape(parameter.shape))
    return model.to(DEVICE)


if DEVICE.type != "cpu":  # comparisons with recorded arrays take what lies on a GPU as it is
    _numpy = torch.Tensor.numpy
    torch.Tensor.numpy = lambda self, **more: _numpy(self.detach().cpu(), **more)
    torch.Tensor.__array__ = lambda self, dtype=None, copy=None: np.array(self.numpy(), dtype=dtype)
