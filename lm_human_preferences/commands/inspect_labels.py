"""What is in a label file: `python launch.py labels inspect SOURCE`."""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from lm_human_preferences.data.exchange.forms import LabelFile
from lm_human_preferences.data.exchange.merging import MERGES
from lm_human_preferences.data.exchange.reading import ReadingParams
from lm_human_preferences.data.label_files import infer_kind, infer_lengths, load_labels, local_file, readable_label
from lm_human_preferences.data.labels import LabelBatch, LabelType, label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.model_folders import encoding_named

_LOOKED_AT = 100  # labels, to see whether a file says who answered
SURPRISING = 4.0  # standard errors: of a dozen shares none strays this far by chance


@dataclass
class LabelToolParams(ReadingParams):
    """How a label file is read, and written in another form."""

    type: str | None = param(None, "type of the labels; none takes it from the first label's keys")
    encoding: str = param("gpt2", "encoding of the tokens: gpt2, letters, or a model folder, for its added tokens")
    query_length: int | None = param(None, "tokens of a query; none takes the first label's, or the longest text's")
    response_length: int | None = param(
        None, "tokens of a response; none takes the first label's, or the longest text's"
    )
    end_of_text: bool = param(
        False, "close responses that are texts with <|endoftext|>, as tasks do that truncate there"
    )
    examples: int = param(5, "examples to show")
    to: str | None = param(
        None,
        "form to write: ours, pairs, messages, table, summaries, argilla, label_studio; none writes ours, a table as "
        ".csv and pairs as .parquet",
    )
    merge: str | None = param(None, "; ".join(f"{name}: {what}" for name, what in MERGES.items()))
    overwrite: bool = param(False, "replace an output file that is there already")


def check(params: LabelToolParams) -> None:
    """UserError, naming the flag, for numbers that cannot be."""
    for name in ("query_length", "response_length"):
        if (length := getattr(params, name)) is not None and length < 1:
            raise UserError(f"--{name} {length}: must be at least 1, or none")
    if params.examples < 0:
        raise UserError(f"--examples {params.examples}: must not be negative")


def read(source: str, params: LabelToolParams) -> tuple[LabelBatch, LabelType, Encoding]:
    """All labels of a file. Raises UserError as `load_labels` does."""
    encoding = encoding_named(params.encoding)
    kind = label_type(params.type) if params.type else infer_kind(source, params)
    query, response = params.query_length, params.response_length
    if query is None or response is None:
        inferred = infer_lengths(source, kind, encoding, params)
        query = inferred[0] if query is None else query
        response = inferred[1] + params.end_of_text if response is None else response
    if query < 1 or response < 1:
        raise UserError(f"--query_length {query} and --response_length {response} must be at least 1")
    task = TaskParams(
        query_length=query,
        response_length=response,
        truncate_token=encoding.end_of_text if params.end_of_text else None,
    )
    return load_labels(source, kind, task, encoding, learnable=False, reading=params), kind, encoding


def inspect(source: str, params: LabelToolParams) -> str:
    """A page on a label file: counts, whether a position or a length is favoured, duplicates, examples."""
    check(params)
    batch, kind, encoding = read(source, params)
    lengths = (batch.responses != encoding.padding_token).sum(2)  # [B, N]
    query_lengths = (batch.queries != encoding.padding_token).sum(1)
    distinct = len({row.tobytes() for row in batch.queries.numpy()})
    lines = [
        f"{source}: {len(batch):,} labels, {kind.name}, {distinct:,} different queries",
        f"query     {_spread(query_lengths)} of {batch.queries.shape[1]} tokens",
        f"response  {_spread(lengths)} of {batch.responses.shape[2]} tokens",
    ]
    lines += _told(source, params)
    lines += _choices(batch, lengths) if kind.is_choice or kind.is_ranking else _numbers(batch, lengths, kind)
    same = sum(len({row.tobytes() for row in responses}) < len(responses) for responses in batch.responses.numpy())
    if same:
        lines.append(f"{same:,} labels show the same response twice")
    lines += _repetitions(batch)
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


def _told(source: str, params: LabelToolParams) -> list[str]:
    """What the file says beyond its labels: its form, who answered, how sure they were."""
    file = LabelFile(local_file(source), params)
    workers: Counter[object] = Counter()
    sure: Counter[object] = Counter()
    fields = {"worker": workers, "confidence": sure}
    for number, (_, entry) in enumerate(file):
        for name, counts in fields.items():
            if isinstance(entry, dict) and isinstance(entry.get(name), str | int | float):
                counts[entry[name]] += 1
        if number == _LOOKED_AT and not workers and not sure:
            break  # a large file is not read once more for what it does not have
    lines = [] if file.is_ours else [f"form      {file.form}"]
    if workers:
        most = max(workers.values())
        lines.append(f"workers   {len(workers):,}, who gave {most:,} labels at most")
    if sure:
        lines.append(
            "confidence "
            + ", ".join(
                f"{value}: {sure[value]:,}" for value in sorted(sure, key=lambda value: (isinstance(value, str), value))
            )
        )
    return lines


def _repetitions(batch: LabelBatch) -> list[str]:
    """How many labels repeat an earlier one, and how many questions (a query with its responses, in any order) have
    more than one answer.
    """
    answers: dict[object, Counter[object]] = {}
    for query, responses, target in zip(batch.queries.numpy(), batch.responses.numpy(), batch.target, strict=True):
        texts = [row.tobytes() for row in responses]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        question = (query.tobytes(), *(texts[place] for place in order))
        given = target.tolist()
        if isinstance(given, list):
            answer: object = tuple(given[place] for place in order)
            if not batch.target.is_floating_point():  # a ranking
                answer = tuple(texts[place] for place in given if place >= 0)
        else:
            answer = texts[given] if not batch.target.is_floating_point() else given
        answers.setdefault(question, Counter())[answer] += 1
    repeated = sum(count - 1 for counts in answers.values() for count in counts.values())
    several = [counts for counts in answers.values() if len(counts) > 1]
    lines = [f"{repeated:,} labels repeat an earlier one: same query, responses and answer"] if repeated else []
    if several:
        labels = sum(sum(counts.values()) for counts in several)
        lines.append(
            f"{len(several):,} questions have more than one answer, in {labels:,} labels that contradict each other"
        )
    return lines


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
    if shares[0] == 1:
        lines = ["best at position 0 throughout: the file has the chosen one first"]
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
