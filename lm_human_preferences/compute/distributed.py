"""The process group: start, rank, world size, reductions, close. The one place that knows the world size.

Every random draw is made for the whole global batch on every rank and then sliced, so the number of ranks changes
nothing but rounding. Without `torchrun` all of this is the identity.
"""

import atexit
import contextlib
import hashlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lm_human_preferences.foundation.errors import Interrupted, RanksLost, UserError

WAIT, LONGEST_WAIT = (
    600.0,
    1e6,
)  # seconds that a rank waits for the others: where no parameter says how long, and at most
# What gloo, nccl and the store say when another process or the link to it is gone. What else they say is a mistake of
# the program.
_GONE = re.compile(
    r"Connection closed by peer|Connection reset by peer|Connection refused|Connection timed out|Broken pipe|No route to host|"
    r"Network is unreachable|[Tt]imed out (?:waiting|after)|[Tt]imeout|Connection was likely closed|ncclRemoteError|ncclSystemError|"
    r"communicator was aborted"
)

_UNREACHED = "between machines GLOO_SOCKET_IFNAME (on GPUs NCCL_SOCKET_IFNAME) must name the network interface that leads to the others"


@dataclass(frozen=True)
class World:
    """This process's place among all ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # ranks on this machine
    device_type: str = "cpu"  # where this rank's tensors for messages must lie
    launch: tuple[
        str, ...
    ] = ()  # one identity for each `torchrun` process that started ranks of this world; restarted ranks find the same

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


def check_wait(seconds: float, flag: str) -> None:
    """UserError unless a rank can wait for as long."""
    if not 1 <= seconds <= LONGEST_WAIT:
        raise UserError(f"{flag} {seconds:g}: must lie between 1 and {LONGEST_WAIT:g} seconds")


@contextlib.contextmanager
def world(device_type: str, timeout: float = WAIT, flag: str = "--run.timeout") -> Iterator[World]:
    """Join the process group that `torchrun` announces (nccl on GPUs, gloo on CPUs); a world of one without it.

    timeout: seconds that a rank waits for the others, at the start and at each message; flag: what the user sets it by.
    Raises RanksLost where they or the link to them are gone, whichever line inside the block notices. After an error
    the group is left to the end of the process: to close it in good order would wait for ranks that know nothing of the
    error.
    """
    if "WORLD_SIZE" not in os.environ:
        yield World()
        return
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    here = World(rank, size, local_rank, local_size, device_type)
    if device_type == "cuda":
        torch.cuda.set_device(here.local_rank)
    met = False
    try:
        if here.size > 1:
            dist.init_process_group(
                "nccl" if device_type == "cuda" else "gloo",
                store=_meeting_place(here, timeout),
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


def _meeting_place(world: World, timeout: float) -> dist.Store | None:
    """A part of `torchrun`'s store that nobody has written to yet; None, for PyTorch's own way, where there is no such
    store.

    `torchrun` keeps one store through all restarts, and PyTorch would take the addresses that dead ranks left in it for
    those of the new ones. So each rank leaves a number of its own there, and rank 0 answers each number that it finds
    with the place it has chosen; the dead ones' in vain. Raises RuntimeError where the others do not come within
    `timeout` seconds.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    until, mine = time.monotonic() + timeout, secrets.token_hex(8)
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=timeout)
    )

    def wait() -> None:
        if time.monotonic() > until:
            raise dist.DistStoreError(f"timed out waiting for {world.size} ranks")
        time.sleep(0.02)

    if not world.is_main:
        store.set(f"here/{world.rank}", mine)
        while not store.check([f"place/{mine}"]):
            wait()
        place = store.get(f"place/{mine}").decode()
        store.add(f"{place}/heard", 1)
        return dist.PrefixStore(place, store)
    place, answered = f"ranks/{mine}", set()
    while store.add(f"{place}/heard", 0) < world.size - 1:
        for key in (f"here/{rank}" for rank in range(1, world.size)):
            number = store.get(key).decode() if store.check([key]) else None
            if number is not None and number not in answered:
                store.set(f"place/{number}", place)
                answered.add(number)
        wait()
    return dist.PrefixStore(place, store)


def lost(error: RuntimeError) -> str | None:
    """What `error` says is gone, if it says that other ranks or the link to them are gone; None for any other error."""
    gone = _GONE.search(str(error)) if isinstance(error, dist.DistError) or "gloo" in str(error) else None
    return gone and gone[0]


def _close(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()


def run_then_exit(main: Callable[[], None]) -> None:
    """Run a program's main function. One rank of several then leaves at once, after what is registered with `atexit`,
    with the same exit status.

    Gloo's threads outlive `destroy_process_group` and may still hold tensors of the last message. To free them they ask
    for Python's lock, and if Python is being torn down by then the process dies of SIGABRT with all its work done, and
    `torchrun` fails (https://github.com/pytorch/pytorch/pull/179291). So nothing is torn down.
    """
    try:
        main()
        status = 0
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        status = end.code
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _launch(world: World) -> tuple[str, ...]:
    """The identities of the `torchrun` processes above all ranks, sorted: what a restarted rank has in common with the
    one it replaces.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ()
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    started = (
        stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
    )  # in clock ticks: a number used again is another process
    digest = hashlib.sha256(
        f"{os.environ['TORCHELASTIC_RUN_ID']}/{socket.gethostname()}/{parent}/{started}".encode()
    ).digest()
    everyone = world.gather(torch.tensor([int.from_bytes(digest[:8], "little") >> 1]))
    return tuple(f"{number:016x}" for number in sorted(set(everyone.tolist())))


def is_first_to_say(line: str) -> bool:
    """Whether no other rank of this node has said `line` yet; yes where nobody can tell. `torchrun`'s store remembers."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return True
    key = "/".join(
        (
            "said",
            os.environ["GROUP_RANK"],
            os.environ["TORCHELASTIC_RESTART_COUNT"],
            hashlib.sha256(line.encode()).hexdigest(),
        )
    )
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        return store.add(key, 1) == 1
    except RuntimeError:
        return True


def generator_for(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """The CPU generator of one random draw: a function of the run's seed, what it is for, and the step."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
