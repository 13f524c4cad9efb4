"""Implicit language Q-learning: a language model, and heads that value its tokens, from texts with scores (Snell et al.
2022, arXiv 2206.11871; in the form that trlX gives it).

A state is a query and the tokens of its response so far, an action the next token. The reward is the text's score, at
its last token. Q is learned towards reward + gamma V of the next state; V towards an expectile of a slow copy of Q, so
that no action is ever valued which the texts do not have. The language model learns the texts. `steered_policy.py`
writes with the two.

Shapes: B texts, R response tokens, M real ones of all texts, C channels, V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn as nn

from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.heads import MLPHead
from lm_human_preferences.language.logprobs import linear_logprobs, token_logprobs
from lm_human_preferences.learning.label_losses import pearson_r


@dataclass
class ImplicitQParams:
    """The losses of implicit Q-learning, and the Q heads' target copies; values are the paper's and trlX's."""

    tau: float = param(0.7, "expectile of Q that V learns: 0.5 its mean, towards 1 its best actions' value")
    gamma: float = param(0.99, "what the value of the next state counts")
    cql_scale: float = param(0.1, "weight of conservative Q-learning: actions that the texts do not have lose value")
    awac_scale: float = param(1.0, "weight of the texts' negative log-likelihood")
    awac_beta: float = param(0.0, "a token's likelihood counts exp(this times its advantage Q - V); 0: all alike")
    alpha: float = param(0.005, "share of the Q heads' weights that their target copies take over at a time")
    sync_interval: int = param(1, "optimizer steps from one such time to the next")
    two_qs: bool = param(True, "two Q heads, of which the lower value counts; off: one")


def check_implicit_q(params: ImplicitQParams) -> None:
    """UserError, naming the flag and the number, for what cannot work."""
    for name in ("tau", "alpha"):
        if not 0 < getattr(params, name) <= (1 if name == "alpha" else math.nextafter(1, 0)):
            allowed = "above 0 and at most 1" if name == "alpha" else "between 0 and 1"
            raise UserError(f"--ilql.{name} {getattr(params, name)}: must be {allowed}")
    if not 0 <= params.gamma <= 1:
        raise UserError(f"--ilql.gamma {params.gamma}: must lie between 0 and 1")
    for name in ("cql_scale", "awac_scale", "awac_beta"):
        if not 0 <= getattr(params, name) < math.inf:
            raise UserError(f"--ilql.{name} {getattr(params, name)}: must not be negative")
    if params.sync_interval < 1:
        raise UserError(f"--ilql.sync_interval {params.sync_interval}: must be at least 1")


class ValueHeads(nn.Module):
    """V of a state and Q of all its actions, from the hidden state after ln_f. Names are trlX's (modeling_ilql.py
    ILQLHeads). The target copies of the Q heads get no gradient.
    """

    def __init__(self, n_embd: int, n_vocab: int, two_qs: bool = True):
        super().__init__()
        count = 2 if two_qs else 1
        self.v_head = MLPHead(n_embd, 1)
        self.q_heads = nn.ModuleList(MLPHead(n_embd, n_vocab) for _ in range(count))
        self.target_q_heads = nn.ModuleList(MLPHead(n_embd, n_vocab) for _ in range(count)).requires_grad_(False)

    def initialise(self, generator: torch.Generator) -> "ValueHeads":
        """All values 0; the two Q heads differ in what they can learn. Target copies equal their heads."""
        for head in (self.v_head, *_heads(self.q_heads)):
            head.initialise(generator)
        self.sync_targets(1.0)
        return self

    @torch.no_grad()
    def sync_targets(self, alpha: float) -> None:
        """target = alpha Q + (1 - alpha) target, of each weight (Polyak's average)."""
        for target, own in zip(self.target_q_heads.parameters(), self.q_heads.parameters(), strict=True):
            target.lerp_(own, alpha)

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., C] -> V, float32 [...]."""
        outputs: torch.Tensor = self.v_head(hidden)
        return outputs.squeeze(-1)

    def advantages(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, C] -> min Q - V of every action, float32 [n, V]. The target copies decide, to which V was fitted
        (trlX, modeling_ilql.py generate).
        """
        lowest: torch.Tensor = reduce(torch.minimum, [head(hidden) for head in self.target_q_heads])
        return lowest - self.values(hidden)[:, None]


def _heads(heads: nn.ModuleList) -> list[MLPHead]:
    return [head for head in heads if isinstance(head, MLPHead)]


class Actions(NamedTuple):
    """What model and heads say of the tokens of some texts; all float32 [B, R], 0 at padding, or [M]."""

    logprobs: torch.Tensor
    values: torch.Tensor  # of the state before each token
    qs: tuple[torch.Tensor, ...]  # of each Q head
    q_logprobs: tuple[torch.Tensor, ...]  # log-softmax of each Q head's values over all actions, at the token
    target_q: torch.Tensor  # lowest of the target copies, without gradient

    @property
    def q(self) -> torch.Tensor:
        """The lowest of the heads' values, without gradient."""
        return reduce(torch.minimum, self.qs).detach()

    def laid_out(self, real: torch.Tensor) -> "Actions":
        """From [M] to [B, R], at the places where `real` bool [B, R] is true, row after row."""

        def spread(flat: torch.Tensor) -> torch.Tensor:
            return flat.new_zeros(real.shape).masked_scatter(real, flat)

        return Actions(
            spread(self.logprobs),
            spread(self.values),
            tuple(map(spread, self.qs)),
            tuple(map(spread, self.q_logprobs)),
            spread(self.target_q),
        )


