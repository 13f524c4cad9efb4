"""Adam as TensorFlow computes it, AdamW and Muon for language-model training, and learning-rate schedules."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from lm_human_preferences.compute.distributed import is_sharded

METHODS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd")


class TensorFlowAdam(torch.optim.Adam):
    """Adam with epsilon in TensorFlow's place: w -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

    PyTorch adds epsilon after the bias correction of v, so that with the same number its first update is up to 31.6
    times larger where gradients are tiny. Both agree when PyTorch's epsilon at step t is eps / sqrt(1 - b2^t); this
    class sets it before each step. Defaults are those of the original (utils/core.py minimize).
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
    ):
        self._tensorflow_eps = eps
        self._taken: list[int] | None = None  # steps that each group has taken; None: its state tells
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, lr: float) -> None:  # type: ignore[override]  # PyTorch's takes a closure, which nothing here has
        """One update at learning rate `lr`."""
        if self._taken is None:
            self._taken = [
                next((int(self.state[p]["step"]) for p in group["params"] if p in self.state), 0)
                for group in self.param_groups
            ]
        for number, group in enumerate(self.param_groups):
            group["lr"] = lr
            group["eps"] = self._tensorflow_eps / math.sqrt(1 - group["betas"][1] ** (self._taken[number] + 1))
            self._taken[number] += any(p.grad is not None for p in group["params"])
        super().step()

    def count_from_state(self) -> None:
        """At the next step read from the state how many were taken, since the state may be written to from outside.

        Otherwise they are counted here: on a GPU, to read a number of the state is to wait until all work is done.
        """
        self._taken = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count_from_state()
        super().load_state_dict(state_dict)


class CombinedOptimizer:
    """Several optimizers, each with parameters of its own, that step as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)


def allocate_state(optimizer: torch.optim.Optimizer | CombinedOptimizer) -> None:
    """Make the state that Adam, AdamW and Muon make at their first step: so that a checkpoint can be read into it, and
    memory is taken before it is measured.
    """
    parts = optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else [optimizer]
    for part in parts:
        for p in (p for group in part.param_groups for p in group["params"] if p not in part.state):
            if isinstance(part, Muon):
                part.state[p] = {"momentum_buffer": torch.zeros_like(p)}
            else:
                part.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }


def optimizer_tensors(
    optimizer: torch.optim.Optimizer | CombinedOptimizer, module: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, the ones it works on: `optimizer.<slot>.<parameter>`.

    What is written into them before its next step counts, a checkpoint for instance.
    """
    if isinstance(optimizer, TensorFlowAdam):
        optimizer.count_from_state()
    state = optimizer.state
    return {
        f"optimizer.{slot}.{name}": value
        for name, p in module.named_parameters()
        for slot, value in state.get(p, {}).items()
    }


def adamw(
    parameters: Iterable[torch.nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with decay on matrices only (not on biases or layer-norm gains)."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay, "initial_lr": lr},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "initial_lr": lr},
        ],
        lr=lr,
        betas=betas,
        eps=1e-8,
        fused=True,
    )


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for matrices: momentum, whose matrix is
    made orthogonal at each step.

    Steps have the size of AdamW's at the same rate (Liu et al. 2025, arXiv 2502.16982, section 2.2). PyTorch's own
    takes one matrix after another, in bfloat16 always, which a CPU without such products does slowly; here matrices of
    one shape go together, in bfloat16 where the run computes in it.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        bfloat16: bool = False,
    ):
        super().__init__(parameters, dict(lr=lr, initial_lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # PyTorch's takes a closure, which nothing here has
        """One update of all matrices [m, n] that have a gradient."""
        allocate_state(self)
        for group in self.param_groups:
            alike: dict[Any, list[torch.nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p if is_sharded(p) else (p.shape, p.device)].append(p)  # a sharded matrix goes by itself
            for matrices in alike.values():
                self._update(matrices, **{name: group[name] for name in ("lr", "momentum", "weight_decay")})

    def _update(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """One update of matrices of one shape, all of which have a gradient."""
        ahead = []  # Nesterov's: the gradient once more on top of the momentum
        for p in matrices:
            assert p.grad is not None
            average = self.state[p]["momentum_buffer"]
            average.lerp_(p.grad, 1 - momentum)
            ahead.append(p.grad.lerp(average, momentum).to(self.dtype))
        directions = orthogonal(torch.stack(ahead)) if len(ahead) > 1 else [orthogonal(ahead[0])]
        for p, direction in zip(matrices, directions, strict=True):
            p.mul_(1 - lr * weight_decay).add_(direction.to(p.dtype), alpha=-lr * 0.2 * math.sqrt(max(p.shape)))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About the nearest matrices with orthonormal rows or columns, [..., m, n] -> [..., m, n]: singular values between
    0.7 and 1.2 instead of 1.

    Five steps of Jordan's quintic Newton-Schulz iteration, x <- a x + b (x x') x + c (x x')^2 x.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


def muon_and_adamw(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    muon_lr: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    bfloat16: bool = False,
) -> CombinedOptimizer:
    """Muon on the blocks' matrices, AdamW on embeddings and vectors. Decay is on the blocks' matrices alone.

    parameters: names and parameters, where a block's name holds `.h.` as in GPT-2; bfloat16: whether Muon's directions
    are computed in it.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, p in parameters:
        (matrices if p.ndim == 2 and ".h." in f".{name}" else others).append(p)
    return CombinedOptimizer(
        Muon(matrices, muon_lr, weight_decay=weight_decay, bfloat16=bfloat16), adamw(others, lr, betas, 0.0)
    )


def set_rates(optimizer: torch.optim.Optimizer | CombinedOptimizer, share: float) -> None:
    """Give all parameters this share of the rate that their optimizer was made with."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]


def linear_decay(lr: float, step: int, total: int) -> float:
    """lr * (1 - step / total) for the step counted from 0: the first update has the full rate, the last lr / total."""
    return lr * (1 - step / total)


def warmup_cosine(step: int, total: int, warmup: int, final: float) -> float:
    """Share of the peak rate: linear warm-up over `warmup` steps, then a half cosine down to `final` at the last of
    `total` steps.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(step: int, total: int, warmup: int, final: float, decay: float) -> float:
    """Share of the peak rate: linear warm-up over `warmup` steps, the peak, and over the last `decay` of all steps a
    straight line that reaches `final` at the last.
    """
    remaining = (total - 1 - step) / max(1.0, decay * total)
    return min((step + 1) / max(1, warmup), 1.0, final + (1 - final) * remaining)
