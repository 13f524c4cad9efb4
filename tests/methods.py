"""The recorded values of other methods' public implementations (tests/data/methods/README.md), and models that carry
their weights.
"""

import json
import re
from functools import cache

import numpy as np
import torch
import torch.nn as nn

from lm_human_preferences.language.gpt2 import GPT2, GPT2Config

from conftest import GOLDENS, tensor

FOLDER = GOLDENS.parent / "methods"
PAD = 99  # outside the vocabulary, as padding is here; the recorded rows have a mask instead
CONFIG = GPT2Config(n_vocab=97, n_ctx=64, n_embd=32, n_head=4, n_layer=2, padding_token=PAD)
SMALLER = GPT2Config(n_vocab=61, n_ctx=32, n_embd=16, n_head=2, n_layer=2, padding_token=PAD)  # of ppo_weights.npz
KEYS_BIAS = "attn.c_attn.bias"  # its middle third has gradient 0 in exact arithmetic: Adam makes steps of rounding


@cache
def recorded(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@cache
def settings() -> dict:
    return json.loads((FOLDER / "hparams.json").read_text())


@cache
def _tolerances(name: str) -> list[tuple[re.Pattern, float]]:
    families = json.loads((FOLDER / "tolerances.json").read_text())[f"{name}.npz"]
    return [(re.compile(family["regex"]), family["t"]) for family in families.values()]


def assert_recorded(name: str, key: str, value, only=None) -> None:
    """|value - recorded| <= t * max(1, |recorded|), with the file's tolerance of that array; `only`: a mask of the
    entries that are compared.
    """
    expected = recorded(name)[key]
    t = next(t for pattern, t in _tolerances(name) if pattern.fullmatch(key))
    assert t is not None, f"{key} is an input"
    value = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
    assert value.shape == expected.shape, (key, value.shape, expected.shape)
    far = np.abs(value.astype(np.float64) - expected) > t * np.maximum(1, np.abs(expected))
    if only is not None:
        far &= only
    assert not far.any(), f"{name}.npz {key}: {np.abs(value.astype(np.float64) - expected).max():.2g} off, allowed {t}"


def with_weights(file: str, scope: str, config: GPT2Config = CONFIG) -> GPT2:
    """A model with the recorded weights of `scope`."""
    model, weights = GPT2(config), recorded(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(weights[f"{scope}/transformer.{name}"]))
    return model


def padded(tokens: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Rows int64 with our padding where the mask is 0."""
    return torch.where(tensor(mask) == 1, tensor(tokens), PAD)


def assert_gradients(file: str, prefix: str, model: nn.Module) -> None:
    """Every recorded gradient below `prefix`, by the names of the model's parameters."""
    gradients = {f"{prefix}transformer.{name}": p.grad for name, p in model.named_parameters()}
    keys = [key for key in recorded(file) if key.startswith(f"{prefix}transformer.")]
    assert len(keys) == len(gradients)
    for key in keys:
        assert_recorded(file, key, gradients[key])


def assert_weights_after(file: str, prefix: str, model: nn.Module) -> None:
    """Every recorded weight below `prefix`, but for the keys' biases."""
    for name, p in model.named_parameters():
        key = f"{prefix}transformer.{name}"
        only = None
        if name.endswith(KEYS_BIAS):
            only = np.ones(len(p), dtype=bool)
            only[len(p) // 3 : 2 * len(p) // 3] = False
        assert_recorded(file, key, p, only)
