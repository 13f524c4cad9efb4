"""How fast is it on this device? Random weights in the shapes of GPT-2, the tasks' lengths, bfloat16; times are medians
of rounds after a first one that does not count, by the device's own clock.
"""

import collections
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import others, ours
from benchmarks.cases import Case
from benchmarks.clock import PhaseClock
from benchmarks.gpu.parts import Line, Part, Setting, attempt, line
from benchmarks.measure import ROOT
from benchmarks.ours import Subject
from lm_human_preferences.compute.peaks import Peaks
from lm_human_preferences.compute.precision import with_matmul_precision
from lm_human_preferences.language.captured import decoding_graphs
from lm_human_preferences.language.compiled import compile_passes
from lm_human_preferences.runs.stage_hours import Device, decoding_seconds
from lm_human_preferences.train_policy import PPOTrainer

ROUNDS = 5
SHOWN_KERNELS = 10
PEAKS: dict[str, float] = {}  # of this process's device, once `peaks` has measured them
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item", "aten::nonzero")


# --- what the device can do ---


def peaks(setting: Setting) -> Iterator[Line]:
    """A large square product in each precision, and a large copy."""
    device, side = setting.device, 8192 if setting.cuda else 512
    copied = 2**30 if setting.cuda else 2**24
    clock = PhaseClock(device)
    matrix = torch.randn(side, side, device=device)
    for name, dtype, rounding in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "medium"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        factor = matrix.to(dtype)
        with with_matmul_precision(rounding):
            seconds = _seconds(setting, lambda factor=factor: torch.matmul(factor, factor), clock)
        PEAKS[name] = 2 * side**3 / seconds
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    PEAKS["copy"] = 2 * copied / _seconds(setting, lambda: target.copy_(source), clock)
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in PEAKS.items() if name != "copy")
    yield line("peaks measured", f"{rates}, copy {PEAKS['copy'] / 1e9:,.0f} GB/s", None, peaks=dict(PEAKS))


def _seconds(setting: Setting, work: Callable[[], Any], clock: PhaseClock, rounds: int = ROUNDS) -> float:
    """Median seconds of the work, after two rounds that do not count."""
    times = [clock.measure(work)[0] for _ in range(rounds + 2)]
    return median(times[2:])


# --- the kinds of work ---


def measure(setting: Setting, subject: Subject, clock: PhaseClock, rounds: int = ROUNDS) -> dict[str, Any]:
    """One round that does not count, then as many as there is time for, at most `rounds`."""
    clock.measure(subject.work)
    setting.count_peak()
    found: list[tuple[float, dict[str, float]]] = []
    while len(found) < (1 if setting.quick else rounds):
        seconds, phases, _ = clock.measure(subject.work)
        found.append((seconds, phases))
        if setting.left < 3 * seconds:
            break
    seconds = median(each for each, _ in found)
    flops = subject.flops()
    return {
        "seconds": seconds,
        "all_seconds": [each for each, _ in found],
        "phases": {name: median(phases.get(name, 0.0) for _, phases in found) for name in found[-1][1]},
        "rows_per_second": subject.rows / seconds,
        "flops": flops,
        "share_of_peak": flops / seconds / PEAKS["bfloat16"] if PEAKS else None,
        "gib": setting.peak(),
    }


