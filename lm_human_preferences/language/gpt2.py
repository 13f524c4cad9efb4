"""GPT-2: configuration and modules, with padding anywhere in a row.

Shapes in this package: B batch, T positions, Q query, R response, V vocabulary, C channels, H heads, D = C / H.

Padding is recognised by its token id. The original (language/model.py) masks padded keys, counts positions over real
tokens only, and gives a padded place the output of the last real token before it. Here only real tokens go through the
model, side by side in one list (packing.py); for attention each row's move to the left of a rectangle, where plain
causal attention runs over them, and the outputs are found for the places that are read. That is the same function of
the tokens, exact and without a mask. `plain.py` is that function without any of this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lm_human_preferences.compute.precision import rounds_once, vocabulary_projection
from lm_human_preferences.language import compiled
from lm_human_preferences.language.added_tokens import AddedToken
from lm_human_preferences.language.attention import attention_to_cache, cache_dtype
from lm_human_preferences.language.dropout import RowDropout
from lm_human_preferences.language.packing import (
    Choices,
    Layout,
    Packing,
    all_differ,
    causal,
    gather_rows,
    lay_out,
    lay_out_choices,
)


@dataclass(frozen=True)
class GPT2Config:
    """The architecture. `padding_token` is outside the vocabulary: n_vocab + 2 with GPT-2's encoding, whatever tokens
    were added to it.
    """

    n_vocab: int = 50257
    n_ctx: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    layer_norm_epsilon: float = 1e-5
    padding_token: int = 50259
    encoding: str = "gpt2"
    added_tokens: tuple[AddedToken, ...] = ()  # to GPT-2's; get_encoding(config) has both

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if 0 <= self.padding_token < self.n_vocab:
            raise ValueError(f"padding_token {self.padding_token} lies inside the vocabulary")


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Queries, keys, values [B, H, n, D] and the number of the block -> [B, H, n, D]."""

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(n_ctx=128, n_embd=256, n_head=4, n_layer=6),  # saved_models/tiny
    "124M": dict(n_embd=768, n_head=12, n_layer=12),
    "355M": dict(n_embd=1024, n_head=16, n_layer=24),
    "774M": dict(n_embd=1280, n_head=20, n_layer=36),
    "1558M": dict(n_embd=1600, n_head=25, n_layer=48),
}


class Projection(nn.Module):
    """y = x @ weight + bias with weight [in, out], the layout that GPT-2's checkpoints have (a transposed torch
    Linear).
    """

    def __init__(self, n_in: int, n_out: int, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: torch.Tensor, outputs: slice | None = None) -> torch.Tensor:
        """x [N, in] -> [N, out], or some of the outputs. All of them read the parameter itself, of which autocast can
        keep a copy; of a view it cannot.
        """
        if outputs is None:
            return torch.addmm(self.bias, x, self.weight)
        return torch.addmm(self.bias[outputs], x, self.weight[:, outputs])


@dataclass
class KVCache:
    """Keys and values of the tokens seen so far, allocated once.

    Columns are filled from the left. `real[b, n]` says whether row b has a token at column n; `count[b]` is how many it
    has, which is also the position of its next token. `used` is the number of filled columns.
    """

    keys: list[torch.Tensor]  # n_layer times [B, H, N, D]
    values: list[torch.Tensor]
    real: torch.Tensor  # [B, N] bool
    count: torch.Tensor  # [B] int64
    used: int = 0
    longest: int = 0  # no row has more tokens than this
    has_gaps: bool = False

    @property
    def capacity(self) -> int:
        return self.real.shape[1]

    def cleared(self) -> "KVCache":
        """An empty cache in the same memory. Old keys and values stay in it: finite numbers that no token will see."""
        self.real.zero_()
        self.count.zero_()
        return KVCache(self.keys, self.values, self.real, self.count)


class Cached:
    """Attention of a chunk of new tokens to all that a cache holds, after it has taken their keys and values."""

    def __init__(self, cache: KVCache, mask: torch.Tensor | None):
        self.cache, self.mask = cache, mask

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """All [B, H, n, D]."""
        keys, values, past = self.cache.keys[layer], self.cache.values[layer], self.cache.used
        end = past + q.shape[2]
        keys[:, :, past:end], values[:, :, past:end] = k, v
        if not past:
            return causal(q, k, v, layer)
        return attention_to_cache(q, keys[:, :, :end], values[:, :, :end], self.mask)


@dataclass(frozen=True)
class Rows:
    """What all blocks of a pass share: how its list of tokens lies in rows, what sees what, and dropout if there is
    any.
    """

    packing: Packing
    attend: Attend
    dropout: RowDropout | None = None

    def drop(self, x: torch.Tensor, site: int) -> torch.Tensor:
        """x [N, C] after the dropout at a site of the model; x itself without dropout."""
        if self.dropout is None:
            return x
        return self.packing.to_list(self.dropout(self.packing.to_rectangle(x), site))


