"""Small operations that PyTorch's compiler joins (`--run.compiled on`), chosen once for the whole process.

On a GPU a layer norm, the cast after it, GELU, a sum over logits are each a pass over memory; compiled, neighbours are
one kernel. Matrix products, attention and everything around the blocks stay what they are. The numbers are the same up
to rounding, in whichever order a kernel adds.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from lm_human_preferences.foundation.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
_backend: str | None = None  # what compiles; None: nothing is compiled
_made: dict[Callable[..., Any], Callable[..., Any]] = {}


def compilable(*, dynamic: bool | None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function that is compiled where passes are: at its first call, and for each kind of input.

    dynamic: True builds no size of an input into the kernels, None those that have not changed from call to call, which
    makes faster kernels and compiles once or twice more.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if _backend is None:
                return function(*args, **kwargs)
            if function not in _made:
                _made[function] = torch.compile(function, backend=_backend, dynamic=dynamic)
            made: Callable[P, T] = _made[function]
            return made(*args, **kwargs)

        return call

    return decorate


def is_on() -> bool:
    """Whether passes use what is compiled."""
    return _backend is not None


def compile_passes(on: bool, device: torch.device | None = None, backend: str = "inductor") -> None:
    """Whether passes from now on use compiled functions. UserError where PyTorch cannot compile for `device`."""
    global _backend
    if on and _backend is None and device is not None:
        _try(device, backend)
    if not on or _backend is None:
        _made.clear()
        _backend = backend if on else None


def _try(device: torch.device, backend: str) -> None:
    """Compile something small: a missing compiler shows now, not in the first step."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:
        reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
        raise UserError(f"--run.compiled on: PyTorch cannot compile here ({reason}); leave it off") from error