def actions_of(transformer: GPT2, heads: ValueHeads, hidden: torch.Tensor, tokens: torch.Tensor) -> Actions:
    """All that the losses need of tokens int64 [M] that follow hidden states [M, C]: [M]. Log-probabilities are at
    temperature 1.
    """
    logprobs, _ = token_logprobs(transformer, hidden, tokens, entropies=False)
    qs, q_logprobs = [], []
    for head in _heads(heads.q_heads):
        features = head.features(hidden)
        qs.append(head.outputs_at(features, tokens))
        q_logprobs.append(linear_logprobs(features, head.last.weight, head.last.bias, tokens))
    with torch.no_grad():
        targets = [head.outputs_at(head.features(hidden), tokens) for head in _heads(heads.target_q_heads)]
    return Actions(logprobs, heads.values(hidden), tuple(qs), tuple(q_logprobs), reduce(torch.minimum, targets))


class ImplicitQ(nn.Module):
    """Language model and value heads in training. The heads' gradients flow into the trunk, as in trlX."""

    def __init__(self, transformer: GPT2, heads: ValueHeads, formatter: QueryFormatter):
        super().__init__()
        self.transformer, self.heads, self.formatter = transformer, heads, formatter

    def forward(self, queries: torch.Tensor, responses: torch.Tensor) -> Actions:
        """Of the tokens of responses int64 [B, R], padded on the right, to queries int64 [B, Q]."""
        real = responses != self.transformer.config.padding_token
        hidden = self.transformer.response_states(self.formatter(queries), responses[:, None])
        return actions_of(self.transformer, self.heads, hidden, responses[real]).laid_out(real)


# --- what is learned ---


def normalised_returns(scores: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Scores [n] in deviations from their mean; `return_scale` has both."""
    return ((scores.double() - mean) / (std + torch.finfo(torch.float64).eps)).float()


def return_scale(scores: torch.Tensor) -> tuple[float, float]:
    """Mean and deviation, with n - 1, of all training texts' scores [n] (trlX's make_experience)."""
    values = scores.double()
    return float(values.mean()), float(values.std(correction=1)) if len(values) > 1 else 0.0


def last_tokens(real: torch.Tensor) -> torch.Tensor:
    """Where each row of `real` bool [B, R], true on the left, has its last real token: bool [B, R]."""
    following = torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], dim=1)
    return real & ~following


def rewards_of_texts(returns: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """A text's return [B] at its last token, 0 elsewhere: [B, R]."""
    return returns[:, None] * last_tokens(real)


class Losses(NamedTuple):
    """Of each token; float32 [B, R], 0 at padding."""

    q: torch.Tensor
    v: torch.Tensor
    cql: torch.Tensor
    awac: torch.Tensor
    awac_weight: torch.Tensor  # without gradient

    def total(self, params: ImplicitQParams) -> torch.Tensor:
        return self.q + self.v + params.cql_scale * self.cql + params.awac_scale * self.awac


def implicit_q_losses(actions: Actions, rewards: torch.Tensor, real: torch.Tensor, params: ImplicitQParams) -> Losses:
    """The losses of each token, from actions [B, R]; a minibatch's are their means over its real tokens.

    rewards: float32 [B, R]; real: bool [B, R]. `q` and `cql` are sums over the Q heads. Snell et al. 2022, equations 1
    to 4; trlX, modeling_ilql.py ILQLConfig.loss.

    q: (Q - (reward + gamma V of the next state))^2, where V is 0 after the last token and has no gradient.
    v: |tau - 1[target Q < V]| (target Q - V)^2: with tau above 1/2 V counts what is better than it most.
    cql: -log softmax(Q) of the token. awac: -exp(awac_beta (target Q - V)) log pi.
    """
    following = torch.cat([actions.values[:, 1:], torch.zeros_like(actions.values[:, :1])], dim=1).detach()
    goals = rewards + params.gamma * following  # values are 0 at padding
    error = actions.target_q - actions.values
    expectile = torch.full_like(error, params.tau).masked_fill(error < 0, 1 - params.tau)
    weight = torch.exp(params.awac_beta * error.detach()) * real
    return Losses(
        q=sum((q - goals) ** 2 for q in actions.qs) * real,
        v=expectile * error**2 * real,
        cql=-sum(actions.q_logprobs) * real,
        awac=-weight * actions.logprobs,
        awac_weight=weight,
    )


# --- what is seen of it ---

SUMS = ("loss", "loss_q", "loss_v", "loss_cql", "loss_awac", "nll", "q", "v", "target_q", "awac_weight")


def text_sums(actions: Actions, losses: Losses, real: torch.Tensor, params: ImplicitQParams) -> torch.Tensor:
    """For each text the sums over its tokens of what `SUMS` names, their number, and Q of the last token, which has
    seen the whole text: float32 [B, len(SUMS) + 2], without gradient.
    """
    per_token = (
        losses.total(params),
        losses.q,
        losses.v,
        losses.cql,
        losses.awac,
        -actions.logprobs,
        actions.q,
        actions.values,
        actions.target_q,
        losses.awac_weight,
    )
    sums = [values.detach().sum(1) for values in per_token]
    return torch.stack([*sums, real.sum(1).float(), (actions.q * last_tokens(real)).sum(1)], dim=1)


def implicit_q_statistics(sums: torch.Tensor, returns: torch.Tensor) -> dict[str, float]:
    """Means over the tokens of a whole global batch, from `text_sums` [B, ...]; `corr`: Pearson's correlation of the
    last tokens' Q with the texts' returns [B], which does not exist where one of them is constant, as Q is at first.
    """
    totals = sums.double().sum(0)
    means = (totals[: len(SUMS)] / totals[len(SUMS)].clamp(min=1)).tolist()
    corr = float(pearson_r(sums[:, -1].double(), returns.double()))
    return dict(zip(SUMS, means, strict=True)) | ({"corr": corr} if math.isfinite(corr) else {})
