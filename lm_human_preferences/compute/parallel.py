"""How a model is spread over the ranks: copied (DDP) or sharded (FSDP). What a trainer sees is the same for both, and
on one rank.

Gradients are sums over all ranks and meet on the last micro-batch of an optimizer step only. Both engines are
PyTorch's.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from lm_human_preferences.compute.distributed import World, is_sharded
from lm_human_preferences.compute.precision import Precision

if TYPE_CHECKING:  # it takes seconds to import, and only sharded runs need it
    from torch.distributed.fsdp import FSDPModule

SHARDINGS = ("ddp", "fsdp")
Part = TypeVar("Part")
Frozen = TypeVar("Frozen", bound=nn.Module)


class Transformer(Protocol):
    """What the modules below must have as their `transformer`."""

    @property
    def h(self) -> Iterable[nn.Module]:
        """The blocks, each of which is gathered by itself."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def round_projections(self) -> None:
        """Keep as bfloat16 what autocast rounds to bfloat16 in every pass."""


def _transformer_of(module: nn.Module) -> Transformer:
    return cast(Transformer, module.transformer)


def shard(
    module: nn.Module, transformer: Transformer, world: World, precision: Precision, methods: Sequence[str] = ()
) -> "FSDPModule":
    """Shard the matrices and vectors of a module's transformer by rows over all ranks (FSDP2), block by block; returns
    the same module.

    `forward` and `methods` gather what they read and drop it again; nothing else may read these parameters. What the
    module has besides its transformer (heads, scalars) is small and stays whole on every rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device_type, (world.size,))
    for block in transformer.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    inside = set(transformer.parameters())
    whole = {p for p in module.parameters() if p not in inside}
    sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for p in whole:
        p.data = p.data.to(precision.device)
    for method in methods:
        register_fsdp_forward_method(module, method)
    return sharded


@contextlib.contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Sharded parameters of `modules`, once a pass has gathered them, stay whole until this block ends: cached decoding
    reads them for each token.
    """
    sharded = [
        cast("FSDPModule", part)
        for module in modules
        for part in module.modules()
        if hasattr(part, "set_reshard_after_forward")
    ]
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def place_frozen(
    module: Frozen, world: World, precision: Precision, sharding: str, methods: Sequence[str] = ()
) -> Frozen:
    """An inference-only module (reference policy, reward model) on its device, sharded where the run is: no gradients,
    projections in bfloat16 where the run computes in it. `methods` as for `Parallel`.
    """
    module.requires_grad_(False)
    if precision.bfloat16:
        _transformer_of(module).round_projections()
    if sharding == "fsdp" and world.size > 1:
        shard(module, _transformer_of(module), world, precision, methods)
        return module
    return module.to(precision.device)


class Parallel:
    """A module in training on all ranks, called as the module itself would be. An optimizer step is

        for part in parallel.micro_batches(parts):
            parallel.backward(loss_of(parallel(part)))
        optimizer.step()

    where each rank has parts of its own, and `loss_of` gives a part's share in the loss of the global batch.
    """

    def __init__(
        self, module: nn.Module, world: World, precision: Precision, sharding: str = "ddp", methods: Sequence[str] = ()
    ):
        """module: has a `transformer`; sharding: one of `SHARDINGS`; methods: those besides `forward` that read
        parameters.
        """
        self.module, self.world = module, world
        self._sharded: FSDPModule | None = None
        self._copied: DistributedDataParallel | None = None
        if sharding == "fsdp" and world.size > 1:
            self._sharded = shard(module, _transformer_of(module), world, precision, methods)
        else:
            module.to(precision.device)
            if world.size > 1:
                self._copied = DistributedDataParallel(module, gradient_as_bucket_view=True)
        self._whole = [p for p in module.parameters() if not is_sharded(p)] if self.sharded else []

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the parameters only."""
        return self._sharded is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = self.module if self._copied is None else self._copied
        return engine(*args, **kwargs)

    def micro_batches(self, parts: Sequence[Part]) -> Iterator[Part]:
        """One optimizer step's micro-batches, one after another: the loop's body does the forward pass and `backward`
        of each. The ranks' gradients meet in the last one's `backward` alone, and are whole when the loop has ended.

        All ranks must have equally many parts. A loop that is left early, by an error or `break`, sends no message on
        its way out. Under FSDP such a step ends the training: PyTorch keeps the sums of gradients that have not met
        where `zero_grad` does not reach them.
        """
        for number, part in enumerate(parts, 1):
            with self.micro_batch(last=number == len(parts)):
                yield part

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around the forward pass and `backward` of a single micro-batch; `last`: whether gradients meet in it.

        For passes by themselves, such as those that try how many rows fit in memory; a step has `micro_batches`.
        """
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(last)
        apart = self._copied.no_sync() if self._copied is not None and not last else contextlib.nullcontext()
        with apart:
            yield
        if last and self._sharded is not None:
            gradients = [p.grad for p in self._whole if p.grad is not None]
            self.world.sum_(gradients)
            for gradient in gradients:
                gradient /= self.world.size

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the sum of all ranks' losses (both engines average, so each rank gives its loss
        world-size-fold).
        """
        torch.autograd.backward(loss * self.world.size)

    def parameter_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """What an optimizer may update in one fused call: sharded and whole parameters apart."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in parameters:
            groups[is_sharded(p)].append(p)
        return [{"params": group} for group in groups.values() if group]
