"""What fits where, and how long it takes: `python launch.py plan TASK` predicts each stage's memory and names the
micro-batches, and with a device's rates its hours, before anything is downloaded or started.
"""

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lm_human_preferences.compute.peaks import Peaks, measure_peaks
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.gpt2 import SHAPES, GPT2Config, count_parameters
from lm_human_preferences.language.memory import Pass
from lm_human_preferences.language.model_folders import load_config
from lm_human_preferences.runs.micro_batches import GIB, SHARE, fitting_micro_batches, free_memory
from lm_human_preferences.runs.stage_hours import Device, Times, Work, stage_work, step_times
from lm_human_preferences.runs.stage_memory import (
    StageMemory,
    direct_training_memory,
    implicit_q_memory,
    policy_training_memory,
    reward_training_memory,
    supervised_training_memory,
)
from lm_human_preferences.train_sft import config_from_scratch


@dataclass
class PlanParams:
    """What is planned for."""

    model: str | None = param(None, f"{', '.join(SHAPES)}, or a model folder; none: the task's", "path")
    devices: int = param(1, "GPUs, or processes on CPUs")
    device: str = param("auto", "auto, cpu or cuda; one that this machine lacks can be planned for too")
    memory: float | None = param(None, "GiB on each device; none: what is free on this machine now")
    measure: bool = param(False, "measure this machine's rates first, in seconds, and say how long each stage takes")
    tflops: float | None = param(
        None, "10^12 operations a second of a large product in the precision of the blocks, instead of measuring"
    )
    bandwidth: float = param(0.0, "GB/s of a large copy, read and written; with --tflops")
    link: float = param(50.0, "GB/s that one device can send to the others, where there are several")
    precision: str = param("auto", "auto (bfloat16 on cuda; on a CPU where it is fast), float32 or bfloat16")


# --- which stages, of which model, where ---


def _model(name: str) -> tuple[str, GPT2Config] | None:
    """Name and architecture of a model folder or of one of GPT-2's sizes."""
    if Path(name).is_dir():
        return name, load_config(Path(name))
    shape = Path(name).name
    return (shape, GPT2Config(**SHAPES[shape])) if shape in SHAPES else None


def _models(params: PlanParams, entries: dict[str, Any]) -> dict[str, tuple[str, GPT2Config]]:
    """Each stage's model: the one that --model names, else the one that the stage starts from, else the one of the next
    stage. UserError if it is unknown.
    """
    if params.model is not None:
        if (found := _model(params.model)) is None:
            raise UserError(f"--model {params.model}: must be {', '.join(SHAPES)} or an existing model folder")
        return dict.fromkeys(entries, found)
    models, later = {}, None
    for stage, entry in reversed(entries.items()):
        name = entry.model.initial if stage == "train_sft" else entry.task.policy.initial_model
        later = ("from scratch", config_from_scratch(entry.model)) if name is None else _model(name) or later
        if later is None:
            raise UserError(f"there is no model {name} yet: say with --model which size to plan for")
        models[stage] = later
    return models


def _precision(params: PlanParams) -> Precision:
    for name, value, known in (
        ("device", params.device, ("auto", "cpu", "cuda")),
        ("precision", params.precision, ("auto", "float32", "bfloat16")),
    ):
        if value not in known:
            raise UserError(f"--{name} {value}: must be {', '.join(known[:-1])} or {known[-1]}")
    if params.device == "cuda" and not torch.cuda.is_available():
        return Precision(torch.device("cuda"), params.precision != "float32")
    return choose_precision(params.device, params.precision)


def _outside(entry: Any, config: GPT2Config) -> int:
    """Tokens that the task puts around a query."""
    return QueryFormatter.of(entry.task, get_encoding(config)).length if entry.task else 0


def _stage_memory(stage: str, entry: Any, config: GPT2Config, precision: Precision, ranks: int) -> StageMemory:
    outside = _outside(entry, config)
    if stage == "train_sft":
        tokens = outside + entry.task.query_length + entry.task.response_length - 1 if entry.task else entry.data.block
        return supervised_training_memory(entry, config, tokens, precision, ranks)
    if stage == "train_ilql":
        return implicit_q_memory(entry, config, precision, ranks, outside)
    if stage in ("train_reward", "train_dpo"):
        predicted = reward_training_memory if stage == "train_reward" else direct_training_memory
        return predicted(entry, config, label_type(entry.labels.type).n_responses, precision, ranks, outside)
    return policy_training_memory(entry, config, precision, ranks, outside)


