"""The process group: join it, rank, world size, reductions. The one place that knows the world size.

Every random draw is made for the whole global batch on every rank and then sliced, so the number of ranks changes
nothing but rounding. Without `torchrun` all of this is the identity. What ranks know of the `torchrun` that started
them is in torchrun.py.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist

from lm_human_preferences.compute import torchrun
from lm_human_preferences.foundation.errors import Interrupted, RanksLost, UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

WAIT = 600.0  # seconds that a rank waits for the others where no parameter says how long
LONGEST_WAIT = 1e6  # seconds, at most
# What gloo, nccl and the store say when another process or the link to it is gone. What else they say is a mistake of
# the program.
_GONE = re.compile(
    r"Connection (?:closed by peer|reset by peer|refused|timed out|was likely closed)|Broken pipe|No route to host|"
    r"Network is unreachable|[Tt]imed out (?:waiting|after)|[Tt]imeout|"
    r"ncclRemoteError|ncclSystemError|communicator was aborted"
)
_UNREACHED = (
    "between machines GLOO_SOCKET_IFNAME (on GPUs NCCL_SOCKET_IFNAME) must name the network interface that leads to "
    "the others"
)


@dataclass(frozen=True)
class World:
    """This process's place among all ranks, and what ranks do together.

    On two ranks, where rank 0 has `a` and rank 1 has `b` (on one rank each gives back what it was given):

        call                 rank 0            rank 1            message   must all ranks call it?
        share(8, "rows")     slice(0, 4)       slice(4, 8)       none      no
        share_of([5, 7, 9])  [5, 7]            [9, 5]            none      no
        sum_([a])            a becomes a + b   b becomes a + b   yes       yes
        gather(a)            [*a, *b]          [*a, *b]          yes       yes, tensors of one shape
        from_main(a)         a                 a                 yes       yes
        from_main_(a)        a stays           b becomes a       yes       yes
        min_over_ranks(a)    min(a, b)         min(a, b)         yes       yes
        any(a)               a or b            a or b            yes       yes
        barrier()            waits for all     waits for all     yes       yes

    A name that ends with _ changes its tensors in place, as PyTorch's do.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # ranks on this machine
    device_type: str = "cpu"  # where this rank's tensors for messages must lie
    # one name for each `torchrun` process that started ranks of this world; restarted ranks find the same names
    launch: tuple[str, ...] = ()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int, name: str) -> slice:
        """This rank's part of a global batch of `total` rows. Raises UserError if it does not divide."""
        if total % self.size:
            raise UserError(
                f"{name} {total} does not divide by the {self.size} ranks; choose a multiple of {self.size}"
            )
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def share_of(self, rows: torch.Tensor) -> torch.Tensor:
        """This rank's part of the row numbers int64 [n], after the first ones were repeated until they divide by the
        number of ranks.

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
            for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
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

    def min_over_ranks(self, number: int) -> int:
        """The smallest of the ranks' whole numbers."""
        if self.size == 1:
            return number
        smallest = torch.tensor([number], device=self._message_device())
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; the same answer on every rank."""
        return self.min_over_ranks(int(not flag)) == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def _message_device(self) -> torch.device:
        return torch.device(self.device_type, self.local_rank) if self.device_type == "cuda" else torch.device("cpu")


def is_sharded(tensor: torch.Tensor) -> "TypeGuard[DTensor]":
    """Whether a parameter (or what an optimizer keeps of it) lies in parts on all ranks, by rows."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: torch.Tensor, world: World) -> tuple[torch.Tensor, int]:
    """This rank's rows of a tensor and the number of the first; of a tensor that is not sharded all of it, and 0."""
    if is_sharded(tensor):
        rows = -(-tensor.shape[0] // world.size)
        return tensor.to_local(), min(world.rank * rows, tensor.shape[0])
    return tensor, 0


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows of a tensor, on every rank; all ranks must call it together."""
    if is_sharded(tensor):
        return tensor.full_tensor()
    return tensor


def check_wait(seconds: float, flag: str) -> None:
    """UserError unless a rank can wait for as long."""
    if not 1 <= seconds <= LONGEST_WAIT:
        raise UserError(f"{flag} {seconds:g}: must lie between 1 and {LONGEST_WAIT:g} seconds")


@contextlib.contextmanager
def world(device_type: str, timeout: float = WAIT, flag: str = "--run.timeout") -> Iterator[World]:
    """Join the process group that `torchrun` announces (nccl on GPUs, gloo on CPUs); a world of one without it.

    timeout: seconds that a rank waits for the others, at the start and at each message; flag: what the user sets it by.
    Raises UserError where the environment announces ranks only in part, and RanksLost where the others or the link to
    them are gone, whichever line inside the block notices. After an error the group is left to the end of the process:
    to close it in good order would wait for ranks that know nothing of the error.
    """
    place = torchrun.place()
    here = World(place.rank, place.size, place.local_rank, place.local_size, device_type)
    if device_type == "cuda" and here.size > 1:
        torch.cuda.set_device(here.local_rank)
    met = False
    try:
        if here.size > 1:
            dist.init_process_group(
                "nccl" if device_type == "cuda" else "gloo",
                store=torchrun.fresh_store(place, timeout),
                rank=here.rank,
                world_size=here.size,
                timeout=timedelta(seconds=timeout),
            )
        here, met = replace(here, launch=_launch(here)), True
        yield here
    except RuntimeError as error:
        gone = lost(error)
        if gone is None:
            raise
        waited = re.match("timed out|timeout", gone, re.IGNORECASE)
        ranks_lost = RanksLost(
            f"rank {here.rank} of {here.size} {'lost' if met else 'does not reach'} the others: "
            + (f"no answer within {timeout:g} seconds ({flag})" if waited else gone)
        )
        for note in getattr(error, "__notes__", [] if met else [_UNREACHED]):
            ranks_lost.add_note(note)
        raise ranks_lost from None
    except Interrupted:  # on all ranks
        _close(here)
        raise
    _close(here)


def lost(error: RuntimeError) -> str | None:
    """What `error` says is gone, if it says that other ranks or the link to them are gone; None for any other error."""
    gone = _GONE.search(str(error)) if isinstance(error, dist.DistError) or "gloo" in str(error) else None
    return gone and gone[0]


def _close(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()


def _launch(world: World) -> tuple[str, ...]:
    """The names of the `torchrun` processes above all ranks, sorted; ranks started in other ways have none."""
    everyone = world.gather(torch.tensor([torchrun.launch_number()])).tolist()
    return tuple(f"{number:016x}" for number in sorted(set(everyone)) if number)


def generator_for(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """The CPU generator of one random draw: a function of the run's seed, what it is for, and the step."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
