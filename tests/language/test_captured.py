"""Decoding as a graph of fixed addresses: the bookkeeping with a recorder on a CPU in the graph's place, and on a GPU,
where there is one, itself.

The recorder keeps what a CUDA graph keeps: operations in their order, the very tensors they read and wrote, and numbers
as they were.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.captured import Captured, CUDAGraphs, decoding_graphs
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.heads import ScalarHead
from lm_human_preferences.language.sampling import sample
from lm_human_preferences.learning.policy import Policy

from conftest import TINY_CONFIG

OPTIONS = dict(temperature=0.7, top_k=20, top_p=0.9)
STOPPING = OPTIONS | dict(ends=Ends((3, 17, 40, 61), after=1))


def tensors(x) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """Remembers operations; `replay` does them again on the same tensors and puts what is new into the tensors that
    were new then.
    """

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.tape.append((function, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.tape:
            read = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
            for old, new in zip(tensors(result), tensors(function(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in read:  # neither a view nor changed in place
                    old.copy_(new)


class Recording:
    """In the place of `CUDAGraphs`; counts graphs and runs."""

    def __init__(self):
        self.graphs = self.runs = 0

    def __call__(self, work):
        work()
        self.graphs += 1
        with Recorder() as recorder:
            outputs = work()
        for x in tensors(outputs):
            x.fill_(-1)  # a capture runs nothing

        def replay() -> None:
            self.runs += 1
            recorder.replay()

        return replay, outputs


def model_and_head() -> tuple[GPT2, ScalarHead]:
    model, head = GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(0)), ScalarHead(TINY_CONFIG.n_embd)
    head.initialise(torch.Generator().manual_seed(1))
    return model, head


def contexts(seed: int, rows: int = 3, length: int = 8, padded: bool = False) -> torch.Tensor:
    tokens = torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))
    if padded:
        tokens[0, 2:4] = TINY_CONFIG.padding_token  # the longest row stays as long as the others' queries
    return tokens


def uniforms(seed: int, rows: int = 3, length: int = 6) -> torch.Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed))


def assert_same(one, other) -> None:
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.values, other.values, atol=1e-6, rtol=0)
    assert (one.support is None and other.support is None) or torch.equal(one.support, other.support)


@pytest.mark.parametrize("padded, options", [(False, OPTIONS), (True, OPTIONS), (True, STOPPING)])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_graph_draws_what_decoding_draws(padded, options, bfloat16):
    """For other contexts, other uniforms and other weights than those it was made with."""
    model, head = model_and_head()
    captured = Captured(recording := Recording())
    with Precision(torch.device("cpu"), bfloat16).autocast():
        for seed in range(4):
            arguments = model, contexts(seed, padded=padded), uniforms(10 + seed)
            expected = sample(*arguments, value_head=head, **options)
            assert_same(sample(*arguments, value_head=head, captured=captured, **options), expected)
            with torch.no_grad():
                for p in (*model.parameters(), *head.parameters()):
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.02)
            assert len(expected.tokens.unique()) > 4
    assert (recording.graphs, recording.runs) == (1, 4)


def test_what_python_decides_makes_another_graph():
    """The number of columns taken, padding, the rule of drawing: all are fixed in a graph."""
    model, head = model_and_head()
    captured = Captured(recording := Recording())
    shorter = contexts(5)
    shorter[:, 6:] = TINY_CONFIG.padding_token
    for number, (rows, options) in enumerate(
        [
            (contexts(1), OPTIONS),
            (contexts(2, padded=True), OPTIONS),
            (shorter, OPTIONS),
            (contexts(3), {}),
            (contexts(4), OPTIONS | {"temperature": 1.0}),
            (contexts(5), STOPPING),
        ],
        1,
    ):
        for seed in (0, 1):
            assert_same(
                sample(model, rows, uniforms(seed), value_head=head, captured=captured, **options),
                sample(model, rows, uniforms(seed), value_head=head, **options),
            )
        assert (recording.graphs, recording.runs) == (number, 2 * number)
    assert (
        sample(model, contexts(1), uniforms(0), captured=captured, **OPTIONS).values is None and recording.graphs == 7
    )


def test_batches_of_another_size_free_the_memory():
    model, head = model_and_head()
    captured = Captured(recording := Recording())
    for rows, length in ((3, 6), (2, 6), (2, 4)):
        arguments = model, contexts(1, rows), uniforms(2, rows, length)
        assert_same(
            sample(*arguments, value_head=head, captured=captured, **OPTIONS),
            sample(*arguments, value_head=head, **OPTIONS),
        )
        assert len(captured._graphs) == 1
    assert recording.graphs == 3


def test_no_more_graphs_than_the_limit():
    model, head = model_and_head()
    captured = Captured(recording := Recording(), limit=2)
    for temperature in (0.5, 0.6, 0.7, 0.8, 0.5):
        arguments, options = (model, contexts(1), uniforms(2)), OPTIONS | {"temperature": temperature}
        assert_same(
            sample(*arguments, value_head=head, captured=captured, **options),
            sample(*arguments, value_head=head, **options),
        )
    assert (recording.graphs, recording.runs) == (2, 3)


def test_a_policy_draws_without_a_graph_where_one_would_serve_once():
    model, _ = model_and_head()
    policy = Policy(model, QueryFormatter([], []), 0.7)
    alone = policy.respond(contexts(1), uniforms(2))
    policy.captured = Captured(recording := Recording())
    assert torch.equal(policy.respond(contexts(1), uniforms(2), captured=False).tokens, alone.tokens)
    assert recording.graphs == 0
    assert torch.equal(policy.respond(contexts(1), uniforms(2)).tokens, alone.tokens) and recording.graphs == 1


def test_weights_that_move_are_refused():
    with pytest.raises(UserError, match="with --run.sharding fsdp the weights lie elsewhere at each rollout"):
        decoding_graphs("cuda", "fsdp")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_on_a_gpu(bfloat16):
    """CUDA graphs themselves."""
    policy = Policy(GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(0)), QueryFormatter([], []), 0.7).cuda()
    graphs = Captured(CUDAGraphs())
    with Precision(torch.device("cuda"), bfloat16).autocast():
        for padded in (False, True, False):
            for seed in range(3):
                policy.captured = None
                expected = policy.respond(contexts(seed, padded=padded).cuda(), uniforms(10 + seed).cuda())
                policy.captured = graphs
                drawn = policy.respond(contexts(seed, padded=padded).cuda(), uniforms(10 + seed).cuda())
                assert torch.equal(drawn.tokens, expected.tokens)
                torch.testing.assert_close(drawn.logprobs, expected.logprobs, atol=1e-5, rtol=0)
                with torch.no_grad():
                    policy.transformer.wte.weight.add_(0.01)
    assert len(graphs._graphs) == 2
    for rows in (2, 3):  # each size ends the graphs before it, and with them their pool
        with Precision(torch.device("cuda"), bfloat16).autocast():
            drawn = policy.respond(contexts(1, rows).cuda(), uniforms(1, rows).cuda())
        assert drawn.tokens.shape == (rows, 6) and len(graphs._graphs) == 1