def in_words(found: dict[str, Any]) -> str:
    share = "" if found["share_of_peak"] is None else f", {found['share_of_peak']:.0%} of the bf16 peak"
    text = f"{_time(found['seconds'])}, {found['rows_per_second']:,.0f} rows/s{share}, {found['gib']:.1f} GiB"
    phases = {name: value for name, value in found["phases"].items() if value > 0.005 * found["seconds"]}
    if len(phases) > 1:
        text += " (" + ", ".join(f"{name} {_time(value)}" for name, value in phases.items()) + ")"
    return text


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def of_a_trainer(model: str, task: str, batch: int) -> Callable[[Setting], Iterator[Line]]:
    """A part: rollout, scoring and update of one trainer, decoding plain and captured."""

    def work(setting: Setting) -> Iterator[Line]:
        case = setting.case("update", model, task, batch)
        trainer = ours.policy_trainer(case, setting.precision(True))
        name, clock = f"{model} {task} x{batch}", PhaseClock(setting.device)

        def do(kind: str) -> Line:
            found = measure(setting, ours.OF_A_TRAINER[kind](trainer, clock), clock)
            limit = of_the_limit(found, trainer, case) if kind == "rollout" else ""
            return line("", in_words(found) + limit, None, **found)

        yield line(f"{name}: rows at once", trainer.training.micro_batches.describe())
        yield attempt(f"{name}: rollout", lambda: do("rollout"))
        if setting.cuda:
            trainer.policy.captured = decoding_graphs("cuda", "ddp")
            yield attempt(f"{name}: rollout, captured", lambda: do("rollout"))
        yield attempt(f"{name}: update{', captured' if setting.cuda else ''}", lambda: do("update"))
        trainer.policy.captured = None
        yield attempt(f"{name}: update, plain", lambda: do("update"))
        yield attempt(f"{name}: scoring", lambda: do("scoring"))

    return work


def of_the_limit(found: dict[str, Any], trainer: PPOTrainer, case: Case) -> str:
    """How near a rollout comes to `decoding_limit`, which `found` gets; nothing where no peaks were measured."""
    if not PEAKS:
        return ""
    found["limit"] = decoding_limit(trainer, case)
    return f"; {found['limit'] / found['seconds']:.0%} of what the peaks allow ({_time(found['limit'])})"


def decoding_limit(trainer: PPOTrainer, case: Case) -> float:
    """Seconds that a rollout needs at the least: each product takes what the measured peaks need for its operations or
    for reading its weights (those of the vocabulary in TF32), keys and values are read once a token.
    """
    task = case.task_params()
    context = task.query_length + trainer.policy.formatter.length
    peaks = Peaks(PEAKS["tf32"], PEAKS["bfloat16"], PEAKS["copy"])
    device = Device(peaks, bfloat16=True, kind="cuda", at_best=True)
    config = trainer.policy.transformer.config
    return decoding_seconds(config, case.batch, case.batch, context, task.response_length, device)


def steps(setting: Setting) -> Iterator[Line]:
    """An optimizer step of reward training on the task's choices, and of supervised training."""
    for kind, batch, rows in (("reward", 32, "choices"), ("supervised", 512, "rows")):

        def do(kind: str = kind, batch: int = batch) -> Line:
            clock, case = PhaseClock(setting.device), setting.case(kind, "124M", "style", batch)
            found = measure(setting, ours.make(case, setting.precision(True), clock), clock)
            return line("", in_words(found), None, **found)

        yield attempt(f"124M style, {kind} step, {batch} {rows}", do)
        setting.clear()


def generate(setting: Setting) -> Iterator[Line]:
    """transformers' generate on the same shapes as the style task's rollout."""
    case = setting.case("rollout", "124M", "style", 512).of("transformers")
    clock, work = PhaseClock(setting.device), others.make(case, setting.precision(True))
    clock.measure(work)
    setting.count_peak()
    seconds = median(clock.measure(work)[0] for _ in range(1 if setting.quick else 3))
    rate = case.batch / seconds
    yield line(
        "124M style x512: transformers' generate",
        f"{_time(seconds)}, {rate:,.0f} rows/s, {setting.peak():.1f} GiB",
        None,
        seconds=seconds,
    )


def compiled(setting: Setting) -> Iterator[Line]:
    """A rollout and an update without and with `--run.compiled on`. On a CPU only traced: its compiler takes longer
    than this part may.
    """
    case = setting.case("update", "124M", "style", 512)
    trainer = ours.policy_trainer(case, setting.precision(True))
    clock = PhaseClock(setting.device)
    try:
        for what, on in (("nothing compiled", False), ("compiled", True)):
            compile_passes(on, backend="inductor" if setting.cuda else "eager")
            if setting.cuda:
                trainer.policy.captured = decoding_graphs("cuda", "ddp")  # a graph holds the kernels it was made of
            for kind in ("rollout", "update"):
                subject = ours.OF_A_TRAINER[kind](trainer, clock)
                started = time.monotonic()
                clock.measure(subject.work)
                warm = time.monotonic() - started
                found = measure(setting, subject, clock, 3)
                text = in_words(found) + (of_the_limit(found, trainer, case) if kind == "rollout" else "")
                yield line(f"124M style x512: {kind}, {what}", f"{text}; the first took {warm:.0f} s", None, **found)
    finally:
        compile_passes(False)


