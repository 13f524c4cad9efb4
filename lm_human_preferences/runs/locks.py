"""Which process works on what, where several share a folder. Where a file system has no locks there are none."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.foundation.errors import UserError

LOCK = ".lock"  # in a run's folder while a process works on it
PATIENCE = 3.0  # seconds between two looks at what another process does

T = TypeVar("T")


class Busy(UserError):
    """Another process is working on the run."""

    def __init__(self, folder: Path):
        super().__init__(f"another process is working on {folder}: wait until it has ended, or give another name")
        self.folder = folder

    def __reduce__(self) -> tuple[type["Busy"], tuple[Path]]:  # it goes from rank 0 to the others
        return Busy, (self.folder,)


def locked(folder: Path) -> FileLock | None:
    """The lock on a run's folder, held until it is released or the process ends; None where there is no folder that
    could have one. Raises Busy if another process has it.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return None
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Busy(folder) from None
    except (OSError, NotImplementedError):
        return None
    return lock


def is_busy(folder: Path) -> bool:
    """Whether another process is working on the run in `folder`."""
    if not (folder / LOCK).exists():
        return False
    try:
        lock = locked(folder)
    except Busy:
        return True
    if lock is not None:
        lock.release()
    return False


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Around what only one process may do at once; the others wait. path: the lock's file, which stays."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def patiently(work: Callable[[], T], world: World) -> T:
    """`work`, again and again while it raises Busy: what another process is working on will be there then."""
    while True:
        try:
            return work()
        except Busy as busy:
            folder = busy.folder
        if world.is_main:  # outside the handler, in which SIGTERM would not end the waiting
            print(f"another process is working on {folder}; waiting for it", flush=True)
        wait_for(folder, world)


def wait_for(folder: Path, world: World) -> None:
    """Until no other process works on what is in `folder`."""
    while world.from_main(is_busy(folder)):
        time.sleep(PATIENCE)
