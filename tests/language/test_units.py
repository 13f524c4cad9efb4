"""The original's small functions (units.npz), each against what does its work here. ORIGINAL details 2-4, 7, 8, 19, 25,
47.

Where compaction replaces a function, the proof is a model whose output shows what a place reads: without blocks and
last layer norm, and with the identity as one of its embeddings.
"""

import numpy as np
import pytest
import torch

from lm_human_preferences.compute import precision
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.language import logprobs
from lm_human_preferences.language.gpt2 import GPT2, MLP, GPT2Config
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.language.sampling import sample
from lm_human_preferences.learning.label_losses import label_statistics, pearson_r

from conftest import TINY_CONFIG, tensor

PADDING = 18


@torch.no_grad()
def bare_model(embedding: str, size: int = 16, padding_token: int = PADDING) -> GPT2:
    """One whose hidden state at a place is the one-hot vector of the token ("wte") or the position ("wpe") that the
    place reads.
    """
    model = GPT2(GPT2Config(n_vocab=size, n_ctx=size, n_embd=size, n_head=1, n_layer=0, padding_token=padding_token))
    for name, parameter in (("wte", model.wte.weight), ("wpe", model.wpe.weight)):
        parameter.copy_(torch.eye(size) if name == embedding else torch.zeros(size, size))
    model.ln_f = torch.nn.Identity()
    return model


def test_gelu(goldens):
    """In an MLP of width 1 that passes its input through the first of its four channels."""
    g, mlp = goldens("units"), MLP(GPT2Config(n_embd=1, n_head=1))
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.zero_()
        mlp.c_fc.weight[0, 0] = mlp.c_proj.weight[0, 0] = 1
        np.testing.assert_allclose(mlp(tensor(g["gelu/x"])[:, None])[:, 0], g["gelu/y"], rtol=0, atol=1e-6)