class Attention(nn.Module):
    """Masked multi-head self-attention (original: language/model.py attn)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd, std=config.n_embd**-0.5)
        self.c_proj = Projection(config.n_embd, config.n_embd, std=(config.n_embd * config.n_layer) ** -0.5)

    def forward(self, x: torch.Tensor, layer: int, rows: Rows) -> torch.Tensor:
        """x [N, C] -> [N, C]."""
        return self.of_projected(self.c_attn(x), layer, rows)

    def of_projected(self, projected: torch.Tensor, layer: int, rows: Rows) -> torch.Tensor:
        """Queries, keys and values [N, 3 C] -> [N, C]."""
        q, k, v = self._heads(rows.packing.to_rectangle(projected), 3)
        return self._project(rows.attend(q, k, v, layer), rows.packing)

    def last(self, x: torch.Tensor, layer: int, rows: Rows, kept: torch.Tensor) -> torch.Tensor:
        """x [N, C] -> [M, C], what `forward` gives for the tokens `kept` int64 [M]: of the others only keys and values
        are made.
        """
        C, packing = x.shape[1], rows.packing.of(kept)
        (q,) = self._heads(packing.to_rectangle(self.c_attn(gather_rows(x, kept), slice(C))), 1)
        k, v = self._heads(rows.packing.to_rectangle(self.c_attn(x, slice(C, None))), 2)
        return self._project(rows.attend(q, k, v, layer), packing)

    def _heads(self, x: torch.Tensor, parts: int) -> list[torch.Tensor]:
        """[B, n, parts * C] -> of each part [B, H, n, D]."""
        return [part.view(*part.shape[:2], self.n_head, -1).transpose(1, 2) for part in x.chunk(parts, dim=2)]

    def _project(self, y: torch.Tensor, packing: Packing) -> torch.Tensor:
        """[B, H, n, D] -> the list's tokens [N, C] or [M, C]."""
        projected: torch.Tensor = self.c_proj(packing.to_list(y.transpose(1, 2).flatten(2)))
        return projected


class MLP(nn.Module):
    """Two projections with GPT-2's tanh form of GELU between them (4.7e-4 away from the exact form in places)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Projection(config.n_embd, 4 * config.n_embd, std=config.n_embd**-0.5)
        self.c_proj = Projection(4 * config.n_embd, config.n_embd, std=(4 * config.n_embd * config.n_layer) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return x


class Block(nn.Module):
    """One layer: attention and MLP, each behind its layer norm, each added to what it reads."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.recompute = False  # activations in the backward pass instead of keeping them

    def forward(self, x: torch.Tensor, layer: int, rows: Rows, kept: torch.Tensor | None = None) -> torch.Tensor:
        """x [N, C], a list of tokens -> [N, C]; with `kept` what `last` gives.

        A pass calls each block once, with all its tokens, and calls the module itself: with sharded parameters
        (parallel.py) a second call in one pass loses gradients, and a method called past the module finds no weights.
        """
        work, arguments = (self._all, (x, layer, rows)) if kept is None else (self.last, (x, layer, rows, kept))
        if self.recompute and torch.is_grad_enabled():
            x = checkpoint(work, *arguments, use_reentrant=False, preserve_rng_state=False)
            return x
        return work(*arguments)

    def _all(self, x: torch.Tensor, layer: int, rows: Rows) -> torch.Tensor:
        # compiled functions would round the weights again at each call
        if compiled.is_on() and rows.dropout is None and not rounds_once(x.device.type):
            return _feed(self, x + self.attn.of_projected(_project(self, x), layer, rows))
        x = x + rows.drop(self.attn(self.ln_1(x), layer, rows), 2 * layer + 1)
        return x + rows.drop(self.mlp(self.ln_2(x)), 2 * layer + 2)

    def last(self, x: torch.Tensor, layer: int, rows: Rows, kept: torch.Tensor) -> torch.Tensor:
        """The last block of a pass without dropout, of which only the distinct tokens `kept` int64 [M] are read: x
        [N, C] -> [M, C].
        """
        x = gather_rows(x, kept) + self.attn.last(self.ln_1(x), layer, rows, kept)
        x = x + self.mlp(self.ln_2(x))
        return x


