"""How well a language model predicts held-out text: `python launch.py perplexity MODEL DATASET [DATASET ...]`."""

import math
from dataclasses import dataclass

from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import dataset_folder
from lm_human_preferences.data.rows import make_rows
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.next_token import NextTokenLoss, validate
from lm_human_preferences.runs.folder import model_and_task


@dataclass
class PerplexityParams:
    """What is predicted, and in which rows."""

    split: str = param("valid", "split of the data sets")
    rows: str = param(
        "packed", "packed: the stream of all tokens cut every `block` tokens; documents: each row begins a document"
    )
    block: int | None = param(
        None, "tokens in a row, the longest context that a token is predicted from; none takes the model's context"
    )
    limit: int = param(0, "rows to read, the first ones; 0 reads all")
    micro_batch: int = param(32, "rows in memory at once")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto, float32 or bfloat16")


def perplexity_lines(model: str, datasets: tuple[str, ...], params: PerplexityParams) -> list[str]:
    """A line for each data set: its perplexity, exp of the mean negative log-likelihood of a token, and over how many
    rows.

    model: a run or a model folder; datasets: folders, or names of folders in datasets/. UserError for what is not there
    or does not fit.
    """
    for name, least in (("limit", 0), ("micro_batch", 1), ("block", 1)):
        if (value := getattr(params, name)) is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if params.rows not in ("packed", "documents"):
        raise UserError(f"--rows {params.rows}: must be packed or documents")
    precision = choose_precision(params.device, params.precision)
    folder, _ = model_and_task(model, params.save_dir)
    loss = NextTokenLoss(load_model(folder)).to(precision.device)
    config = loss.transformer.config
    sets = {
        name: make_rows(dataset_folder(name), params.split, params.rows, params.block or config.n_ctx, config)
        for name in datasets
    }
    lines = []
    for name, rows in sets.items():
        nats = validate(loss, rows, params.limit, precision, params.micro_batch, describe=name)
        read = f"{min(params.limit or len(rows), len(rows)):,} rows of {rows.block} tokens"
        lines.append(f"{name}, {params.split}: perplexity {math.exp(nats):.1f} ({nats:.4f} nats per token; {read})")
    return lines
