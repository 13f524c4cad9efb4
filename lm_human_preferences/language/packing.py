"""Real tokens side by side: whatever treats tokens alike works on a list without padding, attention on a rectangle of
rows.

Shapes: N real tokens of a batch, B rows, n width of the rectangle, M tokens of the list that are asked for.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


class Packing:
    """Where the tokens of the list [N, ...] lie in the rectangle [B, n, ...]: each row's at its left."""

    def __init__(self, rows: int, width: int, slots: torch.Tensor | None = None):
        """slots: int64 [N], each token's place in the flattened rectangle; None if the list is the rectangle, row by
        row.
        """
        self.rows, self.width, self.slots = rows, width, slots

    def spread(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """x [N, C], or [M, C] of the distinct tokens `kept` int64 [M] alone -> [B, n, C], zeros where none is."""
        slots = self._slots(kept)
        if slots is not None:
            x = x.new_zeros(self.rows * self.width, x.shape[1]).index_copy_(0, slots, x)
        return x.view(self.rows, self.width, -1)

    def collect(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """The inverse of `spread`: x [B, n, C] -> [N, C] or [M, C]."""
        x, slots = x.reshape(self.rows * self.width, -1), self._slots(kept)
        return x if slots is None else take(x, slots)

    def _slots(self, kept: torch.Tensor | None) -> torch.Tensor | None:
        return kept if self.slots is None else self.slots if kept is None else self.slots[kept]


class _Take(torch.autograd.Function):
    """Rows of x [N, C] at distinct places; PyTorch's own gradient would add them up one by one in case two are the
    same.
    """

    @staticmethod
    def forward(ctx, x, places):
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx, grad):
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


def take(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of x [N, C] at `places` int64 [M], which must all differ."""
    return _Take.apply(x, places)


def all_differ(places: torch.Tensor) -> bool:
    """Whether no place comes twice."""
    ordered = places.flatten().sort().values
    return bool((ordered[1:] != ordered[:-1]).all())


@dataclass(frozen=True)
class Layout:
    """A batch's real tokens as a list, and how to find one's way back. What decides about shapes is on the host:
    nothing waits for the device.
    """

    packing: Packing
    tokens: torch.Tensor  # int64 [N]
    positions: torch.Tensor  # int64 [N], of each among its row's real tokens
    rows: torch.Tensor  # int64 [N], the row of each
    # int64 [B, T] on the host, where in the list the last real token up to each place is; before a row's first it is -1
    last: torch.Tensor
    lengths: torch.Tensor | None  # int64 [B] on the host, real tokens of each row; None if there is no padding
    longest: int  # no token has more before it, itself included


def lay_out(tokens: torch.Tensor, padding_token: int) -> Layout:
    """The layout of int64 [B, T] with padding anywhere. The one thing that a pass over tokens on a GPU waits for is
    where their padding is.
    """
    (B, T), device = tokens.shape, tokens.device
    real = (tokens != padding_token).cpu()
    if bool(real.all()):
        everything = torch.arange(B * T, device=device)
        return Layout(
            Packing(B, T), tokens.reshape(-1), everything % T, everything // T, torch.arange(B * T).view(B, T), None, T
        )
    rank, lengths = real.cumsum(1) - 1, real.sum(1)  # [B, T], [B]
    places, width = real.flatten().nonzero()[:, 0], int(lengths.max())
    rows, positions = places // T, rank.flatten()[places]
    last = torch.where(rank < 0, -1, rank + (lengths.cumsum(0) - lengths)[:, None])
    slots, places, rows, positions = (
        index.to(device, non_blocking=True) for index in (rows * width + positions, places, rows, positions)
    )
    return Layout(Packing(B, width, slots), tokens.flatten()[places], positions, rows, last, lengths, width)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
    """Attention within each row of a rectangle, all [B, H, n, D]. No mask: what lies right of a row's tokens is in the
    future of all of them.
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)


class Branches:
    """Attention where several continuations branch off one beginning: they see it and themselves, not each other.

    The rectangle's first columns hold the beginning, then the branches follow one after the other, each in columns of
    its own.
    """

    def __init__(self, lengths: torch.Tensor | None, beginning: int, branches: int, branch: int, device: torch.device):
        """lengths: int64 [B], real tokens of each beginning, None if all fill its `beginning` columns; branch: columns
        of each branch.
        """
        self.beginning = beginning
        own = torch.ones(branch, branch, dtype=torch.bool, device=device).tril()
        own = torch.block_diag(*[own] * branches)[None]  # [1, branches * branch, branches * branch]
        columns = torch.arange(beginning, device=device)
        before = columns < (torch.tensor([[beginning]]) if lengths is None else lengths[:, None]).to(
            device
        )  # [B or 1, beginning]
        self.mask = torch.cat([before[:, None].expand(-1, own.shape[1], -1), own.expand(len(before), -1, -1)], dim=2)[
            :, None
        ]

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """All [B, H, n, D]."""
        n = self.beginning
        first = causal(q[:, :, :n], k[:, :, :n], v[:, :, :n], layer)
        return torch.cat([first, F.scaled_dot_product_attention(q[:, :, n:], k, v, attn_mask=self.mask)], dim=2)


def lay_out_choices(
    queries: torch.Tensor, responses: torch.Tensor, padding_token: int
) -> tuple[Layout, Branches, torch.Tensor]:
    """One list of B queries int64 [B, Q] and their K responses each, int64 [B, K, R]; padding anywhere but in a query's
    first column.

    Returns its layout (a row of the rectangle is a query and its responses; `last` is the queries'), the attention in
    it, and int64 [B, K] on the host: where in the list each response's last token is, -1 if it has none.
    """
    (B, K, R), device = responses.shape, queries.device
    before, after = lay_out(queries, padding_token), lay_out(responses.reshape(B * K, R), padding_token)
    nq, nr = before.packing.width, max(1, after.packing.width)  # a column each, though no response had any token
    width, row = nq + K * nr, after.rows // K
    branches = Branches(before.lengths, nq, K, nr, device)
    slots, order = torch.cat(
        [before.rows * width + before.positions, row * width + nq + after.rows % K * nr + after.positions]
    ).sort()
    offset = nq if before.lengths is None else before.lengths.to(device)[row]
    place = (
        order.argsort().cpu()
    )  # where in the list each of the queries' tokens, then each of the responses' has come to lie
    longest = int(
        (torch.tensor([[nq]]) if before.lengths is None else before.lengths[:, None])
        .add(nr if after.lengths is None else after.lengths.view(B, K))
        .max()
    )
    layout = Layout(
        Packing(B, width, slots if len(slots) < B * width else None),
        torch.cat([before.tokens, after.tokens])[order],
        torch.cat([before.positions, offset + after.positions])[order],
        torch.cat([before.rows, row])[order],
        place[before.last.clamp(min=0)].where(before.last >= 0, -1),
        before.lengths,
        longest,
    )
    ends = after.last[:, -1].view(B, K)
    return layout, branches, place[(len(before.tokens) + ends).clamp(min=0)].where(ends >= 0, -1)
