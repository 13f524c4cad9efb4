"""How a process uses its machine, set before PyTorch is loaded: waiting threads, freed memory, and output that never
ends a run.
"""

import contextlib
import ctypes
import errno
import io
import os
import platform
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

WAITING = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "10000",
}  # the second counts for GNU's OpenMP, which PyTorch has on Linux
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt
_UNTRIMMED = 2**30  # bytes that may lie free at the heap's end
_NOBODY_READS = (errno.EPIPE, errno.EBADF, errno.EIO)  # `head` has seen enough, a terminal was closed
_lost: list[OSError] = []  # why output was lost, other than that nobody reads it


def waiting() -> dict[str, str]:
    """How waiting threads are to behave, as environment variables: none where the user has set one of them."""
    return {} if any(name in os.environ for name in WAITING) else WAITING


def tune_threads_and_memory() -> None:
    """Call it before anything imports PyTorch, which reads the environment while it is loaded. What the user has set
    stays: `launch.py --help` says with which variables each of this is turned off.

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


class _LastingOutput(io.RawIOBase):
    """Standard output or error as a stream that never raises: what can no longer be written is dropped."""

    def __init__(self, number: int):
        self.number, self.name = number, ("<stdin>", "<stdout>", "<stderr>")[number]

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def write(self, data: "ReadableBuffer", /) -> int | None:
        try:
            return os.write(self.number, data)
        except BlockingIOError:
            return None  # try again, as of any stream
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                _lost.append(error)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.number)
            os.close(nowhere)
            return memoryview(data).nbytes


def keep_output_going() -> None:
    """Standard output and error that no longer can end a program: what training has done must not be lost to a line.

    A character that the encoding lacks is written as a question mark. A stream that was closed before the program
    began leads nowhere, and so does one whose reader has gone or that cannot be written to. Streams that were replaced
    by others, as tests do, stay as they are.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened becomes standard output or error
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is sys.__stdout__ and not _is_lasting(sys.stdout):
        sys.stdout = sys.__stdout__ = _lasting(sys.stdout, 1)  # type: ignore[misc]  # read-only by convention
    if sys.stderr is sys.__stderr__ and not _is_lasting(sys.stderr):
        sys.stderr = sys.__stderr__ = _lasting(sys.stderr, 2)  # type: ignore[misc]  # read-only by convention


def _lasting(stream: TextIO | None, number: int) -> io.TextIOWrapper:
    encoding, line_buffering = "utf-8", True
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
        encoding, line_buffering = stream.encoding, getattr(stream, "line_buffering", True)
    buffered = io.BufferedWriter(_LastingOutput(number))
    return io.TextIOWrapper(buffered, encoding, "replace", line_buffering=line_buffering)


def _is_lasting(stream: TextIO | None) -> bool:
    return isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _LastingOutput)


def lost_output() -> OSError | None:
    """Why output could not be written, if it could not: a full disk, not a reader that has gone."""
    sys.stdout.flush()
    return _lost[0] if _lost else None
