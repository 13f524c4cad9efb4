"""GPT-2: configuration and modules, with padding anywhere in a row.

Shapes in this package: B batch, T positions, Q query, R response, V vocabulary, C channels, H heads, D = C / H.

Padding is recognised by its token id. The original (language/model.py) masks padded keys, counts positions over real tokens only, and
gives a padded place the output of the last real token before it. Here each row is *compacted* instead: its real tokens move to the left,
plain causal attention runs over them, and the outputs are spread back to their places. That is the same function of the tokens, exact
and without a mask: what the compaction leaves to the right of a row's tokens lies in the future of all of them.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lm_human_preferences.language.dropout import RowDropout
from lm_human_preferences.precision import vocabulary_projection


@dataclass(frozen=True)
class GPT2Config:
    """The architecture. `padding_token` is outside the vocabulary: n_vocab + 2 with GPT-2's encoding."""

    n_vocab: int = 50257
    n_ctx: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    layer_norm_epsilon: float = 1e-5
    padding_token: int = 50259
    encoding: str = "gpt2"

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        if 0 <= self.padding_token < self.n_vocab:
            raise ValueError(f"padding_token {self.padding_token} lies inside the vocabulary")


_SMALLEST_GROUP = 16  # rows; smaller matrix products waste more than padding does

SHAPES = {
    "tiny": dict(n_ctx=256, n_embd=256, n_head=4, n_layer=7),
    "124M": dict(n_embd=768, n_head=12, n_layer=12),
    "355M": dict(n_embd=1024, n_head=16, n_layer=24),
    "774M": dict(n_embd=1280, n_head=20, n_layer=36),
    "1558M": dict(n_embd=1600, n_head=25, n_layer=48),
}


class Projection(nn.Module):
    """y = x @ weight + bias with weight [in, out], the layout that GPT-2's checkpoints have (a transposed torch Linear)."""

    def __init__(self, n_in: int, n_out: int, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.t(), self.bias)


