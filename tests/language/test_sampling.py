"""Sampling against the recorded values, and against the distribution it claims. ORIGINAL details 19-24; hazards 23 and
31.
"""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.language.ends import ENDLESS, Ends
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.sampling import draw, sample, take_top_k, take_top_p
from lm_human_preferences.language.support import packed, packed_size, unpacked
from lm_human_preferences.learning.policy import Policy

from conftest import TINY_CONFIG, tensor
from recorded import PREFIX, SUFFIX, TEMPERATURE, make_policy, uniforms_for


@pytest.mark.parametrize(
    "name, prefix, suffix", [("respond_plain", [], []), ("respond_affix", PREFIX, SUFFIX), ("respond_len1", [], [])]
)
def test_respond(goldens, name, prefix, suffix):
    g, policy = goldens("policy"), make_policy(goldens("weights"), prefix=prefix, suffix=suffix)
    queries, responses = tensor(g["queries"]), tensor(g[f"{name}/responses"])
    drawn = policy.respond(queries, uniforms_for(policy, queries, responses))
    assert torch.equal(drawn.tokens, responses)
    np.testing.assert_allclose(drawn.logprobs, g[f"{name}/logprobs"], atol=5e-5)
    if f"{name}/values" in g:
        np.testing.assert_allclose(drawn.values, g[f"{name}/values"], atol=3e-5)


@pytest.mark.parametrize("name, prefix, suffix", [("plain", [], []), ("affix", PREFIX, SUFFIX)])
def test_analyze(goldens, name, prefix, suffix):
    g, policy = goldens("policy"), make_policy(goldens("weights"), prefix=prefix, suffix=suffix)
    queries, responses = tensor(g["queries"]), tensor(g["responses"])
    assert (g["prefix_tokens"].tolist(), g["suffix_tokens"].tolist()) == (PREFIX, SUFFIX)
    assert torch.equal(policy.formatter(queries), tensor(g[f"analyze_{name}/contexts"]))
    analysis = policy.analyze(queries, responses)
    for field in ("logprobs", "values", "entropies"):
        np.testing.assert_allclose(getattr(analysis, field).detach(), g[f"analyze_{name}/{field}"], atol=5e-5)


def test_cached_sampling_equals_a_full_pass(goldens):
    policy = make_policy(goldens("weights"))
    queries = tensor(goldens("policy")["queries"])
    drawn = policy.respond(queries, torch.rand(6, 20, generator=torch.Generator().manual_seed(3)))
    analysis = policy.analyze(queries, drawn.tokens)
    torch.testing.assert_close(drawn.logprobs, analysis.logprobs.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn.values, analysis.values.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 5, 17])
def test_top_k(goldens, k):
    g = goldens("units")
    np.testing.assert_array_equal(take_top_k(tensor(g["topk/logits"]), k), g[f"topk/k{k}"])


@pytest.mark.parametrize("p", ["0.05", "0.3", "0.5", "0.8", "0.95", "1.0"])
def test_top_p(goldens, p):
    g = goldens("units")
    ours, theirs = take_top_p(tensor(g["topk/logits"]), float(p)).numpy(), g[f"topp/p{p}"]
    different = ours != theirs
    if (
        p == "1.0"
    ):  # the sum of all probabilities is 1 only up to rounding, which decides over each row's least probable token
        least = g["topk/logits"] == g["topk/logits"].min(-1, keepdims=True)
        different &= ~least
    assert not different.any()


@pytest.mark.parametrize(
    "name, rows, arguments", [("topk", slice(None), {"top_k": 5}), ("topp", slice(2, 3), {"top_p": 0.8})]
)
def test_truncated_sampling(goldens, name, rows, arguments):
    """The original leaves the first token's distribution whole; ours truncates it too, so that place is compared with
    the whole one.
    """
    g, policy = goldens("policy"), make_policy(goldens("weights"), prefix=[], suffix=[])
    queries, tokens = tensor(g["queries"])[rows], tensor(g[f"sample_{name}/tokens"])[:, 10:]
    assert torch.equal(tensor(g[f"sample_{name}/tokens"])[:, :10], queries)
    first = policy.analyze(queries, tokens)
    np.testing.assert_allclose(first.logprobs[:, 0].detach(), g[f"sample_{name}/logprobs"][:, 0], atol=5e-5)
    np.testing.assert_allclose(first.values.detach(), g[f"sample_{name}/values"], atol=3e-5)
    contexts = torch.cat(
        [queries, tokens[:, :1]], 1
    )  # go on after the first token: from here on the rules are the same
    rest = Policy(policy.transformer, QueryFormatter([], []), TEMPERATURE)
    rest.value_head = policy.value_head
    drawn = rest.respond(contexts, uniforms_for(rest, contexts, tokens[:, 1:], **arguments), **arguments)
    assert torch.equal(drawn.tokens, tokens[:, 1:])
    np.testing.assert_allclose(drawn.logprobs, g[f"sample_{name}/logprobs"][:, 1:], atol=5e-5)


