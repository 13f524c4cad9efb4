"""The tokens that top-k and top-p leave, one bit each.

What a token was drawn among must be known to every later pass that asks for its probability: rounding or a step of
training would make the set another one, to which the token may not even belong.
"""

import torch


def packed_size(vocabulary: int) -> int:
    """Bytes for a set of tokens."""
    return -(-vocabulary // 8)


def packed(left: torch.Tensor) -> torch.Tensor:
    """Sets of tokens bool [..., V] as uint8 [..., packed_size(V)]."""
    V = left.shape[-1]
    bits = torch.nn.functional.pad(left, (0, 8 * packed_size(V) - V)).unflatten(-1, (-1, 8))
    support: torch.Tensor = (bits * _places(left.device)).sum(-1, dtype=torch.uint8)
    return support


def unpacked(support: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The inverse: uint8 [..., packed_size(V)] as bool [..., V]."""
    bits = (support[..., None] & _places(support.device)) != 0
    return bits.flatten(-2)[..., :vocabulary]


def _places(device: torch.device) -> torch.Tensor:
    return (1 << torch.arange(8, device=device)).to(torch.uint8)  # made on the device: a CUDA graph copies none to it
