"""What a task is, and the pure functions on its queries and responses: context, truncation, validity, penalty.

Original: lm_tasks.py, train_policy.py make_score_fn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import Encoding


@dataclass
class PolicyParams:
    """The language model that is tuned, and how it samples."""

    initial_model: str = param(
        "saved_models/124M", "model folder that policy, reference and reward model start from", "path"
    )
    temperature: float = param(1.0, "sampling temperature; it divides the logits of policy and reference everywhere")


@dataclass
class TaskParams:
    """A task: where queries come from, how long they and their responses are, what ends a response."""

    query_dataset: str = param(
        "", "data set of the queries: a folder in datasets/ or a path, perhaps with :prefix of its splits"
    )
    query_length: int = param(64, "tokens in a query; shorter ones are padded on the right")
    response_length: int = param(24, "tokens in a response")
    query_prefix: str = param("", "text before each query, for the policy only")
    query_suffix: str = param("", "text between query and response, for the policy only")
    start_text: str | None = param(
        None, "a query begins after the first of these (one token); none begins at the text's beginning"
    )
    end_text: str | None = param(
        None, "a query ends with the last of these in its window (one token); none cuts at query_length"
    )
    truncate_token: int | None = param(
        None, "the score sees responses up to the first such token; none does not truncate"
    )
    truncate_after: int = param(0, "truncate only at places from this one on")
    penalty_reward_value: float = param(-1.0, "score of a response that has no truncate_token from truncate_after on")
    policy: PolicyParams = param(PolicyParams, "")


def check_task_numbers(task: TaskParams) -> None:
    """Raises UserError, naming the flag and the numbers, for a task that no model can do."""
    if task.query_length < 1 or task.response_length < 1:
        raise UserError(
            f"--task.query_length {task.query_length} and --task.response_length {task.response_length} must be at "
            "least 1"
        )
    if not 0 < task.policy.temperature < math.inf:
        raise UserError(f"--task.policy.temperature {task.policy.temperature}: must be positive")
    if not math.isfinite(task.penalty_reward_value):
        raise UserError(f"--task.penalty_reward_value {task.penalty_reward_value}: must be a finite number")
    if task.truncate_token is not None and not 0 <= task.truncate_after < task.response_length:
        raise UserError(
            f"--task.truncate_after {task.truncate_after}: must lie between 0 and --task.response_length "
            f"{task.response_length} - 1, or no response could ever have a valid end"
        )


def check_task(task: TaskParams, encoding: Encoding, n_ctx: int) -> None:
    """Raises UserError, naming the flag and the numbers, for a task that this model cannot do."""
    check_task_numbers(task)
    affix = len(encoding.encode(task.query_prefix)) + len(encoding.encode(task.query_suffix))
    length = affix + task.query_length + task.response_length
    if length > n_ctx:
        raise UserError(
            f"query ({task.query_length}), prefix and suffix ({affix}) and response ({task.response_length}) make "
            f"{length} tokens, but the model's context is {n_ctx}; shorten --task.query_length or "
            "--task.response_length"
        )
    if task.truncate_token is not None and not 0 <= task.truncate_token < encoding.n_vocab:
        raise UserError(f"--task.truncate_token {task.truncate_token}: must lie in 0..{encoding.n_vocab - 1}")
    for name in ("start_text", "end_text"):
        single_token(getattr(task, name), encoding, name)


def single_token(text: str | None, encoding: Encoding, name: str) -> int | None:
    """The one token that `text` is; None for None or ''. Raises UserError if it is more than one."""
    if not text:
        return None
    tokens = encoding.encode(text)
    if len(tokens) != 1:
        raise UserError(f"--task.{name} {text!r} is {len(tokens)} tokens; it must be exactly one")
    return tokens[0]


class QueryFormatter:
    """Contexts of the policy: prefix + query (with its padding) + suffix. Prefix and suffix are encoded apart from the
    query.

    The reward model never sees them (original: lm_tasks.py query_formatter; rewards.py works on bare queries).
    """

    def __init__(self, prefix: Sequence[int], suffix: Sequence[int]):
        self.prefix, self.suffix = (
            torch.tensor(list(prefix), dtype=torch.int64),
            torch.tensor(list(suffix), dtype=torch.int64),
        )

    @property
    def length(self) -> int:
        """Tokens that prefix and suffix add."""
        return len(self.prefix) + len(self.suffix)

    @classmethod
    def of(cls, task: TaskParams, encoding: Encoding) -> "QueryFormatter":
        return cls(encoding.encode(task.query_prefix), encoding.encode(task.query_suffix))

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        """queries int64 [B, Q] -> contexts int64 [B, prefix + Q + suffix]."""
        prefix, suffix = (
            part.to(queries.device, non_blocking=True).expand(len(queries), -1) for part in (self.prefix, self.suffix)
        )
        return torch.cat([prefix, queries, suffix], dim=1)

    def real(self, queries: torch.Tensor) -> torch.Tensor:
        """Where contexts have no padding, bool [B, prefix + Q + suffix], from where queries have none, bool [B, Q]."""
        prefix, suffix = (queries.new_ones(len(queries), len(part)) for part in (self.prefix, self.suffix))
        return torch.cat([prefix, queries, suffix], dim=1)


def truncate_responses(
    responses: torch.Tensor, truncate_token: int | None, truncate_after: int, padding_token: int
) -> torch.Tensor:
    """Responses int64 [B, R] with everything after the first `truncate_token` at place >= `truncate_after` replaced by
    padding.

    The token itself stays. Original: lm_tasks.py postprocess_fn_from_hparams.
    """
    if truncate_token is None:
        return responses
    ends = _ends(responses, truncate_token, truncate_after)
    before = ends.cumsum(1) - ends.long()  # ends strictly before each place
    return torch.where(before > 0, padding_token, responses)


def responses_are_valid(responses: torch.Tensor, truncate_token: int | None, truncate_after: int) -> torch.Tensor:
    """bool [B]: the response has a `truncate_token` at place >= `truncate_after`. Original: lm_tasks.py
    filter_fn_from_hparams.
    """
    if truncate_token is None:
        return torch.ones(len(responses), dtype=torch.bool, device=responses.device)
    return _ends(responses, truncate_token, truncate_after).any(1)


def _ends(responses: torch.Tensor, truncate_token: int, truncate_after: int) -> torch.Tensor:
    places = torch.arange(responses.shape[1], device=responses.device)
    return (responses == truncate_token) & (places >= truncate_after)


def padding_share(tokens: torch.Tensor, padding_token: int) -> float:
    """How much of `tokens` is padding, 0 to 1."""
    return float((tokens == padding_token).float().mean())


def penalise(scores: torch.Tensor, valid: torch.Tensor, penalty: float) -> torch.Tensor:
    """Scores [B] where valid, the fixed penalty elsewhere: it replaces the score, on the scale of normalised
    rewards.
    """
    return torch.where(valid, scores, torch.full_like(scores, penalty))


def readable(encoding: Encoding, tokens: torch.Tensor) -> str:
    """Text of int64 [T] without padding and without the end-of-text mark."""
    return encoding.decode([t for t in tokens.tolist() if t != encoding.end_of_text])
