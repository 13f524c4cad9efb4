"""How a run computes and what it keeps: its parameters, their check, and what they set in PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import WAIT, World, check_wait
from lm_human_preferences.compute.parallel import SHARDINGS
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.compiled import compile_passes


@dataclass
class RunParams:
    """How a run computes and what it keeps."""

    seed: int = param(1, "seed of every random draw")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")
    overwrite: bool = param(False, "delete a run of the same name first")
    resume: bool = param(False, "continue a run of the same name from its newest whole checkpoint")
    save_interval: int = param(50, "steps between checkpoints; 0 keeps only the result")
    keep_checkpoints: int = param(2, "how many checkpoints to keep")
    sample_interval: int = param(1, "policy training: steps between the samples in samples.jsonl")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto (bfloat16 where the hardware multiplies it fast), float32 or bfloat16")
    micro_batch: int | None = param(
        None,
        "rows in memory at once in a training pass, on each rank; none: as many as fit. Changes nothing but "
        "memory and rounding",
    )
    micro_batch_rollout: int | None = param(None, "the same while responses are sampled")
    micro_batch_scoring: int | None = param(None, "the same in passes without gradient: reference, reward, validation")
    captured_decoding: str = param(
        "auto",
        "on: policy training on a GPU hands all of a rollout's decoding over at once, as a CUDA graph for each length "
        "of query (16 at most), and its cache stays in memory; off; auto: on where no pass has to do with fewer rows "
        "for it",
    )
    compiled: bool = param(
        False,
        "layer norms, MLPs, sums over the vocabulary and drawing through torch.compile: faster on a GPU after some "
        "seconds of compiling, other bits at each start",
    )
    recompute_activations: str = param(
        "auto",
        "on: each block's activations are computed again in the backward pass, a third more work for far less "
        "memory; off; auto: when memory would else not hold eight rows",
    )
    sharding: str = param(
        "ddp",
        "with torchrun: ddp, each rank has the whole model; fsdp, parameters, gradients and optimizer are split over "
        "the ranks",
    )
    threads: int = param(0, "CPU threads; 0 leaves the choice to PyTorch")
    deterministic: bool = param(
        False,
        "on a GPU: only operations that give the same bits every time, so that the same command gives the same result; "
        "slower. On a CPU it does anyway",
    )
    timeout: float = param(
        WAIT,
        "seconds that a rank waits for the others before it takes them for lost; longer than the longest checkpoint",
    )


def check_run_params(params: RunParams, rollouts: bool = False) -> None:
    """Raises UserError for numbers that no run can have; rollouts: whether it makes some at each step."""
    if params.captured_decoding not in ("auto", "on", "off"):
        raise UserError(f"--run.captured_decoding {params.captured_decoding}: must be auto, on or off")
    if params.captured_decoding == "on" and not rollouts:
        raise UserError("--run.captured_decoding on: only policy training samples at each step; leave it off")
    if params.compiled and (params.deterministic or params.sharding == "fsdp"):
        flag = "deterministic on" if params.deterministic else "sharding fsdp"
        raise UserError(f"--run.compiled on does not go with --run.{flag}; leave one of them off")
    if params.overwrite and params.resume:
        raise UserError("--run.overwrite and --run.resume exclude each other; give one of them")
    for name in ("save_interval", "keep_checkpoints", "threads"):
        if getattr(params, name) < 0:
            raise UserError(f"--run.{name} {getattr(params, name)}: must not be negative")
    for name in ("micro_batch", "micro_batch_rollout", "micro_batch_scoring", "sample_interval"):
        if getattr(params, name) is not None and getattr(params, name) < 1:
            raise UserError(f"--run.{name} {getattr(params, name)}: must be at least 1")
    check_wait(params.timeout, "--run.timeout")
    if params.recompute_activations not in ("auto", "on", "off"):
        raise UserError(f"--run.recompute_activations {params.recompute_activations}: must be auto, on or off")
    if params.sharding not in SHARDINGS:
        raise UserError(f"--run.sharding {params.sharding}: must be {' or '.join(SHARDINGS)}")


def start_computing(params: RunParams) -> Precision:
    """The device and precision of a run; sets its number of threads, and what PyTorch may compute with. UserError for a
    device that is not there.
    """
    precision = choose_precision(params.device, params.precision)
    if params.threads:
        torch.set_num_threads(params.threads)
    if params.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it; read when CUDA is first used
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time
    compile_passes(params.compiled, precision.device)
    return precision


@contextmanager
def computing(params: RunParams) -> Iterator[tuple[Precision, World]]:
    """Around all that a run computes: its precision and device, and the ranks that take part."""
    precision = start_computing(params)
    with distributed.world(precision.device.type, params.timeout) as world:
        yield precision, world