def _peaks(params: PlanParams, precision: Precision) -> Peaks | None:
    """The device's rates, told or measured; None where nobody asks for hours."""
    told = params.tflops is not None
    if params.measure and told:
        raise UserError("--measure and --tflops exclude each other; give one of them")
    if told != (params.bandwidth > 0) or (params.tflops is not None and params.tflops <= 0) or params.link <= 0:
        raise UserError("--tflops and --bandwidth belong together, and they and --link must be positive")
    if params.tflops is not None:
        rate = params.tflops * 1e12
        return Peaks(rate / 2 if precision.bfloat16 else rate, rate, params.bandwidth * 1e9)
    if not params.measure:
        return None
    if precision.device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--measure on a machine without --device cuda: give its rates with --tflops and --bandwidth")
    return measure_peaks(precision.device)


# --- the plan ---


def plan(params: PlanParams, entries: dict[str, Any], task: str) -> str:
    """The plan for all stages of a task, in words. entries: stage -> its parameters. Raises UserError for a model or
    numbers that make no sense.
    """
    if params.devices < 1 or (params.memory is not None and params.memory <= 0):
        raise UserError("--devices must be at least 1 and --memory positive")
    precision = _precision(params)
    peaks = _peaks(params, precision)
    if params.memory is None and precision.device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda on a machine without one: say with --memory how many GiB each GPU has")
    budget = int(params.memory * GIB) if params.memory is not None else free_memory(precision.device)
    one, many = {"cuda": ("GPU", "GPUs"), "cpu": ("process", "processes")}[precision.device.type]
    lines = [
        f"{task} on {params.devices} {one if params.devices == 1 else many} with {budget / GIB:.1f} GiB each, "
        f"{SHARE:.0%} of it planned with; {precision.describe()}"
    ]
    if peaks is not None:
        rate = peaks.bfloat16 if precision.bfloat16 else peaks.float32
        how = "measured" if params.measure else "told"
        lines.append(f"{how}: {rate / 1e12:.3g} TFLOP/s, {peaks.copy / 1e9:,.4g} GB/s; hours are predictions")
    models = _models(params, entries)
    for stage, entry in entries.items():
        name, config = models[stage]
        for sharding in ("ddp", "fsdp") if params.devices > 1 else ("ddp",):
            entry = dataclasses.replace(entry, run=dataclasses.replace(entry.run, sharding=sharding))
            memory = _stage_memory(stage, entry, config, precision, params.devices)
            lines += [
                "",
                f"{stage}, {name} ({count_parameters(config)['total'] / 1e6:.0f}M parameters)"
                + (f", --run.sharding {sharding}" if params.devices > 1 else ""),
                *_table(memory, entry.run, budget, precision.device.type),
            ]
            if peaks is not None:
                sharded = sharding == "fsdp"
                device = Device(peaks, precision.bfloat16, precision.device.type, params.devices, sharded)
                sizes = fitting_micro_batches(entry.run, memory, int(SHARE * budget), precision.device.type)
                work = stage_work(stage, entry, config, _outside(entry, config), sizes, device)
                lines.append(_time(work, step_times(work, device, params.link * 1e9)))
    return "\n".join(lines)


def _table(memory: StageMemory, run: Any, budget: int, device: str) -> list[str]:
    sizes = fitting_micro_batches(run, memory, int(SHARE * budget), device)
    training = memory.recomputing if sizes.recompute else memory.training
    held = sum(memory.held.values())
    lines = [
        f"  all the time       {held / GIB:7.2f} GiB   "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.held.items())
    ]
    for name, which, rows in (
        ("sampling", memory.rollout, sizes.rollout),
        ("scoring", memory.scoring, sizes.scoring),
        ("training", training, sizes.training),
    ):
        if which is not None:
            recomputed = ", activations recomputed" if which is memory.recomputing else ""
            lines.append(f"  {name:16} + {which.bytes(rows) / GIB:7.2f} GiB   {_words(which, rows)}{recomputed}")
    peak = sizes.peak(memory)
    verdict = "fits" if peak <= SHARE * budget else "just fits" if peak <= budget else "does not fit"
    return [*lines, f"  at most            {peak / GIB:7.2f} GiB   {verdict}"]


def _time(work: Work, times: Times) -> str:
    """Hours of a stage, and what its steps spend them on."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in asdict(times).items() if value)
    step = f"a step {times.step:.3g} s ({parts})"
    if not work.steps:
        return f"  time               {step}"
    hours = work.steps * times.step / 3600
    whole = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    return f"  time               {whole}: {work.steps:,} steps, {step}"


def _words(which: Pass, rows: int) -> str:
    parts = -(-which.rows // rows)
    fixed = which.fixed + (which.gradients if parts > 1 else 0)
    return (
        f"{rows} rows at once"
        + (f", {parts} times" if parts > 1 else "")
        + f": {fixed / GIB:.2f} + {rows} x {which.per_row / GIB:.3f}"
    )