@compiled.compilable(dynamic=True)
def _project(block: Block, x: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values [N, 3 C] of x [N, C], behind the layer norm."""
    projected: torch.Tensor = block.attn.c_attn(block.ln_1(x))
    return projected


@compiled.compilable(dynamic=True)
def _feed(block: Block, x: torch.Tensor) -> torch.Tensor:
    """The block's second half of x [N, C]: what the MLP makes of it behind the layer norm, added to it."""
    added: torch.Tensor = x + block.mlp(block.ln_2(x))
    return added


class GPT2(nn.Module):
    """The transformer with its tied vocabulary projection. Parameters carry the names of Hugging Face's `GPT2Model`.

    Dropout is an argument of `forward` (default none), not a mode of the module: the original uses none in reward or
    policy training, and here no `.train()` can turn it on. It falls on the embeddings and on what attention and MLP
    add, not on attention's weights.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.n_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "GPT2":
        """Random weights as the original draws them: wte 0.02, wpe 0.01, projections by their `std`, biases zero."""
        nn.init.normal_(self.wte.weight, std=0.02, generator=generator)
        nn.init.normal_(self.wpe.weight, std=0.01, generator=generator)
        for module in self.modules():
            if isinstance(module, Projection):
                nn.init.normal_(module.weight, std=module.std, generator=generator)
                nn.init.zeros_(module.bias)
        return self

    def train_only_top(self, blocks: int) -> None:
        """Freeze all but the last `blocks` blocks and the norm behind them: the embeddings too, which the vocabulary
        projection shares. A backward pass then ends at the lowest block that is trained. ValueError if there are fewer.
        """
        if not 1 <= blocks <= len(self.h):
            raise ValueError(f"{blocks} of {len(self.h)} blocks")
        self.requires_grad_(False)
        self.ln_f.requires_grad_(True)
        self.h[-blocks:].requires_grad_(True)

    def recompute_activations(self, on: bool) -> None:
        """Keep only each block's input for the backward pass and compute the rest again there: a third more work, far
        less memory.
        """
        for block in self.h:
            assert isinstance(block, Block)
            block.recompute = on

    def round_projections(self) -> None:
        """Keep the projections as the bfloat16 numbers that autocast rounds them to anyway; embeddings and norms stay
        float32. For frozen models.
        """
        for module in self.modules():
            if isinstance(module, Projection):
                module.to(torch.bfloat16)

    def forward(
        self,
        tokens: torch.Tensor,
        columns: slice = slice(None),
        dropout: RowDropout | None = None,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states (after ln_f) at `columns`.

        tokens: int64 [B, T], padding anywhere but in the first column. Returns [B, T', C], where T' is the number of
        columns; at a padded place it is the hidden state of the last real token before it, and gradients flow into that
        one. `real`: bool [B, T] on the host, where no padding is; None looks at the tokens, which a GPU is waited for.
        Raises ValueError for a row that starts with padding or has more than n_ctx real tokens.
        """
        layout = self._lay_out(tokens, real)
        self._check_length(layout.longest)
        rows = Rows(layout.packing, causal, dropout)
        x = rows.drop(self._embed(layout.tokens, layout.positions), 0)
        return self._states(x, rows, layout.last[:, columns])

    def last_states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Final hidden states [B, C] of each row's last real token; tokens as in `forward`."""
        layout = self._lay_out(tokens)
        self._check_length(layout.longest)
        x = self._embed(layout.tokens, layout.positions)
        return self._states(x, Rows(layout.packing, causal), layout.last[:, -1])

    def choice_states(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """Final hidden states [B, K, C] of the last real token of each of K responses int64 [B, K, R] to queries int64
        [B, Q].

        The same as `last_states` of each query followed by each response, but a query goes through the blocks once for
        all of them.
        """
        choices = self._lay_out_choices(queries, responses)
        ends = torch.where(choices.ends < 0, choices.layout.last[:, -1:], choices.ends)
        return self._choice_states(choices, ends)

    def response_states(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """Final hidden states [M, C] from which each of the M real tokens of K responses int64 [B, K, R] to queries
        int64 [B, Q] is predicted: of the token before it. Response after response, as `responses` without its padding.

        The same as those of each query followed by each response, but a query goes through the blocks once.
        """
        choices = self._lay_out_choices(queries, responses)
        return self._choice_states(choices, choices.before)

    def _lay_out_choices(self, queries: torch.Tensor, responses: torch.Tensor) -> Choices:
        choices = lay_out_choices(queries, responses, self.config.padding_token)
        self._check_start(choices.layout)
        self._check_length(choices.layout.longest)
        return choices

    def _choice_states(self, choices: Choices, read_at: torch.Tensor) -> torch.Tensor:
        layout = choices.layout
        x = self._embed(layout.tokens, layout.positions)
        return self._states(x, Rows(layout.packing, choices.attend), read_at)

    def _states(self, x: torch.Tensor, rows: Rows, read_at: torch.Tensor) -> torch.Tensor:
        """Embedded tokens [N, C] through all blocks -> final hidden states at the list's places `read_at`, int64 [...]
        on the host.

        Where these differ from each other and are not all, and there is no dropout, the last block works for them
        alone.
        """
        distinct = all_differ(read_at)
        all_in_order = torch.equal(read_at.flatten(), torch.arange(len(x)))
        places = read_at.flatten().to(x.device, non_blocking=True)
        kept = places if distinct and not all_in_order and rows.dropout is None else None
        for layer, block in enumerate(self.h):
            x = block(x, layer, rows, kept if layer + 1 == len(self.h) else None)
        x = self.ln_f(x)
        if kept is None and not all_in_order:
            x = x[places]
        return x.view(*read_at.shape, x.shape[1])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., C] -> float32 logits [..., V] over the tied embedding."""
        return vocabulary_projection(hidden, self.wte.weight)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` columns (padding of the first chunk takes no column)."""
        device, c = self.wte.weight.device, self.config
        shape = (batch, c.n_head, capacity, c.n_embd // c.n_head)
        computed_in = (
            torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else self.wte.weight.dtype
        )
        dtype = cache_dtype(device, computed_in)
        return KVCache(
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(c.n_layer)],
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(c.n_layer)],
            torch.zeros(batch, capacity, dtype=torch.bool, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def extend(
        self, tokens: torch.Tensor, cache: KVCache, columns: slice = slice(None), real: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same as `forward` for a chunk that continues what `cache` holds; the cache then holds the chunk too.

        tokens: int64 [B, T]; no row may start with padding (as in the original, for each chunk); `real` as in
        `forward`. Returns [B, T', C]. Raises ValueError if the chunk does not fit into the cache or the context.
        """
        layout = self._lay_out(tokens, real)
        n, past = layout.packing.width, cache.used
        if past + n > cache.capacity:
            raise ValueError(f"the cache has {cache.capacity} columns, {past} of them used: {n} more do not fit")
        self._check_length(cache.longest + n)
        lengths = n if layout.lengths is None else layout.lengths.to(tokens.device, non_blocking=True)
        filled = lengths[:, None] if isinstance(lengths, torch.Tensor) else lengths
        cache.real[:, past : past + n] = torch.arange(n, device=tokens.device) < filled
        cache.has_gaps = cache.has_gaps or layout.lengths is not None
        x = self._embed(layout.tokens, cache.count[layout.rows] + layout.positions)
        mask = self._chunk_mask(cache, n) if past and (cache.has_gaps or n > 1) else None
        hidden = self._states(x, Rows(layout.packing, Cached(cache, mask)), layout.last[:, columns])
        cache.count += lengths
        cache.used, cache.longest = past + n, cache.longest + n
        return hidden

    def advance(self, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """`extend` by one token a row, int64 [B], none of them padding -> [B, C]. Nothing here waits for the device."""
        past = cache.used
        if past == cache.capacity:
            raise ValueError(f"the cache has {cache.capacity} columns, all of them used")
        self._check_length(cache.longest + 1)
        cache.real[:, past] = True
        attend = Cached(cache, cache.real[:, None, None, : past + 1] if cache.has_gaps else None)
        x, rows = self._embed(tokens, cache.count), Rows(Packing(len(tokens), 1), attend)
        for layer, block in enumerate(self.h):
            x = block(x, layer, rows)
        cache.count += 1
        cache.used, cache.longest = past + 1, cache.longest + 1
        hidden: torch.Tensor = self.ln_f(x)
        return hidden

    @staticmethod
    def _chunk_mask(cache: KVCache, n: int) -> torch.Tensor:
        """bool [B, 1, n, used + n]: a new token sees the real columns up to its own."""
        end = cache.used + n
        seen = torch.ones(n, end, dtype=torch.bool, device=cache.real.device).tril(cache.used)
        return (cache.real[:, None, :end] & seen)[:, None]

    def _lay_out(self, tokens: torch.Tensor, real: torch.Tensor | None = None) -> Layout:
        layout = lay_out(tokens, self.config.padding_token, real)
        self._check_start(layout)
        return layout

    @staticmethod
    def _check_start(layout: Layout) -> None:
        if layout.lengths is not None and bool((layout.last[:, 0] < 0).any()):
            raise ValueError("a row starts with padding: its first outputs would belong to no token")

    def _check_length(self, n: int) -> None:
        if n > self.config.n_ctx:
            raise ValueError(f"{n} real tokens in a row, but the model's context is {self.config.n_ctx}")

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.wte(tokens) + self.wpe(positions)
        return x


def count_parameters(config: GPT2Config) -> dict[str, int]:
    """Numbers of parameters: `embeddings` (tokens and positions), `blocks` (all else) and `total`."""
    c = config.n_embd
    blocks = config.n_layer * (12 * c * c + 13 * c) + 2 * c
    embeddings = (config.n_vocab + config.n_ctx) * c
    return {"embeddings": embeddings, "blocks": blocks, "total": embeddings + blocks}
