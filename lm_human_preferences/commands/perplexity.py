"""How well a language model predicts held-out text: `python launch.py perplexity MODEL DATASET [DATASET ...]`."""

import math
from dataclasses import dataclass

import numpy as np

from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.queries import dataset_folder
from lm_human_preferences.data.rows import ReferenceRows, Rows, make_rows
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.calibration import ratio_of_sums
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.next_token import NextTokenLoss, row_losses
from lm_human_preferences.runs.folder import model_and_task

KINDS = ("packed", "documents", "single")
QUANTILE = 1.96  # of the normal distribution, for a 95% interval


@dataclass
class PerplexityParams:
    """What is predicted, and in which rows."""

    split: str = param("valid", "split of the data sets")
    rows: str = param(
        "packed",
        "packed: the stream of all tokens cut every `block` tokens; documents: each row begins a document; single: a "
        "document a row, as far as the row reaches",
    )
    block: int | None = param(
        None, "tokens in a row, the longest context that a token is predicted from; none takes the model's context"
    )
    limit: int = param(0, "rows to read, the first ones; 0 reads all")
    against: str | None = param(
        None, "another run or model folder, for the same rows: how many times its perplexity the model's is", "path"
    )
    micro_batch: int = param(32, "rows in memory at once")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto, float32 or bfloat16")


def perplexity_lines(model: str, datasets: tuple[str, ...], params: PerplexityParams) -> list[str]:
    """A line for each data set: its perplexity, exp of the mean negative log-likelihood of a token, with its 95%
    interval, and over how many rows. With `against` a second one: the other model's, and the quotient.

    model: a run or a model folder; datasets: folders, or names of folders in datasets/. UserError for what is not there
    or does not fit. Intervals take rows for independent (judging/calibration.py: ratio_of_sums).
    """
    check(params)
    precision = choose_precision(params.device, params.precision)
    models = {name: _loaded(name, params, precision) for name in (model, params.against) if name is not None}
    block = params.block or min(loss.transformer.config.n_ctx for loss in models.values())
    sets = {
        name: [
            make_rows(dataset_folder(name), params.split, params.rows, block, loss.transformer.config)
            for loss in models.values()
        ]
        for name in datasets
    }
    lines = []
    for name, rows in sets.items():
        found = [
            row_losses(loss, of_model, params.limit, precision, params.micro_batch, describe=name).numpy()
            for loss, of_model in zip(models.values(), rows, strict=True)
        ]
        lines.append(f"{name}, {params.split}: {_described(found[0], rows[0], params)}")
        if params.against is not None:
            other = f"  {params.against}: {_described(found[-1], rows[-1], params)}"
            times = _exp_interval(found[0][:, 0] - found[-1][:, 0], found[0][:, 1], 3)
            lines += [other, f"  {times} times the perplexity of {params.against}"]
    return lines


def check(params: PerplexityParams) -> None:
    """Raises UserError, naming the flag, for numbers and words that cannot be."""
    for name, least in (("limit", 0), ("micro_batch", 1), ("block", 1)):
        if (value := getattr(params, name)) is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if params.rows not in KINDS:
        raise UserError(f"--rows {params.rows}: must be {', '.join(KINDS[:-1])} or {KINDS[-1]}")


def _loaded(name: str, params: PerplexityParams, precision: Precision) -> NextTokenLoss:
    folder, _ = model_and_task(name, params.save_dir)
    return NextTokenLoss(load_model(folder)).to(precision.device)


def _described(losses: np.ndarray, rows: Rows | ReferenceRows, params: PerplexityParams) -> str:
    """Perplexity of rows float64 [n, 2] of summed losses and tokens, and what it is of."""
    nats = losses[:, 0].sum() / losses[:, 1].sum()
    of_each = np.exp(losses[:, 0] / losses[:, 1]).mean()
    texts = f"mean of the texts' own {of_each:.1f}; " if params.rows == "single" else ""
    interval = _exp_interval(losses[:, 0], losses[:, 1], 1).partition(" ")[2]
    return (
        f"perplexity {math.exp(nats):.1f} ({nats:.4f} nats per token; 95% interval {interval}; {texts}"
        f"{len(losses):,} rows of {rows.block} tokens)"
    )


def _exp_interval(numerators: np.ndarray, denominators: np.ndarray, digits: int) -> str:
    """exp of a ratio of sums with its 95% interval, as `value [low, high]`."""
    estimate = ratio_of_sums(numerators, denominators)
    value, error = estimate["value"], estimate["standard_error"]
    assert value is not None and error is not None  # a row has a token at least
    low, middle, high = (math.exp(value + sign * QUANTILE * error) for sign in (-1, 0, 1))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
