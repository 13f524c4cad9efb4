"""Where a response ends."""

from typing import NamedTuple

import torch


class Ends(NamedTuple):
    """A response ends with the first of `tokens` that stands at place `after` or behind it, counted from 0; without
    tokens it has no end.
    """

    tokens: tuple[int, ...] = ()
    after: int = 0

    def at(self, responses: torch.Tensor) -> torch.Tensor:
        """Where a token stands that may end the response, bool [B, R], of responses int64 [B, R]."""
        places = torch.arange(responses.shape[1], device=responses.device)
        return self.is_end(responses) & (places >= self.after)

    def is_end(self, tokens: torch.Tensor) -> torch.Tensor:
        """Which of `tokens`, int64 of any shape, are among them; bool of the same shape."""
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for token in self.tokens:
            found |= tokens == token
        return found

    def follows(self, responses: torch.Tensor) -> torch.Tensor:
        """Where the response is over already, bool [B, R]: behind its end, which belongs to it."""
        ends = self.at(responses)
        return (ends.cumsum(1) - ends.long()) > 0  # ends strictly before each place


ENDLESS = Ends()
