"""Attention on a CPU under bfloat16: the output is PyTorch's to the last bit, the gradients are nearer to the exact
ones than PyTorch's own, and a cache is read in float32.
"""

import pytest
import torch
import torch.nn.functional as F

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.language import attention as module
from lm_human_preferences.language.attention import attention, attention_to_cache, cache_dtype
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.memory import Shape


def of(work, given, dtype, **which) -> list[torch.Tensor]:
    """Output and gradients, float64, of queries, keys and values that are views of one tensor, as in a block."""
    x = given.clone().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = work(*(part.unflatten(2, (2, -1)).transpose(1, 2) for part in x.chunk(3, dim=2)), **which)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(weights.to(dtype))
    assert y.dtype == x.grad.dtype == dtype
    return [y.detach().double(), x.grad.double()]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("columns", [5, 90])
def test_the_output_is_pytorchs_and_the_gradients_are_nearer(columns, masked, monkeypatch):
    given = torch.randn(3, columns, 3 * 2 * 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    seen = torch.ones(columns, columns, dtype=torch.bool).tril().expand(3, 1, -1, -1).clone()
    seen[1, :, 2:, 1] = False
    mine, plain = (dict(seen=seen), dict(attn_mask=seen)) if masked else (dict(is_causal=True), dict(is_causal=True))
    y, grad = of(attention, given, torch.bfloat16, **mine)
    y_plain, grad_plain = of(F.scaled_dot_product_attention, given, torch.bfloat16, **plain)
    y_exact, grad_exact = of(F.scaled_dot_product_attention, given, torch.float64, **plain)
    assert torch.equal(y, y_plain) and error(y, y_exact) < 0.01
    assert error(grad, grad_exact) < min(0.004, error(grad_plain, grad_exact))
    monkeypatch.setattr(module, "HEADS_AT_ONCE", 4)
    assert torch.equal(of(attention, given, torch.bfloat16, **mine)[1], grad), "two rows, then one: the same bits"


def test_only_short_rows_that_are_trained_go_back_in_float32(monkeypatch):
    used = []
    inner = module._BackInFloat32
    monkeypatch.setattr(module, "SHORT", 6)

    class Counting(inner):
        @staticmethod
        def forward(ctx, *arguments):
            used.append(arguments[0].shape[2])
            return inner.forward(ctx, *arguments)

    monkeypatch.setattr(module, "_BackInFloat32", Counting)
    for columns in (6, 7):
        for dtype in (torch.float32, torch.bfloat16):
            of(attention, torch.randn(2, columns, 24), dtype, is_causal=True)
    with torch.no_grad():
        attention(*(torch.randn(3, 1, 1, 5, 8).bfloat16()), is_causal=True)
    assert used == [6]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_cache_is_read_in_its_own_precision_whatever_autocast_says(queries, masked):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, queries, 8, generator=generator).bfloat16()
    keys, values = torch.randn(2, 2, 3, 9, 8, generator=generator)
    seen = torch.rand(2, 1, queries, 9, generator=generator) < 0.5 if masked else None
    if seen is not None:
        seen[..., 0] = True
    precisions = []
    product = module._forward

    def watched(*arguments):
        precisions.append(torch.get_float32_matmul_precision())
        return product(*arguments)

    with pytest.MonkeyPatch.context() as patch, Precision(torch.device("cpu"), True).autocast():
        patch.setattr(module, "_forward", watched)
        y = attention_to_cache(q, keys, values, seen)
    assert torch.equal(y, F.scaled_dot_product_attention(q.float(), keys, values, attn_mask=seen).bfloat16())
    assert precisions == ["highest"]


def test_what_a_cache_holds():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert cache_dtype(cpu, torch.bfloat16) == cache_dtype(cpu, torch.float32) == torch.float32
    assert cache_dtype(gpu, torch.bfloat16) == torch.bfloat16 and cache_dtype(cpu, torch.float64) == torch.float64
    config = GPT2Config(n_ctx=16, n_embd=8, n_head=2, n_layer=3)
    with Precision(cpu, True).autocast():
        cache = GPT2(config).new_cache(2, 5)
    held = sum(x.nbytes for x in cache.keys + cache.values)
    assert held == 2 * Shape(config, bfloat16=True, device="cpu").cache(5)
