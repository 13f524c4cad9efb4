"""What one repetition of a case does, operation by operation: read from standard input by the Python of any checkout.

    python - CASE < benchmarks/counter.py

It imports nothing of this project but `benchmarks.worker` and `benchmarks.cases`, which earlier checkouts have too, and
prints one line of JSON: for each class of work its calls, floating-point operations and bytes. `counting.py` is the
command.
"""

import json
import sys
from collections import defaultdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ATTENTION = ("_scaled_dot_product", "bmm", "baddbmm", "_softmax")
CLASSES = {  # by the beginnings of operators' names; the first class that fits
    "attention": ATTENTION,
    "copies and casts": ("_to_copy", "copy", "clone", "cat", "contiguous", "stack", "constant_pad"),
    "zeros and fills": ("zero", "fill", "full", "ones", "new_zeros", "new_full", "new_ones"),
    "GELU": ("gelu",),
    "layer norm": ("native_layer_norm",),
    "optimizer": ("_fused_adam", "_foreach", "_fused"),
    "gathers and scatters": (
        "embedding",
        "index",
        "gather",
        "scatter",
        "select_scatter",
        "slice_scatter",
        "select_backward",
        "slice_backward",
    ),
}
MAKE_NOTHING = ("empty", "new_empty", "_unsafe_view", "_local_scalar_dense", "lift_fresh", "detach", "set_", "resize_")
READ_SOME = ("embedding", "index", "gather", "scatter")  # of their first argument some elements, not all
WRITE_ONLY = ("zero_", "fill_", "copy_")  # what they change is not read


class Counter(TorchDispatchMode):
    """Adds up what every operator that runs under it does: `totals` by class of work."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0, "flops": 0, "bytes": 0})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.partition("::")[2]
        if function.is_view or name.startswith(MAKE_NOTHING):
            return result
        flops = _flops(function, args, kwargs or {}, result)
        total = self.totals[kind_of(name, bool(flops), tensors(args))]
        total["calls"] += 1
        total["flops"] += flops
        total["bytes"] += _bytes(name, function._schema, args, kwargs or {}, result)
        return result


def kind_of(name: str, multiplies: bool, inputs: list[torch.Tensor]) -> str:
    """The class of work of an operator, products by the precision that they read; those that "may round" read float32,
    which a processor with AMX multiplies as bfloat16.
    """
    kind = next((kind for kind, beginnings in CLASSES.items() if name.startswith(beginnings)), None)
    if kind is None and not multiplies:
        return "other passes"
    if kind is None:
        kind = "products"
    if kind not in ("products", "attention"):
        return kind
    if any(tensor.dtype == torch.bfloat16 for tensor in inputs):
        return f"{kind} in bfloat16"
    rounds = kind == "products" and torch.get_float32_matmul_precision() == "medium"
    return f"{kind} in float32, may round" if rounds else f"{kind} in float32"


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors among arguments, each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}.values())


def size(tensor: torch.Tensor) -> int:
    """Bytes that a tensor's elements take; what is expanded counts once."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride else min(length, 1)
    return elements * tensor.element_size()


def _flops(function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    """Two for each multiply-add of a product; attention under a causal mask as without one, as PyTorch counts it."""
    name, shapes = function._schema.name, [tensor.shape for tensor in args if isinstance(tensor, torch.Tensor)]
    if "flash_attention_for_cpu_backward" in name:  # PyTorch's counter knows the kernels of GPUs alone
        return int(sdpa_backward_flop_count(*shapes[:4]))
    if "flash_attention_for_cpu" in name:
        return int(sdpa_flop_count(*shapes[:3]))
    count = flop_registry.get(function._overloadpacket)
    return int(count(*args, **kwargs, out_val=result)) if count else 0


def _bytes(name: str, schema: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    """What is read and what is written."""
    changed = [
        value
        for argument, value in [*zip(schema.arguments, args, strict=False), *_named(schema, kwargs)]
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name != "grads"
    ]  # gradients would be changed by a scale, which nothing here has
    written, given = tensors(changed), tensors(result)
    ids = {id(tensor) for tensor in written}
    made = [tensor for tensor in given if id(tensor) not in ids]
    read = [tensor for tensor in tensors((args, kwargs)) if id(tensor) not in ids]
    if name.startswith(READ_SOME) and not name.startswith("embedding_dense"):
        if not written:  # gathered: indices, and elements that are read and written
            return sum(map(size, read[1:])) + 2 * sum(map(size, made))
        source = max(map(size, read), default=0)  # scattered: added to as many elements as the source has
        return sum(map(size, read)) + 2 * source
    again = 1 if name.startswith(WRITE_ONLY) else 2  # changed in place: read and written
    return sum(map(size, read)) + sum(map(size, made)) + again * sum(map(size, written))


def _named(schema: Any, kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]


def main(case: str) -> None:
    from benchmarks.cases import Case
    from benchmarks.worker import prepare

    repeat = prepare(Case(**json.loads(case)))
    repeat()  # what only the first repetition makes
    with Counter() as counter:
        answer = repeat()
    print(json.dumps({"classes": counter.totals, "flops": answer["flops"]}))


if __name__ == "__main__":
    main(sys.argv[1])
