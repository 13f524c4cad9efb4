"""Log-probabilities and entropies of tokens from hidden states, without holding the vocabulary-wide tensor of a whole batch."""

import torch
from torch.utils.checkpoint import checkpoint

from lm_human_preferences.language.gpt2 import GPT2

CHUNK_ROWS = 2048  # 2,048 rows of 50,257 float32 logits are 400 MiB


def token_logprobs(model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0,
                   entropies: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies of the distributions they are drawn from, both tempered.

    hidden [..., C], labels int64 [...]; returns two float32 tensors [...]. Entropies carry no gradient (they are only a statistic; the
    original has no entropy bonus); without `entropies` they are zeros. The temperature divides the logits before log-softmax.
    Original: utils/core.py logprobs_from_logits, entropy_from_logits, as called by policy.py analyze_responses_op.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if len(rows) <= CHUNK_ROWS:
        parts = [_rows(model, rows, flat, temperature, entropies)]
    else:
        remember = torch.is_grad_enabled()
        parts = [checkpoint(_rows, model, h, l, temperature, entropies, use_reentrant=False) if remember
                 else _rows(model, h, l, temperature, entropies)
                 for h, l in zip(rows.split(CHUNK_ROWS), flat.split(CHUNK_ROWS), strict=True)]
    logprobs, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs.view(labels.shape), entropy.view(labels.shape)


def _rows(model: GPT2, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, entropies: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model.logits(hidden)  # [N, V]
    if temperature != 1.0:
        logits = logits / max(temperature, 1e-10)
    normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(-1, labels[:, None])[:, 0] - normaliser
    return logprobs, entropy_from_logits(logits.detach(), normaliser.detach()) if entropies else torch.zeros_like(logprobs)


def entropy_from_logits(logits: torch.Tensor, normaliser: torch.Tensor | None = None) -> torch.Tensor:
    """logits [..., V] -> entropies in nats [...]. `normaliser` is their logsumexp if known."""
    if normaliser is None:
        normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits - normaliser[..., None]
    return -(torch.exp(logprobs) * logprobs).sum(-1)  # not normaliser - sum(p * logits): near 110 that cancels
