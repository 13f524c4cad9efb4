"""Which of the responses to a query expert iteration keeps, and what it learns from them.

Shapes: B responses, k of them to each query in adjacent rows, R response tokens.
"""

import torch

KEEP = ("best", "random")


def kept_responses(rewards: torch.Tensor, k: int, keep: str, generator: torch.Generator) -> torch.Tensor:
    """Which rows are kept, int64 [B / k] on the host, one a query: the one with the highest reward, the first among
    equals; or for `random`, the control, one at random, whatever its reward. rewards: float32 [B].
    """
    groups = rewards.view(-1, k).cpu()
    if keep == "best":
        chosen = (groups == groups.amax(1, keepdim=True)).int().argmax(1)
    else:
        chosen = torch.randint(k, (len(groups),), generator=generator)
    return torch.arange(len(groups)) * k + chosen


def likelihood_losses(logprobs: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Minus the log-probability of each response's tokens that count, float32 [B]; logprobs: [B, R]; counted: bool
    [B, R], the tokens up to the response's end.
    """
    return -torch.where(counted, logprobs, 0.0).sum(1)
