"""What the device can do at most, once a round (compute/peaks.py)."""

import torch

from benchmarks.cases import Case
from lm_human_preferences.compute.peaks import measure_peaks


class Peaks:
    """Calling it gives FLOP/s of both products and bytes/s of the copy, read and written."""

    def __init__(self, case: Case, device: torch.device):
        self.device = device

    def __call__(self) -> dict[str, float]:
        return measure_peaks(self.device, repeats=1)._asdict()
