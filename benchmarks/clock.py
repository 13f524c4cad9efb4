"""Seconds of a computation and of its phases, on the host or on a GPU."""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch


class PhaseClock:
    """Measures a call, and within it the phases that `watch` names. Time in a phase inside a phase counts for the inner
    one alone.

    On a GPU the marks are events in its stream: they tell when the work was done, not when it was handed over, and
    nothing waits for them.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._open: list[str] = []
        self._marks: list[tuple[Any, str]] = []  # a moment, and the phase that ends with it

    def watch(self, owner: Any, attribute: str, phase: str) -> None:
        """Let calls of `owner.attribute` count as `phase`."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            self._mark()
            self._open.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._mark()
                self._open.pop()

        setattr(owner, attribute, watched)

    def measure(self, call: Callable[[], Any]) -> tuple[float, dict[str, float], Any]:
        """Seconds of one call, seconds of each phase (`other` is what belongs to none), and its result."""
        self._synchronise()
        self._marks, self._open = [], ["other"]
        self._mark()
        result = call()
        self._mark()
        self._synchronise()
        phases: dict[str, float] = {}
        for (start, _), (end, phase) in itertools.pairwise(self._marks):
            phases[phase] = phases.get(phase, 0.0) + self._between(start, end)
        return sum(phases.values()), phases, result

    def _mark(self) -> None:
        if self._device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._marks.append((moment, self._open[-1]))

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - start
