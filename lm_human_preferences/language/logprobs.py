"""Log-probabilities and entropies of tokens from hidden states.

Logits are made in chunks of rows and used in blocks that stay in a CPU core's cache. For the backward pass their
exponentials are kept while they fit into `KEPT_BYTES`; of the rows beyond, logits are made again there, and the
vocabulary-wide tensor of a whole batch never exists.
"""

import torch

from lm_human_preferences.compute.precision import vocabulary_projection, with_matmul_precision
from lm_human_preferences.language.gpt2 import GPT2

CHUNK_ROWS = {"cpu": 128, "cuda": 2048}  # of a matrix product; 2,048 rows of 50,257 float32 logits are 400 MiB
BLOCK_ROWS = {"cpu": 16, "cuda": 2048}  # of the passes over its result
KEPT_BYTES = {"cpu": 2**29, "cuda": 2**31}  # of exponentials, from a forward pass to its backward pass


def token_logprobs(
    model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0, entropies: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies (in nats) of the distributions they are drawn from, both tempered.

    hidden [..., C], labels int64 [...]; returns two float32 tensors [...]. Entropies carry no gradient (they are only a
    statistic; the original has no entropy bonus); without `entropies` they are zeros. The temperature divides the
    logits before log-softmax. Original: utils/core.py logprobs_from_logits, entropy_from_logits, as called by policy.py
    analyze_responses_op.
    """
    rows, weight = hidden.reshape(-1, hidden.shape[-1]).float(), model.wte.weight
    in_training = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    kept = min(len(rows), KEPT_BYTES[rows.device.type] // (4 * len(weight))) if in_training else 0
    logprobs, entropy = _TokenLogprobs.apply(rows, weight, labels.reshape(-1), max(temperature, 1e-10), entropies, kept)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


def slices(start: int, end: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, end)) for first in range(start, end, size)]


class _TokenLogprobs(torch.autograd.Function):
    """hidden float32 [N, C], embedding [V, C], labels int64 [N] -> log-probabilities and entropies float32 [N].

    Of the first `kept` rows the exponentials of the logits, less the row's largest, wait for the backward pass: float32
    [kept, V].
    """

    @staticmethod
    def forward(ctx, hidden, embedding, labels, temperature, entropies, kept):
        N, device = len(labels), hidden.device.type
        logprobs, entropy, largest, total = (
            hidden.new_empty(N),
            hidden.new_zeros(N),
            hidden.new_empty(N),
            hidden.new_empty(N),
        )
        exponentials = hidden.new_empty(kept, len(embedding))
        memory = hidden.new_empty(min(N, CHUNK_ROWS[device]), len(embedding))
        for chunk in slices(0, kept, CHUNK_ROWS[device]) + slices(kept, N, CHUNK_ROWS[device]):
            logits = vocabulary_projection(hidden[chunk], embedding, out=memory[: chunk.stop - chunk.start])
            for rows in slices(chunk.start, chunk.stop, BLOCK_ROWS[device]):
                x = logits[rows.start - chunk.start : rows.stop - chunk.start]  # [n, V]
                if temperature != 1:
                    x.div_(temperature)
                largest[rows] = x.amax(1)
                x.sub_(largest[rows, None])
                logprobs[rows] = x.gather(1, labels[rows, None])[:, 0]
                weights = (
                    torch.exp(x, out=exponentials[rows]) if rows.stop <= kept else x.exp() if entropies else x.exp_()
                )
                total[rows] = weights.sum(1)
                if entropies:
                    entropy[rows] = -x.mul_(weights).sum(1)
        normaliser = total.log()
        if entropies:
            entropy.div_(total).add_(normaliser)
        ctx.save_for_backward(hidden, embedding, labels, total, normaliser + largest)
        ctx.exponentials, ctx.kept = exponentials, kept
        ctx.temperature, ctx.matmul_precision = temperature, torch.get_float32_matmul_precision()
        ctx.mark_non_differentiable(entropy)
        return logprobs.sub_(normaliser), entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, embedding, labels, total, normaliser = ctx.saved_tensors
        exponentials, ctx.exponentials = (
            ctx.exponentials,
            None,
        )  # they become the gradient of the logits: they are there once
        kept, N, grad = 0 if exponentials is None else ctx.kept, len(labels), grad.float() / ctx.temperature
        grad_hidden, weight, grad_embedding = torch.empty_like(hidden), embedding.float(), None
        with with_matmul_precision(ctx.matmul_precision):
            for rows in ([slice(0, kept)] if kept else []) + slices(kept, N, CHUNK_ROWS[hidden.device.type]):
                if rows.stop <= kept:
                    grad_logits = exponentials.mul_((-grad / total)[rows, None])  # -probability * grad
                else:
                    logits = vocabulary_projection(hidden[rows], embedding).div_(ctx.temperature)
                    grad_logits = logits.sub_(normaliser[rows, None]).exp_().mul_(-grad[rows, None])
                grad_logits.scatter_add_(1, labels[rows, None], grad[rows, None])
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
                if grad_embedding is None:
                    grad_embedding = torch.mm(grad_logits.t(), hidden[rows])
                else:
                    grad_embedding.addmm_(grad_logits.t(), hidden[rows])
        return grad_hidden, grad_embedding.to(embedding.dtype), None, None, None, None
