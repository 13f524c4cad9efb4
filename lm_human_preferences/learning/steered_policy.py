"""Writing with implicit Q-learning: a language model whose next token's logits are changed by what its value heads
think of it (Snell et al. 2022, arXiv 2206.11871, section 4.3).

    pi(a | s)  proportional to  exp( (log rho(a | s) + beta (min Q(s, a) - V(s))) / temperature )

with rho the language model and Q the slow target copies of the heads, as in trlX (modeling_ilql.py generate). V is the
same for all actions and changes nothing in pi: it is there so that what is added has a meaning. beta 0 is the language
model, bit for bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.logprobs import Steer, steered_logprobs, token_logprobs
from lm_human_preferences.language.model_folders import load_heads, load_model, save_model
from lm_human_preferences.learning.implicit_q import ValueHeads
from lm_human_preferences.learning.policy import Analysis, Policy, states_before

_BETA, _LEARNING = "steering.beta", "q_heads."  # names in a folder's heads


class SteeredPolicy(Policy):
    """A policy that value heads steer. It writes and is measured as any other, and is not trained as it is."""

    def __init__(
        self, transformer: GPT2, heads: ValueHeads, formatter: QueryFormatter, temperature: float, beta: float
    ):
        super().__init__(transformer, formatter, temperature)
        self.heads, self.beta = heads, beta

    def steer_at(self, temperature: float) -> Steer | None:
        """Adds beta times the advantages; None where beta is 0."""
        if self.beta == 0:
            return None

        def steer(hidden: torch.Tensor, logits: torch.Tensor) -> None:
            advantages = self.heads.advantages(hidden)
            logits[:, : advantages.shape[1]].add_(advantages, alpha=self.beta / max(temperature, 1e-10))

        return steer

    @property
    def values(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """V of states: hidden [..., C] -> float32 [...]."""
        return self.heads.values

    @torch.no_grad()
    def analyze(
        self,
        queries: torch.Tensor,
        responses: torch.Tensor,
        entropies: bool = True,
        temperature: float | None = None,
        real: torch.Tensor | None = None,
        support: torch.Tensor | None = None,
    ) -> Analysis:
        """As `Policy.analyze`, of the steered distribution and without gradient; values are V."""
        temperature = self.temperature if temperature is None else temperature
        hidden = states_before(self.transformer, self.formatter, queries, responses, real)
        steer = self.steer_at(temperature)
        if steer is None:
            logprobs, entropy = token_logprobs(self.transformer, hidden, responses, temperature, entropies, support)
        else:
            logprobs, entropy = steered_logprobs(
                self.transformer, hidden, responses, temperature, steer, entropies, support
            )
        return Analysis(logprobs, self.values(hidden), entropy)

    def save(self, folder: Path, note: dict[str, Any] | None = None, world: World = World()) -> None:
        """Write a model folder with the heads and beta beside it; on several ranks all call it and rank 0 writes. The
        heads that learn, which only training needs, are left out: their target copies decide.
        """
        heads = {name: value for name, value in self.heads.state_dict().items() if not name.startswith(_LEARNING)}
        save_model(folder, self.transformer, heads | {_BETA: torch.tensor(self.beta)}, note=note, world=world)


def is_steered(folder: Path) -> bool:
    """Whether a model folder has value heads that steer it. UserError where its heads are damaged."""
    return _BETA in load_heads(folder)


def load_policy(folder: Path, formatter: QueryFormatter, temperature: float, beta: float | None = None) -> Policy:
    """The policy of a model folder, steered where the folder has value heads for it.

    beta: how strongly; None takes the folder's own. UserError for a folder that cannot be read, and for a beta that
    there is nothing for.
    """
    heads = load_heads(folder)
    if _BETA not in heads:
        if beta is not None:
            raise UserError(f"{folder} has no value heads that a beta ({beta:g}) could steer by: only train_ilql's do")
        return Policy.load(folder, formatter, temperature)
    transformer = load_model(folder)
    own = float(heads[_BETA]) if beta is None else beta
    return SteeredPolicy(transformer, value_heads(heads, transformer.config, folder), formatter, temperature, own)


def value_heads(stored: dict[str, torch.Tensor], config: GPT2Config, folder: Path) -> ValueHeads:
    """The value heads in what `load_heads` has read; the heads that would learn equal their target copies. UserError,
    naming the folder, where they do not fit the model.
    """
    heads = ValueHeads(config.n_embd, config.n_vocab, two_qs="target_q_heads.1.0.weight" in stored)
    wanted = {name: value for name, value in heads.state_dict().items() if not name.startswith(_LEARNING)}
    for name, value in wanted.items():
        if name not in stored:
            raise UserError(f"{folder / 'heads.safetensors'} lacks {name}: it is damaged, or of another version")
        if stored[name].shape != value.shape:
            raise UserError(
                f"{folder / 'heads.safetensors'}: {name} is {list(stored[name].shape)}, the model needs "
                f"{list(value.shape)}"
            )
    heads.load_state_dict({name: stored[name] for name in wanted}, strict=False)
    heads.q_heads.load_state_dict(heads.target_q_heads.state_dict())
    return heads
