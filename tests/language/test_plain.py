"""The plain GPT-2: against the recorded values of the original, and as the oracle of the fast one."""

import numpy as np
import pytest
import torch

from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.plain import PlainGPT2

from conftest import TINY_CONFIG, tensor
from recorded import make_policy

PADDING = TINY_CONFIG.padding_token


def plain(model: GPT2) -> PlainGPT2:
    result = PlainGPT2(model.config)
    result.load_state_dict(model.state_dict())
    return result


@torch.no_grad()
@pytest.mark.parametrize("case", ["a", "b", "c", "bc"])
def test_recorded_forward(goldens, case):
    f, model = goldens("forward"), plain(make_policy(goldens("weights")).transformer)
    hidden = model(tensor(f[f"{case}/tokens"]))
    np.testing.assert_allclose(hidden, f[f"{case}/h"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(model.logits(hidden), f[f"{case}/lm_logits"], rtol=0, atol=3e-5)


@pytest.fixture(scope="module")
def models():
    """Both in float64, so that only a mistake makes a difference."""
    fast = GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(4))
    return fast.double(), plain(fast).double()


def rows(share: float, B: int = 7, T: int = 20) -> torch.Tensor:
    """Random tokens of which about this share is padding, never in the first column."""
    generator = torch.Generator().manual_seed(int(share * 10))
    tokens = torch.randint(97, (B, T), generator=generator)
    padded = torch.rand(B, T, generator=generator) < share
    padded[:, 0] = False
    return tokens.masked_fill(padded, PADDING)


def compare(models, run) -> None:
    """The same states and gradients of all parameters, where `run` makes states with either model."""
    found = []
    for model in models:
        states = run(model)
        found.append((states, *torch.autograd.grad(states.square().sum(), list(model.parameters()))))
    for one, other in zip(*found, strict=True):  # both modules have their parameters in one order
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_forward_and_gradients(models, share):
    compare(models, lambda model: model(rows(share)))
    fast, oracle = (model.logits(model(rows(share))) for model in models)
    torch.testing.assert_close(fast, oracle.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_shortcuts_of_the_fast_model(models, share):
    """Some columns alone, last states, responses that share their query's pass."""
    fast, _ = models
    tokens = rows(share)
    compare(models, lambda model: model(tokens, columns=slice(4, 9)) if model is fast else model(tokens)[:, 4:9])
    compare(models, lambda model: model.last_states(tokens) if model is fast else model(tokens)[:, -1])
    queries, responses = rows(share, 4, 6), rows(share, 12, 5).view(4, 3, 5)
    whole = torch.cat([queries.repeat_interleave(3, 0), responses.flatten(0, 1)], 1)
    compare(
        models,
        lambda model: model.choice_states(queries, responses) if model is fast else model(whole)[:, -1].view(4, 3, -1),
    )


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_cache_of_the_fast_model(models, share):
    fast, oracle = models
    tokens = rows(share)
    tokens[:, 12] = 5  # no chunk may start with padding
    cache = fast.new_cache(len(tokens), tokens.shape[1])
    hidden = torch.cat([fast.extend(part, cache) for part in tokens.split([12, 8], dim=1)], dim=1)
    torch.testing.assert_close(hidden, oracle(tokens), rtol=1e-9, atol=1e-9)
