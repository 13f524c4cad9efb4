"""Adam as TensorFlow computes it, AdamW for language-model training, and learning-rate schedules."""

import math
from collections.abc import Iterable

import torch


class TensorFlowAdam(torch.optim.Adam):
    """Adam with epsilon in TensorFlow's place: w -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

    PyTorch adds epsilon after the bias correction of v, so that with the same number its first update is up to 31.6 times larger where
    gradients are tiny. Both agree when PyTorch's epsilon at step t is eps / sqrt(1 - b2^t); this class sets it before each step.
    Defaults are those of the original (utils/core.py minimize).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter] | Iterable[dict], lr: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-5):
        self._tensorflow_eps = eps
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, lr: float) -> None:  # type: ignore[override]
        """One update at learning rate `lr`."""
        for group in self.param_groups:
            taken = next((int(self.state[p]["step"]) for p in group["params"] if p in self.state), 0)
            group["lr"] = lr
            group["eps"] = self._tensorflow_eps / math.sqrt(1 - group["betas"][1] ** (taken + 1))
        super().step()


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that Adam and AdamW make at their first step: so that a checkpoint can be read into it, and memory is taken before it is measured."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p not in optimizer.state:
                optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), "exp_avg": torch.zeros_like(p),
                                      "exp_avg_sq": torch.zeros_like(p)}


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, the ones it works on: `optimizer.<slot>.<parameter>`."""
    return {f"optimizer.{slot}.{name}": value for name, p in module.named_parameters() for slot, value in optimizer.state.get(p, {}).items()}


def adamw(parameters: Iterable[torch.nn.Parameter], betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only (not on biases or layer-norm gains)."""
    parameters = list(parameters)
    return torch.optim.AdamW([{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
                              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}],
                             lr=0.0, betas=betas, eps=1e-8, fused=True)


def linear_decay(lr: float, step: int, total: int) -> float:
    """lr * (1 - step / total) for the step counted from 0: the first update has the full rate, the last lr / total."""
    return lr * (1 - step / total)


def warmup_cosine(lr: float, step: int, total: int, warmup: int, final_fraction: float) -> float:
    """Linear warm-up over `warmup` steps, then a half cosine down to lr * final_fraction at the last of `total` steps."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return lr * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))
