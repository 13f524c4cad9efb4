"""Models that write beside each other, a token at a time: each writes a continuation of its own, and each reads all."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lm_human_preferences.compute.precision import Precision, aligned_vocabulary, rounding_once, tempered_logits
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.sampling import draw


class Step(NamedTuple):
    """The next token of each of K columns; on the CPU."""

    tokens: torch.Tensor  # int64 [K], column k's by model k
    logprobs: torch.Tensor  # float32 [K, K], nats: under model m (row) of column k's token, after the temperature


class SideBySide:
    """K models of one encoding write K continuations of one context, column k by model k, at the same uniforms.

    The tokens of a column are those that `language.sampling.sample` draws from its model, and the log-probabilities
    those that `Policy.analyze` gives, up to rounding: at each place all models have read the whole column, so that the
    difference of two of them is that token's part of the KL divergence (`learning/ppo.py: compute_rewards`).
    """

    def __init__(
        self,
        models: Sequence[GPT2],
        context: torch.Tensor,
        uniforms: torch.Tensor,
        temperature: float,
        precision: Precision,
    ):
        """context: int64 [Q] without padding; uniforms: float32 [R] in [0, 1), R tokens are written at most; Q + R may
        not exceed any model's context.
        """
        self.models, self.uniforms = models, uniforms.to(precision.device)
        self.temperature, self.precision = max(temperature, 1e-10), precision
        self.context = context.to(precision.device).expand(len(models), -1)  # [K, Q]
        self.written = 0  # tokens of each column
        with torch.no_grad(), precision.autocast():
            self.caches = [model.new_cache(len(models), len(context) + len(uniforms)) for model in models]
            self.weights = [aligned_vocabulary(model.wte.weight) for model in models]

    @torch.no_grad()
    def step(self) -> Step | None:
        """The next token of each column; None when R have been written."""
        if self.written == len(self.uniforms):
            return None
        K = len(self.models)
        with self.precision.autocast(), rounding_once():
            logits = torch.stack([self._read(m) for m in range(K)])  # [K, K, V]
        uniforms = self.uniforms[self.written].expand(1)
        self.tokens = torch.cat([draw(logits[k, k : k + 1], uniforms)[0] for k in range(K)])
        self.written += 1
        logprobs = logits.log_softmax(2).gather(2, self.tokens[None, :, None].expand(K, -1, 1))[..., 0]
        return Step(self.tokens.cpu(), logprobs.cpu())

    def _read(self, m: int) -> torch.Tensor:
        """Model m's logits float32 [K, V] of each column's next token, after it has read what was written last."""
        model, cache = self.models[m], self.caches[m]
        if self.written:
            hidden = model.advance(self.tokens, cache)
        else:
            hidden = model.extend(self.context, cache, slice(-1, None))[:, 0]
        return tempered_logits(hidden, self.weights[m], model.config.n_vocab, self.temperature)
