"""The policy: transformer and value head, one trunk for both. Original: policy.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, response_ends
from lm_human_preferences.language.captured import Captured
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.ends import ENDLESS
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.heads import ScalarHead
from lm_human_preferences.language.logprobs import Steer, token_logprobs
from lm_human_preferences.language.model_folders import load_heads, load_model, save_model
from lm_human_preferences.language.sampling import Sample, sample


class Analysis(NamedTuple):
    """Given responses under a policy; all float32 [B, R]."""

    logprobs: torch.Tensor
    values: torch.Tensor  # of the state before each response token
    entropies: torch.Tensor


class Policy(nn.Module):
    """A language model with a value head. `temperature` divides the logits in sampling and in analysis alike; values
    are not touched. How it answers the queries of a task is what `for_task` sets.
    """

    captured: Captured | None = None  # graphs of its decoding, on a GPU where that is asked for
    top_k, top_p = 0, 1.0  # what responses are drawn among; 0 and 1: all tokens
    stops = ENDLESS  # after which nothing is sampled

    def __init__(self, transformer: GPT2, formatter: QueryFormatter, temperature: float):
        super().__init__()
        self.transformer = transformer
        self.value_head = ScalarHead(transformer.config.n_embd)  # zero: the first values are exactly 0
        self.formatter, self.temperature = formatter, temperature

    @classmethod
    def load(cls, folder: Path, formatter: QueryFormatter, temperature: float) -> "Policy":
        """From a model folder, with its value head if it has one (else zero)."""
        policy = cls(load_model(folder), formatter, temperature)
        heads = load_heads(folder)
        if "value.weight" in heads:
            policy.value_head.load_state_dict({"weight": heads["value.weight"], "bias": heads["value.bias"]})
        return policy

    def for_task(self, task: TaskParams, encoding: Encoding) -> "Policy":
        """This policy, answering as the task has it: format of queries, temperature, top-k and top-p, and whether it
        stops at an end.
        """
        self.formatter, self.temperature = QueryFormatter.of(task, encoding), task.policy.temperature
        self.top_k, self.top_p = task.top_k, task.top_p
        self.stops = response_ends(task, encoding) if task.after_stop == "ignore" else ENDLESS
        return self

    def save(self, folder: Path, note: dict[str, Any] | None = None, world: World = World()) -> None:
        """Write a model folder with the head beside it; on several ranks all call it and rank 0 writes."""
        heads: dict[str, torch.Tensor] = {"value.weight": self.value_head.weight, "value.bias": self.value_head.bias}
        save_model(folder, self.transformer, heads, note=note, world=world)

    def forward(
        self,
        queries: torch.Tensor,
        responses: torch.Tensor,
        real: torch.Tensor | None = None,
        support: torch.Tensor | None = None,
    ) -> Analysis:
        """`analyze`, as training asks for it."""
        return self.analyze(queries, responses, real=real, support=support)

    def respond(
        self,
        queries: torch.Tensor,
        uniforms: torch.Tensor,
        top_k: int | None = None,
        top_p: float | None = None,
        real: torch.Tensor | None = None,
        captured: bool = True,
    ) -> Sample:
        """Sample responses to queries int64 [B, Q] at uniforms float32 [B, R]; see `language.sampling.sample`. top_k,
        top_p: None for the policy's own. `real` as in `analyze`. captured: by a graph, where the policy has some; not
        where B is another one each time, and a graph would serve once.
        """
        return sample(
            self.transformer,
            self.formatter(queries),
            uniforms,
            temperature=self.temperature,
            top_k=self.top_k if top_k is None else top_k,
            top_p=self.top_p if top_p is None else top_p,
            value_head=self.values,
            ends=self.stops,
            captured=self.captured if captured else None,
            real=None if real is None else self.formatter.real(real),
            steer=self.steer_at(self.temperature),
        )

    @property
    def values(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Values of states: hidden [..., C] -> float32 [...]."""
        return self.value_head

    def steer_at(self, temperature: float) -> Steer | None:
        """What changes logits that this temperature has divided; None where nothing does, as here."""
        return None

    def analyze(
        self,
        queries: torch.Tensor,
        responses: torch.Tensor,
        entropies: bool = True,
        temperature: float | None = None,
        real: torch.Tensor | None = None,
        support: torch.Tensor | None = None,
    ) -> Analysis:
        """Log-probabilities, values and entropies of unpadded responses int64 [B, R] to queries int64 [B, Q], in one
        pass.

        Logits are computed at the response's places only. `temperature` None is the policy's own. `real`: bool [B, Q]
        on the host, where queries have no padding; None asks the device, and a GPU is waited for. support: what each
        token was drawn among, as `Sample` has it; None for the whole vocabulary, whatever top-k and top-p. Original:
        policy.py analyze_responses_op.
        """
        hidden = states_before(self.transformer, self.formatter, queries, responses, real)
        temperature = self.temperature if temperature is None else temperature
        logprobs, entropy = token_logprobs(self.transformer, hidden, responses, temperature, entropies, support)
        return Analysis(logprobs, self.values(hidden), entropy)


def states_before(
    transformer: GPT2,
    formatter: QueryFormatter,
    queries: torch.Tensor,
    responses: torch.Tensor,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """Final hidden states [B, R, C] from which each token of responses int64 [B, R] to queries int64 [B, Q] follows.

    real: bool [B, Q] on the host, where queries have no padding; None asks the device, and a GPU is waited for.
    """
    contexts = formatter(queries)
    start, R = contexts.shape[1] - 1, responses.shape[1]
    rows = torch.cat([contexts, responses[:, :-1]], dim=1)  # what follows the last token is of no interest
    if real is not None:
        real = torch.cat([formatter.real(real), real.new_ones(len(responses), R - 1)], dim=1)
    hidden: torch.Tensor = transformer(rows, columns=slice(start, start + R), real=real)
    return hidden
