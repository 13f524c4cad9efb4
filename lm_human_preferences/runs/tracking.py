"""What a run reports while it computes: JSON lines always, TensorBoard and Weights & Biases when asked, behind one
small interface.

    metrics.jsonl   one line a step     {"step": 0, "objective/kl": 0.0, ...}; a number that is not finite is null
    samples.jsonl   one line a sample   {"step": 0, "query": "...", "response": "...", ...}
    tensorboard/    event files         wandb/   a run that `wandb sync` can upload

Each place is written row by row.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file, disk_errors, make_folder


@dataclass
class TrackingParams:
    """Where metrics go besides the run's `metrics.jsonl` and `samples.jsonl`."""

    tensorboard: bool = param(
        False, "also write TensorBoard events to the run's tensorboard/ (pip install tensorboard)"
    )
    wandb: bool = param(False, "also write a Weights & Biases run to the run's wandb/ (pip install wandb)")
    wandb_project: str = param("lm-human-preferences", "the Weights & Biases project that the run belongs to")
    wandb_mode: str = param("offline", "offline (no account and no network; `wandb sync` uploads later) or online")


def check_tracking(params: TrackingParams) -> None:
    """Raises UserError for an unknown mode or a package that is asked for and missing; nothing is written."""
    if params.wandb_mode not in ("offline", "online"):
        raise UserError(f"--tracking.wandb_mode {params.wandb_mode}: must be offline or online")
    if params.tensorboard:
        _import_summary_writer()
    if params.wandb:
        _import_wandb()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an incomplete last line (a run that is being written or was killed) is left out.

    Raises UserError when the file is missing or an earlier line is damaged.
    """
    return [row for row, _ in _whole_lines(Path(path))]


def _whole_lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """(row, its bytes without the newline) of each line; only the last may be damaged, it is then left out."""
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines: JSON may hold U+2028 and its like as they are
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror or error}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path} is damaged in line {number}; remove that line") from None
        rows.append((row, line))
    return rows


def _keep_before(path: Path, step: int) -> None:
    """Cut the rows of `step` and later off, and a half-written last line; the file changes atomically or not at all."""
    kept = b"".join(line + b"\n" for row, line in _whole_lines(path) if row.get("step", 0) < step)
    if kept != path.read_bytes():
        with atomic_file(path) as temporary:
            temporary.write_bytes(kept)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers of numpy and torch as Python's, None for what is not finite, text for what
    is unknown.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


class JsonLines:
    """One JSON-lines file, made at its first row. `resume_at` keeps the rows of earlier steps, None starts anew."""

    def __init__(self, path: Path, resume_at: int | None):
        self.path = path
        self.file: FileIO | None = None
        if resume_at is None:
            path.unlink(missing_ok=True)
        elif path.exists():
            _keep_before(path, resume_at)

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append the rows, all or none of them; UserError where the disk is full."""
        text = "".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        if not text:
            return
        # half a surrogate pair cannot be UTF-8; as a backslash and its number it is JSON's own escape
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        if self.file is None:
            try:
                # unbuffered: nothing is held back that closing the file would try to write again
                self.file = open(self.path, "ab", buffering=0)
            except OSError as error:
                raise UserError(
                    f"cannot write {self.path}: {error.strerror or error}; make it writable or make room"
                ) from None
        with disk_errors(self.path):
            end = os.fstat(self.file.fileno()).st_size
            try:
                while data:
                    data = data[self.file.write(data) :]
            except OSError:
                self.file.truncate(end)
                raise

    def sync(self) -> None:
        if self.file is not None:
            with disk_errors(self.path):
                os.fsync(self.file.fileno())

    def close(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            with file, disk_errors(self.path):
                os.fsync(file.fileno())


class _Files:
    """metrics.jsonl and samples.jsonl."""

    def __init__(self, folder: Path, resume_at: int | None):
        self.metrics, self.rows = (
            JsonLines(folder / "metrics.jsonl", resume_at),
            JsonLines(folder / "samples.jsonl", resume_at),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics.write([{"step": step, **metrics}])

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.rows.write({"step": step, **row} for row in rows)

    def flush(self) -> None:
        self.metrics.sync()
        self.rows.sync()

    def close(self, failed: bool) -> None:
        self.metrics.close()
        self.rows.close()


class _TensorBoard:
    """Event files; after a resume TensorBoard itself hides what an earlier process wrote from `resume_at` on."""

    def __init__(self, folder: Path, config: dict[str, Any], resume_at: int | None):
        self.writer = _import_summary_writer()(str(folder / "tensorboard"), purge_step=resume_at)
        self.writer.add_text("configuration", _indented(json.dumps(_plain(config), indent=2)), resume_at or 0)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, float(value), step)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.writer.add_text("samples", _indented("\n\n".join(_sample_text(row) for row in rows)), step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class _WandB:
    """A Weights & Biases run in the run's folder; a resumed one keeps its identifier, so `wandb sync --append` joins
    the parts.
    """

    def __init__(
        self, folder: Path, params: TrackingParams, run_name: str, config: dict[str, Any], resume_at: int | None
    ):
        self.wandb = _import_wandb()
        online = params.wandb_mode == "online"
        started = sorted((folder / "wandb").glob("*run-*-*")) if resume_at is not None else []
        try:
            self.run = self.wandb.init(
                project=params.wandb_project,
                name=run_name,
                dir=str(folder),
                mode=params.wandb_mode,
                config=_plain(config),
                save_code=False,
                id=started[0].name.rsplit("-", 1)[1] if started else None,
                resume="allow" if online and started else None,
                settings=self.wandb.Settings(console="off", silent=not online),
            )
        except self.wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"Weights & Biases does not start: {reason}; run `wandb login` or give --tracking.wandb_mode offline"
            ) from None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log({name: float(value) for name, value in metrics.items()}, step=step)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = self.wandb.Table(
            columns=columns, data=[[_plain(row.get(name)) for name in columns] for row in rows], allow_mixed_types=True
        )
        self.run.log({"samples": table}, step=step)

    def flush(self) -> None:
        pass

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class NullTracker:
    """The tracker of ranks that report nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Report a step's metrics."""

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Report what was sampled in a step, one dictionary a sample."""

    def flush(self) -> None:
        """Bring everything reported so far to the disk; checkpoints call it first, so that a resumed run has no gap."""

    def close(self, failed: bool = False) -> None:
        """End the report; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close(failed=kind is not None)


class Tracker(NullTracker):
    """Reports to every place that was asked for."""

    def __init__(self, places: list[Any]):
        self._places = places

    @classmethod
    def open(
        cls,
        folder: Path,
        params: TrackingParams,
        *,
        run_name: str,
        config: dict[str, Any],
        resume_at: int | None,
        more: Sequence[Any] = (),
    ) -> "Tracker":
        """Start to report into the run folder `folder`.

        resume_at: None starts anew (rows of an earlier run of that name go); k keeps the rows of the steps before k and
        appends, so a resumed run has no gap and no double. more: further places to report to. Raises UserError if a
        package is missing or a place cannot be written.
        """
        check_tracking(params)
        folder = make_folder(Path(folder))
        places: list[Any] = [_Files(folder, resume_at)]
        if params.wandb:
            places.append(_WandB(folder, params, run_name, config, resume_at))
        if params.tensorboard:
            places.append(_TensorBoard(folder, config, resume_at))
        return cls([*places, *more])

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for place in self._places:
            place.log(step, metrics)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        for place in self._places if rows else ():
            place.samples(step, rows)

    def flush(self) -> None:
        for place in self._places:
            place.flush()

    def close(self, failed: bool = False) -> None:
        places, self._places = self._places, []
        for place in places:
            place.close(failed)


def _import_summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tracking.tensorboard needs a package that is missing: pip install tensorboard") from None
    return SummaryWriter


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("--tracking.wandb needs a package that is missing: pip install wandb") from None
    return wandb


def _sample_text(row: dict[str, Any]) -> str:
    numbers = "  ".join(f"{name} {value:.2f}" for name, value in row.items() if isinstance(value, float))
    return f"[{numbers}]\n{row.get('query', '')}|{row.get('response', '')}"


def _indented(text: str) -> str:
    """Text as a Markdown code block, which TensorBoard shows as it is."""
    return "\n".join("    " + line for line in text.splitlines())
