"""A file's labels in another form: `python launch.py labels convert SOURCE OUTPUT`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm_human_preferences.commands.inspect_labels import LabelToolParams, check, read
from lm_human_preferences.data.exchange.files import WRITTEN
from lm_human_preferences.data.exchange.forms import OURS, WRITERS, LabelFile, write_labels
from lm_human_preferences.data.exchange.merging import merged
from lm_human_preferences.data.exchange.pairs import more_of
from lm_human_preferences.data.exchange.reading import Label
from lm_human_preferences.data.label_files import (
    are_tokens,
    label_texts,
    local_file,
    readable_label,
    save_labels,
    token_label,
)
from lm_human_preferences.data.labels import LabelBatch, label_type
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.model_folders import encoding_named

USUAL = {".json": OURS, ".jsonl": OURS, ".csv": "table", ".parquet": "pairs"}  # the form that a name's end asks for
BATCH = 32  # of the tasks; labels to train on are a multiple of it


def convert(source: str, output: str, params: LabelToolParams) -> str:
    """Write a file's labels in another form; returns what to tell. Raises UserError if the output is there, its name
    ends otherwise, or the form has no place for the labels.
    """
    check(params)
    target = Path(output)
    if target.suffix not in WRITTEN:
        raise UserError(
            f"{output}: must end in .json (token lists, the original's form), .jsonl (texts), .csv or .parquet"
        )
    if params.to is not None and params.to != OURS and params.to not in WRITERS:
        raise UserError(f"--to {params.to}: must be {OURS}, {', '.join(WRITERS)}")
    if target.exists() and not params.overwrite:
        raise UserError(f"{output} exists already; give another name, or --overwrite to replace it")
    form = params.to or USUAL[target.suffix]
    if form == OURS and target.suffix not in (".json", ".jsonl"):
        raise UserError(f"{output}: the project's own form ends in .json or .jsonl")
    file = LabelFile(local_file(source), params)
    if form == OURS and target.suffix == ".json":
        return _as_tokens(source, output, file, params)
    told: list[str] = []
    labels = _readable(source, file, params, told)
    if form == OURS:
        total: Counter[str] = Counter()
        count = save_labels(target, _counted(labels, total))
        told.insert(0, f"{output}: {count:,} labels as texts")
        told[1:1] = _hint(output, count, total)
    else:
        count = write_labels(target, labels, form, file.reading)
        told.insert(0, f"{output}: {count:,} records, form {form}")
    return "\n".join([told[0], *file.reading.notes(), *told[1:]])


def _readable(source: str, file: LabelFile, params: LabelToolParams, told: list[str]) -> Iterator[Label]:
    """The file's labels as texts, merged if that is wanted; `told` gets what is to be said of them."""
    if are_tokens(file):
        labels = _decoded(source, file, params, told)
    else:
        labels = _cut(label_texts(file, label_type(params.type) if params.type else None), params, file.reading.counts)
    if params.merge:
        labels = merged(labels, params.merge, file.reading.counts)
    first = next(iter(labels := iter(labels)), None)
    if first is None:
        raise UserError("; ".join([f"{source} has no labels", *file.reading.notes()]))
    yield first
    yield from labels


def _decoded(source: str, file: LabelFile, params: LabelToolParams, told: list[str]) -> Iterator[Label]:
    batch, kind, encoding = read(source, params)
    kept = 0
    for number, (_, entry) in enumerate(file):
        label = readable_label(batch, number, kind, encoding)
        kept += _encodes_back(label, batch, number, encoding)
        yield label | _more_of_tokens(entry)
    told.append(
        f"{kept:,} of them encode to the same tokens again"
        + (
            ""
            if kept == len(batch)
            else ", the others were sampled in tokens that the encoder would not choose, or cut within a character"
        )
    )


def _more_of_tokens(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry of tokens or texts says besides query, samples and answer."""
    return {name: value for name, value in more_of(entry).items() if not name.startswith("sample")}


def _cut(labels: Iterable[Label], params: LabelToolParams, counts: Counter[str]) -> Iterator[Label]:
    """Labels whose texts are cut to the lengths that were given, and how many were."""
    encoding = encoding_named(params.encoding)

    def cut(text: str, length: int | None, what: str) -> str:
        if length is None or len(tokens := encoding.encode(text)) <= length:
            return text
        counts[f"{what} {length} and cut there"] += 1
        return encoding.decode(tokens[:length])

    for label in labels:
        yield label | {
            "query": cut(label["query"], params.query_length, "queries are longer than --query_length"),
            "responses": [
                cut(text, params.response_length, "responses are longer than --response_length")
                for text in label["responses"]
            ],
        }


def _as_tokens(source: str, output: str, file: LabelFile, params: LabelToolParams) -> str:
    if params.merge:
        raise UserError("--merge makes labels of texts: give a name that ends in .jsonl, and convert that to .json")
    batch, kind, encoding = read(source, params)
    entries = (_more_of_tokens(entry) for _, entry in file)
    labels = (token_label(batch, number, kind, encoding) | more for number, more in enumerate(entries))
    count = save_labels(Path(output), labels)
    return f"{output}: {count:,} labels as lists of {batch.queries.shape[1]} + {batch.responses.shape[2]} tokens"


def _encodes_back(label: dict[str, Any], batch: LabelBatch, index: int, encoding: Encoding) -> bool:
    for text, tokens in zip(
        [label["query"], *label["responses"]], [batch.queries[index], *batch.responses[index]], strict=True
    ):
        real = [token for token in tokens.tolist() if token != encoding.padding_token]
        if encoding.encode(text) != (real[:-1] if real and real[-1] == encoding.end_of_text else real):
            return False
    return True


def _counted(labels: Iterable[Label], total: Counter[str]) -> Iterator[Label]:
    """The labels, counted by the type that training takes them as."""
    for label in labels:
        n = len(label["responses"])
        answer = next(name for name in ("best", "target", "ranking", "difference", "score") if name in label)
        total[
            {"score": "scalar_rating", "difference": "scalar_compare", "ranking": f"ranking_of_{n}"}.get(
                answer, f"best_of_{n}"
            )
        ] += 1
        yield label


def _hint(output: str, count: int, total: Counter[str]) -> list[str]:
    """How to train on what was written."""
    if len(total) != 1:
        return [f"labels of several types: {', '.join(f'{n:,} {name}' for name, n in total.items())}; train on one"]
    train = int(count * 0.9) // BATCH * BATCH
    if not train:
        return []
    return [
        f"to train on {train:,} and measure on {count - train:,}: --labels.source {output} --labels.type "
        f"{next(iter(total))} --labels.num_train {train} --labels.valid_source none"
    ]
