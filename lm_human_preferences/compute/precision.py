"""Device and autocast policy: the one place that knows bfloat16.

Under bfloat16 autocast the blocks' matrix products run in bfloat16. The vocabulary projection's *output*, the
temperature, log-softmax, heads, rewards and statistics stay float32: near 110 neighbouring bfloat16 numbers lie 0.5
apart, and a log-probability would be off by as much. The inputs of the vocabulary projection are rounded as the
hardware prefers (`vocabulary_projection`).
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from lm_human_preferences.compute import torchrun
from lm_human_preferences.foundation.errors import UserError


def cpu_has_tiles() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware tiles (AMX)."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def cpu_has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: in tiles, or as an AMD one by
    AVX-512's instructions for bfloat16 (an EPYC's large products 2.2 times as fast). An Intel one with these alone was
    half as fast in bfloat16.
    """
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return cpu_has_tiles() or (cpu_says("vendor_id") == "AuthenticAMD" and bool(check and check()))


def cpu_says(name: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the kernel says of the processor, its `vendor_id` or `model name`, say; empty where it does not say."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name and value.strip():
                return value.strip()
    return ""


def gpu_has_fast_bfloat16(device: torch.device) -> bool:
    """Whether this GPU multiplies bfloat16 matrices in hardware (NVIDIA's from compute capability 8.0 on, AMD's).

    Earlier ones (T4, V100, RTX 20xx) emulate bfloat16, more slowly than they compute in float32.
    `torch.cuda.is_bf16_supported()` says yes to those too, and looks at the current device only.
    """
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8


VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}
EXCLUDED = -1e10  # a logit whose probability is 0 in float32; finite, so that 0 times it is 0


@dataclass(frozen=True)
class Precision:
    """Where a run computes and in what precision."""

    device: torch.device
    bfloat16: bool

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Blocks in bfloat16 if this policy says so; float32 otherwise."""
        if not self.bfloat16:
            yield
            return
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False), with_matmul_precision("medium"):
            yield

    def describe(self) -> str:
        return f"{self.device.type}, {'bfloat16 autocast' if self.bfloat16 else 'float32'}"


@contextlib.contextmanager
def rounding_once() -> Iterator[None]:
    """Inside autocast: what reads the same parameters again and again, as decoding does, rounds each of them once. The
    copies go when this block ends.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()


def rounds_once(device_type: str) -> bool:
    """Whether parameters are rounded here, and only once: inside `rounding_once`, inside autocast."""
    return torch.is_autocast_enabled(device_type) and torch.is_autocast_cache_enabled()


@contextlib.contextmanager
def with_matmul_precision(precision: str) -> Iterator[None]:
    """Inside this block float32 matrix products may round their *inputs* as `precision` says; sums and outputs stay
    float32.

    "highest" rounds nothing. "medium" allows bfloat16 (8 significant bits), and PyTorch does what the hardware is fast
    at: on CUDA it rounds to TF32 (11 bits; half of bfloat16's speed), on a CPU with AMX to bfloat16, on other CPUs
    (tried: one with AVX-512 and its bfloat16 instructions) not at all.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_precision(device: str = "auto", precision: str = "auto") -> Precision:
    """The device and precision to use: `auto` is the GPU if there is one, and bfloat16 where the hardware multiplies it
    fast.

    On several ranks each takes the GPU that has its number on its machine. Raises UserError for an unknown name, for a
    device that this machine lacks, and for one GPU by number where there are several ranks.
    """
    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", device):
        raise UserError(f"--run.device {device}: must be auto, cpu, cuda or cuda:N")
    if precision not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--run.precision {precision}: must be auto, float32 or bfloat16")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        fast = cpu_has_fast_bfloat16()
    else:
        fast = gpu_has_fast_bfloat16(_present_gpu(device))
    return Precision(torch.device(device), precision == "bfloat16" or (precision == "auto" and fast))


def _present_gpu(device: str) -> torch.device:
    """The GPU that `cuda` or `cuda:N` is for this rank, with its number."""
    if not torch.cuda.is_available():
        raise UserError(f"--run.device {device}: this machine has no CUDA device; use --run.device cpu")
    place, count = torchrun.place(), torch.cuda.device_count()
    name, _, number = device.partition(":")
    if number and place.size > 1:
        raise UserError(
            f"--run.device {device}: each of the {place.size} ranks takes a GPU of its own; give --run.device cuda, "
            "and CUDA_VISIBLE_DEVICES to say which GPUs"
        )
    if place.local_size > count:
        raise UserError(
            f"torchrun started {place.local_size} ranks on this machine, which has {count} CUDA devices: give "
            f"--nproc_per_node {count}, or --run.device cpu"
        )
    if number and int(number) >= count:
        raise UserError(f"--run.device {device}: this machine has {count} CUDA devices, counted from 0")
    return torch.device(name, int(number) if number else place.local_rank)


def vocabulary_projection(
    hidden: torch.Tensor, embedding: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """hidden [..., C] times embedding [V, C] transposed, as float32 logits [..., V], whatever the autocast.

    Sums and outputs are float32 always. Inside `Precision.autocast` with bfloat16 the product may round its inputs, as
    `with_matmul_precision("medium")` says: to bfloat16 on a CPU with AMX, to TF32 on CUDA, where this product therefore
    runs at half the speed of the blocks' products, but more exactly. `out`: memory for the logits of hidden [n, C],
    where no gradient is wanted; fresh memory of this size costs a CPU a third of the product's time.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if out is not None:
            return torch.mm(hidden.float(), embedding.float().t(), out=out)
        return F.linear(hidden.float(), embedding.float())


def aligned_vocabulary(embedding: torch.Tensor) -> torch.Tensor:
    """The embedding [V, C] with rows of zeros up to a multiple of `VOCABULARY_MULTIPLE`; itself where that is V.

    GPT-2's 50,257 is odd: on a GPU the products that it is an edge of run at a third of the speed (H200, TF32: 130
    TFLOP/s instead of 400). The copy takes as long as a hundredth of them.
    """
    V, C = embedding.shape
    missing = -V % VOCABULARY_MULTIPLE[embedding.device.type]
    if not missing:
        return embedding
    aligned = embedding.new_empty(V + missing, C)
    aligned[:V], aligned[V:] = embedding, 0
    return aligned


def scaled_projection(hidden: torch.Tensor, embedding: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    """`vocabulary_projection` into `out`, times `scale`: a GPU's product scales its float32 sums for nothing, where
    another pass over all logits takes a tenth of the product's time.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.addmm(out, hidden.float(), embedding.float().t(), beta=0, alpha=scale, out=out)


def tempered_logits(
    hidden: torch.Tensor,
    aligned: torch.Tensor,
    vocabulary: int,
    temperature: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`vocabulary_projection` of hidden [n, C], divided by the temperature, without gradient: float32 [n, rows of
    `aligned`]. Where `aligned_vocabulary` has added rows their logits are `EXCLUDED`.
    """
    if out is not None and temperature != 1 and VOCABULARY_MULTIPLE[hidden.device.type] > 1:
        logits = scaled_projection(hidden, aligned, 1 / temperature, out)
    else:
        logits = vocabulary_projection(hidden, aligned, out)
        if temperature != 1:
            logits.div_(temperature)
    if len(aligned) > vocabulary:
        logits[:, vocabulary:] = EXCLUDED
    return logits