def test_norm(goldens):
    """Every layer norm of a model, with its default epsilon."""
    g, model = goldens("units"), GPT2(GPT2Config(n_vocab=5, n_ctx=4, n_embd=16, n_head=2, n_layer=2))
    norms = [module for name, module in model.named_modules() if name.split(".")[-1].startswith("ln_")]
    assert len(norms) == 5
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(tensor(g["norm/g"]))
            norm.bias.copy_(tensor(g["norm/b"]))
            np.testing.assert_allclose(norm(tensor(g["norm/x"])), g["norm/y"], rtol=0, atol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("new, all_tokens", [(1, 1), (3, 3), (1, 4), (2, 5)])
def test_attention_mask(goldens, new, all_tokens):
    """A new token sees a token if the output changes with it; row j of the batch has another token at place j."""
    model = GPT2(GPT2Config(n_vocab=9, n_ctx=8, n_embd=16, n_head=2, n_layer=2, padding_token=11)).initialise(
        torch.Generator().manual_seed(0)
    )
    tokens = torch.arange(all_tokens).repeat(all_tokens + 1, 1)
    tokens[range(all_tokens), range(all_tokens)] = 8
    cache, past = model.new_cache(len(tokens), all_tokens), all_tokens - new
    if past:
        model.extend(tokens[:, :past], cache)
    for hidden in (model.extend(tokens[:, past:], cache), model(tokens, columns=slice(past, None))):
        change = (hidden[:-1] - hidden[-1]).abs().amax(-1).T  # [new, all_tokens]
        np.testing.assert_array_equal(change > 1e-5, goldens("units")[f"attention_mask/{new}_{all_tokens}"])


@torch.no_grad()
def test_positions(goldens):
    """A padded place has the last real token's position, one less than what the original computes for it and never
    uses.
    """
    g, model = goldens("units"), bare_model("wpe")
    real = tensor(g["positions/mask"])
    tokens = torch.where(real, 3, PADDING)
    np.testing.assert_array_equal(model(tokens).argmax(-1) + ~real, g["positions/past0"])
    for row, recorded in enumerate(g["positions/past4"]):
        start = 4 + int(real[row, 4:].int().argmax())  # no chunk may start with padding
        cache = model.new_cache(1, tokens.shape[1])
        model.extend(tokens[row : row + 1, :start], cache)
        chunk = model.extend(tokens[row : row + 1, start:], cache)[0].argmax(-1)
        np.testing.assert_array_equal(chunk + ~real[row, start:], recorded[start - 4 :])
    cache, whole = model.new_cache(2, 9), torch.full((2, 9), 3)
    model.extend(whole[:, :4], cache)
    np.testing.assert_array_equal(model.extend(whole[:, 4:], cache).argmax(-1), g["positions/nomask_past4"])


@torch.no_grad()
def test_cumulative_max(goldens):
    """The original finds the last real token with it: with padding wherever the maximum stays, each place must read the
    maximum.
    """
    g, model = goldens("units"), bare_model("wte")
    x, y = tensor(g["cumulative_max/x"]), tensor(g["cumulative_max/y"])
    rises = torch.cat([torch.ones(len(y), 1, dtype=torch.bool), y[:, 1:] > y[:, :-1]], 1)
    tokens = torch.where(rises, x, PADDING)
    assert torch.equal(model(tokens).argmax(-1), y)


def test_logprobs_and_entropies(goldens):
    """With the identity as embedding the hidden states are the logits."""
    g, model = goldens("units"), bare_model("wte", size=23, padding_token=25)
    found, entropies = token_logprobs(model, tensor(g["logits/logits"]), tensor(g["logits/labels"]))
    np.testing.assert_allclose(found.detach(), g["logits/logprobs"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(entropies, g["logits/entropies"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("kept", [0, 7, 20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_kept_in_part_or_made_again(kept, temperature, monkeypatch):
    """Values and gradients are those of PyTorch's log-softmax, however many rows wait for the backward pass; a second
    one makes all again.
    """
    model, generator = bare_model("wte", size=23, padding_token=25), torch.Generator().manual_seed(5)
    monkeypatch.setattr(logprobs, "KEPT_BYTES", {"cpu": 4 * 23 * kept})
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", {"cpu": 8})
    monkeypatch.setattr(logprobs, "BLOCK_ROWS", {"cpu": 3})
    weight = model.wte.weight.requires_grad_(True)
    hidden, labels = (
        torch.randn(20, 23, generator=generator, requires_grad=True),
        torch.randint(23, (20,), generator=generator),
    )
    factors = torch.randn(20, generator=generator)
    mine, entropies = token_logprobs(model, hidden, labels, temperature)
    plain = torch.log_softmax(hidden @ weight.t() / temperature, dim=1)
    torch.testing.assert_close(mine, plain.gather(1, labels[:, None])[:, 0])
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(1))
    expected = torch.autograd.grad((plain.gather(1, labels[:, None])[:, 0] * factors).sum(), (hidden, weight))
    for _ in range(2):
        torch.testing.assert_close(
            torch.autograd.grad((mine * factors).sum(), (hidden, weight), retain_graph=True), expected
        )


@pytest.mark.parametrize("kept", [0, 7, 20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rows_that_align_the_vocabulary_change_nothing(kept, temperature, monkeypatch):
    """As on a GPU: log-probabilities, entropies, gradients and draws where the embedding gets rows of zeros."""
    model, generator = GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(1)), torch.Generator().manual_seed(5)
    V, rows = TINY_CONFIG.n_vocab, 20
    monkeypatch.setitem(logprobs.CHUNK_ROWS, "cpu", 6)
    monkeypatch.setitem(logprobs.BLOCK_ROWS, "cpu", 4)
    monkeypatch.setitem(logprobs.KEPT_BYTES, "cpu", 4 * kept * V)
    states = 30 * torch.randn(rows, TINY_CONFIG.n_embd, generator=generator)  # logits far from 0
    labels, factors = torch.randint(V, (rows,), generator=generator), torch.randn(rows, generator=generator)
    contexts, uniforms = torch.randint(V, (4, 9), generator=generator), torch.rand(4, 12, generator=generator)
    found = []
    for multiple in (1, 64):
        monkeypatch.setitem(precision.VOCABULARY_MULTIPLE, "cpu", multiple)
        hidden = states.clone().requires_grad_()
        model.zero_grad()
        results = token_logprobs(model, hidden, labels, temperature)
        (results[0] * factors).sum().backward()
        drawn = sample(model, contexts, uniforms, temperature=temperature, top_k=40, top_p=0.95)
        assert model.wte.weight.grad.shape == (V, TINY_CONFIG.n_embd) and drawn.tokens.max() < V
        found.append([*results, hidden.grad, model.wte.weight.grad, drawn.logprobs, drawn.tokens])
    assert precision.aligned_vocabulary(model.wte.weight).shape == (128, TINY_CONFIG.n_embd)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)  # of sums of some hundreds


def test_logprobs_of_no_rows_and_of_a_frozen_embedding():
    """Rows may all be filtered out; an embedding without gradient gets none."""
    model = bare_model("wte", size=23, padding_token=25)
    hidden = torch.randn(0, 23, requires_grad=True)
    found, entropies = token_logprobs(model, hidden, torch.zeros(0, dtype=torch.int64))
    found.sum().backward()
    assert found.shape == entropies.shape == (0,) and not model.wte.weight.grad.any()
    model.wte.weight.requires_grad_(False)
    model.wte.weight.grad = None
    hidden = torch.randn(4, 23, requires_grad=True)
    token_logprobs(model, hidden, torch.arange(4))[0].sum().backward()
    plain = hidden.detach().requires_grad_(True)
    torch.log_softmax(plain, 1).diagonal().sum().backward()
    torch.testing.assert_close(hidden.grad, plain.grad)
    assert model.wte.weight.grad is None


@pytest.mark.parametrize("kept", [0, 20])
def test_the_backward_pass_of_logprobs_is_the_same_inside_autocast(kept, monkeypatch):
    """Autocast would round its matrix products to bfloat16, and mix formats where there are several chunks."""
    monkeypatch.setattr(logprobs, "KEPT_BYTES", {"cpu": 4 * 23 * kept})
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", {"cpu": 8})
    model = bare_model("wte", size=23, padding_token=25)
    hidden, labels = torch.randn(20, 23, requires_grad=True), torch.randint(23, (20,))
    gradients = []
    for inside in (False, True):
        loss = token_logprobs(model, hidden, labels)[0].sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            gradients.append(torch.autograd.grad(loss, (hidden, model.wte.weight)))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_pearson_r(goldens):
    """Also as the statistic of scalar ratings."""
    g = goldens("units")
    x, y = tensor(g["pearson/x"]), tensor(g["pearson/y"])
    np.testing.assert_allclose(pearson_r(x, y), g["pearson/r"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(
        label_statistics(label_type("scalar_rating"), x[:, None], y)["corr"], g["pearson/r"], rtol=0, atol=5e-5
    )
