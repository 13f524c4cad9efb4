"""How a model is spread over the ranks: copied (DDP) or sharded (FSDP). What a trainer sees is the same for both, and
on one rank.

Gradients are sums over all ranks and meet on the last micro-batch of an optimizer step only. Both engines are
PyTorch's.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from lm_human_preferences.compute.distributed import World, is_sharded
from lm_human_preferences.compute.precision import Precision

SHARDINGS = ("ddp", "fsdp")
Part = TypeVar("Part")


def shard(module: nn.Module, world: World, precision: Precision, methods: Sequence[str] = ()) -> None:
    """Shard a module's matrices and vectors by rows over all ranks (FSDP2), its transformer block by block.

    `forward` and `methods` gather what they read and drop it again; nothing else may read these parameters. Scalars and
    heads, which are small, stay whole on every rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device_type, (world.size,))
    trunk = module.transformer
    for block in trunk.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    inside = set(trunk.parameters())
    whole = {p for p in module.parameters() if p not in inside}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for p in whole:
        p.data = p.data.to(precision.device)
    for method in methods:
        register_fsdp_forward_method(module, method)


@contextlib.contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Sharded parameters of `modules`, once a pass has gathered them, stay whole until this block ends: cached decoding
    reads them for each token.
    """
    sharded = [part for module in modules for part in module.modules() if hasattr(part, "set_reshard_after_forward")]
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def place_frozen(
    module: nn.Module, world: World, precision: Precision, sharding: str, methods: Sequence[str] = ()
) -> nn.Module:
    """A module that is only asked, never trained, on its device: no gradients, projections in bfloat16 where the run
    computes in it anyway.
    """
    module.requires_grad_(False)
    if precision.bfloat16:
        module.transformer.round_projections()
    if sharding == "fsdp" and world.size > 1:
        shard(module, world, precision, methods)
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
        """sharding: one of `SHARDINGS`; methods: those besides `forward` that read parameters."""
        self.module, self.world = module, world
        self.sharded = sharding == "fsdp" and world.size > 1
        if self.sharded:
            shard(module, world, precision, methods)
            self._engine = module
        else:
            self._engine = module.to(precision.device)
            if world.size > 1:
                self._engine = DistributedDataParallel(module, gradient_as_bucket_view=True)
        self._whole = [p for p in module.parameters() if not is_sharded(p)] if self.sharded else []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

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
        if self.sharded:
            self.module.set_requires_gradient_sync(last)
        with (
            self._engine.no_sync()
            if self.world.size > 1 and not self.sharded and not last
            else contextlib.nullcontext()
        ):
            yield
        if last and self.sharded:
            self.world.sum_([p.grad for p in self._whole])
            for p in self._whole:
                p.grad /= self.world.size

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the sum of all ranks' losses (both engines average, so each rank gives its loss
        world-size-fold).
        """
        (loss * self.world.size).backward()

    def parameter_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """What an optimizer may update in one fused call: sharded and whole parameters apart."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        groups = [[p for p in parameters if is_sharded(p)], [p for p in parameters if not is_sharded(p)]]
        return [{"params": group} for group in groups if group]
