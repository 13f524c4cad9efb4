"""How much memory passes over a GPT-2 take, predicted from its shape.

All numbers are bytes on one device. The formulas count what PyTorch keeps: docs/scaling.md compares them with
measurements. Shapes: C channels, L layers, V vocabulary, T tokens in a row.
"""

from dataclasses import dataclass

import torch

from lm_human_preferences.language.attention import cache_dtype
from lm_human_preferences.language.gpt2 import GPT2Config, count_parameters
from lm_human_preferences.language.logprobs import CHUNK_ROWS, KEPT_BYTES

# What one block keeps of one token for its backward pass, in vectors of C numbers ...
KEPT_IN_FLOAT32 = 2  # the inputs of its two norms
KEPT_IN_BLOCK_PRECISION = 2 + 3 + 1 + 4 + 4  # outputs of the norms; queries, keys, values; attention; the MLP, twice
# ... and what it holds for a moment where the MLP is widest, in a pass without gradient and in the backward pass.
PASSING_IN_FLOAT32 = 2  # its input and the residual stream
PASSING_IN_BLOCK_PRECISION = 1 + 4 + 4  # the norm's output, and the MLP before and after its GELU
WIDEST_GRADIENTS = 4 + 4  # of the MLP before and after its GELU
VOCABULARY_TABLES = 4  # of sampling: logits, probabilities, their sums, and what is excluded


@dataclass(frozen=True)
class Pass:
    """One kind of pass over the model: what it takes whatever its rows, what each row adds, and how many rows there are
    to do on a device.
    """

    fixed: int
    per_row: int
    rows: int
    step: int = 1  # rows come in multiples of this
    gradients: int = 0  # of the weights, if they come and go: those of earlier micro-batches, which one alone has not

    def bytes(self, rows: int) -> int:
        """In a single micro-batch gradients only grow while the rows' activations go."""
        activations = rows * self.per_row
        if rows >= self.rows:
            return self.fixed + max(activations, self.gradients)
        return self.fixed + activations + self.gradients

    def fitting(self, free: int, most: int) -> int:
        """The largest micro-batch within `free` bytes and `most` rows that cuts the rows evenly; 0 if not even the
        smallest fits.
        """
        if self.rows <= most and self.bytes(self.rows) <= free:
            return self.rows
        affordable = int((free - self.fixed - self.gradients) // self.per_row)
        fit = min(affordable, most, self.rows - 1) // self.step * self.step
        if fit < self.step:
            return 0
        even = -(-self.rows // -(-self.rows // fit))
        return min(-(-even // self.step) * self.step, fit)


@dataclass(frozen=True)
class Shape:
    """A model, the precision that its blocks compute in, and the kind of device: all that its memory depends on."""

    config: GPT2Config
    bfloat16: bool
    device: str  # cpu or cuda
    top: int | None = None  # only so many of the last blocks are trained, and no embeddings; None: all of it

    @property
    def block_number(self) -> int:
        """Bytes of a number in the blocks."""
        return 2 if self.bfloat16 else 4

    @property
    def embeddings(self) -> int:
        """The number of parameters in token and position embeddings."""
        return count_parameters(self.config)["embeddings"]

    @property
    def blocks(self) -> int:
        """The number of parameters in all blocks."""
        return count_parameters(self.config)["blocks"]

    def weights(self) -> int:
        """Parameters in float32."""
        return 4 * count_parameters(self.config)["total"]

    def trained(self) -> int:
        """Of these parameters the ones that have gradients."""
        if self.top is None:
            return self.weights()
        C = self.config.n_embd
        return self.weights() - 4 * self.embeddings - 4 * (self.config.n_layer - self.top) * (12 * C * C + 13 * C)

    def frozen_weights(self) -> int:
        """An inference-only model: blocks as autocast reads them, embeddings in float32."""
        return self.block_number * self.blocks + 4 * self.embeddings

    def rounded_blocks(self) -> int:
        """The blocks once more, as autocast rounds them; nothing in float32."""
        return 2 * self.blocks if self.bfloat16 else 0

    def kept(self) -> int:
        """By one block of one token, from the forward to the backward pass."""
        return self.config.n_embd * (4 * KEPT_IN_FLOAT32 + KEPT_IN_BLOCK_PRECISION * self.block_number)

    def passing(self) -> int:
        """By one block of one token, for a moment."""
        return self.config.n_embd * (4 * PASSING_IN_FLOAT32 + PASSING_IN_BLOCK_PRECISION * self.block_number)

    def logits(self) -> int:
        """One chunk of logits and their probabilities."""
        return 2 * CHUNK_ROWS[self.device] * self.config.n_vocab * 4

    def kept_logits(self, tokens: int) -> int:
        """What is kept of the logits of so many tokens, from the forward to the backward pass."""
        return min(KEPT_BYTES[self.device], 4 * self.config.n_vocab * tokens)

    def cache(self, tokens: int) -> int:
        """Keys and values of a row of so many tokens."""
        number = cache_dtype(torch.device(self.device), torch.bfloat16 if self.bfloat16 else torch.float32).itemsize
        return 2 * self.config.n_layer * self.config.n_embd * tokens * number

    def rollout(self, context: int, response: int, rows: int, whole: int = 0) -> Pass:
        """Sampling: keys and values of all tokens, the context's pass, and tables as wide as the vocabulary.

        whole: bytes of the weights that are made whole or rounded for all tokens at once.
        """
        cache = self.cache(context + response)
        tables = VOCABULARY_TABLES * 4 * self.config.n_vocab
        return Pass(whole, cache + context * self.passing() + tables, rows)

    def scoring(self, tokens: int, rows: int, logits: bool = True) -> Pass:
        """A pass without gradient over rows of `tokens`; without `logits` where only a scalar head is read."""
        return Pass(self.logits() if logits else 0, tokens * self.passing(), rows)

    def training(
        self, tokens: int, rows: int, gradients: int, recompute: bool, step: int = 1, scored: int | None = None
    ) -> Pass:
        """Forward and backward over rows of `tokens`, of which `scored` have logits (None: all): activations, logits in
        chunks, what is kept of them, and the gradient of the whole embedding. Blocks that are not trained keep nothing.

        gradients: bytes of the weights' gradients that come and go; step: rows come in multiples of it.
        """
        C, L, scored = self.config.n_embd, self.top or self.config.n_layer, tokens if scored is None else scored
        last_block = self.kept() + WIDEST_GRADIENTS * C * self.block_number
        per_token = L * 4 * C + last_block if recompute else (L - 1) * self.kept() + last_block
        rounded = self.rounded_blocks() // (self.config.n_layer if recompute else 1)
        embedding_gradient = 4 * self.config.n_vocab * C if self.top is None else 0
        fixed = (self.logits() + self.kept_logits(rows * scored) if scored else 0) + embedding_gradient + rounded
        return Pass(fixed, tokens * (per_token + 4 * 4 * C), rows, step, gradients)
