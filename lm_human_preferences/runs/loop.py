"""The loop that all stages share: it counts the steps, logs, saves, stops when asked to, and says what broke."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.runs.folder import Run
from lm_human_preferences.runs.micro_batches import peak_memory
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import NullTracker
from lm_human_preferences.runs.training import Training


class Loop:
    """A stage's steps. `for step in loop:` inside `with Loop(...) as loop:`; the body calls `log` once a step.

    After each step but the last a checkpoint is saved where one is due, and a run that was asked to stop ends with
    everything saved. All ranks go through it together.
    """

    def __init__(
        self,
        run: Run,
        tracker: NullTracker,
        training: Training[Any],
        total: int,
        title: str,
        first: int,
        state: Callable[[], dict[str, Any]],
        remedy: str,
        finite: Sequence[str] | None = None,
    ):
        """title: of the progress bar; first: the step it goes on at; state: the stage's own loop state, plain values
        that `Training.state` is added to; finite: the metrics that must be finite, None for all; remedy: what to lower
        where one is not, as `--flag than value`.
        """
        self.run, self.tracker, self.training, self.total, self.title = run, tracker, training, total, title
        self.first, self.state, self.remedy, self.finite = first, state, remedy, finite
        self.ended = False
        self._stack = ExitStack()

    def __enter__(self) -> "Loop":
        self.stop = self._stack.enter_context(StopRequest(self.run.world))
        self.bar = self._stack.enter_context(
            tqdm(total=self.total, initial=self.first, desc=self.title, unit="step", disable=not self.run.world.is_main)
        )
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def __iter__(self) -> Iterator[int]:
        """The steps from `first` on, until all are done or `end` was called."""
        interval = self.run.params.save_interval
        self.started = time.perf_counter()
        for step in range(self.first, self.total):
            self.step, self.step_started = step, time.perf_counter()
            yield step
            if step + 1 == self.total or self.ended:
                return
            asked = self.stop.agreed()
            if asked or interval and (step + 1) % interval == 0:
                self.save(step + 1)
            if asked:
                raise self.stop.interrupted(step + 1, self.total)

    @property
    def last(self) -> bool:
        """Whether this is the last of all steps."""
        return self.step + 1 == self.total

    @property
    def elapsed(self) -> float:
        """Seconds since the loop began, in this process."""
        return time.perf_counter() - self.started

    @property
    def seconds(self) -> float:
        """Since this step began."""
        return time.perf_counter() - self.step_started

    def log(self, metrics: Mapping[str, float], shown: str) -> None:
        """Report a step's metrics, with `memory/peak` added; `shown`: their essence for the progress bar.

        Raises UserError, after they are on disk, if one of them is not finite.
        """
        self.tracker.log(self.step, {**metrics, "memory/peak": peak_memory(self.training.precision.device)})
        watched = metrics if self.finite is None else [name for name in self.finite if name in metrics]
        bad = next((name for name in watched if not math.isfinite(metrics[name])), None)
        if bad is not None:
            raise UserError(
                f"step {self.step}: {bad} is {metrics[bad]}; if it happens again, start anew with a lower {self.remedy}"
            )
        self.bar.update()
        self.bar.set_postfix_str(shown)

    def end(self) -> None:
        """Leave out the steps after this one."""
        self.ended = True

    def save(self, step: int) -> None:
        """A checkpoint from which the run goes on at `step`; everything reported so far is on disk before it."""
        self.tracker.flush()
        self.run.checkpoints.save(step, self.training.tensors(), self.state() | self.training.state())
