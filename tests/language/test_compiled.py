"""What is compiled computes what is not: by PyTorch's tracer and its gradients, without the compiler behind them, which
takes longer than a test may; `python -m benchmarks.gpu --parts compiled` uses it.
"""

import pytest
import torch

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language import compiled, gpt2
from lm_human_preferences.language.compiled import compile_passes
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.language.sampling import draw, sample

CONFIG = GPT2Config(n_vocab=97, n_ctx=16, n_embd=32, n_head=4, n_layer=3)


@pytest.fixture
def traced():
    """Compiled passes, which later tests do not have."""
    compile_passes(True, backend="aot_eager")
    yield
    compile_passes(False)


def computed(recompute=False):
    """Log-probabilities, entropies and gradients of rows of several lengths."""
    model = GPT2(CONFIG).initialise(torch.Generator().manual_seed(1))
    model.recompute_activations(recompute)
    tokens = torch.randint(96, (5, 9), generator=torch.Generator().manual_seed(2))
    tokens[1, 6:], tokens[3, 2:] = CONFIG.padding_token, CONFIG.padding_token
    states = model(tokens)
    logprobs, entropies = token_logprobs(model, states[:, :-1], tokens[:, 1:].clamp(max=96), 0.7)
    gradients = torch.autograd.grad((logprobs * torch.linspace(-1, 1, 8)).sum(), list(model.parameters()))
    return logprobs, entropies, model.last_states(tokens), *gradients


@pytest.mark.parametrize("recompute", [False, True])
def test_the_same_numbers(traced, recompute, monkeypatch):
    calls, own = [], gpt2._project

    def counted(block, x):
        calls.append(len(x))
        return own(block, x)

    monkeypatch.setattr(gpt2, "_project", counted)
    found = computed(recompute)
    assert len(calls) >= CONFIG.n_layer, "blocks use it"
    compile_passes(False)
    assert not compiled.is_on()
    for ours, plain in zip(found, computed(recompute), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_other_shapes_and_no_gradient(traced):
    """More rows, other lengths, one token a row: nothing of the first shape is built in."""
    model = GPT2(CONFIG).initialise(torch.Generator().manual_seed(1))
    for shape in ((4, 9), (7, 5), (3, 1), (1, 12)):
        tokens = torch.randint(96, shape, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), uncompiled(model, tokens), rtol=1e-5, atol=1e-5)


def uncompiled(function, *arguments):
    """What it gives without the compiler, which stays on."""
    backend, compiled._backend = compiled._backend, None
    try:
        return function(*arguments)
    finally:
        compiled._backend = backend


def test_the_same_tokens(traced):
    """For several sizes, one after the other."""
    for rows, vocabulary in ((5, 97), (5, 97), (3, 97), (4, 500)):
        generator = torch.Generator().manual_seed(rows)
        logits = 3 * torch.randn(rows, vocabulary, generator=generator)
        uniforms = torch.rand(rows, generator=generator)
        tokens, logprobs = draw(logits, uniforms)
        expected, of_expected = uncompiled(draw, logits, uniforms)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(logprobs, of_expected, rtol=1e-5, atol=1e-5)
    assert len(compiled._made) == 1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_decoding_rounds_weights_once_and_so_compiles_no_block(traced, bfloat16, monkeypatch):
    model, calls = GPT2(CONFIG).initialise(torch.Generator().manual_seed(1)), []
    own = gpt2._feed
    monkeypatch.setattr(gpt2, "_feed", lambda block, x: calls.append(len(x)) or own(block, x))
    contexts, uniforms = torch.randint(96, (2, 5)), torch.rand(2, 3)
    with Precision(torch.device("cpu"), bfloat16).autocast():
        sample(model, contexts, uniforms)
    assert len(calls) == (0 if bfloat16 else 3 * CONFIG.n_layer - 1), "the contexts' last block is `last`"


def test_where_it_cannot_compile():
    def broken(*_):
        raise RuntimeError("no compiler\nanywhere")

    with pytest.raises(UserError, match=r"cannot compile here \(.*no compiler.*\); leave it off"):
        compile_passes(True, torch.device("cpu"), backend=broken)
    assert not compiled.is_on()
