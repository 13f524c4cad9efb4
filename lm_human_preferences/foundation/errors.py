"""What ends a program early, as exceptions that carry one line each on what happened and how to go on.

Exit statuses: 0 done, or stopped on request with everything saved; 1 the program's own fault, with its traceback; 2
something to mend first (bad input, a full disk, a loss that is not a number); 3 other ranks were lost; 130 Ctrl-C; 143
SIGTERM. `torchrun` itself ends with 1 whatever its ranks end with, and prints their statuses.
"""

import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec, TypeVar

from lm_human_preferences.foundation.process import keep_output_going, lost_output

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# What a file system refuses, which is never the program's fault, and how to mend it.
_CHOOSE, _ROOM = "choose another path", "make room, or choose another disk"
_REFUSALS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _ROOM,
    errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE,
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ENOTDIR: _CHOOSE,
    errno.EISDIR: _CHOOSE,
    errno.ELOOP: _CHOOSE,
}


class UserError(Exception):
    """Something to mend first: its one line goes to standard error, and the exit status is 2.

    Anything else that is raised is the program's own fault and keeps its traceback.
    """


class Interrupted(Exception):
    """A run that was told to stop did, with everything saved: its one line is printed and the exit status is 0."""


class RanksLost(Exception):
    """Other ranks of the run, or the link to them, were lost: nothing to mend here, so one line and exit status 3."""


class Terminated(BaseException):
    """SIGTERM when there is no step to finish first; like KeyboardInterrupt no Exception, so nothing takes it for an
    error.
    """


def refusal(number: int | None) -> str | None:
    """What an error number of a file system says and how to mend it, where that is the user's to mend; else None."""
    if number not in _REFUSALS:
        return None
    return f"{os.strerror(number)}; {_REFUSALS[number]}"


def exit_on_user_error(
    main: Callable[Arguments, Result], is_first: Callable[[str], bool] = lambda line: True
) -> Callable[Arguments, Result]:
    """A `main` that turns the exceptions above into their one line and exit status, each with the notes that were added
    to it. What a file system refuses is the user's to mend as well. Its output cannot end it (`keep_output_going`).

    is_first: whether a mistake of the user that several processes find alike is this one's to print.
    """

    def exit_with(line: str) -> SystemExit:
        if is_first(line):
            print(f"error: {line}", file=sys.stderr)
        return SystemExit(2)

    @functools.wraps(main)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        keep_output_going()
        with _terminated_by_sigterm():
            try:
                result = main(*args, **kwargs)
                if lost := lost_output():
                    raise UserError(f"done, but the output could not be written: {lost.strerror}")
                return result
            except UserError as error:
                raise exit_with(_line(error)) from None
            except OSError as error:
                said = refusal(error.errno)
                if said is None or error.filename is None:
                    raise
                raise exit_with("; ".join([f"{os.fsdecode(error.filename)}: {said}", *_notes(error)])) from None
            except RanksLost as error:
                print(
                    f"\nerror: {_line(error)}", file=sys.stderr, flush=True
                )  # below the progress bar that a dead rank left
                sys.stdout.flush()
                os._exit(3)  # closing the process group in good order would wait for the ranks that are lost
            except Interrupted as end:
                if str(end):
                    print(end)
                raise SystemExit(0) from None
            except KeyboardInterrupt as error:
                print("; ".join(["interrupted", *_notes(error)]), file=sys.stderr)
                raise SystemExit(130) from None
            except Terminated as error:
                print("; ".join(["stopped by SIGTERM", *_notes(error)]), file=sys.stderr)
                raise SystemExit(143) from None

    return wrapped


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _line(error: BaseException) -> str:
    return "; ".join([str(error), *_notes(error)])


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated inside the block, so that what is half-written is deleted and a last line is printed.

    While another exception is on its way SIGTERM changes nothing: the program is ending, and `torchrun` sends SIGTERM
    to all ranks as soon as one has ended, often before the others have said why. Outside the main thread, where Python
    takes no signals, SIGTERM acts as it always does.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        if sys.exception() is None:
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
