"""A run that is asked to stop (SIGTERM from a scheduler, Ctrl-C) finishes its step, saves, and says how to go on."""

import signal
import sys
import threading
from types import FrameType

import torch

from lm_human_preferences.distributed import World
from lm_human_preferences.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While its `with` block runs, the first signal is remembered and the second one acts as it always does.

    Signals reach the ranks at different times; `agreed` makes them stop after the same step. Outside the main thread, where Python
    takes no signals, nobody asks.
    """

    def __init__(self, world: World):
        self.world, self.asked = world, False

    def __enter__(self) -> "StopRequest":
        here = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS} if here else {}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        for each, handler in self._before.items():
            signal.signal(each, handler)
        if self.world.is_main:
            print(f"\n{signal.Signals(number).name}: finishing this step and saving; once more stops at once", file=sys.stderr)

    def agreed(self) -> bool:
        """Whether any rank was asked; the same answer on every rank, which all must call after the same step."""
        if self.world.size == 1:
            return self.asked
        asked = torch.tensor([float(self.asked)], device="cuda" if self.world.device_type == "cuda" else "cpu")
        self.world.sum_([asked])
        return bool(asked.item())


    def interrupted(self, step: int, total: int) -> Interrupted:
        """What ends a run that stopped after `step` of `total` steps, its checkpoint saved; one rank says so."""
        return Interrupted(f"stopped after step {step:,} of {total:,}, all saved; the same command with --run.resume goes on" if self.world.is_main else "")
