"""What a process asks of the machine that it runs on, before PyTorch is loaded."""

import ctypes
import os
import platform

WAITING = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "10000",
}  # the second counts for GNU's OpenMP, which PyTorch has on Linux
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt
_UNTRIMMED = 2**30  # bytes that may lie free at the heap's end


def waiting() -> dict[str, str]:
    """How waiting threads are to behave, as environment variables: nothing where the user has said anything about it."""
    return {} if any(name in os.environ for name in WAITING) else WAITING


def tune_threads_and_memory() -> None:
    """Call it before anything imports PyTorch, which reads the environment while it is loaded. What the user has set
    stays.

    Waiting threads sleep, on Linux after they have spun for some tenths of a millisecond: spinning on and on costs a
    machine with other work on its cores far more than waking up costs a quiet one, but most waits are short. On Linux
    freed memory stays with the process: a tensor of a few MiB is else given back at once and paid for again, page by
    page, at the next one; and large tensors ask for huge pages. docs/performance.md has the measurements.
    """
    os.environ.update(waiting())
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if (
        platform.libc_ver()[0] == "glibc"
        and not any(name.startswith("MALLOC_") for name in os.environ)
        and "GLIBC_TUNABLES" not in os.environ
    ):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _UNTRIMMED)
