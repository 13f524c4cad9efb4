"""The process group: start, rank, world size, reductions, close. The one place that knows the world size.

Every random draw is made for the whole global batch on every rank and then sliced, so the number of ranks changes nothing but rounding.
Without `torchrun` all of this is the identity.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lm_human_preferences.errors import UserError


@dataclass(frozen=True)
class World:
    """This process's place among all ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # ranks on this machine
    device_type: str = "cpu"  # where this rank's tensors for messages must lie

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int, name: str) -> slice:
        """This rank's part of a global batch of `total` rows. Raises UserError if it does not divide."""
        if total % self.size:
            raise UserError(f"{name} {total} does not divide by the {self.size} ranks; choose a multiple of {self.size}")
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def share_of(self, rows: torch.Tensor) -> torch.Tensor:
        """This rank's part of the row numbers int64 [n], after the first ones were repeated until they divide by the number of ranks.

        What the ranks find for their parts, gathered, has the n wanted rows first.
        """
        filled = torch.cat([rows, rows[torch.arange(-len(rows) % self.size) % len(rows)]])
        return filled[self.share(len(filled), "rows")]

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over ranks, in place, in one message per dtype."""
        if self.size == 1:
            return
        groups: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            groups.setdefault(tensor.dtype, []).append(tensor)
        for group in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The ranks' tensors [b, ...] joined along the first axis in rank order [b * size, ...]; no gradient."""
        if self.size == 1:
            return tensor
        sent = tensor.to(self._message_device()).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent)
        return torch.cat(parts).to(tensor.device)

    def from_main(self, value: Any) -> Any:
        """What rank 0 has; plain values only."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self._message_device())
        return box[0]

    def from_main_(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by rank 0's, in place."""
        if self.size > 1:
            sent = tensor.detach().to(self._message_device()).contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)

    def least(self, number: int) -> int:
        """The smallest of the ranks' whole numbers."""
        if self.size == 1:
            return number
        smallest = torch.tensor([number], device=self._message_device())
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def _message_device(self) -> torch.device:
        return torch.device(self.device_type, self.local_rank) if self.device_type == "cuda" else torch.device("cpu")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a parameter (or what an optimizer keeps of it) lies in parts on all ranks, by rows."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: torch.Tensor, world: World) -> tuple[torch.Tensor, int]:
    """This rank's rows of a tensor and the number of the first; of a tensor that is not sharded all of it, and 0."""
    if not is_sharded(tensor):
        return tensor, 0
    rows = -(-tensor.shape[0] // world.size)
    return tensor.to_local(), min(world.rank * rows, tensor.shape[0])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows of a tensor, on every rank; all ranks must call it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@contextlib.contextmanager
def world(device_type: str) -> Iterator[World]:
    """Join the process group that `torchrun` announces (nccl on GPUs, gloo on CPUs); a world of one without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, int(os.environ["LOCAL_WORLD_SIZE"]), device_type)
    finally:
        dist.destroy_process_group()


def generator_for(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """The CPU generator of one random draw: a function of the run's seed, what it is for, and the step."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
