"""Small operations that PyTorch's compiler joins (`--run.compiled on`), chosen once for the whole process.

On a GPU a layer norm, the cast after it, GELU, a sum over logits are each a pass over memory; compiled, neighbours are
one kernel. Matrix products, attention and everything around the blocks stay what they are. The numbers are the same up
to rounding, in whichever order a kernel adds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lm_human_preferences.foundation.errors import UserError

Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


class Fused(NamedTuple):
    """The compiled functions, each made at its first call and for each kind of input."""

    project: Callable[[Any, torch.Tensor], torch.Tensor]
    feed: Callable[[Any, torch.Tensor], torch.Tensor]
    sums: Callable[[torch.Tensor, torch.Tensor, bool, torch.Tensor | None], Sums]


def project(block: Any, x: torch.Tensor) -> torch.Tensor:
    """A `gpt2.Block`'s queries, keys and values [N, 3 C] of x [N, C], behind the layer norm."""
    projected: torch.Tensor = block.attn.c_attn(block.ln_1(x))
    return projected


def feed(block: Any, x: torch.Tensor) -> torch.Tensor:
    """A `gpt2.Block`'s second half of x [N, C]: what the MLP makes of it behind the layer norm, added to it."""
    added: torch.Tensor = x + block.mlp(block.ln_2(x))
    return added


def sums(logits: torch.Tensor, labels: torch.Tensor, entropies: bool, kept: torch.Tensor | None) -> Sums:
    """Of logits float32 [n, V]: the labels' logits less the largest, the largest, the sum of the exponentials of the
    logits less the largest, and with `entropies` minus the sum of these times the logits less the largest, each [n].
    kept: memory [n, V] for the exponentials.
    """
    largest = logits.amax(1)
    z = logits - largest[:, None]
    weights = z.exp()
    if kept is not None:
        kept.copy_(weights)
    entropy = -(z * weights).sum(1) if entropies else None
    return z.gather(1, labels[:, None])[:, 0], largest, weights.sum(1), entropy


_fused: Fused | None = None


def fused() -> Fused | None:
    """What passes use instead of their own operations, None where nothing is compiled."""
    return _fused


def compile_passes(on: bool, device: torch.device | None = None, backend: str = "inductor") -> None:
    """Whether passes from now on use compiled functions. UserError where PyTorch cannot compile for `device`."""
    global _fused
    if not on:
        _fused = None
    elif _fused is None:
        if device is not None:
            _try(device, backend)
        options: dict[str, Any] = {"backend": backend, "dynamic": True}
        functions: list[Any] = [project, feed, sums]
        _fused = Fused(*(torch.compile(function, **options) for function in functions))


def _try(device: torch.device, backend: str) -> None:
    """Compile something small: a missing compiler shows now, not in the first step."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:
        reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
        raise UserError(f"--run.compiled on: PyTorch cannot compile here ({reason}); leave it off") from error
