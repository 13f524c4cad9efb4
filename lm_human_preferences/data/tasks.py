"""What a task is, and the pure functions on its queries and responses: context, truncation, validity, penalty.

Original: lm_tasks.py, train_policy.py make_score_fn.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.ends import Ends

AFTER_STOP = ("penalise", "ignore")


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
    stop_tokens: str | None = param(
        None,
        "further tokens at which a response ends, as at truncate_token: ids, or texts of one token each, with commas "
        'between them, or as a JSON list: ["\\n", ",", 50256]',
    )
    truncate_after: int = param(0, "truncate only at places from this one on")
    after_stop: str = param(
        "penalise",
        "penalise: what the policy writes after a response's end has its part in KL and losses, as in the original; "
        "ignore: it has none, and is not sampled",
    )
    penalty_reward_value: float | None = param(
        -1.0,
        "score of a response that has no end (truncate_token or one of stop_tokens) from truncate_after on; none: it "
        "is scored as it is",
    )
    top_k: int = param(0, "responses are drawn among this many most probable tokens; 0: among all")
    top_p: float = param(
        1.0, "responses are drawn among the most probable tokens whose probabilities sum to at most this; 1: among all"
    )
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
    if task.penalty_reward_value is not None and not math.isfinite(task.penalty_reward_value):
        raise UserError(f"--task.penalty_reward_value {task.penalty_reward_value}: must be a finite number")
    if ends_somewhere(task) and not 0 <= task.truncate_after < task.response_length:
        raise UserError(
            f"--task.truncate_after {task.truncate_after}: must lie between 0 and --task.response_length "
            f"{task.response_length} - 1, or no response could ever have a valid end"
        )
    if task.after_stop not in AFTER_STOP:
        raise UserError(f"--task.after_stop {task.after_stop}: must be penalise or ignore")
    if task.after_stop == "ignore" and not ends_somewhere(task):
        raise UserError(
            "--task.after_stop ignore: nothing ends a response; say what does with --task.stop_tokens or "
            "--task.truncate_token"
        )
    check_drawing(task.top_k, task.top_p, "--task.")


def check_drawing(top_k: int, top_p: float, prefix: str = "--") -> None:
    """Raises UserError for numbers by which no token can be drawn; prefix: of the flags that set them."""
    if top_k < 0:
        raise UserError(f"{prefix}top_k {top_k}: must not be negative")
    if not 0 < top_p <= 1:
        raise UserError(f"{prefix}top_p {top_p}: must lie above 0 and be at most 1")


def check_drawing_repeats(task: TaskParams, device_type: str) -> None:
    """Raises UserError where a deterministic run would draw as no deterministic operation can: top-p needs cumulative
    sums over the vocabulary, which a GPU adds in any order.
    """
    if task.top_p < 1 and device_type == "cuda" and torch.are_deterministic_algorithms_enabled():
        raise UserError(
            f"--task.top_p {task.top_p} with --run.deterministic on: a GPU adds up probabilities in any order; give "
            "--task.top_p 1, perhaps with --task.top_k, or leave --run.deterministic off"
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
    response_ends(task, encoding)
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


def ends_somewhere(task: TaskParams) -> bool:
    """Whether there are tokens that end responses of the task."""
    return task.truncate_token is not None or task.stop_tokens is not None


def ends_in_words(task: TaskParams) -> str:
    """What ends responses of the task, in a few words."""
    tokens = [str(end) for end in (task.truncate_token, task.stop_tokens) if end is not None]
    return f"{', '.join(tokens)} after {task.truncate_after}" if tokens else "nothing"


def response_ends(task: TaskParams, encoding: Encoding | None = None) -> Ends:
    """What ends responses of the task: `truncate_token`, then `stop_tokens`, each once.

    encoding: of the texts among `stop_tokens`; ValueError if there are some and it is None. UserError for a text that
    is not one token, and for an id that the encoding lacks.
    """
    first = [] if task.truncate_token is None else [task.truncate_token]
    further = [_stop_token(part, encoding) for part in _listed(task.stop_tokens)]
    return Ends(tuple(dict.fromkeys(first + further)), task.truncate_after)


def closing_token(task: TaskParams, encoding: Encoding) -> list[int]:
    """What closes a response that was given as a text: the first of the task's ends that stands for the end itself (the
    end of a text, or an added token), if there is one. Other ends, a full stop say, are a part of the text.
    """
    marks = (
        token
        for token in response_ends(task, encoding).tokens
        if token == encoding.end_of_text or token >= encoding.base.n_vocab
    )
    return list(islice(marks, 1))


def _listed(text: str | None) -> list[int | str]:
    """The ids and texts of `--task.stop_tokens`."""
    if text is None:
        return []
    try:
        listed = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        listed = None  # the text of a token
    if listed is None:
        listed = [int(part) if part.strip().isdecimal() else part for part in text.split(",")]
    if not listed or not all(type(part) in (int, str) and part != "" for part in listed):
        raise UserError(f"--task.stop_tokens {text}: expected ids or texts of one token each; none for no such tokens")
    return listed


def _stop_token(part: int | str, encoding: Encoding | None) -> int:
    if isinstance(part, str):
        if encoding is None:
            raise ValueError(f"the stop token {part!r} is a text: its id needs an encoding")
        if part == encoding.decode([encoding.end_of_text]):
            return encoding.end_of_text  # which GPT-2's encoding makes of no text
        token = single_token(part, encoding, "stop_tokens")
        assert token is not None
        return token
    if encoding is not None and not 0 <= part < encoding.n_vocab:
        raise UserError(f"--task.stop_tokens {part}: must lie in 0..{encoding.n_vocab - 1}")
    return part


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


def truncate_responses(responses: torch.Tensor, ends: Ends, padding_token: int) -> torch.Tensor:
    """Responses int64 [B, R] with everything after their end replaced by padding; the end itself stays. Original:
    lm_tasks.py postprocess_fn_from_hparams.
    """
    if not ends.tokens:
        return responses
    return torch.where(ends.follows(responses), padding_token, responses)


def responses_are_valid(responses: torch.Tensor, ends: Ends) -> torch.Tensor:
    """bool [B]: the response has an end, or nothing ends responses. Original: lm_tasks.py filter_fn_from_hparams."""
    if not ends.tokens:
        return torch.ones(len(responses), dtype=torch.bool, device=responses.device)
    return ends.at(responses).any(1)


def padding_share(tokens: torch.Tensor, padding_token: int) -> float:
    """How much of `tokens` is padding, 0 to 1."""
    return float((tokens == padding_token).float().mean())


def penalise(scores: torch.Tensor, valid: torch.Tensor, penalty: float | None) -> torch.Tensor:
    """Scores [B] where valid, the fixed penalty elsewhere: it replaces the score, on the scale of normalised
    rewards. None leaves all scores.
    """
    if penalty is None:
        return scores
    return torch.where(valid, scores, torch.full_like(scores, penalty))


def readable(encoding: Encoding, tokens: torch.Tensor) -> str:
    """Text of int64 [T] without padding and marks, as judges of texts read it."""
    return encoding.decode([t for t in tokens.tolist() if t not in encoding.marks])


def recorded_text(encoding: Encoding, tokens: torch.Tensor) -> str:
    """Text of int64 [T] without padding and the end of a text, from which the same tokens come again: added tokens
    stay.
    """
    return encoding.decode([t for t in tokens.tolist() if t != encoding.end_of_text])
