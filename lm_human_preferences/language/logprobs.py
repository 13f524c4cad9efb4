"""Log-probabilities and entropies of tokens from hidden states.

Logits are made in chunks of rows and used in blocks that stay in a CPU core's cache. For the backward pass their
exponentials are kept while they fit into `KEPT_BYTES`; the logits of all further rows are made again there, so that the
memory of a pass stays bounded whatever the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lm_human_preferences.compute.precision import EXCLUDED, aligned_vocabulary, tempered_logits, with_matmul_precision
from lm_human_preferences.language import compiled
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.support import unpacked

CHUNK_ROWS = {"cpu": 128, "cuda": 2048}  # of a matrix product; 2,048 rows of 50,257 float32 logits are 400 MiB
BLOCK_ROWS = {"cpu": 16, "cuda": 2048}  # of the passes over its result
KEPT_BYTES = {"cpu": 2**29, "cuda": 3 * 2**30}  # of exponentials, from a forward pass to its backward pass

Steer = Callable[[torch.Tensor, torch.Tensor], None]
"""Changes tempered logits float32 [n, V or more] in place, from the hidden states [n, C] that they were made of."""


def token_logprobs(
    model: GPT2,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    entropies: bool = True,
    support: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies (in nats) of the distributions they are drawn from, both tempered.

    hidden [..., C], labels int64 [...]; returns two float32 tensors [...]. Entropies carry no gradient (they are only a
    statistic; the original has no entropy bonus); without `entropies` they are zeros. The temperature divides the
    logits before log-softmax. support: uint8 [..., bytes], the tokens among which each label was drawn
    (`language.support`): the distributions are of these alone; None for all. Original: utils/core.py
    logprobs_from_logits, entropy_from_logits, as called by policy.py analyze_responses_op.
    """
    rows, among = hidden.reshape(-1, hidden.shape[-1]), _flat(support)
    logprobs, entropy = _logprobs_of(
        rows, model.wte.weight, labels.reshape(-1), max(temperature, 1e-10), entropies, among
    )
    return logprobs.view(labels.shape), entropy.view(labels.shape)


