"""Is this software right on the GPU of this machine, how fast, and what would a run take? One command, no network.

Each section works in a process of its own, part after part. A part that fails, hangs or ends its process is a line of
the table; the others go on. The table comes last; everything, tracebacks and profiles too, lies in --output.
"""

import argparse
import json
import os
import platform
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import fast, real, right
from benchmarks.gpu.parts import Line, Part, Setting, environment, line, stand_ins, work_through
from benchmarks.measure import ROOT
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import write_json

PARTS: list[Part] = [*right.PARTS, *fast.PARTS, *real.PARTS, *fast.LATER]
SECTIONS = {"right": "is it right here?", "fast": "how fast?", "real": "what does a run come to?"}
LONGER, LEAST = 3.0, 30.0  # a part may take that many times its own estimate, and these seconds in any case
LEAST_QUICK = 120.0  # these, where only whether it runs is asked, perhaps beside much other work
GRACE, START = 10.0, 90.0  # seconds to end by itself, and to start
MOST_CHARACTERS = 9_500  # of the table: what remote machines show of an output


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    sections = "; ".join(f"{name}: {text}" for name, text in SECTIONS.items())
    p.add_argument("--sections", default=",".join(SECTIONS), metavar="A,B", help=f"{sections} (default: all)")
    names = ", ".join(part.name for part in PARTS)
    p.add_argument("--parts", metavar="A,B", help=f"only these parts, of {names}")
    p.add_argument("--budget", type=float, default=480.0, metavar="SECONDS", help="stop in time (default 480)")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    p.add_argument("--quick", action="store_true", help="tiny models and batches: only whether all of it runs")
    p.add_argument("--output", type=Path, metavar="FOLDER", help="where result.json and profiles go (default: nowhere)")
    p.add_argument("--process", action="store_true", help=argparse.SUPPRESS)  # parts are named on standard input
    return p


def chosen(args: argparse.Namespace) -> list[Part]:
    """The parts in their order. UserError for an unknown name."""
    wanted = {"sections": args.sections.split(","), "parts": args.parts.split(",") if args.parts else None}
    known = {"sections": list(SECTIONS), "parts": [part.name for part in PARTS]}
    for kind, names in wanted.items():
        unknown = next((name for name in names or [] if name not in known[kind]), None)
        if unknown is not None:
            raise UserError(f"--{kind} {unknown}: there are {', '.join(known[kind])}")
    if args.budget <= 0:
        raise UserError(f"--budget {args.budget:g}: must be positive")
    if wanted["parts"] is not None:
        return [part for part in PARTS if part.name in wanted["parts"]]
    return [part for part in PARTS if part.section in wanted["sections"]]


