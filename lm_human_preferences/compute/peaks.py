"""What a device can do at most: a large matrix product in float32 and in bfloat16, and a large copy."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPY_BYTES = 256 * 2**20


class Peaks(NamedTuple):
    """Rates of one device."""

    float32: float  # FLOP/s of a product
    bfloat16: float  # FLOP/s of a product
    copy: float  # bytes/s, read and written


def measure_peaks(device: torch.device, repeats: int = 3) -> Peaks:
    """Medians of so many repeats after one to warm up; seconds of work, and up to half a GiB of memory. Products in
    float32 are rounded to TF32 where PyTorch is told so.
    """
    side = SIDES[device.type]
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(side, side, generator=generator).to(device)
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        rounded = matrix.to(dtype)
        rates.append(2 * side**3 / _seconds(functools.partial(torch.matmul, rounded, rounded), device, repeats))
    source = torch.ones(COPY_BYTES // 4, device=device)
    copy = functools.partial(torch.empty_like(source).copy_, source)
    return Peaks(rates[0], rates[1], 2 * COPY_BYTES / _seconds(copy, device, repeats))


def _seconds(work: Callable[[], torch.Tensor], device: torch.device, repeats: int) -> float:
    """The median of a call's seconds, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
