"""Device and autocast policy: the one place that knows bfloat16.

Under bfloat16 autocast the blocks' matrix products run in bfloat16. The vocabulary projection's *output*, the
temperature, log-softmax, heads, rewards and statistics stay float32: near 110 neighbouring bfloat16 numbers lie 0.5
apart, and a log-probability would be off by as much.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lm_human_preferences.foundation.errors import UserError


def cpu_has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware tiles (AMX). Without them bfloat16 is slower than
    float32.
    """
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


@dataclass(frozen=True)
class Precision:
    """Where a run computes and in what precision."""

    device: torch.device
    bfloat16: bool

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Blocks in bfloat16 if this policy says so; float32 otherwise."""
        if not self.bfloat16:
            yield
            return
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False), with_matmul_precision("medium"):
            yield

    def describe(self) -> str:
        return f"{self.device.type}, {'bfloat16 autocast' if self.bfloat16 else 'float32'}"


@contextlib.contextmanager
def rounding_once() -> Iterator[None]:
    """Inside autocast: what reads the same parameters again and again, as decoding does, rounds each of them once. The
    copies go when this block ends.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()


@contextlib.contextmanager
def with_matmul_precision(precision: str) -> Iterator[None]:
    """Inside this block float32 matrix products round their *inputs* as `precision` allows (sums and outputs stay
    float32).

    "medium" lets them be bfloat16 where that is faster, "highest" does not round.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_precision(device: str = "auto", precision: str = "auto") -> Precision:
    """The device and precision to use: `auto` is the GPU if there is one, and bfloat16 where the hardware multiplies it
    fast.

    Raises UserError for an unknown name or a device that this machine lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--run.device {device}: must be auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--run.device {device}: this machine has no CUDA device; use --run.device cpu")
    if precision not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--run.precision {precision}: must be auto, float32 or bfloat16")
    fast = torch.cuda.is_bf16_supported() if device.startswith("cuda") else cpu_has_fast_bfloat16()
    return Precision(torch.device(device), precision == "bfloat16" or (precision == "auto" and fast))


def vocabulary_projection(
    hidden: torch.Tensor, embedding: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """hidden [..., C] times embedding [V, C] transposed, as float32 logits [..., V], whatever the autocast.

    Inside `Precision.autocast` with bfloat16 the inputs are rounded to bfloat16 by the matrix product, its sums are
    float32. `out`: memory for the logits of hidden [n, C], where no gradient is wanted; fresh memory of this size costs
    a CPU a third of the product's time.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if out is not None:
            return torch.mm(hidden.float(), embedding.float().t(), out=out)
        return F.linear(hidden.float(), embedding.float())
