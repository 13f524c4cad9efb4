"""What the stages that learn from label files have in common: train_reward, train_dpo, train_ilql. Their parameters
have `task`, `labels`, `batch_size`, `run` and `tracking`.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn

from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.data.label_files import load_train_and_valid
from lm_human_preferences.data.label_noise import flipped
from lm_human_preferences.data.labels import LabelBatch, LabelType, check_labels
from lm_human_preferences.data.tasks import QueryFormatter, check_task, check_task_numbers, padding_share
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.runs.checkpoints import check_finite
from lm_human_preferences.runs.folder import Run, model_folder
from lm_human_preferences.runs.params import check_run_params
from lm_human_preferences.runs.tracking import check_tracking

Params = TypeVar("Params")


def settled(params: Params) -> Params:
    """What a run will use: a copy in which a run that was named as start model has become its model folder."""
    params = copy.deepcopy(params)
    stage: Any = params
    policy = stage.task.policy
    policy.initial_model = model_folder(policy.initial_model, stage.run.save_dir, ("lm", "policy"))
    return params


def check_stage(params: Any) -> LabelType:
    """The type of the labels. UserError, naming the flag and the numbers, for parameters that no such stage can
    have.
    """
    check_run_params(params.run)
    check_tracking(params.tracking)
    check_task_numbers(params.task)
    return check_labels(params.labels, params.batch_size)


def check_positive(params: Any, *names: str) -> None:
    """UserError, naming the flag, for the first of these parameters that is no finite number above 0."""
    for name in names:
        if not 0 < getattr(params, name) < math.inf:
            raise UserError(f"--{name} {getattr(params, name)}: must be positive")


def check_at_least_1(params: Any, *names: str) -> None:
    """UserError, naming the flag, for the first of these parameters that is below 1."""
    for name in names:
        if getattr(params, name) < 1:
            raise UserError(f"--{name} {getattr(params, name)}: must be at least 1")


def read_labels(
    params: Any, kind: LabelType, config: GPT2Config
) -> tuple[QueryFormatter, LabelBatch, LabelBatch | None]:
    """How a model of this architecture sees the task's queries; the labels to train on and, if there are any, those to
    measure on, which have no noise. UserError where task, model and labels do not fit together.
    """
    encoding = get_encoding(config)
    check_task(params.task, encoding, config.n_ctx)
    train, valid = load_train_and_valid(params.labels, kind, params.task, encoding)
    if params.labels.noise:
        train = flipped(train, kind, params.labels.noise, generator_for(noise_seed(params), "labels/noise"))
    return QueryFormatter.of(params.task, encoding), train, valid


def noise_seed(params: Any) -> int:
    """The seed of what `labels.noise` makes wrong."""
    labels = params.labels
    return int(params.run.seed if labels.noise_seed is None else labels.noise_seed)


def inputs_of(params: Any) -> dict[str, str | None]:
    """What such a stage reads, by flag: it must be the same when a run is resumed."""
    return {
        "task.policy.initial_model": params.task.policy.initial_model,
        "labels.source": params.labels.source,
        "labels.valid_source": params.labels.valid_source,
    }


def label_padding(labels: LabelBatch, padding_token: int) -> dict[str, float]:
    """How much of the training labels' queries and responses is padding, as metrics."""
    return {
        "labels/query_padding": padding_share(labels.queries, padding_token),
        "labels/response_padding": padding_share(labels.responses, padding_token),
    }


def batch_of_epochs(params: Any, purpose: str, step: int) -> torch.Tensor:
    """Indices of the labels of global batch `step`, int64 [batch_size]: a slice of its epoch's permutation of all.
    purpose: of the generator that draws the permutation.
    """
    count, size = params.labels.num_train, params.batch_size
    epoch, start = divmod(step * size, count)
    return torch.randperm(count, generator=generator_for(params.run.seed, purpose, epoch))[start : start + size]


def choice_error(accuracy: float, count: int) -> float:
    """Standard error of a share of `count` choices, as if two more were right and two more wrong (Agresti and Coull
    1998): also where all are right, or none, a few choices say little.
    """
    share = (accuracy * count + 2) / (count + 4)
    return math.sqrt(share * (1 - share) / (count + 4))


def write_result(
    run: Run,
    name: str,
    model: nn.Module,
    save: Callable[[Path, dict[str, Any]], None],
    note: dict[str, Any],
    result: dict[str, float],
    told: str,
    world: World,
) -> Path:
    """Write what a run came to and drop its checkpoints; returns the model folder. All ranks call it.

    name: of the folder in the run's; save: writes it, with a note (`note` and the result) that stays beside the
    weights; result: numbers that are not finite are left out; told: what the run says at its end, before the folder.
    """
    result = {key: value for key, value in result.items() if math.isfinite(value)}
    folder = run.folder / name
    check_finite(dict(model.named_parameters()), name.replace("_", " "), world)
    save(folder, {**note, **result})
    if world.is_main:
        write_json(run.folder / "result.json", result)
    run.checkpoints.drop()
    run.say(f"{told} in {folder}")
    world.barrier()
    return folder
