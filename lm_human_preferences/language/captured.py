"""Work of fixed shapes that a GPU takes over from Python all at once, as a captured CUDA graph.

A decoding step of GPT-2 124M is some two hundred kernels of a few microseconds; handing them over one by one takes
longer than running them. A graph remembers kernels, the addresses that they read and write, and every number that
Python computed on the way. So whatever changes from batch to batch must lie in tensors that keep their memory, and
whatever else Python decides by (lengths, the temperature) is part of the graph's key: another value, another graph.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from lm_human_preferences.foundation.errors import UserError

Outputs = tuple[torch.Tensor | None, ...]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""Of some work: what runs it again, and the tensors that this writes each time."""
T = TypeVar("T")


class Captured:
    """Graphs of one kind of work, and the memory that they read.

    `capture` makes a graph: `CUDAGraphs()`, or in tests something that remembers operations on a CPU.
    """

    def __init__(self, capture: Capture, limit: int = 16):
        """limit: graphs to keep; work with a further key is done without one."""
        self._capture, self.limit = capture, limit
        self._graphs: dict[Hashable, tuple[tuple[torch.Tensor, ...], Callable[[], None], Outputs]] = {}
        self._memory: tuple[Hashable, Any] | None = None

    def memory(self, kind: Hashable, make: Callable[[], T]) -> T:
        """What `make` made when this `kind` was first requested, in the same memory as then. Another kind frees it and
        forgets all graphs.
        """
        if self._memory is None or self._memory[0] != kind:
            self._graphs.clear()
            self._memory = None  # freed before the new memory is allocated
            self._memory = (kind, make())
        made: T = self._memory[1]
        return made

    def run(
        self,
        key: Hashable,
        work: Callable[..., Outputs],
        inputs: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor] = (),
    ) -> Outputs:
        """work(*inputs), a tuple of tensors or None, from its graph. Inputs are copied to the graph's own.

        key: all that the work depends on besides inputs and tensors that keep their memory. kept: those of these
        tensors that the work changes; making the graph runs the work once, so they are put back afterwards.
        """
        if key not in self._graphs:
            if len(self._graphs) == self.limit:
                return work(*inputs)
            own, before = tuple(x.clone() for x in inputs), [x.clone() for x in kept]
            replay, outputs = self._capture(lambda: work(*own))
            for x, value in zip(kept, before, strict=True):
                x.copy_(value)
            self._graphs[key] = own, replay, outputs
        own, replay, outputs = self._graphs[key]
        for x, value in zip(own, inputs, strict=True):
            x.copy_(value)
        replay()
        return tuple(None if x is None else x.clone() for x in outputs)  # the next graph may write where these lie


class CUDAGraphs:
    """Makes CUDA graphs that share one pool of memory, as they never run side by side. A pool ends with the last of its
    graphs: those that come after it get another.
    """

    def __init__(self) -> None:
        self._graphs = weakref.WeakSet[torch.cuda.CUDAGraph]()

    def __call__(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """The work runs once on a side stream, so that libraries allocate what they need, and is then captured, which
        runs nothing.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        pool = self._pool()
        graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog threads may query the device meanwhile, which else ends the capture
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = work()
        self._graphs.add(graph)
        return graph.replay, outputs

    def _pool(self) -> Any:
        """That of the graphs that there are, or a new one."""
        for graph in self._graphs:
            return graph.pool()
        return torch.cuda.graph_pool_handle()


def decoding_graphs(device_type: str, sharding: str) -> Captured:
    """For rollouts of a policy whose weights stay where they are. UserError where there are no such graphs."""
    if device_type != "cuda":
        raise UserError(
            "--run.captured_decoding on: a CUDA graph needs a CUDA device, "
            f"this run computes on {device_type}; leave it off"
        )
    if sharding != "ddp":
        raise UserError(
            f"--run.captured_decoding on: with --run.sharding {sharding} the weights lie elsewhere at each rollout; "
            "leave one of them off"
        )
    return Captured(CUDAGraphs())
