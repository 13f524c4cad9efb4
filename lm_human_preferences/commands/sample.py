"""Continuations from a finished run or any model folder, with scores: `python launch.py sample EXPERIMENT [--prompt
TEXT] [--judge SPEC]`.
"""

import math
from dataclasses import dataclass

import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import (
    QueryFormatter,
    TaskParams,
    check_drawing,
    check_task,
    readable,
    response_ends,
    truncate_responses,
)
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import Judge, PeoplesChoices, load_judge
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.language.ends import ENDLESS, Ends
from lm_human_preferences.learning.steered_policy import load_policy
from lm_human_preferences.runs.folder import model_and_task


@dataclass
class SampleParams:
    """What to write."""

    prompt: str | None = param(None, "text to continue; left out: held-out queries of the task", "text")
    task: str | None = param(None, "task whose queries, lengths and temperature are used; none takes the run's own")
    judge: str | None = param(
        None, "who scores the continuations: a reward-model folder, or another judge of docs/evaluation.md", "path"
    )
    count: int = param(8, "continuations to write")
    length: int | None = param(None, "tokens in a continuation; none takes the task's response length, or 40")
    temperature: float | None = param(None, "sampling temperature; none takes the task's, or 1")
    beta: float | None = param(
        None, "strength of steering, for a policy of train_ilql; none takes its own, 0 is its language model"
    )
    top_k: int | None = param(
        None, "draw among this many most probable tokens; 0 among all; none takes the task's, or 0"
    )
    top_p: float | None = param(
        None, "draw among the most probable tokens whose probabilities sum to at most this; none takes the task's, or 1"
    )
    split: str = param("valid", "split of the task's queries")
    seed: int = param(0, "seed of queries and tokens")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto, float32 or bfloat16")


def write_samples(experiment: str, params: SampleParams, given_task: TaskParams | None = None) -> None:
    """Print continuations. UserError if there is no such run, it has no language model, or the texts do not fit its
    context.

    `given_task` is the one that `params.task` names.
    """
    check_sampling(params)
    folder, task = model_and_task(experiment, params.save_dir)
    task = given_task or task
    precision = choose_precision(params.device, params.precision)
    judge = text_judge(params.judge, precision.device) if params.judge else None
    policy = load_policy(folder, QueryFormatter([], []), 1.0, params.beta)
    config = policy.transformer.config
    encoding = get_encoding(config)
    length = params.length or (task.response_length if task else 40)
    if task is not None:
        policy.for_task(task, encoding)
    policy.temperature = params.temperature or policy.temperature
    if params.prompt is not None:
        policy.formatter, queries = QueryFormatter([], []), prompt_rows(params.prompt, params.count, encoding)
    elif task is None:
        raise UserError(f"{folder} belongs to no task; name one with --task, or give a text with --prompt")
    else:
        check_task(task, encoding, config.n_ctx)
        queries = query_stream(task, encoding, params.seed, "evaluation", params.split).batch(params.count)
    if policy.formatter(queries).shape[1] + length > config.n_ctx:
        raise UserError(f"prompt and --length {length} exceed the model's context of {config.n_ctx}")
    queries = queries.to(precision.device)
    uniforms = torch.rand(params.count, length, generator=generator_for(params.seed, "sample")).to(precision.device)
    policy.to(precision.device)
    with precision.autocast():
        drawn = policy.respond(queries, uniforms, params.top_k, params.top_p).tokens
    ends = response_ends(task, encoding) if task else ENDLESS
    if not ends.tokens:
        ends = Ends((encoding.end_of_text,), ends.after)
    drawn = truncate_responses(drawn, ends, encoding.padding_token)
    scores = scores_of(judge, queries, drawn, encoding) if judge else [None] * params.count
    for query, response, score in zip(queries.cpu(), drawn.cpu(), scores, strict=True):
        shown = "" if score is None else f"[{score:+.3f}] "
        print(f"{shown}{readable(encoding, query)}|{readable(encoding, response)}\n")


def check_sampling(params: SampleParams) -> None:
    """UserError for numbers that cannot work."""
    if params.count < 1 or (params.length is not None and params.length < 1):
        raise UserError("--count and --length must be at least 1")
    if params.temperature is not None and params.temperature <= 0:
        raise UserError(f"--temperature {params.temperature}: must be positive")
    if params.beta is not None and not 0 <= params.beta < math.inf:
        raise UserError(f"--beta {params.beta}: must not be negative")
    check_drawing(params.top_k or 0, 1.0 if params.top_p is None else params.top_p)


def text_judge(spec: str, device: torch.device) -> Judge:
    """UserError if it cannot be had or cannot score a single text."""
    judge = load_judge(spec, device)
    if isinstance(judge, PeoplesChoices):
        raise UserError(
            f"--judge {spec}: people choose between two policies (launch.py evaluate); they score no single text"
        )
    return judge


def prompt_rows(prompt: str, count: int, encoding: Encoding) -> torch.Tensor:
    """The prompt's tokens as int64 [count, Q]. UserError if it has none."""
    tokens = encoding.encode(prompt)
    if not tokens:
        raise UserError("--prompt is empty; leave it out to take held-out queries")
    return torch.tensor(tokens).expand(count, -1)


@torch.no_grad()
def scores_of(judge: Judge, queries: torch.Tensor, responses: torch.Tensor, encoding: Encoding) -> list[float]:
    """Of responses int64 [n, R] to queries int64 [n, Q]."""
    scores: list[float] = judge.on_tokens(encoding)(queries, responses).tolist()
    return scores
