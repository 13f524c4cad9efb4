"""The label files that a preparation script writes beside its token files."""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from lm_human_preferences.foundation.files import atomic_file


class PreparedLabels:
    """Label files in the readable form, `<name>.jsonl` each, written label by label while the documents pass.

    `left_out` counts what gave no label or no document, by reason; the script says it at the end.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.counts, self.left_out = Path(folder), Counter(dict.fromkeys(names, 0)), Counter[str]()

    def __enter__(self) -> "PreparedLabels":
        with ExitStack() as stack:
            paths = {name: stack.enter_context(atomic_file(self.folder / f"{name}.jsonl")) for name in self.counts}
            self._files = {name: stack.enter_context(open(path, "w", encoding="utf-8")) for name, path in paths.items()}
            self._stack = stack.pop_all()
        return self

    def add(self, name: str, label: dict[str, Any]) -> None:
        """A label at the end of the file `name`; KeyError for a file that was not announced."""
        self._files[name].write(json.dumps(label, ensure_ascii=False) + "\n")
        self.counts[name] += 1

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count something that gives no label; `reason` is what it is, in the plural."""
        self.left_out[reason] += count

    def notes(self) -> list[str]:
        """A line for each file and each reason."""
        return [f"{name}: {count:,} labels" for name, count in self.counts.items()] + [
            f"left out: {count:,} {reason}" for reason, count in self.left_out.items() if count
        ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
