"""GPT-2 on one page: what to read first, and what the tests hold `gpt2.py` against.

No packing, no cache, no shortcut: every place of a row goes through every block, padding too, and a mask hides it, as
the original does (language/model.py). `gpt2.py` computes the same function of the tokens, faster. The parameters have
the same names, so `PlainGPT2(model.config).load_state_dict(model.state_dict())` makes the two one model.
"""

import torch
import torch.nn as nn

from lm_human_preferences.language.gpt2 import GPT2Config


class Projection(nn.Module):
    """y = x @ weight + bias, weight [in, out]."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(n_in, n_out)), nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class PlainBlock(nn.Module):
    """Attention, then an MLP; each behind a layer norm, each added to what it reads."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        C, epsilon = config.n_embd, config.layer_norm_epsilon
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(C, epsilon)
        self.attn = nn.ModuleDict({"c_attn": Projection(C, 3 * C), "c_proj": Projection(C, C)})
        self.ln_2 = nn.LayerNorm(C, epsilon)
        self.mlp = nn.ModuleDict({"c_fc": Projection(C, 4 * C), "c_proj": Projection(4 * C, C)})

    def forward(self, x: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """x [B, T, C], sees bool [B, T, T]: whether a place (row) reads from a place (column) -> [B, T, C]."""
        B, T, C = x.shape
        heads = self.attn["c_attn"](self.ln_1(x)).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
        scores = q @ k.transpose(2, 3) / (C // self.n_head) ** 0.5  # [B, H, T, T]
        weights = scores.masked_fill(~sees[:, None], -1e10).softmax(-1)
        x = x + self.attn["c_proj"]((weights @ v).transpose(1, 2).reshape(B, T, C))
        h = self.mlp["c_fc"](self.ln_2(x))
        gelu = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + self.mlp["c_proj"](gelu)
        return x


class PlainGPT2(nn.Module):
    """The transformer. Its vocabulary projection is the token embedding."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte, self.wpe = nn.Embedding(config.n_vocab, config.n_embd), nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [B, T], padding anywhere but in the first column -> hidden states float32 [B, T, C]; at a padded place
        that of the last real token before it.
        """
        T, real = tokens.shape[1], tokens != self.config.padding_token
        positions = (real.cumsum(1) - 1).clamp(min=0)  # padding takes none
        x = self.wte(tokens.where(real, 0)) + self.wpe(positions)
        causal = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
        for block in self.h:
            x = block(x, causal & real[:, None, :])
        places = torch.arange(T, device=tokens.device).where(real, 0).cummax(1).values  # of the last real token
        hidden: torch.Tensor = self.ln_f(x)
        return hidden.gather(1, places[..., None].expand_as(x))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., C] -> logits [..., V]."""
        return hidden @ self.wte.weight.T
