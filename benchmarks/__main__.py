"""Measure how fast this software works, beside what a user would use instead: docs/performance.md explains it."""

import argparse
import contextlib
import dataclasses
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.cases import KINDS, RIVALS, TASKS, Case, cases_of
from benchmarks.figure import draw, scaling_cases
from benchmarks.measure import ROOT, check_checkout, measure
from benchmarks.tables import check_page, put_into, tables
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json, write_json
from lm_human_preferences.language.gpt2 import SHAPES
from lm_human_preferences.runs.description import package_versions

PAGE = ROOT / "docs" / "performance.md"
FIGURE = ROOT / "static" / "scaling.png"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = p.add_argument
    add(
        "--full",
        action="store_true",
        help="all that docs/performance.md shows: 124M besides tiny (774M on a GPU), both tasks, the summaries with "
        "padding too, and how the cost grows",
    )
    add(
        "--cases",
        default=",".join(KINDS),
        metavar="A,B",
        help="; ".join(f"{name}: {text}" for name, text in KINDS.items()) + " (default: all)",
    )
    add(
        "--models",
        metavar="A,B",
        help=f"of {', '.join(SHAPES)} (default: tiny; with --full tiny, 124M and, on a GPU, 774M)",
    )
    add(
        "--tasks",
        metavar="A,B",
        help="style: query 64, response 24; summary: query 500, response 75 (default: style; with --full both)",
    )
    add(
        "--batch",
        type=int,
        metavar="N",
        help="rows, or choices of a reward step (default on a CPU: style 16, summary 4, choices 8 and 2; on a GPU: 512 "
        "and 32)",
    )
    add(
        "--padding",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="mean share of padding in the queries, below 0.5 (default 0)",
    )
    add(
        "--scaling",
        metavar="MODEL",
        help="measure also updates of this model over batches and response lengths, and draw them (with --full: tiny)",
    )
    add("--alone", action="store_true", help=f"ours only, without {', '.join(RIVALS.values())}")
    add(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="measure the same by the code of another checkout too, in turn with ours: what a change gave",
    )
    add(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="measured rounds of each case; the median counts (default 3)",
    )
    add(
        "--warmup",
        type=int,
        default=2,
        metavar="N",
        help="rounds before them that do not count (default 2: a process still takes memory in its second)",
    )
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--precision", default="auto", help="auto (default), float32 or bfloat16")
    add("--captured", action="store_true", help="decoding as a CUDA graph, as with --run.captured_decoding on")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 (default) leaves the choice to PyTorch")
    add("--output", type=Path, metavar="FILE", help="also write everything as JSON, as far as it goes after each case")
    add(
        "--resume",
        action="store_true",
        help="keep what --output already has, measured with the same settings, and measure the rest",
    )
    add(
        "--page",
        type=Path,
        metavar="FILE",
        help=f"also put the tables between the marks of this page, {PAGE.relative_to(ROOT)} say",
    )
    add(
        "--figure",
        type=Path,
        default=FIGURE,
        metavar="FILE",
        help=f"where --scaling draws (default {FIGURE.relative_to(ROOT)})",
    )
    return p


class Plan(NamedTuple):
    """What to measure."""

    compared: list[Case]  # with what stands against them
    alone: list[Case]
    scaling: list[Case]  # for the figure


