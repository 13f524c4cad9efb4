"""The loss from a part of the vocabulary: its formula and gradients against autograd, and that it is unbiased."""

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.language.sampled_vocabulary import BLOCK_LOGITS, SampledVocabulary

from small import CONFIG

TOKENS = np.random.default_rng(0).zipf(1.5, 400).clip(max=CONFIG.n_vocab) - 1


@pytest.fixture
def model():
    return GPT2(CONFIG).initialise(torch.Generator().manual_seed(0))


def _hidden(rows: int) -> torch.Tensor:
    return torch.randn(rows, CONFIG.n_embd, generator=torch.Generator().manual_seed(1)) * 3


def _by_autograd(
    sampled: SampledVocabulary, model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, step: int
) -> torch.Tensor:
    """The definition, in float64: the label counts once, every other token that was drawn 1 / p-fold."""
    drawn = (
        torch.rand(CONFIG.n_vocab, generator=generator_for(sampled.seed, "sft/vocabulary", step), dtype=torch.float64)
        < sampled.probability
    )
    logits = hidden.double() @ model.wte.weight.double().t()
    counts = torch.where(drawn, 1 / sampled.probability, 0.0).expand(len(labels), -1).scatter(1, labels[:, None], 1.0)
    return (counts * logits.exp()).sum(1).log() - logits.gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("block", [2**19, 40])
@pytest.mark.parametrize("size", [8, 20])
def test_loss_and_gradients(model, size, block, monkeypatch):
    monkeypatch.setitem(BLOCK_LOGITS, "cpu", block)
    sampled, labels, weights = (
        SampledVocabulary(TOKENS, CONFIG.n_vocab, size, seed=1),
        torch.from_numpy(TOKENS[:50]),
        torch.linspace(-1, 2, 50),
    )
    results = []
    for losses_of in (sampled.losses, lambda *arguments: _by_autograd(sampled, *arguments)):
        hidden = _hidden(50).requires_grad_()
        model.zero_grad()
        losses = losses_of(model, hidden, labels, 3)
        (losses * weights).sum().backward()
        results.append((losses.detach().float(), hidden.grad, model.wte.weight.grad.clone()))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_step_in_which_no_token_takes_part_changes_nothing(model):
    """The label's own weight is the whole normaliser, so that it is certain."""
    sampled, hidden = SampledVocabulary(TOKENS, CONFIG.n_vocab, 1, seed=1), _hidden(50).requires_grad_()
    drawn = [
        torch.rand(CONFIG.n_vocab, generator=generator_for(1, "sft/vocabulary", step), dtype=torch.float64)
        < sampled.probability
        for step in range(50)
    ]
    nobody = next(step for step, one in enumerate(drawn) if not one.any())
    losses = sampled.losses(model, hidden, torch.from_numpy(TOKENS[:50]), nobody)
    losses.sum().backward()
    assert losses.shape == (50,) and not losses.any() and not hidden.grad.any()


def test_where_every_token_takes_part_the_loss_is_exact(model):
    labels, sampled = torch.from_numpy(TOKENS[:50]), SampledVocabulary(TOKENS, CONFIG.n_vocab, 8, seed=1)
    sampled.probability.fill_(1)
    torch.testing.assert_close(
        sampled.losses(model, _hidden(50), labels, 0), -token_logprobs(model, _hidden(50), labels)[0]
    )


def test_the_normaliser_is_unbiased_and_each_step_draws_anew(model):
    """exp(loss) is the normaliser over the label's weight; its mean over many steps is the exact one."""
    sampled, hidden, labels = (
        SampledVocabulary(TOKENS, CONFIG.n_vocab, 12, seed=1),
        _hidden(6),
        torch.from_numpy(TOKENS[:6]),
    )
    with torch.no_grad():
        estimates = torch.stack([sampled.losses(model, hidden, labels, step).double().exp() for step in range(4000)])
        exact = (-token_logprobs(model, hidden, labels)[0]).double().exp()
    errors = (estimates.mean(0) - exact).abs() / (estimates.std(0) / len(estimates) ** 0.5)
    assert errors.max() < 4 and estimates.std(0).min() > 0
    assert 10 < sampled.probability.sum() < 14 and torch.equal(
        sampled.losses(model, hidden, labels, 7), sampled.losses(model, hidden, labels, 7)
    )
