"""A training run read back from its files."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.runs.description import leaves
from lm_human_preferences.runs.tracking import read_jsonl


@dataclass(frozen=True)
class LoggedRun:
    """A run, finished or not, as its files tell it."""

    config: dict[str, Any]
    series: dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> steps int64 [n], values float64 [n]
    samples: list[dict[str, Any]]  # rows of samples.jsonl
    result: dict[str, Any]  # empty before the end

    @property
    def stage(self) -> str:
        return str(self.config.get("stage", ""))

    def parameter(self, dotted: str) -> Any:
        """A resolved parameter by its dotted name, None if the run has no such parameter."""
        parameters = self.config.get("parameters")
        return leaves(parameters).get(dotted) if isinstance(parameters, dict) else None


def read_run(folder: Path) -> LoggedRun:
    """The run in `folder`. UserError if it is not a run or nothing was logged yet."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    config, rows = read_json(folder / "config.json"), _rows(folder / "metrics.jsonl")
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((row.get("step", 0), float(value)))
    if not points or not isinstance(config, dict):
        raise UserError(f"{folder} has no metrics yet; train first, then report")
    series = {
        name: (np.array([step for step, _ in found]), np.array([value for _, value in found]))
        for name, found in points.items()
    }
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    return LoggedRun(config, series, _rows(folder / "samples.jsonl"), result if isinstance(result, dict) else {})


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def stage_of(folder: Path) -> str | None:
    """What config.json says that `folder` holds; None if it does not say it."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    stage = config.get("stage") if isinstance(config, dict) else None
    return stage if isinstance(stage, str) else None