def linear_logprobs(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Log-softmax of features [N, D] @ weight [V, D] transposed + bias [V], at labels int64 [N]: float32 [N]. The same
    computation as `token_logprobs`, of logits that are another layer's.
    """
    with torch.autocast(features.device.type, enabled=False):  # the bias: one more feature, which is always 1
        widened = torch.cat([features.float(), features.new_ones(len(features), 1, dtype=torch.float32)], dim=1)
        columns = torch.cat([weight.float(), bias.float()[:, None]], dim=1)
    return _logprobs_of(widened, columns, labels, 1.0, entropies=False)[0]


def _logprobs_of(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    entropies: bool,
    support: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows.float()
    in_training = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    kept = min(len(rows), KEPT_BYTES[rows.device.type] // (4 * len(weight))) if in_training else 0
    arguments = (rows, weight, labels, temperature, entropies, kept, support)
    logprobs, entropy = _TokenLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]  # PyTorch's, not annotated
    return logprobs, entropy


@torch.no_grad()
def steered_logprobs(
    model: GPT2,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    steer: Steer,
    entropies: bool = True,
    support: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logprobs`, without gradient, of the distributions whose logits `steer` has changed."""
    rows, targets, among = hidden.reshape(-1, hidden.shape[-1]).float(), labels.reshape(-1), _flat(support)
    N, V, weight = len(rows), model.config.n_vocab, aligned_vocabulary(model.wte.weight)
    sums = _Sums(rows.new_empty(N), rows.new_empty(N), rows.new_empty(N), rows.new_zeros(N))
    memory = rows.new_empty(min(N, CHUNK_ROWS[rows.device.type]), len(weight))
    for part in slices(0, N, CHUNK_ROWS[rows.device.type]):
        logits = tempered_logits(rows[part], weight, V, max(temperature, 1e-10), memory[: part.stop - part.start])
        steer(rows[part], logits)
        _leave(logits, among, part)
        _add_up(logits, targets[part], entropies, sums.of(part), None)
    log_total = sums.total.log()
    if entropies:
        sums.entropy.div_(sums.total).add_(log_total)
    return sums.label.sub_(log_total).view(labels.shape), sums.entropy.view(labels.shape)


def slices(start: int, end: int, size: int) -> list[slice]:
    """The rows from start to end in slices of at most this size."""
    return [slice(first, min(first + size, end)) for first in range(start, end, size)]


class _Sums(NamedTuple):
    """Of each row, float32 [N] or [n] of a chunk."""

    label: torch.Tensor  # the label's logit less the row's largest
    largest: torch.Tensor
    total: torch.Tensor  # sum of the exponentials of the logits less the largest
    entropy: torch.Tensor  # minus the sum of these exponentials times the logits less the largest

    def of(self, rows: slice) -> "_Sums":
        return _Sums(*(x[rows] for x in self))


def _add_up(
    logits: torch.Tensor, labels: torch.Tensor, entropies: bool, sums: _Sums, exponentials: torch.Tensor | None
) -> None:
    """Write the sums of one chunk, and its exponentials float32 [n, V] where they are to be kept.

    logits float32 [n, V], after the temperature, are overwritten.
    """
    if compiled.is_on():
        for memory, found in zip(sums, _in_one_pass(logits, labels, entropies, exponentials), strict=True):
            if found is not None:
                memory.copy_(found)
        return
    for rows in slices(0, len(logits), BLOCK_ROWS[logits.device.type]):
        x, block = logits[rows], sums.of(rows)
        block.largest.copy_(x.amax(1))
        x.sub_(block.largest[:, None])
        block.label.copy_(x.gather(1, labels[rows, None])[:, 0])
        if exponentials is not None:
            weights = torch.exp(x, out=exponentials[rows])
        else:
            weights = x.exp() if entropies else x.exp_()
        block.total.copy_(weights.sum(1))
        if entropies:
            block.entropy.copy_(-x.mul_(weights).sum(1))


@compiled.compilable(dynamic=True)
def _in_one_pass(
    logits: torch.Tensor, labels: torch.Tensor, entropies: bool, kept: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`_Sums` of logits float32 [n, V]; None in the place of entropies that nobody wants. kept: memory [n, V] for the
    exponentials.
    """
    largest = logits.amax(1)
    z = logits - largest[:, None]
    weights = z.exp()
    if kept is not None:
        kept.copy_(weights)
    entropy = -(z * weights).sum(1) if entropies else None
    return z.gather(1, labels[:, None])[:, 0], largest, weights.sum(1), entropy


def _flat(support: torch.Tensor | None) -> torch.Tensor | None:
    return None if support is None else support.reshape(-1, support.shape[-1])


def _leave(logits: torch.Tensor, support: torch.Tensor | None, rows: slice) -> None:
    """Exclude what does not belong to the support of these rows, in place; logits: float32 [n, V]."""
    if support is not None:
        for block in slices(0, len(logits), BLOCK_ROWS[logits.device.type]):
            left = unpacked(support[rows][block], logits.shape[1])
            logits[block].masked_fill_(~left, EXCLUDED)


class _TokenLogprobs(torch.autograd.Function):
    """hidden float32 [N, C], embedding [V, C], labels int64 [N] -> log-probabilities and entropies float32 [N].

    The same as

        logprobs = (hidden @ embedding.T / temperature).log_softmax(1)
        entropies = -(logprobs.exp() * logprobs).sum(1)
        return logprobs.gather(1, labels[:, None])[:, 0], entropies

    but in chunks of rows. With z the logits less the row's largest, a log-probability is z - log(sum exp z), and the
    entropy log(sum exp z) - sum(z exp z) / sum exp z. The gradient of a row's logits is its label's one-hot vector less
    the probabilities: of the first `kept` rows from their exponentials, float32 [kept, V], of the others from logits
    that are made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        embedding: torch.Tensor,
        labels: torch.Tensor,
        temperature: float,
        entropies: bool,
        kept: int,
        support: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        N, V, size, weight = len(labels), len(embedding), CHUNK_ROWS[hidden.device.type], aligned_vocabulary(embedding)
        sums = _Sums(hidden.new_empty(N), hidden.new_empty(N), hidden.new_empty(N), hidden.new_zeros(N))
        exponentials = hidden.new_empty(kept, len(weight))
        memory = hidden.new_empty(min(N, size), len(weight))  # of one chunk's logits, for all chunks
        for rows in slices(0, kept, size) + slices(kept, N, size):
            logits = tempered_logits(hidden[rows], weight, V, temperature, memory[: rows.stop - rows.start])
            _leave(logits, support, rows)
            keep = exponentials[rows] if rows.stop <= kept else None
            _add_up(logits, labels[rows], entropies, sums.of(rows), keep)
        log_total = sums.total.log()
        if entropies:
            sums.entropy.div_(sums.total).add_(log_total)
        ctx.save_for_backward(hidden, embedding, labels, sums.total, log_total + sums.largest, support)
        ctx.exponentials, ctx.kept = exponentials, kept
        ctx.temperature, ctx.matmul_precision = temperature, torch.get_float32_matmul_precision()
        ctx.mark_non_differentiable(sums.entropy)
        return sums.label.sub_(log_total), sums.entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, embedding, labels, total, normaliser, support = ctx.saved_tensors
        # the exponentials become the gradient of the logits: a second backward pass makes all logits again
        exponentials, ctx.exponentials = ctx.exponentials, None
        kept, N, device = 0 if exponentials is None else ctx.kept, len(labels), hidden.device.type
        needs_hidden, needs_embedding = ctx.needs_input_grad[:2]
        grad, V, weight = grad.float() / ctx.temperature, len(embedding), aligned_vocabulary(embedding.float())
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_embedding: torch.Tensor | None = None
        with torch.autocast(device, enabled=False), with_matmul_precision(ctx.matmul_precision):
            for rows in ([slice(0, kept)] if kept else []) + slices(kept, N, CHUNK_ROWS[device]):
                if rows.stop <= kept:
                    grad_logits = exponentials.mul_((-grad / total)[rows, None])  # -probability * grad
                else:
                    logits = tempered_logits(hidden[rows], weight, V, ctx.temperature)
                    _leave(logits, support, rows)
                    grad_logits = logits.sub_(normaliser[rows, None]).exp_().mul_(-grad[rows, None])
                grad_logits.scatter_add_(1, labels[rows, None], grad[rows, None])
                if grad_hidden is not None:
                    torch.mm(grad_logits, weight, out=grad_hidden[rows])
                if needs_embedding and grad_embedding is None:
                    grad_embedding = torch.mm(grad_logits.t(), hidden[rows])
                elif grad_embedding is not None:
                    grad_embedding.addmm_(grad_logits.t(), hidden[rows])
        if needs_embedding:
            grad_embedding = torch.zeros_like(weight) if grad_embedding is None else grad_embedding
            grad_embedding = grad_embedding[:V].to(embedding.dtype)
        return grad_hidden, grad_embedding, None, None, None, None, None
