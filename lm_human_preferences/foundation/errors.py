"""What ends a program early, as exceptions that carry one line each on what happened and how to go on.

Exit statuses: 0 done, or stopped on request with everything saved; 1 the program's own fault, with its traceback; 2
something to mend first (bad input, a full disk, a loss that is no number); 3 other ranks were lost; 130 Ctrl-C; 143
SIGTERM. `torchrun` itself ends with 1 whatever its ranks end with, and prints their statuses.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class UserError(Exception):
    """Something to mend first: `launch.py` and the scripts print its one line to standard error and exit with status 2.

    Anything else that is raised is the program's own fault and keeps its traceback.
    """


class Interrupted(Exception):
    """A run stopped because it was asked to, with everything saved: its one line is printed and the exit status is 0."""


class RanksLost(Exception):
    """Other ranks of the run, or the link to them, were lost: nothing to mend here, so its one line and exit status 3."""


class Terminated(BaseException):
    """SIGTERM when there is no step to finish first; like KeyboardInterrupt no Exception, so nothing takes it for an
    error.
    """


def exit_on_user_error(main: Callable, is_first: Callable[[str], bool] = lambda line: True) -> Callable:
    """A `main` that turns the exceptions above into their one line and exit status, each with the notes it was given on
    the way.

    is_first: whether a mistake of the user that several processes find alike is this one's to print.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        with _terminated_by_sigterm():
            try:
                return main(*args, **kwargs)
            except UserError as error:
                if is_first(_line(error)):
                    print(f"error: {_line(error)}", file=sys.stderr)
                raise SystemExit(2) from None
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
            except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(0) from None

    return wrapped


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _line(error: BaseException) -> str:
    return "; ".join([str(error), *_notes(error)])


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated inside the block, so that what is half-written is tidied away and the last line can be
    said.

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
