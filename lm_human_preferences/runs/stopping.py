"""A run that is asked to stop (SIGTERM from a scheduler, Ctrl-C) finishes its step, saves, and says how to go on."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.foundation.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_COPY = 3.0  # seconds; `torchrun` forwards the signals it gets, so a signal to all processes reaches its ranks twice


class StopRequest:
    """While its `with` block runs, the first signal is remembered and the second one acts as it does outside.

    Signals reach the ranks at different times; `agreed` makes them stop after the same step. Outside the main thread
    Python takes no signals, and a run there goes on to its end.
    """

    def __init__(self, world: World):
        self.world, self.asked, self._when = world, False, 0.0

    def __enter__(self) -> "StopRequest":
        here = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS} if here else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if self.world.launch and time.monotonic() - self._when < _COPY:
                return
            for each, handler in self._before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)
            return
        self.asked, self._when = True, time.monotonic()
        if self.world.is_main:
            _say(f"\n{signal.Signals(number).name}: finishing this step and saving; once more stops at once\n")

    def agreed(self) -> bool:
        """Whether any rank got a signal; the same answer on every rank, which all must call after the same step."""
        return self.world.any(self.asked)

    def interrupted(self, step: int, total: int) -> Interrupted:
        """What ends a run that stopped after `step` of `total` steps, its checkpoint saved; one rank says so."""
        return Interrupted(
            f"stopped after step {step:,} of {total:,}, all saved; the same command with --run.resume goes on"
            if self.world.is_main
            else ""
        )


def _say(text: str) -> None:
    """Write to standard error from a signal handler, which may have interrupted a write to it.

    Python's own stream would then raise RuntimeError ("reentrant call") and end the run that is to be saved, so this
    writes to its file. Nothing is said where there is no such file (standard error closed: its number may be that of
    any other file by now) or it cannot be written.
    """
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            os.write(sys.stderr.fileno(), text.encode())
