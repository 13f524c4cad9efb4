"""What a rank needs to know of the `torchrun` that started it: its place, where ranks meet, which of them speaks, how
they leave.

`torchrun` tells its ranks all of it in environment variables, and starts all ranks again when one has ended badly
(`--max_restarts`). `distributed.py` builds on this file; who only wants ranks and sums need not read it.
"""

import atexit
import contextlib
import hashlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistStoreError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # no stubs

from lm_human_preferences.foundation.errors import UserError

_ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # what a process by itself would be told


@dataclass(frozen=True)
class Place:
    """A process's place among all ranks. Ranks of one machine are also counted by themselves (`local_`)."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def place() -> Place:
    """This process's place, from the variables that `torchrun` sets; that of a process alone where none is set.

    Some of them may come from elsewhere (WORLD_SIZE=1 of a container, a variable that stayed in a shell): what is
    missing does not matter as long as the others say that this process is alone. Raises UserError where they speak of
    several ranks and one is missing, is not a number or does not fit the others.
    """
    given = {name: os.environ[name] for name in (*_ALONE, "MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)}
    numbers = {name: _whole_number(name, given[name]) for name in _ALONE if name in given}
    if numbers.items() <= _ALONE.items():
        return Place(*_ALONE.values())
    missing = [name for name in (*_ALONE, "MASTER_ADDR", "MASTER_PORT") if name not in given]
    told = ", ".join(f"{name}={number}" for name, number in numbers.items())
    how = "start ranks with torchrun, which sets them all; to run alone, unset what is set"
    if missing:
        raise UserError(f"{told}, but {', '.join(missing)} not set: {how}")
    here = Place(*(numbers[name] for name in _ALONE))
    if not (here.rank < here.size and here.local_rank < here.local_size <= here.size):
        raise UserError(f"{told} do not fit together (ranks count from 0): {how}")
    if _whole_number("MASTER_PORT", given["MASTER_PORT"]) > 65535:
        raise UserError(f"MASTER_PORT={given['MASTER_PORT']}: a port is at most 65535; {how}")
    return here


def _whole_number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise UserError(
            f"{name}={value}: is not a whole number; unset it to run alone, or start ranks with torchrun, which sets it"
        )
    return int(value)


def _agent_store(timeout: float) -> TCPStore:
    """The store that `torchrun` keeps for its ranks through all restarts. RuntimeError after `timeout` seconds."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))


def fresh_store(here: Place, timeout: float) -> Store | None:
    """A part of `torchrun`'s store that nobody has written to yet, the same on all ranks; None, for PyTorch's own way,
    where there is no such store.

    PyTorch would take the addresses that ranks of an earlier attempt left in the store for those of the new ones. So
    each rank leaves a random number there, and rank 0 answers every number that it finds with the part it has chosen.
    It also answers numbers of ranks that have died since, which nobody reads. Raises RuntimeError where the others do
    not come within `timeout` seconds.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    until, mine, store = time.monotonic() + timeout, secrets.token_hex(8), _agent_store(timeout)

    def wait() -> None:
        if time.monotonic() > until:
            raise DistStoreError(f"timed out waiting for {here.size} ranks")
        time.sleep(0.02)

    if here.rank > 0:
        store.set(f"here/{here.rank}", mine)
        while not store.check([f"place/{mine}"]):
            wait()
        part = store.get(f"place/{mine}").decode()
        store.add(f"{part}/heard", 1)
        return PrefixStore(part, store)
    part = f"ranks/{mine}"
    answered: set[str] = set()
    while store.add(f"{part}/heard", 0) < here.size - 1:
        for key in (f"here/{rank}" for rank in range(1, here.size)):
            number = store.get(key).decode() if store.check([key]) else None
            if number is not None and number not in answered:
                store.set(f"place/{number}", part)
                answered.add(number)
        wait()
    return PrefixStore(part, store)


def launch_number() -> int:
    """A number below 2^63 for the `torchrun` process that started this rank; 0 without one.

    It is what a restarted rank has in common with the one that it replaces. When the process started belongs to it,
    since a machine uses process numbers again.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    started = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""  # in clock ticks since boot
    name = f"{os.environ['TORCHELASTIC_RUN_ID']}/{socket.gethostname()}/{parent}/{started}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def is_first_to_say(line: str) -> bool:
    """Whether no other rank of this machine has said `line` in this attempt; also true where nobody can tell.

    `torchrun`'s store remembers what was said.
    """
    try:
        alone = place().size == 1
    except UserError:
        return True
    names = ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")
    if alone or not all(os.environ.get(name) for name in names):
        return True
    group, attempt = (os.environ[name] for name in names[1:])
    try:
        return (
            _agent_store(timeout=5).add(f"said/{group}/{attempt}/{hashlib.sha256(line.encode()).hexdigest()}", 1) == 1
        )
    except RuntimeError:
        return True


def run_then_exit(main: Callable[[], None]) -> None:
    """Run a program's main function, then exit with its status. One rank of several leaves without tearing Python down,
    but with what is registered with `atexit` done and all output written.

    Gloo's threads outlive `destroy_process_group` and may still hold tensors of the last message. To free them they
    need Python's lock, and if Python is being torn down by then the process dies of SIGABRT with all its work done, and
    `torchrun` fails (https://github.com/pytorch/pytorch/pull/179291).
    """
    try:
        main()
        status = 0
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        status = end.code
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        atexit._run_exitfuncs()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
