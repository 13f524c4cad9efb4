"""Training losses from a random part of the vocabulary: most of a small model's work is the other part."""

from typing import Any

import numpy as np
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import vocabulary_projection, with_matmul_precision
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.logprobs import slices

BLOCK_LOGITS = {"cpu": 2**20, "cuda": 2**26}  # that a pass works on at once; on a CPU they stay in a core's cache


class SampledVocabulary:
    """An unbiased estimate of the softmax's normaliser from a random part of the vocabulary (Poisson sampling,
    Horvitz-Thompson weights).

    Token v takes part with probability p(v) = min(1, 0.05 + c * count(v)^0.75) and then counts 1 / p(v)-fold, so
    frequent tokens are always in and the sum's expectation is exact. The 0.05 matters: tokens that are hardly ever
    drawn would never learn to be improbable. It saves most of a small model's work in training; validation always uses
    the whole vocabulary.
    """

    def __init__(self, tokens: np.ndarray, n_vocab: int, size: int, seed: int):
        """tokens: what labels are drawn from; size: how many tokens of the vocabulary take part on average."""
        self.seed = seed
        weights, floor = np.bincount(tokens, minlength=n_vocab).astype(np.float64) ** 0.75, min(0.05, size / n_vocab)
        low, high = 0.0, float(n_vocab)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(1, floor + middle * weights).sum() < size else (low, middle)
        self.probability = torch.from_numpy(np.minimum(1, floor + high * weights))
        self.position = torch.full((n_vocab,), -1)

    def losses(self, model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """Estimated negative log-likelihoods float32 [N] of `labels` int64 [N], best on the host, given hidden states
        [N, C]; the tokens that take part are drawn for each step. Where none is drawn, as may be where `size` is
        small, the normaliser is the label's own weight: losses and gradients are 0.
        """
        generator = generator_for(self.seed, "sft/vocabulary", step)
        drawn = torch.rand(len(self.probability), generator=generator, dtype=torch.float64) < self.probability
        candidates = drawn.nonzero()[:, 0]
        if not len(candidates):
            return hidden[:, :0].float().sum(1)
        self.position[candidates] = torch.arange(len(candidates))
        places = self.position[labels.cpu()]
        self.position[candidates] = -1
        bias = -self.probability[candidates].log().float()
        moved = (x.to(hidden.device, non_blocking=True) for x in (labels, candidates, bias, places))
        arguments = (hidden.float(), model.wte.weight, *moved)
        losses: torch.Tensor = _SampledLoss.apply(*arguments)  # type: ignore[no-untyped-call]  # PyTorch's own
        return losses


class _SampledLoss(torch.autograd.Function):
    """hidden float32 [N, C], embedding [V, C], labels int64 [N], candidates int64 [K], their bias float32 [K], each
    label's place among them int64 [N] (-1: not there) -> float32 [N].

    log(exp(label's logit) + sum of exp(logit + bias) over all candidates but the label) - label's logit. The
    exponentials wait for the backward pass, float32 [N, K], and are worked on in blocks of rows that stay in a CPU
    core's cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        embedding: torch.Tensor,
        labels: torch.Tensor,
        candidates: torch.Tensor,
        bias: torch.Tensor,
        places: torch.Tensor,
    ) -> torch.Tensor:
        of_candidates, of_labels = embedding[candidates].float(), embedding[labels].float()
        weights, own = vocabulary_projection(hidden, of_candidates), torch.linalg.vecdot(hidden, of_labels)
        total, largest, there = hidden.new_empty(len(labels)), hidden.new_empty(len(labels)), places >= 0
        for rows in _blocks(weights):
            x = weights[rows].add_(bias)
            # the label's own logit is added exactly, so its place among the candidates counts for nothing
            x.scatter_(1, places[rows, None].clamp(min=0), x[:, :1].where(~there[rows, None], -torch.inf))
            largest[rows] = torch.maximum(x.amax(1), own[rows])
            total[rows] = x.sub_(largest[rows, None]).exp_().sum(1)
        share = (own - largest).exp()
        total += share
        ctx.save_for_backward(hidden, embedding, labels, candidates, of_candidates, of_labels, total, share / total)
        ctx.weights, ctx.matmul_precision = weights, torch.get_float32_matmul_precision()
        losses: torch.Tensor = total.log() + largest - own
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, embedding, labels, candidates, of_candidates, of_labels, total, share = ctx.saved_tensors
        grad_logits, ctx.weights = ctx.weights, None
        scale, own = (grad / total)[:, None], (grad * (share - 1))[:, None]
        for rows in _blocks(grad_logits):
            grad_logits[rows].mul_(scale[rows])
        with torch.autocast(hidden.device.type, enabled=False), with_matmul_precision(ctx.matmul_precision):
            grad_hidden = torch.mm(grad_logits, of_candidates).addcmul_(own, of_labels)
            grad_embedding = torch.zeros_like(embedding, dtype=torch.float32)
            grad_embedding[candidates] = torch.mm(grad_logits.t(), hidden)
        grad_embedding.index_add_(0, labels, own * hidden)
        return grad_hidden, grad_embedding.to(embedding.dtype), None, None, None, None


def _blocks(logits: torch.Tensor) -> list[slice]:
    return slices(0, len(logits), max(1, BLOCK_LOGITS[logits.device.type] // logits.shape[1]))
