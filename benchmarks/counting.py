"""Count what each case of the benchmarks does, by class of work: calls of operators, floating-point operations, bytes
read and written. Nothing is timed, so that any machine gives the same counts.

    python -m benchmarks.counting --models 124M --precision bfloat16
    python -m benchmarks.counting --models 124M --precision bfloat16 --before CHECKOUT

The last column is the least time that a device's peaks allow: of each class its operations at the rate of its products
or its bytes at that of a copy, whichever takes longer. With --before another checkout's counts stand beside ours.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.cases import KINDS, Case, cases_of
from benchmarks.measure import ROOT, check_checkout
from benchmarks.tables import name, seconds, table
from lm_human_preferences.compute.peaks import measure_peaks
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.gpt2 import SHAPES

COUNTER = ROOT / "benchmarks" / "counter.py"


class Rates(NamedTuple):
    """What a device does at most."""

    float32: float  # FLOP/s of products
    bfloat16: float
    copy: float  # bytes/s, read and written


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.counting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = p.add_argument
    kinds = ",".join(kind for kind in KINDS if kind not in ("rloo", "dpo"))
    add("--cases", default=kinds, metavar="A,B", help=f"of {', '.join(KINDS)} (default {kinds})")
    add("--models", default="124M", metavar="A,B", help=f"of {', '.join(SHAPES)} (default 124M)")
    add("--tasks", default="style", metavar="A,B", help="style (default), summary")
    add("--batch", type=int, metavar="N", help="rows, or choices (default: those of `python -m benchmarks` on a CPU)")
    add("--precision", default="bfloat16", help="bfloat16 (default) or float32")
    add("--before", type=Path, metavar="CHECKOUT", help="another checkout of this project: its counts beside ours")
    add(
        "--rates",
        metavar="A,B,C",
        help="of the device to reckon for: TFLOP/s in float32 and in bfloat16, GB/s of a copy (default: as measured "
        "here)",
    )
    add("--output", type=Path, metavar="FILE", help="also write the counts as JSON")
    return p


def rates_of(words: str | None) -> Rates:
    """The device's rates, as told or as measured. UserError unless three positive numbers are told."""
    if words is None:
        peaks = measure_peaks(torch.device("cpu"))
        return Rates(peaks.float32, peaks.bfloat16, peaks.copy)
    try:
        float32, bfloat16, copy = (float(word) for word in words.split(","))
    except ValueError:
        float32 = bfloat16 = copy = 0.0
    if not min(float32, bfloat16, copy) > 0:
        raise UserError(f"--rates {words}: needs three positive numbers, say 0.35,1.92,17")
    return Rates(float32 * 1e12, bfloat16 * 1e12, copy * 1e9)


def count(case: Case, checkout: Path) -> dict[str, dict[str, float]]:
    """By class of work what a repetition of the case does by a checkout's code, in a process of its own. RuntimeError
    with its last lines if it breaks.
    """
    with COUNTER.open("rb") as program:
        done = subprocess.run(
            [sys.executable, "-", json.dumps(dataclasses.asdict(case))],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=program,
            capture_output=True,
        )
    if done.returncode:
        raise RuntimeError(f"{case.name} in {checkout}:\n{done.stderr.decode(errors='replace')[-3000:]}")
    classes: dict[str, dict[str, float]] = json.loads(done.stdout)["classes"]
    return classes


def least_seconds(kind: str, counts: dict[str, float], rates: Rates) -> float:
    """The least time for a class of work."""
    rate = rates.float32
    if "bfloat16" in kind:
        rate = rates.bfloat16
    elif "may round" in kind:
        rate = max(rates.float32, rates.bfloat16)
    return max(counts["flops"] / rate, counts["bytes"] / rates.copy)


def text_of(one: dict, rates: Rates) -> str:
    """A case as a table: classes of work with the longest first, and all together."""
    sides = [side for side in ("before", "now") if side in one]
    nothing = {"calls": 0, "flops": 0, "bytes": 0}
    kinds = sorted(
        {kind for side in sides for kind in one[side]},
        key=lambda kind: -least_seconds(kind, one["now"].get(kind, nothing), rates),
    )
    suffix = {"before": " before", "now": " now" if len(sides) > 1 else ""}
    head = [name(one["case"])] + [
        column + suffix[side] for column in ("calls", "GFLOP", "GB", "least s") for side in sides
    ]
    rows = []
    for kind in [*kinds, "together"]:
        cells: dict[str, list[str]] = {}
        for side in sides:
            some = one[side].items() if kind == "together" else [(kind, one[side].get(kind, nothing))]
            least = sum(least_seconds(each, counts, rates) for each, counts in some)
            calls, flops, size = (sum(counts[key] for _, counts in some) for key in ("calls", "flops", "bytes"))
            cells[side] = [f"{calls:,.0f}", f"{flops / 1e9:,.0f}", f"{size / 1e9:,.2f}", seconds(least)]
        rows.append([kind] + [cells[side][column] for column in range(4) for side in sides])
    return table(head, rows)


@exit_on_user_error
def main(words: list[str] | None = None) -> None:
    args = parser().parse_args(words)
    kinds, models, tasks = (
        [word for word in text.split(",") if word] for text in (args.cases, args.models, args.tasks)
    )
    if args.precision not in ("float32", "bfloat16"):
        raise UserError(f"--precision {args.precision}: must be float32 or bfloat16")
    cases = cases_of(kinds, models, tasks, "cpu", args.batch, 0.0, precision=args.precision)
    checkouts = {"now": ROOT}
    if args.before is not None:
        check_checkout(args.before)
        checkouts = {"before": args.before.resolve(), "now": ROOT}
    rates = rates_of(args.rates)
    print(
        f"Least seconds at {rates.float32 / 1e12:.3g} TFLOP/s in float32, {rates.bfloat16 / 1e12:.3g} in bfloat16, "
        f"{rates.copy / 1e9:.3g} GB/s; {args.precision}.\n"
    )
    counted = []
    for number, case in enumerate(cases, 1):
        print(f"[{number} of {len(cases)}] {case.name}", file=sys.stderr, flush=True)
        sides = {side: count(case, checkout) for side, checkout in checkouts.items()}
        counted.append({"case": dataclasses.asdict(case), **sides})
        print(text_of(counted[-1], rates) + "\n", flush=True)
        if args.output:
            write_json(args.output, {"rates": rates._asdict(), "cases": counted})


if __name__ == "__main__":
    main()