# --- where the time goes ---


def profile(setting: Setting) -> Iterator[Line]:
    """One update under the profiler, after two others: kernels, launches, what waits for the device and where."""
    case = setting.case("update", "124M", "style", 512)
    trainer = ours.policy_trainer(case, setting.precision(True))
    for step in range(2):
        trainer.step(step)
    setting.synchronise()
    if setting.cuda:
        yield attempt("waits for the device in an update, by line", lambda: waits(trainer))
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if setting.cuda else []
    started = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        trainer.step(2)
        setting.synchronise()
    seconds = time.perf_counter() - started
    events = profiler.key_averages()
    attribute = "self_device_time_total" if setting.cuda else "self_cpu_time_total"
    (setting.output / "profile.txt").write_text(
        events.table(sort_by=attribute, row_limit=80, max_name_column_width=110)
    )
    counts = {event.key: event.count for event in events}
    launches = sum(count for name, count in counts.items() if "LaunchKernel" in name)
    waited = ", ".join(f"{name} {counts[name]}" for name in WAITS if name in counts)
    yield line("profiled update: launches and waits", f"{launches:,} kernel launches; {waited}", None, counts=counts)
    kernels = _kernels(events) if setting.cuda else _operations(events)
    total = sum(time for _, time, _ in kernels)
    busy = f"kernels {_time(total)} in {_time(seconds)} of the host's time, profiler included"
    yield line("profiled update: time", busy, None, kernels=kernels[:80])
    for name, taken, count in kernels[:SHOWN_KERNELS]:
        yield line(f"  {taken / total:.1%}", f"{_time(taken)} in {count} x {name[:100]}")


def _kernels(events: Any) -> list[tuple[str, float, int]]:
    """What ran on the device itself: name, seconds, how often; longest first. What handed it over is left out."""
    cuda = torch.autograd.DeviceType.CUDA
    own = [e for e in events if e.device_type == cuda and not getattr(e, "is_user_annotation", False)]
    kernels = [(e.key, e.self_device_time_total / 1e6, e.count) for e in own]
    return sorted(kernels, key=lambda kernel: -kernel[1])


def _operations(events: Any) -> list[tuple[str, float, int]]:
    operations = [(e.key, e.self_cpu_time_total / 1e6, e.count) for e in events]
    return sorted(operations, key=lambda operation: -operation[1])


def waits(trainer: PPOTrainer) -> Line:
    """Where an update waits for the device, as PyTorch warns of it: how often each line of ours does."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places: collections.Counter[str] = collections.Counter()
    for warning in caught:
        if "synchron" in str(warning.message):
            path = Path(warning.filename)
            places[f"{path.name if not path.is_relative_to(ROOT) else path.relative_to(ROOT)}:{warning.lineno}"] += 1
    shown = ", ".join(
        f"{place.removeprefix('lm_human_preferences/')} {count}" for place, count in places.most_common(12)
    )
    return line("", f"{sum(places.values())}: {shown}", None, places=dict(places))


PARTS = [
    Part("peaks", "fast", 4, peaks),
    Part("style_124M", "fast", 25, of_a_trainer("124M", "style", 512)),
    Part("profile", "fast", 20, profile),
    Part("summary_124M", "fast", 20, of_a_trainer("124M", "summary", 32)),
    Part("style_774M", "fast", 25, of_a_trainer("774M", "style", 64)),
    Part("steps", "fast", 10, steps),
    Part("generate", "fast", 15, generate),
]
LATER = [Part("compiled", "fast", 40, compiled)]  # after all sections: it may take long, and its answer can wait
