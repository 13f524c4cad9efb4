"""Cached decoding: uniforms in; tokens, log-probabilities and values of exactly these tokens out.

Original: language/sample.py sample_sequence, policy.py Policy.respond_op.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from lm_human_preferences.language.gpt2 import GPT2

_EXCLUDED = -1e10  # what the original gives to logits outside top-k and top-p


class Sample(NamedTuple):
    """What was drawn."""

    tokens: torch.Tensor  # int64 [B, R]
    logprobs: torch.Tensor  # float32 [B, R], of the distribution drawn from (after temperature, top-k, top-p)
    values: torch.Tensor | None  # float32 [B, R], the value head at the state before each token; None without a head


@torch.no_grad()
def sample(model: GPT2, contexts: torch.Tensor, uniforms: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           value_head: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Sample:
    """Draw a continuation of each context by inverting the cumulative distribution at the given uniforms.

    contexts: int64 [B, T], padding anywhere but in the first column; uniforms: float32 [B, R] in [0, 1), R tokens are drawn (there is no
    stop token). top_k 0 and top_p 1 exclude nothing. Unlike the original, top-k and top-p apply to the first token too.
    Each step after the first costs one token's work per row.
    """
    B, R = uniforms.shape
    cache = model.new_cache(B, contexts.shape[1] + R)
    hidden = model.extend(contexts, cache, columns=slice(-1, None))[:, 0]  # [B, C]
    tokens, logprobs = contexts.new_empty(B, R), uniforms.new_empty(B, R)
    values = uniforms.new_empty(B, R) if value_head else None
    memory = torch.empty(B, model.config.n_vocab, dtype=torch.float32, device=contexts.device)
    for t in range(R):
        logits = model.logits(hidden, out=memory)
        if temperature != 1:
            logits.div_(max(temperature, 1e-10))
        tokens[:, t], logprobs[:, t] = draw(exclude(logits, top_k, top_p), uniforms[:, t])
        if value_head:
            values[:, t] = value_head(hidden)
        if t + 1 < R:
            hidden = model.advance(tokens[:, t], cache)
    return Sample(tokens, logprobs, values)


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row: the first whose cumulative probability exceeds the uniform. logits [B, V], uniforms [B] -> tokens, logprobs [B]."""
    shifted = logits - logits.amax(-1, keepdim=True)
    cumulative = torch.exp(shifted).cumsum_(-1)  # not yet divided by its last entry
    targets = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[-1] - 1)
    return tokens[:, 0], (shifted.gather(-1, tokens) - cumulative[:, -1:].log())[:, 0]


def exclude(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Logits [..., V] with those outside top-k, then outside top-p, set to -1e10."""
    if top_k:
        logits = take_top_k(logits, top_k)
    return take_top_p(logits, top_p) if top_p < 1 else logits


def take_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest logits of each row; ties with the k-th stay (original: utils/core.py take_top_k_logits)."""
    smallest = torch.topk(logits, min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return torch.where(logits < smallest, _EXCLUDED, logits)


def take_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the most probable tokens whose probabilities sum to at most p, at least one (original: utils/core.py take_top_p_logits).

    The token that crosses p is left out, as in the original.
    """
    descending = torch.sort(logits, dim=-1, descending=True).values
    inside = (torch.softmax(descending, dim=-1).cumsum(-1) <= p).sum(-1, keepdim=True).clamp(min=1)
    smallest = descending.gather(-1, inside - 1)
    return torch.where(logits < smallest, _EXCLUDED, logits)
