"""Real tokens side by side: whatever treats tokens alike works on a list without padding, attention on a rectangle of
rows.

Shapes: N real tokens of a batch, B rows, n width of the rectangle, M tokens of the list that are read.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lm_human_preferences.language.attention import attention


class Packing:
    """Where the tokens of the list [N, ...] lie in the rectangle [B, n, ...]: each row's at its left."""

    def __init__(self, rows: int, width: int, slots: torch.Tensor | None = None):
        """slots: int64 [N], each token's place in the flattened rectangle; None if the list is the rectangle, row by
        row.
        """
        self.rows, self.width, self.slots = rows, width, slots

    def of(self, kept: torch.Tensor) -> "Packing":
        """The same rectangle for the distinct tokens `kept` int64 [M] of the list alone."""
        return Packing(self.rows, self.width, kept if self.slots is None else self.slots[kept])

    def to_rectangle(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, C] -> [B, n, C], zeros where no token is."""
        if self.slots is not None:
            x = x.new_zeros(self.rows * self.width, x.shape[1]).index_copy_(0, self.slots, x)
        return x.view(self.rows, self.width, -1)

    def to_list(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse: x [B, n, C] -> [N, C]."""
        x = x.reshape(self.rows * self.width, -1)
        return x if self.slots is None else gather_rows(x, self.slots)


class _GatherRows(torch.autograd.Function):
    """Rows of x [N, C] at distinct places; PyTorch's own gradient would add them up one by one in case two are the
    same.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


def gather_rows(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of x [N, C] at `places` int64 [M], which must all differ."""
    rows: torch.Tensor = _GatherRows.apply(x, places)  # type: ignore[no-untyped-call]  # PyTorch's has no annotations
    return rows


def all_differ(places: torch.Tensor) -> bool:
    """Whether no place comes twice."""
    ordered = places.flatten().sort().values
    return bool((ordered[1:] != ordered[:-1]).all())


@dataclass(frozen=True)
class Layout:
    """A batch's real tokens as a list, and where its places are in that list. What decides about shapes is on the host,
    so that nothing waits for the device.
    """

    packing: Packing
    tokens: torch.Tensor  # int64 [N]
    positions: torch.Tensor  # int64 [N], of each among its row's real tokens
    rows: torch.Tensor  # int64 [N], the row of each
    # int64 [B, T] on the host: where in the list the last real token up to each place is, -1 before a row's first
    last: torch.Tensor
    lengths: torch.Tensor | None  # int64 [B] on the host, real tokens of each row; None if there is no padding
    longest: int  # the most real tokens that one token sees, itself included: what the context must hold


def lay_out(tokens: torch.Tensor, padding_token: int, real: torch.Tensor | None = None) -> Layout:
    """The layout of int64 [B, T] with padding anywhere. The one thing that a pass over tokens on a GPU waits for is
    where their padding is; not even that, if `real` says it: bool [B, T] on the host, true where no padding is.
    """
    (B, T), device = tokens.shape, tokens.device
    real = (tokens != padding_token if real is None else real).cpu()
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
    """Attention within each row of a rectangle, all [B, H, n, D]. The places to the right of a row's tokens need no
    mask: causal attention hides them from all of its tokens.
    """
    return attention(q, k, v, is_causal=q.shape[2] > 1)


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
        one = torch.ones(branch, branch, dtype=torch.bool, device=device).tril()
        own: torch.Tensor = torch.block_diag(*[one] * branches)[None]
        columns = torch.arange(beginning, device=device)
        filled = torch.tensor([beginning]) if lengths is None else lengths
        before = columns < filled[:, None].to(device)  # [B or 1, beginning]
        seen = [before[:, None].expand(-1, own.shape[1], -1), own.expand(len(before), -1, -1)]
        self.mask = torch.cat(seen, dim=2)[:, None]  # [B or 1, 1, columns of branches, all columns]

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """All [B, H, n, D]."""
        n = self.beginning
        first = causal(q[:, :, :n], k[:, :, :n], v[:, :, :n], layer)
        return torch.cat([first, attention(q[:, :, n:], k, v, seen=self.mask)], dim=2)


@dataclass(frozen=True)
class Choices:
    """Queries and their K responses each in one list; what is read of it is on the host."""

    layout: Layout  # a row of the rectangle is a query and its responses; `last` is the queries'
    attend: Branches
    ends: torch.Tensor  # int64 [B, K]: where in the list each response's last token is, -1 if it has none
    # int64 [M], of each of the responses' real tokens, response after response: where in the list the token before it
    # is, the query's last for the first of a response
    before: torch.Tensor


def lay_out_choices(queries: torch.Tensor, responses: torch.Tensor, padding_token: int) -> Choices:
    """One list of B queries int64 [B, Q] and their K responses each, int64 [B, K, R]; padding anywhere but in a query's
    first column.

    Two queries with two responses each, of at most 3 and 2 tokens; `.` is padding:

        queries   a b .    responses   c d | e .       rectangle   a b . c d e .    (columns: query | first | second)
                  f g h                i . | . .                   f g h i . . .

        list      a b c d e f g h i                     the rectangle's tokens, row by row
        position  0 1 2 3 2 0 1 2 3                     a response counts on from its query
        ends      3 (d)  4 (e)  8 (i)  -1 (none)
        before    1 (b)  2 (c)  1 (b)  7 (h)            of c, d, e and i
    """
    (B, K, R), device = responses.shape, queries.device
    before, after = lay_out(queries, padding_token), lay_out(responses.reshape(B * K, R), padding_token)
    nq, nr = before.packing.width, max(1, after.packing.width)  # a column each, though no response had any token
    width, row, number = nq + K * nr, after.rows // K, after.rows % K
    branches = Branches(before.lengths, nq, K, nr, device)

    # the queries' tokens, then the responses' tokens: their slots in the rectangle, and the order of these
    slots_before = before.rows * width + before.positions
    slots_after = row * width + nq + number * nr + after.positions
    slots, order = torch.cat([slots_before, slots_after]).sort()
    places = order.argsort().cpu()  # where in the list each of them has come to lie

    filled = torch.full((B,), nq) if before.lengths is None else before.lengths  # int64 [B], tokens of each query
    added = torch.full((B, K), nr) if after.lengths is None else after.lengths.view(B, K)
    offset = nq if before.lengths is None else before.lengths.to(device)[row]
    layout = Layout(
        Packing(B, width, slots if len(slots) < B * width else None),
        torch.cat([before.tokens, after.tokens])[order],
        torch.cat([before.positions, offset + after.positions])[order],
        torch.cat([before.rows, row])[order],
        places[before.last.clamp(min=0)].where(before.last >= 0, -1),
        before.lengths,
        int((filled[:, None] + added).max()),
    )
    ends, tokens = after.last[:, -1].view(B, K), places[len(before.tokens) :]
    first, of_query = (after.positions == 0).cpu(), layout.last[row.cpu(), -1]
    return Choices(
        layout,
        branches,
        places[(len(before.tokens) + ends).clamp(min=0)].where(ends >= 0, -1),
        torch.where(first, of_query, tokens.roll(1)),
    )
