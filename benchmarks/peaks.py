"""What the device can do at most: a large matrix product in float32 and in bfloat16, and a large copy."""

import functools

import torch

from benchmarks.cases import Case
from benchmarks.clock import PhaseClock

SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPY_BYTES = 256 * 2**20


class Peaks:
    """Calling it gives FLOP/s of both products and bytes/s of the copy, read and written."""

    def __init__(self, case: Case, device: torch.device):
        side = SIDES[device.type]
        self.clock, self.flops = PhaseClock(device), 2 * side**3
        generator = torch.Generator().manual_seed(0)
        self.matrices = {
            name: torch.randn(side, side, generator=generator).to(device, dtype)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        }
        self.source = torch.ones(COPY_BYTES // 4, device=device)
        self.target = torch.empty_like(self.source)

    def __call__(self) -> dict[str, float]:
        rates = {
            name: self.flops / self.clock.measure(functools.partial(torch.matmul, matrix, matrix))[0]
            for name, matrix in self.matrices.items()
        }
        return rates | {"copy": 2 * COPY_BYTES / self.clock.measure(lambda: self.target.copy_(self.source))[0]}
