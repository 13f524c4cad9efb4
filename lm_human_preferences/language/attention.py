"""Attention, by the kernels and in the precision in which it is fastest.

On a CPU with bfloat16 PyTorch's fused kernel is fast forward and slow backward: on AMX, 16 rows of 88 columns and 12
heads take 3 ms and 40 ms, and the same backward pass in float32 takes 12. So short rows go forward in bfloat16 and back
in float32, from the same output and the same sums.

For one query a row, which is decoding, the same kernel in bfloat16 multiplies by a routine that is not written for the
processor: 16 rows of 88 columns and 12 heads take 1.8 ms, in float32 0.3. So a cache keeps keys and values in float32.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

from lm_human_preferences.compute.precision import with_matmul_precision

HEADS_AT_ONCE = 64  # that go back together in float32: enough for as many threads
SHORT = 384  # columns; of 200 the backward pass takes 69 ms in bfloat16 and 40 in float32, of 575 it takes 70 and 93


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool = False, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` of queries [B, H, n, D], keys and values [B, H, m, D] -> [B, H, n, D]; `seen`:
    bool [B or 1, 1, n, m], what sees what.
    """
    in_bfloat16 = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if in_bfloat16 and q.requires_grad and torch.is_grad_enabled() and k.shape[2] <= SHORT:
        y: torch.Tensor = _BackInFloat32.apply(q, k, v, is_causal, seen)  # type: ignore[no-untyped-call]  # PyTorch's
        return y
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, attn_mask=seen)


def cache_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In what a cache keeps keys and values that are computed in `dtype`."""
    return torch.float32 if device.type == "cpu" and dtype == torch.bfloat16 else dtype


def attention_to_cache(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None
) -> torch.Tensor:
    """`attention` of queries [B, H, n, D] to what a cache holds, [B, H, m, D], computed in the cache's precision on a
    CPU and in the queries' elsewhere.
    """
    if q.dtype == keys.dtype:
        return attention(q, keys, values, seen=seen)
    if q.device.type != "cpu":
        return attention(q, keys.to(q.dtype), values.to(q.dtype), seen=seen)
    with with_matmul_precision("highest"):  # "medium" has small products made by a library that is slow to begin
        return _forward(q.to(keys.dtype), keys, values, False, _added(seen, keys.dtype))[0].to(q.dtype)


class _BackInFloat32(torch.autograd.Function):
    """Forward by the kernel that PyTorch takes too; the gradients are those of the same inputs in float32."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, seen: torch.Tensor | None
    ) -> torch.Tensor:
        added = _added(seen, q.dtype)
        y, log_sums = _forward(q, k, v, is_causal, added)
        ctx.save_for_backward(q, k, v, y, log_sums, added)
        ctx.is_causal = is_causal
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, y, log_sums, added = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        rows = math.ceil(HEADS_AT_ONCE / q.shape[1])  # at once, for the memory that they take in float32
        for start in range(0, len(q), rows):
            some = slice(start, start + rows)
            mask = added if added is None or len(added) == 1 else added[some]
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(x[some].float() for x in (grad, q, k, v, y)),
                log_sums[some],
                0.0,
                ctx.is_causal,
                attn_mask=None if mask is None else mask.float(),
            )
            for whole, part in zip(grads, found, strict=True):
                whole[some] = part
        return *grads, None, None


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, added: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel that `F.scaled_dot_product_attention` takes on a CPU, in the precision of what it is given whatever
    autocast says -> outputs and the logarithms of the softmax's sums.
    """
    y, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, attn_mask=added)
    return y, log_sums


def _added(seen: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """`seen` as what is added to scores: 0 and minus infinity."""
    return None if seen is None else torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))
