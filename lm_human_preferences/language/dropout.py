"""Dropout whose masks belong to the rows of a batch, whatever micro-batch or rank computes them."""

from collections.abc import Sequence

import torch

_GOLDEN = 0x9E3779B1  # 2^32 over the golden ratio, odd: spreads neighbouring sites over all seeds


class RowDropout:
    """Inverted dropout; the mask of a row at a site of the model is drawn from the row's own seed.

    So the number of ranks, micro-batches and recomputed activations (see `GPT2.recompute_activations`) change no mask.
    """

    def __init__(self, rate: float, seeds: Sequence[int], length: int):
        """rate: share set to 0, in [0, 1); seeds: one whole number in [0, 2^32) a row; length: tokens for which masks
        are drawn (rows may be shorter).
        """
        self.rate, self.seeds, self.length = rate, list(seeds), length

    def __call__(self, x: torch.Tensor, site: int) -> torch.Tensor:
        """x [B, n, C] with n <= length; site: which of the model's dropouts this is."""
        generator, keep = torch.Generator(x.device), torch.empty(x.shape, dtype=torch.bool, device=x.device)
        for row, seed in enumerate(self.seeds):
            generator.manual_seed((seed + site * _GOLDEN) % 2**32)  # PyTorch's generator on a CPU looks at 32 bits
            drawn = torch.rand(self.length, x.shape[2], generator=generator, device=x.device)
            torch.ge(drawn[: x.shape[1]], self.rate, out=keep[row])
        return x * keep / (1 - self.rate)


def row_seeds(rows: int, generator: torch.Generator) -> list[int]:
    """A seed a row of the global batch."""
    return torch.randint(2**32, (rows,), generator=generator).tolist()
