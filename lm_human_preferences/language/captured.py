"""Work of fixed shapes that a GPU takes over from Python all at once, as a captured CUDA graph.

A decoding step of GPT-2 124M is some two hundred kernels of a few microseconds; handing them over one by one takes
longer than running them. A graph remembers the kernels with the addresses they read and write, and every number that
Python put into them. So what changes from one batch to the next must lie in tensors that stay where they are, and what
else the kernels depend on makes another graph.
"""

from collections.abc import Callable, Hashable, Sequence

import torch

from lm_human_preferences.foundation.errors import UserError

Capture = Callable[
    [Callable[[], tuple]], tuple[Callable[[], None], tuple]
]  # work -> what runs it again, and the tensors it then writes


class Captured:
    """Graphs of one kind of work, and the memory that they read.

    `capture` makes a graph: `CUDAGraphs()`, or in tests something that remembers operations on a CPU.
    """

    def __init__(self, capture: Capture, limit: int = 16):
        """limit: graphs to keep; work of a further kind is done without one."""
        self._capture, self.limit = capture, limit
        self._graphs: dict[Hashable, tuple[tuple[torch.Tensor, ...], Callable[[], None], tuple]] = {}
        self._memory: tuple[Hashable, object] | None = None

    def memory(self, kind: Hashable, make: Callable[[], object]) -> object:
        """Tensors that stay where they are for as long as their `kind` is asked for; another kind frees them and
        forgets all graphs.
        """
        if self._memory is None or self._memory[0] != kind:
            self._graphs.clear()
            self._memory = None  # before the new ones are made
            self._memory = (kind, make())
        return self._memory[1]

    def run(
        self,
        key: Hashable,
        work: Callable[..., tuple],
        inputs: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor] = (),
    ) -> tuple:
        """work(*inputs), a tuple of tensors or None, from its graph. Inputs are copied to the graph's own.

        key: all that the work depends on and that is no tensor of fixed address; kept: such tensors that it changes and
        that the making of the graph must therefore leave as they are.
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
    """Makes CUDA graphs that share one pool of memory, as they never run side by side."""

    def __init__(self):
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], tuple]) -> tuple[Callable[[], None], tuple]:
        """The work runs once beside the current stream, so that libraries have made what they need, and is captured
        then, which runs nothing.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self.pool, capture_error_mode="thread_local"
        ):  # NCCL's threads ask the device things meanwhile
            outputs = work()
        return graph.replay, outputs


def decoding_graphs(device_type: str, sharding: str) -> Captured:
    """For rollouts of a policy whose weights stay where they are. UserError where there are no such graphs."""
    if device_type != "cuda":
        raise UserError(
            f"--run.captured_decoding on: a CUDA graph needs a CUDA device, this run computes on {device_type}; leave it "
            "off"
        )
    if sharding != "ddp":
        raise UserError(
            f"--run.captured_decoding on: with --run.sharding {sharding} the weights lie elsewhere at each rollout; leave "
            "one of them off"
        )
    return Captured(CUDAGraphs())
