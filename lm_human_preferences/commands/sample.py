"""Continuations from a finished run or any model folder, with scores: `python launch.py sample EXPERIMENT [--prompt
TEXT] [--judge SPEC]`.
"""

from dataclasses import dataclass

import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, check_task, readable, truncate_responses
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import PeoplesChoices, load_judge
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.learning.policy import Policy
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
    top_k: int = param(0, "draw among so many most probable tokens; 0 among all")
    top_p: float = param(1.0, "draw among the most probable tokens whose probabilities sum to at most this")
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
    if params.count < 1 or (params.length is not None and params.length < 1):
        raise UserError("--count and --length must be at least 1")
    if params.temperature is not None and params.temperature <= 0 or not 0 < params.top_p <= 1 or params.top_k < 0:
        raise UserError("--temperature must be positive, --top_p in (0, 1], --top_k not negative")
    folder, task = model_and_task(experiment, params.save_dir)
    task = given_task or task
    precision = choose_precision(params.device, params.precision)
    judge = load_judge(params.judge, precision.device) if params.judge else None
    if isinstance(judge, PeoplesChoices):
        raise UserError(
            f"--judge {params.judge}: people choose between two policies (launch.py evaluate); they score no single text"
        )
    policy = Policy.load(folder, QueryFormatter([], []), 1.0)
    config = policy.transformer.config
    encoding = get_encoding(config.encoding)
    length = params.length or (task.response_length if task else 40)
    policy.temperature = params.temperature or (task.policy.temperature if task else 1.0)
    if params.prompt is not None:
        tokens = encoding.encode(params.prompt)
        if not tokens:
            raise UserError("--prompt is empty; leave it out to take held-out queries")
        queries = torch.tensor(tokens).expand(params.count, -1)
    elif task is None:
        raise UserError(f"{folder} belongs to no task; name one with --task, or give a text with --prompt")
    else:
        check_task(task, encoding, config.n_ctx)
        policy.formatter = QueryFormatter.of(task, encoding)
        queries = query_stream(task, encoding, params.seed, "evaluation", params.split).batch(params.count)
    if policy.formatter(queries).shape[1] + length > config.n_ctx:
        raise UserError(f"prompt and --length {length} exceed the model's context of {config.n_ctx}")
    uniforms = torch.rand(params.count, length, generator=generator_for(params.seed, "sample"))
    policy.to(precision.device)
    with precision.autocast():
        drawn = policy.respond(
            queries.to(precision.device), uniforms.to(precision.device), params.top_k, params.top_p
        ).tokens.cpu()
    end = task.truncate_token if task and task.truncate_token is not None else encoding.end_of_text
    drawn = truncate_responses(drawn, end, task.truncate_after if task else 0, encoding.padding_token)
    with torch.no_grad():
        scores = (
            judge.on_tokens(encoding)(queries.to(precision.device), drawn.to(precision.device)).tolist()
            if judge
            else [None] * params.count
        )
    for query, response, score in zip(queries, drawn, scores, strict=True):
        print((f"[{score:+.3f}] " if judge else "") + f"{readable(encoding, query)}|{readable(encoding, response)}\n")
