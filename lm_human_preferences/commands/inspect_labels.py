"""What is in a label file, and the same labels in the other form: `python launch.py labels inspect SOURCE`, `labels
convert SOURCE OUTPUT`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm_human_preferences.data.label_files import (
    infer_kind,
    infer_lengths,
    load_labels,
    readable_label,
    save_labels,
    token_label,
)
from lm_human_preferences.data.labels import LabelBatch, LabelType, label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import ENCODINGS, Encoding, get_encoding

SURPRISING = 4.0  # standard errors: of a dozen shares none strays this far by chance


@dataclass
class LabelToolParams:
    """How a label file is read."""

    type: str | None = param(None, "type of the labels; none takes it from the first label's keys")
    encoding: str = param("gpt2", "encoding of the tokens: gpt2 or letters")
    query_length: int | None = param(None, "tokens of a query; none takes the first label's, or the longest text's")
    response_length: int | None = param(
        None, "tokens of a response; none takes the first label's, or the longest text's"
    )
    end_of_text: bool = param(
        False, "close responses that are texts with <|endoftext|>, as tasks do that truncate there"
    )
    examples: int = param(5, "examples to show")
    overwrite: bool = param(False, "replace an output file that is there already")


def read(source: str, params: LabelToolParams) -> tuple[LabelBatch, LabelType, Encoding]:
    """All labels of a file. Raises UserError as `load_labels` does."""
    if params.encoding not in ENCODINGS:
        raise UserError(f"--encoding {params.encoding}: must be {' or '.join(ENCODINGS)}")
    encoding = get_encoding(params.encoding)
    kind = label_type(params.type) if params.type else infer_kind(source)
    query, response = params.query_length, params.response_length
    if query is None or response is None:
        inferred = infer_lengths(source, kind, encoding)
        query, response = query or inferred[0], response or inferred[1] + params.end_of_text
    if query < 1 or response < 1:
        raise UserError(f"--query_length {query} and --response_length {response} must be at least 1")
    task = TaskParams(
        query_length=query,
        response_length=response,
        truncate_token=encoding.end_of_text if params.end_of_text else None,
    )
    return load_labels(source, kind, task, encoding, learnable=False), kind, encoding


def inspect(source: str, params: LabelToolParams) -> str:
    """A page on a label file: counts, whether a position or a length is favoured, duplicates, examples."""
    batch, kind, encoding = read(source, params)
    lengths = (batch.responses != encoding.padding_token).sum(2)  # [B, N]
    query_lengths = (batch.queries != encoding.padding_token).sum(1)
    distinct = len({row.tobytes() for row in batch.queries.numpy()})
    lines = [
        f"{source}: {len(batch):,} labels, {kind.name}, {distinct:,} different queries",
        f"query     {_spread(query_lengths)} of {batch.queries.shape[1]} tokens",
        f"response  {_spread(lengths)} of {batch.responses.shape[2]} tokens",
    ]
    lines += _choices(batch, lengths) if kind.is_choice or kind.is_ranking else _numbers(batch, lengths, kind)
    same = sum(len({row.tobytes() for row in responses}) < len(responses) for responses in batch.responses.numpy())
    if same:
        lines.append(f"{same:,} labels show the same response twice")
    for index in torch.linspace(0, len(batch) - 1, min(params.examples, len(batch))).round().long().tolist():
        label = readable_label(batch, index, kind, encoding)
        lines += ["", f"label {index}: {label['query']!r}"]
        for n, text in enumerate(label["responses"]):
            mark = "best ->" if kind.is_choice and n == label.get("best") else "       "
            lines.append(f"  {mark} {n}: {text!r}")
        lines += [
            f"  {name}: {value if isinstance(value, list) else format(value, 'g')}"
            for name, value in label.items()
            if name not in ("query", "responses", "best")
        ]
    return "\n".join(lines)


def _spread(values: torch.Tensor) -> str:
    return f"{float(values.float().mean()):.1f} ({int(values.min())} to {int(values.max())})"


def position_shares(best: torch.Tensor, n: int) -> tuple[list[float], float]:
    """How often each of n positions is the best [B], and the standard error of such a share if all are alike."""
    return (torch.bincount(best, minlength=n).double() / len(best)).tolist(), math.sqrt(
        (1 / n) * (1 - 1 / n) / len(best)
    )


def _choices(batch: LabelBatch, lengths: torch.Tensor) -> list[str]:
    n = batch.responses.shape[1]
    shares, error = position_shares(batch.best, n)
    lines = [f"best at position {at}: {share:.1%}{_warning(share, 1 / n, error)}" for at, share in enumerate(shares)]
    lines[0] += f"   (alike they would be {1 / n:.1%}, give or take {error:.1%})"
    best = lengths.gather(1, batch.best[:, None])[:, 0]
    different = lengths.min(1).values < lengths.max(1).values
    if different.any():
        longest = (best == lengths.max(1).values)[different].double().mean()
        shortest = (best == lengths.min(1).values)[different].double().mean()
        others = (lengths.sum(1) - best).double() / (n - 1)
        lines.append(
            f"best: {float(best.double().mean()):.1f} tokens long, the others {float(others.mean()):.1f}; it is a "
            f"longest one in {float(longest):.1%}, a shortest one in {float(shortest):.1%} of the labels whose lengths "
            "differ"
        )
    return lines


def _warning(share: float, expected: float, error: float) -> str:
    return (
        f"  <- {(share - expected) / error:+.0f} standard errors: is the order of the responses random?"
        if abs(share - expected) > SURPRISING * error
        else ""
    )


def _numbers(batch: LabelBatch, lengths: torch.Tensor, kind: LabelType) -> list[str]:
    values = batch.target.double()
    line = (
        f"{kind.answer}: mean {float(values.mean()):.3f}, deviation {float(values.std(correction=0)):.3f}, "
        f"{float(values.min()):g} to {float(values.max()):g}"
    )
    size = lengths[:, -1].double() - (lengths[:, 0].double() if kind.answer == "difference" else 0)
    if len(values) > 1 and values.std() > 0 and size.std() > 0:
        what = "the difference of lengths" if kind.answer == "difference" else "length"
        line += f", correlation with {what} {float(torch.corrcoef(torch.stack([values, size]))[0, 1]):.2f}"
    return [line]


def convert(source: str, output: str, params: LabelToolParams) -> str:
    """Write a file's labels in the other form; returns what to tell. Raises UserError if the output is there or its
    name ends otherwise.
    """
    target = Path(output)
    if target.suffix not in (".json", ".jsonl"):
        raise UserError(f"{output}: must end in .json (token lists, the original's form) or .jsonl (texts)")
    if target.exists() and not params.overwrite:
        raise UserError(f"{output} exists already; give another name, or --overwrite to replace it")
    batch, kind, encoding = read(source, params)
    if target.suffix == ".json":
        count = save_labels(target, (token_label(batch, i, kind) for i in range(len(batch))))
        return f"{output}: {count:,} labels as lists of {batch.queries.shape[1]} + {batch.responses.shape[2]} tokens"
    kept = 0

    def texts() -> Iterator[dict[str, Any]]:
        nonlocal kept
        for i in range(len(batch)):
            label = readable_label(batch, i, kind, encoding)
            kept += _encodes_back(label, batch, i, encoding)
            yield label

    count = save_labels(target, texts())
    return f"{output}: {count:,} labels as texts; {kept:,} of them encode to the same tokens again" + (
        ""
        if kept == count
        else ", the others were sampled in tokens that the encoder would not choose, or cut within a character"
    )


def _encodes_back(label: dict[str, Any], batch: LabelBatch, index: int, encoding: Encoding) -> bool:
    for text, tokens in zip(
        [label["query"], *label["responses"]], [batch.queries[index], *batch.responses[index]], strict=True
    ):
        real = [token for token in tokens.tolist() if token != encoding.padding_token]
        if encoding.encode(text) != (real[:-1] if real and real[-1] == encoding.end_of_text else real):
            return False
    return True