def plan(args: argparse.Namespace, device: str) -> Plan:
    """The cases. UserError for unknown names and impossible numbers."""
    for name, least in (("repeats", 1), ("warmup", 0), ("threads", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    models = args.models or ("tiny" + (",124M" + (",774M" if device == "cuda" else "") if args.full else ""))
    tasks = args.tasks or (",".join(TASKS) if args.full else "style")
    settings = dict(precision=args.precision, threads=args.threads, captured=args.captured)
    kinds, models, tasks = ([word for word in text.split(",") if word] for text in (args.cases, models, tasks))
    cases = cases_of(kinds, models, tasks, device, args.batch, args.padding, **settings)
    padded = []
    if args.full and "summary" in tasks and not args.padding:  # does padding cost anything?
        padded = cases_of(
            [kind for kind in kinds if kind != "supervised"], models, ["summary"], device, args.batch, 0.3, **settings
        )
    scaling = args.scaling or ("tiny" if args.full else None)
    if scaling is not None and scaling not in SHAPES:
        raise UserError(f"--scaling {scaling}: there are {', '.join(SHAPES)}")
    grown = scaling_cases(scaling, device=device, **settings) if scaling else []
    return Plan([], cases + padded, grown) if args.alone else Plan(cases, padded, grown)


def describe(device: str, args: argparse.Namespace) -> dict:
    """The machine and the settings."""
    threads = args.threads or torch.get_num_threads()
    versions = package_versions()
    for name in () if args.alone else ("transformers", "trl"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": threads,
        "torch": torch.__version__,
        "versions": versions,
        "repeats": args.repeats,
        "warmup": args.warmup,
        "before": args.before and str(args.before.resolve()),
    }


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kept(args: argparse.Namespace, settings: dict) -> list[dict]:
    """With --resume what an earlier call has measured. UserError if its machine or its settings were others."""
    if not args.resume:
        return []
    if args.output is None:
        raise UserError("--resume: name the earlier call's file with --output")
    if not args.output.exists():
        return []
    earlier = read_json(args.output)
    try:
        differing = [
            name for name, value in settings.items() if name != "versions" and earlier["machine"].get(name) != value
        ]
        results = earlier["cases"] + earlier["scaling"]
    except (KeyError, TypeError):
        raise UserError(
            f"--resume: {args.output} has no earlier call's results; leave --resume out to replace it"
        ) from None
    if differing:
        raise UserError(
            f"--resume: {args.output} was measured with {differing[0]} {earlier['machine'][differing[0]]}, this is "
            f"{settings[differing[0]]}; leave --resume out to measure anew"
        )
    return results


def carry_out(wanted: Plan, device: str, args: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Measure what is wanted, one case after the other."""
    settings = describe(device, args)
    earlier = kept(args, settings)
    results: dict[str, list[dict]] = {part: [] for part in Plan._fields}
    everything = [(part, case) for part, cases in wanted._asdict().items() for case in cases]
    started = time.monotonic()
    for number, (part, case) in enumerate(everything, 1):
        alone = part != "compared"
        same = next(
            (
                result
                for result in earlier
                if result["case"] == dataclasses.asdict(case)
                and (alone or case.kind not in RIVALS or {RIVALS[case.kind]} & {*result["others"], *result["failed"]})
            ),
            None,
        )
        say(
            f"[{number} of {len(everything)}, {(time.monotonic() - started) / 60:.0f} min so far] {case.name}"
            f"{', as measured before' if same else ''}"
        )
        try:
            results[part].append(same or measure(case, args.repeats, args.warmup, alone, say, args.before))
        except KeyboardInterrupt as stop:
            if args.output and number > 1:
                stop.add_note(
                    f"{args.output} has {number - 1} of {len(everything)} cases, and the same command with --resume "
                    "goes on from there"
                )
            raise
        measured = [result for part in results.values() for result in part]
        peaks = {name: median(result["peaks"][name] for result in measured) for name in measured[0]["peaks"]}
        result = {
            "machine": settings | {"peaks": peaks},
            "cases": results["compared"] + results["alone"],
            "scaling": results["scaling"],
        }
        if args.output:
            write_json(args.output, result)
    return result


def say(text: str) -> None:
    """How far it is, apart from the tables on standard output."""
    print(text, file=sys.stderr, flush=True)


@exit_on_user_error
def main(words: list[str] | None = None) -> None:
    args = parser().parse_args(words)
    device = choose_precision(args.device, args.precision).device.type
    wanted = plan(args, device)
    if args.page:
        check_page(args.page)
    if args.before:
        check_checkout(args.before)
    result = carry_out(wanted, device, args, say)
    text = tables(result)
    print(text)
    if args.page:
        put_into(args.page, text)
    if wanted.scaling:
        draw(result["scaling"], args.figure)


if __name__ == "__main__":
    main()
