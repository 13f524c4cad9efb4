"""One thread through which all requests reach the store: what waits together is written to disk together.

A commit waits for the disk, some milliseconds. Requests that arrive meanwhile share the next one, so that twenty people
wait hardly longer than one. Each has its own savepoint: one that fails undoes its own writes alone.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lm_human_preferences.people.store import Store

_TOGETHER = 64  # requests in one commit, at most

Work = Callable[[Store], Any]


class Desk:
    """`submit` work on the store from any thread; its result is there when what it wrote is on disk. What is
    cancelled before its turn is not done.
    """

    def __init__(self, folder: Path):
        self.store = Store(folder)
        self._waiting: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="desk", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> "Future[Any]":
        future: Future[Any] = Future()
        self._waiting.put((work, future))
        return future

    def close(self) -> None:
        """Finish what waits, then close the store."""
        self._waiting.put(None)
        self._thread.join()
        self.store.close()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < _TOGETHER and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    last = True
                    break
                batch.append(item)
            self._do(batch)
            if last:
                return

    def _do(self, batch: list[tuple[Work, "Future[Any]"]]) -> None:
        batch = [(work, future) for work, future in batch if future.set_running_or_notify_cancel()]
        results: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self.store.transaction():
                for work, future in batch:
                    try:
                        with self.store.transaction():
                            results.append((future, work(self.store), None))
                    except Exception as error:
                        results.append((future, None, error))
                        if not self.store.connection.in_transaction:  # SQLite has undone all of it: the disk is full
                            raise
        except Exception as error:
            results = [(future, None, error) for _, future in batch]
        for future, value, problem in results:
            if problem is not None:
                future.set_exception(problem)
            else:
                future.set_result(value)