@dataclass
class KVCache:
    """Keys and values of the tokens seen so far, allocated once.

    Columns are filled from the left. `real[b, n]` says whether row b has a token at column n; `count[b]` is how many it has, which is also
    the position of its next token. `used` is the number of filled columns.
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


class Attention(nn.Module):
    """Masked multi-head self-attention (original: language/model.py attn)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd, std=config.n_embd ** -0.5)
        self.c_proj = Projection(config.n_embd, config.n_embd, std=(config.n_embd * config.n_layer) ** -0.5)

    def forward(self, x: torch.Tensor, cache: KVCache | None, layer: int, mask: torch.Tensor | None) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))  # [B, H, T, D]
        past = 0
        if cache is not None:
            past, end = cache.used, cache.used + T
            cache.keys[layer][:, :, past:end] = k
            cache.values[layer][:, :, past:end] = v
            if past:
                k, v = cache.keys[layer][:, :, :end].to(q.dtype), cache.values[layer][:, :, :end].to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1 and not past)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two projections with GPT-2's tanh form of GELU between them (4.7e-4 away from the exact form in places)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Projection(config.n_embd, 4 * config.n_embd, std=config.n_embd ** -0.5)
        self.c_proj = Projection(4 * config.n_embd, config.n_embd, std=(4 * config.n_embd * config.n_layer) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: attention and MLP, each behind its layer norm, each added to what it reads."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.recompute = False  # activations in the backward pass instead of keeping them

    def forward(self, parts: list[torch.Tensor], layer: int, cache: KVCache | None = None, mask: torch.Tensor | None = None,
                dropout: RowDropout | None = None) -> list[torch.Tensor]:
        """Each of `parts` [B, T, C] for itself.

        A pass calls each block once, with all its parts: with sharded parameters (parallel.py) a second call in one pass loses gradients.
        """
        if self.recompute and torch.is_grad_enabled():
            return [checkpoint(self._layer, x, layer, cache, mask, dropout, use_reentrant=False, preserve_rng_state=False) for x in parts]
        return [self._layer(x, layer, cache, mask, dropout) for x in parts]

    def _layer(self, x: torch.Tensor, layer: int, cache: KVCache | None, mask: torch.Tensor | None, dropout: RowDropout | None) -> torch.Tensor:
        attended = self.attn(self.ln_1(x), cache, layer, mask)
        x = x + (dropout(attended, 2 * layer + 1) if dropout else attended)
        transformed = self.mlp(self.ln_2(x))
        return x + (dropout(transformed, 2 * layer + 2) if dropout else transformed)


class GPT2(nn.Module):
    """The transformer with its tied vocabulary projection. Parameters carry the names of Hugging Face's `GPT2Model`.

    Dropout is an argument of `forward` (default none), not a mode of the module: the original uses none in reward or policy training, and
    here no `.train()` can turn it on. It falls on the embeddings and on what attention and MLP add, not on attention's weights.
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
        """Random weights as the original draws them: wte 0.02, wpe 0.01, projections as their `std` says, biases zero."""
        nn.init.normal_(self.wte.weight, std=0.02, generator=generator)
        nn.init.normal_(self.wpe.weight, std=0.01, generator=generator)
        for module in self.modules():
            if isinstance(module, Projection):
                nn.init.normal_(module.weight, std=module.std, generator=generator)
                nn.init.zeros_(module.bias)
        return self

    def recompute_activations(self, on: bool) -> None:
        """Keep only each block's input for the backward pass and compute the rest again there: a third more work, far less memory."""
        for block in self.h:
            block.recompute = on

    def round_projections(self) -> None:
        """Keep the projections as the bfloat16 numbers that autocast rounds them to anyway; embeddings and norms stay float32. For frozen models."""
        for module in self.modules():
            if isinstance(module, Projection):
                module.to(torch.bfloat16)

    def forward(self, tokens: torch.Tensor, columns: slice = slice(None), dropout: RowDropout | None = None) -> torch.Tensor:
        """Final hidden states (after ln_f) at `columns`.

        tokens: int64 [B, T], padding anywhere but in the first column. Returns [B, T', C], where T' is the number of columns; at a padded
        place it is the hidden state of the last real token before it, and gradients flow into that one.
        Raises ValueError for a row that starts with padding or has more than n_ctx real tokens.
        """
        compacted, source = self._compact(tokens)
        self._check_length(compacted.shape[1])
        x = self._embed(compacted, torch.arange(compacted.shape[1], device=tokens.device))
        [x] = self._through_blocks([dropout(x, 0) if dropout else x], dropout=dropout)
        return self.ln_f(self._spread(x, source, columns))

    def last_states(self, tokens: torch.Tensor, groups: int = 4) -> torch.Tensor:
        """Final hidden states [B, C] of each row's last real token; tokens as in `forward`.

        Rows go through the blocks in groups of similar length, so that little is computed for padding. The token embedding is read once
        for all of them: each reading costs a gradient of the whole vocabulary's size.
        """
        compacted, source = self._compact(tokens)
        B, n = compacted.shape
        self._check_length(n)
        last = torch.full((B,), n - 1, device=tokens.device) if source is None else source[:, -1]  # column of each row's last real token
        embedded = self._embed(compacted, torch.arange(n, device=tokens.device))
        order = last.argsort(stable=True)
        split = order.split(max(_SMALLEST_GROUP, -(-B // groups)))
        parts = self._through_blocks([embedded[rows, :int(last[rows[-1]]) + 1] for rows in split])
        states = [x[torch.arange(len(rows), device=x.device), last[rows]] for x, rows in zip(parts, split, strict=True)]
        return self.ln_f(torch.cat(states))[order.argsort()]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., C] -> float32 logits [..., V] over the tied embedding."""
        return vocabulary_projection(hidden, self.wte.weight)

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` columns (padding of the first chunk takes no column)."""
        device, c = self.wte.weight.device, self.config
        shape = (batch, c.n_head, capacity, c.n_embd // c.n_head)
        if dtype is None:
            dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else self.wte.weight.dtype
        return KVCache([torch.zeros(shape, dtype=dtype, device=device) for _ in range(c.n_layer)],
                       [torch.zeros(shape, dtype=dtype, device=device) for _ in range(c.n_layer)],
                       torch.zeros(batch, capacity, dtype=torch.bool, device=device), torch.zeros(batch, dtype=torch.int64, device=device))

    def extend(self, tokens: torch.Tensor, cache: KVCache, columns: slice = slice(None)) -> torch.Tensor:
        """The same as `forward` for a chunk that continues what `cache` holds; the cache then holds the chunk too.

        tokens: int64 [B, T]; no row may start with padding (as in the original, for each chunk). Returns [B, T', C].
        Raises ValueError if the chunk does not fit into the cache or the context.
        """
        compacted, source = self._compact(tokens)
        n, past = compacted.shape[1], cache.used
        if past + n > cache.capacity:
            raise ValueError(f"the cache has {cache.capacity} columns, {past} of them used: {n} more do not fit")
        self._check_length(cache.longest + n)
        steps = torch.arange(n, device=tokens.device)
        lengths = n if source is None else source[:, -1:] + 1  # real tokens of each row in this chunk
        cache.real[:, past:past + n] = steps < lengths
        cache.has_gaps = cache.has_gaps or source is not None
        positions = (cache.count[:, None] + steps).clamp(max=self.config.n_ctx - 1)
        mask = self._chunk_mask(cache, n) if past and (cache.has_gaps or n > 1) else None
        [x] = self._through_blocks([self._embed(compacted, positions)], cache, mask)
        cache.count += n if source is None else lengths[:, 0]
        cache.used, cache.longest = past + n, cache.longest + n
        return self.ln_f(self._spread(x, source, columns))

    def _through_blocks(self, parts: list[torch.Tensor], cache: KVCache | None = None, mask: torch.Tensor | None = None,
                        dropout: RowDropout | None = None) -> list[torch.Tensor]:
        for layer, block in enumerate(self.h):
            parts = block(parts, layer, cache, mask, dropout)
        return parts

    @staticmethod
    def _chunk_mask(cache: KVCache, n: int) -> torch.Tensor:
        """bool [B, 1, n, used + n]: a new token sees the real columns up to its own."""
        end = cache.used + n
        seen = torch.ones(n, end, dtype=torch.bool, device=cache.real.device).tril(cache.used)
        return (cache.real[:, None, :end] & seen)[:, None]

    def _compact(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Move each row's real tokens to the left.

        Returns the compacted tokens [B, n] (token 0 to the right of a row's end), n being the largest number of real tokens in a row, and
        for each place of `tokens` the compacted column of the last real token up to there [B, T]; None if there is no padding.
        """
        real = tokens != self.config.padding_token
        if bool(real.all()):
            return tokens, None
        if not bool(real[:, 0].all()):
            raise ValueError("a row starts with padding: its first outputs would belong to no token")
        source = real.cumsum(1) - 1  # [B, T]
        n = int(source[:, -1].max()) + 1
        compacted = tokens.new_zeros(tokens.shape[0], n + 1)  # the last column collects what padding overwrites
        compacted.scatter_(1, torch.where(real, source, n), tokens)
        return compacted[:, :n].contiguous(), source

    def _check_length(self, n: int) -> None:
        if n > self.config.n_ctx:
            raise ValueError(f"{n} real tokens in a row, but the model's context is {self.config.n_ctx}")

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.wte(tokens) + self.wpe(positions)

    @staticmethod
    def _spread(x: torch.Tensor, source: torch.Tensor | None, columns: slice) -> torch.Tensor:
        """Compacted states [B, n, C] -> states at the asked columns of the original rows [B, T', C]."""
        if source is None:
            return x[:, columns]
        return x.gather(1, source[:, columns, None].expand(-1, -1, x.shape[2]))


def count_parameters(config: GPT2Config) -> dict[str, int]:
    """Numbers of parameters: `embeddings` (tokens and positions), `blocks` (all else) and `total`."""
    c = config.n_embd
    blocks = config.n_layer * (12 * c * c + 13 * c) + 2 * c
    embeddings = (config.n_vocab + config.n_ctx) * c
    return {"embeddings": embeddings, "blocks": blocks, "total": embeddings + blocks}
