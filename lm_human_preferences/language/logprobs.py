"""Log-probabilities and entropies of tokens from hidden states, without ever holding the vocabulary-wide tensor of a batch.

Logits are made, used and dropped in chunks of rows, in the backward pass again. On a CPU a chunk stays in the cache, so this is faster
than keeping them: 1.6 times for 1,536 rows of width 256 (docs/log.md).
"""

import torch

from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.precision import vocabulary_projection, with_matmul_precision

CHUNK_ROWS = {"cpu": 128, "cuda": 2048}  # 2,048 rows of 50,257 float32 logits are 400 MiB


def token_logprobs(model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0,
                   entropies: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies (in nats) of the distributions they are drawn from, both tempered.

    hidden [..., C], labels int64 [...]; returns two float32 tensors [...]. Entropies carry no gradient (they are only a statistic; the
    original has no entropy bonus); without `entropies` they are zeros. The temperature divides the logits before log-softmax.
    Original: utils/core.py logprobs_from_logits, entropy_from_logits, as called by policy.py analyze_responses_op.
    """
    rows = hidden.reshape(-1, hidden.shape[-1]).float()
    logprobs, entropy = _TokenLogprobs.apply(rows, model.wte.weight, labels.reshape(-1), max(temperature, 1e-10), entropies)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


class _TokenLogprobs(torch.autograd.Function):
    """hidden float32 [N, C], embedding [V, C], labels int64 [N] -> log-probabilities and entropies float32 [N]."""

    @staticmethod
    def forward(ctx, hidden, embedding, labels, temperature, entropies):
        N, chunk = len(labels), CHUNK_ROWS[hidden.device.type]
        logprobs, normaliser, entropy = hidden.new_empty(N), hidden.new_empty(N), hidden.new_zeros(N)
        for rows in (slice(start, start + chunk) for start in range(0, N, chunk)):
            logits = vocabulary_projection(hidden[rows], embedding).div_(temperature)  # [n, V]
            label_logits = logits.gather(1, labels[rows, None])[:, 0]
            largest = logits.amax(1, keepdim=True)
            weights = logits.sub_(largest).exp() if entropies else logits.sub_(largest).exp_()
            total = weights.sum(1)
            normaliser[rows] = total.log() + largest[:, 0]
            logprobs[rows] = label_logits - normaliser[rows]
            if entropies:
                entropy[rows] = total.log() - weights.mul_(logits).sum(1) / total
        ctx.save_for_backward(hidden, embedding, labels, normaliser)
        ctx.temperature, ctx.matmul_precision = temperature, torch.get_float32_matmul_precision()
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, embedding, labels, normaliser = ctx.saved_tensors
        chunk, grad = CHUNK_ROWS[hidden.device.type], grad.float() / ctx.temperature
        grad_hidden, grad_embedding = torch.empty_like(hidden), torch.zeros_like(embedding, dtype=torch.float32)
        weight = embedding.float()
        with with_matmul_precision(ctx.matmul_precision):
            for rows in (slice(start, start + chunk) for start in range(0, len(labels), chunk)):
                logits = vocabulary_projection(hidden[rows], embedding).div_(ctx.temperature)
                grad_logits = logits.sub_(normaliser[rows, None]).exp_().mul_(-grad[rows, None])  # -probability * grad
                grad_logits.scatter_add_(1, labels[rows, None], grad[rows, None])
                grad_hidden[rows] = grad_logits @ weight
                grad_embedding.addmm_(grad_logits.t(), hidden[rows])
        return grad_hidden, grad_embedding.to(embedding.dtype), None, None, None
