"""Cached decoding: uniforms in; tokens, log-probabilities and values of exactly these tokens out.

Original: language/sample.py sample_sequence, policy.py Policy.respond_op.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from lm_human_preferences.compute.precision import rounding_once
from lm_human_preferences.language.captured import Captured
from lm_human_preferences.language.gpt2 import GPT2, KVCache

_EXCLUDED = -1e10  # what the original gives to logits outside top-k and top-p


class Sample(NamedTuple):
    """What was drawn."""

    tokens: torch.Tensor  # int64 [B, R]
    logprobs: torch.Tensor  # float32 [B, R], of the distribution drawn from (after temperature, top-k, top-p)
    values: torch.Tensor | None  # float32 [B, R], the value head at the state before each token; None without a head


@torch.no_grad()
def sample(
    model: GPT2,
    contexts: torch.Tensor,
    uniforms: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    value_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    captured: Captured | None = None,
) -> Sample:
    """Draw a continuation of each context by inverting the cumulative distribution at the given uniforms.

    contexts: int64 [B, T], padding anywhere but in the first column; uniforms: float32 [B, R] in [0, 1), R tokens are
    drawn (there is no stop token). top_k 0 and top_p 1 exclude nothing. Unlike the original, top-k and top-p apply to
    the first token too. Each step after the first costs one token's work per row. captured: graphs of what follows the
    contexts' pass, for one model only, whose weights stay where they are.
    """
    (B, R), T = uniforms.shape, contexts.shape[1]
    choice = dict(temperature=temperature, top_k=top_k, top_p=top_p, value_head=value_head)
    if captured is None:
        with rounding_once():
            cache = model.new_cache(B, T + R)
            return decode(
                model, cache, model.extend(contexts, cache, columns=slice(-1, None))[:, 0], uniforms, **choice
            )

    def work(hidden: torch.Tensor, uniforms: torch.Tensor) -> Sample:
        with rounding_once():  # of the weights as they are whenever the graph runs
            return decode(model, dataclasses.replace(cache), hidden, uniforms, **choice)

    cache = captured.memory(
        (B, T + R, torch.is_autocast_enabled(contexts.device.type)), lambda: model.new_cache(B, T + R)
    ).cleared()
    hidden = model.extend(contexts, cache, columns=slice(-1, None))[:, 0]
    key = (R, cache.used, cache.has_gaps, temperature, top_k, top_p, value_head is None)
    return Sample(*captured.run(key, work, (hidden, uniforms), kept=(cache.count,)))


def decode(
    model: GPT2,
    cache: KVCache,
    hidden: torch.Tensor,
    uniforms: torch.Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    value_head: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Sample:
    """`sample` from the state of each context's last token, hidden [B, C], onward. Nothing here waits for the device."""
    B, R = uniforms.shape
    tokens, logprobs = torch.empty(B, R, dtype=torch.int64, device=uniforms.device), uniforms.new_empty(B, R)
    values = uniforms.new_empty(B, R) if value_head else None
    memory = torch.empty(B, model.config.n_vocab, dtype=torch.float32, device=uniforms.device)
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
    """One token per row: the first whose cumulative probability exceeds the uniform. logits [B, V], uniforms [B] ->
    tokens, logprobs [B].

    In two steps, first among sqrt(V) parts of the vocabulary, then inside one: sums of parts cost far less than a
    cumulative sum over all.
    """
    V = logits.shape[1]
    width = math.ceil(math.sqrt(V))
    shifted = logits - logits.amax(1, keepdim=True)
    weights = torch.exp(shifted)  # not divided by their sum
    whole = V // width * width
    parts = torch.cat(
        [weights[:, :whole].unflatten(1, (-1, width)).sum(2), weights[:, whole:].sum(1, keepdim=True)], dim=1
    )
    ends = cumulative(parts)
    total = ends[:, -1:]
    target = uniforms[:, None] * total
    part = _first_above(ends, target)
    columns = part * width + torch.arange(width, device=logits.device)  # [B, width]
    inside = cumulative(weights.gather(1, columns.clamp(max=V - 1)).masked_fill_(columns >= V, 0.0))
    before = (ends - parts).gather(1, part)
    tokens = part * width + _first_above(inside, target - before)
    return tokens[:, 0], (shifted.gather(1, tokens) - total.log())[:, 0]


def _first_above(ends: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """int64 [B, 1]: the first place of float32 [B, n] above the target [B, 1]; if rounding left none, the last one that
    has any weight.
    """
    return torch.searchsorted(
        ends, torch.minimum(target, torch.nextafter(ends[:, -1:], torch.zeros_like(target))), right=True
    )


def cumulative(x: torch.Tensor) -> torch.Tensor:
    """Cumulative sums of float32 [B, n]. On a GPU PyTorch adds them up in an order of the moment's; where that is
    forbidden, by definition.
    """
    if torch.are_deterministic_algorithms_enabled():
        return (x[:, None, :] * torch.ones(x.shape[1], x.shape[1], device=x.device).tril()).sum(2)
    return x.cumsum(1)


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
    """Keep the most probable tokens whose probabilities sum to at most p, at least one (original: utils/core.py
    take_top_p_logits).

    The token that crosses p is left out, as in the original.
    """
    descending = torch.sort(logits, dim=-1, descending=True).values
    inside = (torch.softmax(descending, dim=-1).cumsum(-1) <= p).sum(-1, keepdim=True).clamp(min=1)
    smallest = descending.gather(-1, inside - 1)
    return torch.where(logits < smallest, _EXCLUDED, logits)