def test_top_k_holds_for_the_first_token(goldens):
    policy = make_policy(goldens("weights"), prefix=[], suffix=[])
    queries = tensor(goldens("policy")["queries"])[:1].expand(400, -1)
    drawn = sample(policy.transformer, queries, torch.rand(400, 1, generator=torch.Generator().manual_seed(0)), top_k=3)
    assert len(drawn.tokens.unique()) == 3


@pytest.mark.parametrize("after", [0, 2])
def test_sampling_stops_at_an_end(after):
    """Up to its end each row is what it is without; then the end is repeated. Neither the other rows nor what follows
    changes anything, and nothing is computed once all rows are over.
    """
    draw = torch.Generator().manual_seed(5)
    policy = Policy(GPT2(TINY_CONFIG).initialise(draw), QueryFormatter([], []), 1.0)
    policy.value_head.initialise(draw)
    queries, uniforms = torch.randint(97, (6, 5), generator=draw), torch.rand(6, 12, generator=draw)
    whole = policy.respond(queries, uniforms)
    ends = Ends((int(whole.tokens[0, after]), int(whole.tokens[1, 4]), int(whole.tokens[2, 3])), after)
    policy.stops = ends
    stopped, over = policy.respond(queries, uniforms), ends.follows(whole.tokens)
    lengths = (~over).sum(1)
    assert lengths[0] == after + 1 and lengths.unique().numel() > 2 and int(lengths.max()) == 12  # one goes on
    for one, other in zip(stopped[:3], whole[:3], strict=True):
        assert torch.equal(one[~over], other[~over])
    for row, length in enumerate(lengths.tolist()):
        assert (stopped.tokens[row, length:] == stopped.tokens[row, length - 1]).all()
        alone = policy.respond(queries[row : row + 1], uniforms[row : row + 1])
        assert torch.equal(alone.tokens[0], stopped.tokens[row])
        torch.testing.assert_close(alone.logprobs[0], stopped.logprobs[row], atol=1e-5, rtol=0)
    assert (stopped.logprobs[over] == 0).all() and (stopped.values[over] == 0).all()
    steps, advance = [], policy.transformer.advance
    policy.transformer.advance = lambda *given: steps.append(1) or advance(*given)
    policy.respond(queries[:2], uniforms[:2])
    assert len(steps) == int(lengths[:2].max()) - 1


def test_where_responses_end():
    ends, rows = Ends((5, 7), 1), torch.tensor([[5, 1, 7, 5], [1, 2, 3, 4], [5, 5, 1, 1]])
    assert ends.at(rows).tolist() == [[False, False, True, True], [False] * 4, [False, True, False, False]]
    assert ends.follows(rows).tolist() == [[False, False, False, True], [False] * 4, [False, False, True, True]]
    assert not ENDLESS.at(rows).any() and not ENDLESS.follows(rows).any()


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}])
def test_the_support_is_what_was_drawn_among(goldens, options):
    """As many tokens as top-k says, every drawn one among them, and log-probabilities that add up to 1 over them."""
    policy = make_policy(goldens("weights"), prefix=[], suffix=[])
    queries = tensor(goldens("policy")["queries"])
    drawn = policy.respond(queries, torch.rand(6, 8, generator=torch.Generator().manual_seed(1)), **options)
    left = unpacked(drawn.support, 97)
    assert left.gather(2, drawn.tokens[..., None]).all() and not left.all(2).any()
    if options == {"top_k": 5}:
        assert (left.sum(2) == 5).all()
    hidden = policy.transformer(torch.cat([queries, drawn.tokens], 1), slice(9, -1))
    logits = (policy.transformer.logits(hidden) / policy.temperature).masked_fill(~left, -torch.inf)
    expected = logits.log_softmax(-1).gather(2, drawn.tokens[..., None])[..., 0]
    torch.testing.assert_close(drawn.logprobs, expected.detach(), atol=1e-5, rtol=0)
    assert policy.respond(queries, torch.rand(6, 8)).support is None


