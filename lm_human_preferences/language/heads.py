"""Heads on the transformer's final hidden states."""

import torch
import torch.nn as nn
import torch.nn.functional as F


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


class MLPHead(nn.Sequential):
    """hidden [..., C] -> float32 [..., outputs]: a linear map to 2 C, ReLU, a linear map, in float32 whatever the
    autocast.

    Weights have torch's layout [out, in] and trlX's names, `0.weight` to `2.bias` (utils/modeling.py make_head). The
    last map is zero at first, and so is what the head says.
    """

    def __init__(self, n_embd: int, outputs: int):
        super().__init__(nn.Linear(n_embd, 2 * n_embd), nn.ReLU(), nn.Linear(2 * n_embd, outputs))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def first(self) -> nn.Linear:
        """The map to 2 C."""
        first = self[0]
        assert isinstance(first, nn.Linear)
        return first

    @property
    def last(self) -> nn.Linear:
        """The map to the outputs, of which one or all are read."""
        last = self[2]
        assert isinstance(last, nn.Linear)
        return last

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "MLPHead":
        """The first map as PyTorch draws it, uniform within 1 / sqrt(C); the last one stays zero."""
        bound = self.first.in_features**-0.5
        for parameter in self.first.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        return self

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., C] -> what the last map reads, float32 [..., 2 C]."""
        with torch.autocast(hidden.device.type, enabled=False):
            features = F.relu(self.first(hidden.float()))
            return features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        features = self.features(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            outputs: torch.Tensor = self.last(features)
            return outputs

    def outputs_at(self, features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """One output each, float32 [N], of features [N, 2 C] at places int64 [N]; nothing else is computed."""
        with torch.autocast(features.device.type, enabled=False):
            return (features * F.embedding(places, self.last.weight)).sum(-1) + self.last.bias[places]
