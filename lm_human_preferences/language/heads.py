"""A scalar head on the transformer's final hidden states."""

import torch
import torch.nn as nn


class ScalarHead(nn.Module):
    """hidden [..., C] -> float32 [...]: hidden @ weight + bias, in float32 whatever the autocast.

    Initial standard deviation of the weight: 0 for a value head, 1/sqrt(C + 1) for a reward head; the bias is 0
    (original: language/model.py fc_layer).
    """

    def __init__(self, n_embd: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_embd))
        self.bias = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "ScalarHead":
        nn.init.normal_(self.weight, std=(len(self.weight) + 1) ** -0.5, generator=generator)
        self.bias.zero_()
        return self

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return (hidden.float() * self.weight.float()).sum(-1) + self.bias.float()