def test_sets_of_tokens_are_packed_and_unpacked():
    for vocabulary in (1, 7, 8, 9, 97):
        left = torch.rand(3, 2, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) < 0.5
        assert packed(left).dtype == torch.uint8 and packed(left).shape == (3, 2, packed_size(vocabulary))
        assert torch.equal(unpacked(packed(left), vocabulary), left)


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1e10, 2.0, -1.0]])
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    tokens, logprobs = draw(logits.expand(10_000, -1), uniforms)
    counts = torch.bincount(tokens, minlength=5) / 10_000
    torch.testing.assert_close(counts, torch.softmax(logits[0], 0), atol=2e-4, rtol=0)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits[0], 0)[tokens])
    edges, _ = draw(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
    assert edges.tolist() == [0, 4]  # and never the excluded token


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 30, 1000])
@pytest.mark.parametrize("deterministic", [False, True])
def test_draws_invert_the_cumulative_distribution(vocabulary, deterministic):
    """Against its definition in float64, except where the uniform lies within rounding of an edge; never a token
    without probability.
    """
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(2000, vocabulary, generator=generator) * 4
    logits[:, 1:][torch.rand(2000, vocabulary - 1, generator=generator) < 0.3] = -1e10
    uniforms = torch.rand(2000, generator=generator)
    uniforms[:200] = 1 - 2**-24
    torch.use_deterministic_algorithms(deterministic)
    try:
        tokens, logprobs = draw(logits, uniforms)
    finally:
        torch.use_deterministic_algorithms(False)
    upper = torch.softmax(logits.double(), 1).cumsum(1)
    clear = (upper - uniforms[:, None]).abs().amin(1) > 1e-6
    expected = (upper <= uniforms[:, None]).sum(1)
    assert torch.equal(tokens[clear], expected[clear]) and (vocabulary == 1 or clear.float().mean() > 0.8)
    assert (logprobs > -60).all()
    torch.testing.assert_close(
        logprobs, torch.log_softmax(logits, 1).gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("vocabulary", [1000, 5000])
def test_draws_at_the_edges_of_parts_have_probability(vocabulary, deterministic):
    """With nine of ten tokens excluded a part often begins with one of them; the uniforms lie exactly at the parts'
    edges and beside them, where the difference of two rounded sums can be below 0.
    """
    width, generator = math.ceil(math.sqrt(vocabulary)), torch.Generator().manual_seed(vocabulary)
    torch.use_deterministic_algorithms(deterministic)
    try:
        for _ in range(5):
            logits = torch.randn(1, vocabulary, generator=generator) * 3
            logits[torch.rand(1, vocabulary, generator=generator) < 0.9] = -1e10
            parts = torch.nn.functional.pad(torch.exp(logits - logits.max()), (0, -vocabulary % width)).view(-1, width)
            edges = parts.sum(1).cumsum(0)
            edges = (edges / edges[-1])[:-1]
            beside = [torch.nextafter(edges, torch.full_like(edges, towards)) for towards in (0, 1)]
            uniforms = torch.cat([edges, *beside, torch.zeros(1)])
            tokens, logprobs = draw(logits.expand(len(uniforms), -1), uniforms)
            assert (logits[0, tokens] > -1e9).all() and (logprobs > -100).all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_token_a_row_is_a_chunk_of_one(padded):
    """`advance` does what `extend` does, and stops at the cache's end."""
    model = GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(97, (3, 8), generator=torch.Generator().manual_seed(1))
    if padded:
        tokens[0, 2:4], tokens[2, 3] = TINY_CONFIG.padding_token, TINY_CONFIG.padding_token
    caches = [model.new_cache(3, 8) for _ in range(2)]
    for cache in caches:
        model.extend(tokens[:, :4], cache)
    for t in range(4, 8):
        one, other = model.advance(tokens[:, t], caches[0]), model.extend(tokens[:, t : t + 1], caches[1])[:, 0]
        torch.testing.assert_close(one, other)
    assert torch.equal(caches[0].count, caches[1].count) and torch.equal(caches[0].real, caches[1].real)
    with pytest.raises(ValueError, match="all of them used"):
        for _ in range(8):
            model.advance(tokens[:, 7], caches[0])


def test_decoding_asks_nothing_of_the_device():
    """After the contexts' pass no number comes back to the host until all tokens are drawn: on a GPU each would wait
    for all work before it.
    """

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asked.append(function.overloadpacket)
            return function(*args, **(kwargs or {}))

    model, asked = GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(0)), []
    tokens = torch.randint(97, (3, 8), generator=torch.Generator().manual_seed(1))
    tokens[0, 2:4] = TINY_CONFIG.padding_token
    counts = []
    for length in (1, 5):
        asked.clear()
        with Watch():
            sample(model, tokens, torch.full((3, length), 0.5), temperature=0.7, top_k=5, top_p=0.9)
        counts.append(
            [asked.count(operation) for operation in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)]
        )
    assert counts[0] == counts[1] and all(counts[0])


def test_decoding_in_bfloat16_rounds_each_weight_once():
    """However many tokens are drawn; and of the copies nothing is left for what comes after, whose gradients would be
    lost in them.
    """

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket is torch.ops.aten._to_copy and args[0].data_ptr() in matrices:
                rounded.append(args[0].data_ptr())
            return function(*args, **(kwargs or {}))

    model, rounded = GPT2(TINY_CONFIG).initialise(torch.Generator().manual_seed(0)), []
    matrices = {p.data_ptr(): p for name, p in model.named_parameters() if name.startswith("h.") and p.ndim == 2}
    tokens = torch.randint(97, (3, 8), generator=torch.Generator().manual_seed(1))
    with Precision(torch.device("cpu"), bfloat16=True).autocast():
        with Watch():
            sample(model, tokens, torch.full((3, 5), 0.5))
        assert (
            max(rounded.count(address) for address in matrices) <= 3
        )  # the last block makes queries, keys and values of the contexts apart
        assert sum(rounded.count(address) == 1 for address in matrices) >= len(matrices) - 1
        model(tokens).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in matrices.values())
