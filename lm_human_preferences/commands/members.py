"""The policies of a sweep or a comparison: each is trained once, by whichever process takes it first.

The same command may be started several times, on one machine or on several that share the folder: each process trains
what nobody is working on, waits for the rest, and one of them measures.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.foundation.errors import Interrupted, UserError
from lm_human_preferences.language.weight_files import WEIGHTS
from lm_human_preferences.runs.locks import PATIENCE, Busy, is_busy, locked


class Work(NamedTuple):
    """One policy to train."""

    name: str
    run: Path  # its run's folder
    train: Callable[[bool], None]  # told whether the run was begun


class State(NamedTuple):
    """What there is of a run."""

    begun: bool
    finished: bool
    busy: bool

    @classmethod
    def of(cls, run: Path) -> "State":
        finished = (run / "policy" / WEIGHTS).exists()
        return cls((run / "config.json").exists(), finished, not finished and is_busy(run))


def train_members(works: Sequence[Work], world: World) -> dict[str, str]:
    """Train each policy whose run is not finished, from its newest checkpoint if it has begun; what another process
    works on is left to it and looked at again. Returns why the failed ones failed, by name.
    """
    failed, said = dict[str, str](), set[tuple[str, str]]()
    waiting = list(enumerate(works, 1))

    def say(number: int, work: Work, text: str, once: bool = True) -> None:
        if world.is_main and not (once and (work.name, text) in said):
            said.add((work.name, text))
            print(f"policy {number} of {len(works)}, {work.name}: {text}", flush=True)

    while waiting:
        left = []
        for number, work in waiting:
            state = world.from_main(State.of(work.run))
            if state.finished:
                say(number, work, "finished already, skipped")
                continue
            if state.busy:
                say(number, work, "another process is working on it")
                left.append((number, work))
                continue
            say(number, work, "was cut short, goes on from its newest checkpoint" if state.begun else "training", False)
            try:
                work.train(state.begun)
            except Interrupted:
                raise
            except Busy:  # between the look and the lock
                say(number, work, "another process was faster")
                left.append((number, work))
            except Exception as error:  # the others may still succeed
                if isinstance(error, RuntimeError) and distributed.lost(error):
                    raise
                if not isinstance(error, UserError):
                    traceback.print_exc()
                failed[work.name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(f"policy {number} of {len(works)}, {work.name}: FAILED: {failed[work.name]}", file=sys.stderr)
        if len(left) == len(waiting):
            time.sleep(PATIENCE)
        waiting = left
    return failed


@contextmanager
def measuring_alone(folder: Path, world: World) -> Iterator[bool]:
    """Whether this process is the one that measures: of several at once the first. folder: that of all policies."""
    lock = None
    problem = False
    if world.is_main:
        try:
            lock = locked(folder)
        except Busy:
            problem = True
            print(f"another process is measuring the policies: its results will lie in {folder}", flush=True)
    try:
        yield not world.from_main(problem)
    finally:
        if lock is not None:
            lock.release()
