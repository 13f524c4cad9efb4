"""What a run really computed on, for its record: `auto` and 0 in its parameters do not say."""

import platform
from pathlib import Path

import torch

from lm_human_preferences.compute.precision import Precision, cpu_has_tiles, cpu_says


def describe_computing(precision: Precision) -> dict[str, str | int | bool]:
    """Device, processor, precision and threads of this process, as plain values for a JSON file.

    Call it when the number of threads is set. Runs whose descriptions differ may differ in rounding:
        device         "cpu" or "cuda"
        processor      the CPU's model name, or the GPU's
        instructions   the CPU's widest vector instructions that PyTorch uses ("AVX2", "AVX512", "DEFAULT", ...)
        amx_bfloat16   whether the CPU multiplies bfloat16 matrices in hardware tiles
        precision      "float32" or "bfloat16": what `auto` came to
        threads        CPU threads of one operation
        torch          PyTorch's version, its build (CPU, CUDA) included
    """
    device = precision.device
    return {
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx_bfloat16": cpu_has_tiles(),
        "precision": "bfloat16" if precision.bfloat16 else "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name as the kernel has it; elsewhere what Python knows, which may only be its family."""
    return cpu_says("model name", cpuinfo) or platform.processor() or platform.machine()