class Process:
    """The process that does a section's parts."""

    def __init__(self, section: str, args: argparse.Namespace, output: Path, packages: Path):
        words = ["--process", "--device", args.device, "--output", str(output), *(["--quick"] if args.quick else [])]
        self.errors = open(output / f"{section}.log", "a", encoding="utf-8")  # closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *words],
            cwd=ROOT,
            env=environment(section, packages),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
        )
        self.device = ""
        self.buffer, self.selector = b"", selectors.DefaultSelector()
        assert self.process.stdout is not None
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, name: str, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps([name, seconds]) + "\n").encode())
        self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None if none came within so many seconds. EOFError if the process has ended."""
        ends = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not self.selector.select(max(0.0, ends - time.monotonic())):
                return None
            assert self.process.stdout is not None
            read = os.read(self.process.stdout.fileno(), 1 << 16)
            if not read:
                raise EOFError(f"its process ended with status {self.process.wait()}")
            self.buffer += read
        first, _, self.buffer = self.buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(first)
        return found

    def end(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.selector.close()
        self.errors.close()


def carry_out(
    parts: list[Part], args: argparse.Namespace, output: Path, packages: Path, machine: dict[str, Any]
) -> list[Line]:
    """All lines, each with its section, as they come; standard error says what is at work. `machine` gets its name."""
    started, lines = time.monotonic(), []
    process: Process | None = None
    at_work = ""

    def left() -> float:
        return args.budget - (time.monotonic() - started)

    def note(part: Part, found: Line) -> None:
        lines.append({"section": part.section, "part": part.name} | found)
        print(f"  {_row(lines[-1])}", file=sys.stderr, flush=True)

    try:
        for part in parts:
            if left() < min(part.seconds, 20) and not args.quick:
                note(part, line(part.name, f"left out: {max(0.0, left()):.0f} s of the budget left", None))
                continue
            if process is not None and at_work != part.section and not args.quick:
                process.end()
                process = None
            print(f"[{time.monotonic() - started:.0f} s] {part.section}: {part.name}", file=sys.stderr, flush=True)
            if process is None:
                process, at_work = Process(part.section, args, output, packages), part.section
                if not _ready(process, part, min(START, left()), note):
                    process = None
                    continue
                machine["device"] = process.device
            least = LEAST_QUICK if args.quick else LEAST
            limit = max(1.0, min(max(least, LONGER * part.seconds), left() - 5))
            if not _do(process, part, limit, note):
                process = None
            _write(output, args, machine, lines)
    finally:
        if process is not None:
            process.end()
    return lines


def _ready(process: Process, part: Part, seconds: float, note: Any) -> bool:
    """Whether the process has started; else it is ended."""
    try:
        while (answer := process.answer(seconds)) is not None and "ready" not in answer:
            note(part, answer["line"])
        process.device = answer["device"] if answer else ""
    except EOFError as error:
        answer, reason = None, str(error)
    else:
        reason = f"its process did not start within {seconds:.0f} s"
    if answer is None:
        note(part, line(part.name, f"{reason}; {part.section}.log says more", False))
        _kill(process)
    return answer is not None


def _do(process: Process, part: Part, limit: float, note: Any) -> bool:
    """Let the process do a part; whether it can go on afterwards, else it is ended."""
    ends = time.monotonic() + limit + GRACE
    try:
        process.ask(part.name, limit)
        while (answer := process.answer(ends - time.monotonic())) is not None:
            if "done" in answer and answer["broken"]:
                _kill(process)
                return False
            if "done" in answer:
                return True
            note(part, answer["line"])
        reason = f"hung: ended after {limit + GRACE:.0f} s"
    except (EOFError, BrokenPipeError) as error:
        reason = str(error)
    note(part, line(part.name, f"{reason}; {part.section}.log says more", False))
    _kill(process)
    return False


def _kill(process: Process) -> None:
    try:
        os.killpg(process.process.pid, 9)
    except ProcessLookupError:
        pass
    process.end()


def _row(found: Line) -> str:
    mark = {True: "ok  ", False: "FAIL", None: "    "}[found["ok"]]
    return f"{mark} {found['name']}: {found['shown']}"


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """The machine; nothing here begins to use a GPU."""
    return {
        "device": args.device,  # until a section's process says its name
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def table(machine: dict[str, Any], lines: list[Line], seconds: float) -> str:
    """The lines by section in plain text, short enough to be seen whole."""
    failed = sum(found["ok"] is False for found in lines)
    head = (
        f"{machine['device']}, torch {machine['torch']}, CUDA {machine['cuda']}, Python {machine['python']}; "
        f"{len(lines)} lines, {failed} of them failures, {seconds:.0f} s"
    )
    rows = [head]
    for section, question in SECTIONS.items():
        own = [_row(found) for found in lines if found["section"] == section]
        rows += [f"--- {section}: {question}", *own] if own else []
    width = max(120, MOST_CHARACTERS // max(1, len(rows)))
    return "\n".join(row if len(row) <= width else row[: width - 3] + "..." for row in rows)[:MOST_CHARACTERS]


def _write(output: Path, args: argparse.Namespace, machine: dict[str, Any], lines: list[Line]) -> None:
    arguments = vars(args) | {"output": str(output)}
    write_json(output / "result.json", {"machine": machine, "arguments": arguments, "lines": lines})


def main() -> None:
    args = parser().parse_args()
    if args.process:
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever libraries print goes to the log
        device = choose_precision(args.device, "float32").device
        work_through(PARTS, Setting(device, args.quick, args.output), sys.stdin, answers)
        return
    parts, started = chosen(args), time.monotonic()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"--device {args.device}: this machine has no CUDA device; --device cpu --quick tries all parts"
        )
    machine = describe(args)
    with tempfile.TemporaryDirectory() as temporary:
        output = (args.output or Path(temporary)).resolve()
        output.mkdir(parents=True, exist_ok=True)
        packages = Path(temporary) / "packages"
        packages.mkdir()
        machine["stand-ins"] = stand_ins(packages)
        lines = carry_out(parts, args, output, packages, machine)
        _write(output, args, machine, lines)
    print(table(machine, lines, time.monotonic() - started))
    sys.exit(any(found["ok"] is False for found in lines))


if __name__ == "__main__":
    exit_on_user_error(main)()
