"""Cached decoding: uniforms in; tokens, log-probabilities and values of exactly these tokens out.

Original: language/sample.py sample_sequence, policy.py Policy.respond_op.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from lm_human_preferences.compute.precision import EXCLUDED, aligned_vocabulary, rounding_once, tempered_logits
from lm_human_preferences.language import compiled
from lm_human_preferences.language.captured import Captured
from lm_human_preferences.language.ends import ENDLESS, Ends
from lm_human_preferences.language.gpt2 import GPT2, KVCache
from lm_human_preferences.language.logprobs import Steer
from lm_human_preferences.language.support import packed, packed_size

LOOK = {"cpu": 1, "cuda": 16}  # tokens after which decoding asks whether all rows are over; a GPU is waited for then


class Sample(NamedTuple):
    """What was drawn."""

    tokens: torch.Tensor  # int64 [B, R]
    logprobs: torch.Tensor  # float32 [B, R], of the distribution drawn from (after temperature, top-k, top-p)
    values: torch.Tensor | None  # float32 [B, R], the value head at the state before each token; None without a head
    support: torch.Tensor | None  # uint8 [B, R, bytes], packed: the tokens left by top-k and top-p; None for all


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
    ends: Ends = ENDLESS,
    captured: Captured | None = None,
    real: torch.Tensor | None = None,
    steer: Steer | None = None,
) -> Sample:
    """Draw a continuation of each context by inverting the cumulative distribution at the given uniforms.

    contexts: int64 [B, T], padding anywhere but in the first column; uniforms: float32 [B, R] in [0, 1), R tokens are
    drawn. top_k 0 and top_p 1 exclude nothing. Unlike the original, top-k and top-p apply to the first token too. Each
    step after the first costs one token's work per row. ends: what ends a continuation, which is then not gone on with:
    the end is repeated, with log-probabilities and values of 0, whatever the uniforms and the other rows. captured:
    graphs of the decoding after the contexts' pass; one `Captured` serves one model, whose weights must keep their
    memory. real: bool [B, T] on the host, where contexts have no padding, if that is known. steer: changes the tempered
    logits before anything is excluded.
    """
    (B, R), T = uniforms.shape, contexts.shape[1]
    draw_all = partial(
        decode, model, temperature=temperature, top_k=top_k, top_p=top_p, value_head=value_head, ends=ends, steer=steer
    )
    if captured is None:
        with rounding_once():
            cache = model.new_cache(B, T + R)
            hidden = model.extend(contexts, cache, slice(-1, None), real)[:, 0]
            return draw_all(cache, hidden, uniforms, look=LOOK.get(contexts.device.type))

    def work(hidden: torch.Tensor, uniforms: torch.Tensor) -> Sample:
        with rounding_once():  # of the weights as they are whenever the graph runs
            return draw_all(dataclasses.replace(cache), hidden, uniforms)

    kind = (B, T + R, torch.is_autocast_enabled(contexts.device.type))
    cache = captured.memory(kind, lambda: model.new_cache(B, T + R)).cleared()
    hidden = model.extend(contexts, cache, slice(-1, None), real)[:, 0]
    key = (R, cache.used, cache.has_gaps, temperature, top_k, top_p, ends, value_head is None, steer is None)
    tokens, logprobs, values, support = captured.run(key, work, (hidden, uniforms), kept=(cache.count,))
    assert tokens is not None and logprobs is not None
    return Sample(tokens, logprobs, values, support)


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
    steer: Steer | None = None,
    ends: Ends = ENDLESS,
    look: int | None = None,
) -> Sample:
    """`sample` from the state of each context's last token, hidden [B, C], on.

    look: after how many tokens it asks whether all rows are over, which waits for the device; None never asks.
    """
    B, R = uniforms.shape
    V, weight = model.config.n_vocab, aligned_vocabulary(model.wte.weight)
    memory = torch.empty(B, len(weight), dtype=torch.float32, device=uniforms.device)
    drawn = _nothing_drawn(uniforms, value_head is not None, len(weight) if top_k or top_p < 1 else None)
    over = torch.zeros(B, dtype=torch.bool, device=uniforms.device)
    for t in range(R):
        logits = tempered_logits(hidden, weight, V, max(temperature, 1e-10), memory)
        if steer is not None:
            steer(hidden, logits)
        left = exclude(logits, top_k, top_p)
        drawn.tokens[:, t], drawn.logprobs[:, t] = draw(left, uniforms[:, t])
        if drawn.support is not None:
            drawn.support[:, t] = packed(left == logits)
        if value_head and drawn.values is not None:
            drawn.values[:, t] = value_head(hidden)
        if ends.tokens:
            _repeat_ends(drawn, over, slice(t, t + 1))
            if t >= ends.after:
                over |= ends.is_end(drawn.tokens[:, t])
            if look and t % look == 0 and bool(over.all()):
                _repeat_ends(drawn, over, slice(t + 1, R))
                break
        if t + 1 < R:
            hidden = model.advance(drawn.tokens[:, t], cache)
    return drawn


def _nothing_drawn(uniforms: torch.Tensor, values: bool, vocabulary: int | None) -> Sample:
    """The memory of a sample; vocabulary: of its support, None without one."""
    B, R = uniforms.shape
    support = None
    if vocabulary is not None:
        support = torch.zeros(B, R, packed_size(vocabulary), dtype=torch.uint8, device=uniforms.device)
    return Sample(
        torch.empty(B, R, dtype=torch.int64, device=uniforms.device),
        uniforms.new_empty(B, R),
        uniforms.new_empty(B, R) if values else None,
        support,
    )


def _repeat_ends(drawn: Sample, over: torch.Tensor, places: slice) -> None:
    """In the rows that are over, bool [B], the token before `places` stands there too, and its numbers are 0."""
    before = drawn.tokens[:, places.start - 1 : places.start] if places.start else drawn.tokens[:, :1]
    drawn.tokens[:, places] = torch.where(over[:, None], before, drawn.tokens[:, places])
    for numbers in (drawn.logprobs, drawn.values):
        if numbers is not None:
            numbers[:, places] = torch.where(over[:, None], 0.0, numbers[:, places])


@compiled.compilable(dynamic=None)
def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row: the first whose cumulative probability exceeds the uniform; never one of probability 0.

    logits float32 [B, V], uniforms float32 [B] in [0, 1) -> tokens int64 [B], their log-probabilities float32 [B].

    In two steps, first among about sqrt(V) parts of the vocabulary, then inside one of them: sums of parts cost far
    less than a cumulative sum over all tokens. With nine tokens in three parts and the uniform 0.6:

        weights      1 0 2 | 0 4 4 | 3 3 3      exp(logit), not divided by their sum 20
        part_ends        3 |    11 |    20      the target is 0.6 * 20 = 12; the first part that ends above it is 2
        token_ends                   3 6 9      the rest is 12 - 11 = 1; the first token that ends above it is 6

    The rest is the difference of rounded sums and can come out below 0 at a part's edge, where the part's first token
    would be taken whatever its weight; as 0 it finds the first token that has any.
    """
    V = logits.shape[1]
    width = math.ceil(math.sqrt(V))  # tokens of a part; the last part has fewer
    shifted = logits - logits.amax(1, keepdim=True)
    weights = torch.exp(shifted)  # [B, V]
    full = V // width * width
    parts, rest = weights[:, :full].view(len(weights), full // width, width), weights[:, full:]
    part_weights = torch.cat([parts.sum(2), rest.sum(1, keepdim=True)], dim=1)
    part_ends = cumulative(part_weights)
    total = part_ends[:, -1:]
    target = uniforms[:, None] * total
    part = _first_above(part_ends, target)  # [B, 1]
    before_part = (part_ends - part_weights).gather(1, part)
    columns = part * width + torch.arange(width, device=logits.device)  # [B, width]
    token_ends = cumulative(weights.gather(1, columns.clamp(max=V - 1)).masked_fill_(columns >= V, 0.0))
    tokens = part * width + _first_above(token_ends, (target - before_part).clamp(min=0))
    return tokens[:, 0], (shifted.gather(1, tokens) - total.log())[:, 0]


def _first_above(ends: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """int64 [B, 1]: the first place of the cumulative sums float32 [B, n] above the target [B, 1].

    Where rounding has put the target at or above all of them, it is taken just below the last sum: the place found is
    the first to reach that sum, so it has weight.
    """
    below_last = torch.nextafter(ends[:, -1:], torch.zeros_like(target))
    return torch.searchsorted(ends, torch.minimum(target, below_last), right=True)


def cumulative(x: torch.Tensor) -> torch.Tensor:
    """Cumulative sums of float32 [B, n].

    cumsum is not deterministic on CUDA; in deterministic mode a triangular product is used.
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
    return torch.where(logits < smallest, EXCLUDED, logits)


def take_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the most probable tokens whose probabilities sum to at most p, at least one (original: utils/core.py
    take_top_p_logits).

    The token that crosses p is left out, as in the original.
    """
    descending = torch.sort(logits, dim=-1, descending=True).values
    inside = (torch.softmax(descending, dim=-1).cumsum(-1) <= p).sum(-1, keepdim=True).clamp(min=1)
    smallest = descending.gather(-1, inside - 1)
    return torch.where(logits < smallest, EXCLUDED, logits)
