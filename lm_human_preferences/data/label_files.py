"""Label files in and out.

Two forms are the project's own. The original's JSON is a list of objects with token lists (`query`, `sample0`, ...,
`best`); the readable JSONL has texts, a line a label: {"query": text, "responses": [text, ...], "best": 2}. In the
place of `best` a choice may have `target`, a distribution over the responses. A ranking has `ranking`, a list of
responses' numbers, the best first, of all of them or of the first ones. Files of other forms (`data/exchange/`) are
read as the second. A source may be a web address: the file is fetched once and its digest checked at each use.
Original: train_reward.py download_labels.

Token lists are of GPT-2's own encoding, padding 50259, also for a model with added tokens, one of which may have that
number. Labels that hold added tokens are texts.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_human_preferences.compute.torchrun import is_first_to_say
from lm_human_preferences.data.exchange.files import read_file, write_json_records
from lm_human_preferences.data.exchange.forms import LabelFile, fitting_form
from lm_human_preferences.data.exchange.reading import ReadingParams, whole_characters
from lm_human_preferences.data.labels import LabelBatch, LabelParams, LabelType, label_type
from lm_human_preferences.data.queries import downloads_folder
from lm_human_preferences.data.tasks import TaskParams, closing_token
from lm_human_preferences.foundation.downloads import cached
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.language.encoding import Encoding


def is_address(source: str) -> bool:
    return "://" in source


def local_file(source: str) -> Path:
    """The file of a source; what is on the web is fetched into datasets/downloads/. Raises UserError if it is not
    there.
    """
    path = cached(source, downloads_folder()) if is_address(source) else find_path(source)
    if not path.is_file():
        raise UserError(f"the label file {path} does not exist; prepare the data set first, or name another file")
    return path


def load_labels(
    source: str,
    kind: LabelType,
    task: TaskParams,
    encoding: Encoding,
    limit: int | None = None,
    skip: int = 0,
    learnable: bool = True,
    reading: ReadingParams | None = None,
) -> LabelBatch:
    """The labels skip .. skip + limit of a file. Other fields of the file are ignored.

    Says in one line what the task's lengths cut off, and how many labels thereby show the same response twice. Raises
    UserError, naming file, entry and what was expected, for a file that is not JSON, lacks a key, has a token out of
    range, an answer out of range or a length other than the task's; where there is no label; and, if they must be
    `learnable`, where the responses of every label are the same.
    """
    labels = load_labels_if_any(source, kind, task, encoding, limit, skip, learnable, reading)
    if labels is None:
        raise UserError(f"{local_file(source)} has no labels{f' after the first {skip}' if skip else ''}")
    return labels


def load_labels_if_any(
    source: str,
    kind: LabelType,
    task: TaskParams,
    encoding: Encoding,
    limit: int | None = None,
    skip: int = 0,
    learnable: bool = True,
    reading: ReadingParams | None = None,
) -> LabelBatch | None:
    """As `load_labels`, but None where there are none."""
    path, names = local_file(source), kind.response_names()
    vocabulary = frozenset((*range(encoding.n_vocab), encoding.padding_token))
    tokens, answers, cut = array("i"), [], _Cut()
    file = LabelFile(path, reading)
    records = islice(file, skip, None if limit is None else skip + limit)
    for number, (place, entry) in enumerate(records, skip):
        where = f"{path}, label {number}" if file.is_ours else place
        label = _label_of_tokens(entry, kind, task, encoding, where, cut)
        for name in ("query", *names):
            length = task.query_length if name == "query" else task.response_length
            tokens.extend(_checked_tokens(label[name], length, vocabulary, encoding, f"{where}: {name}"))
        if label["query"][0] == encoding.padding_token:
            raise UserError(f"{where}: query is empty: it starts with padding")
        answers.append(_answer(label, kind, where))
    if not answers:
        return None
    rows = torch.from_numpy(np.frombuffer(tokens, np.int32)).view(len(answers), -1)
    batch = LabelBatch(
        rows[:, : task.query_length],
        rows[:, task.query_length :].view(len(answers), len(names), -1),
        _targets(answers, kind),
    )
    twice, throughout = _same_responses(batch)
    first = f"the first {task.response_length} tokens (--task.response_length)"
    if learnable and throughout == len(batch):
        raise UserError(
            f"{path}: each label's responses are all the same in {first}: nothing can be learnt from them; raise it "
            "where they differ later"
        )
    notes = file.reading.notes() + cut.notes(task)
    if twice:
        notes.append(
            f"{twice:,} of {len(batch):,} labels show the same response twice in {first}"
            + (f", {throughout:,} of them no other" if throughout else "")
        )
    _say(path, notes)
    return batch


class _Cut:
    """Counts the texts that a task's lengths cut."""

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()

    def padded(self, tokens: list[int], length: int, padding_token: int, noun: str) -> list[int]:
        """`tokens` cut to `length` on the right, or filled up to it."""
        self.texts[noun] += 1
        self.cut[noun] += len(tokens) > length
        return (tokens + [padding_token] * length)[:length]

    def notes(self, task: TaskParams) -> list[str]:
        lengths = {"queries": "query_length", "responses": "response_length"}
        return [
            f"{self.cut[noun]:,} of {self.texts[noun]:,} {noun} are longer than --task.{name} {getattr(task, name)} "
            "and cut there"
            for noun, name in lengths.items()
            if self.cut[noun]
        ]


def _same_responses(batch: LabelBatch) -> tuple[int, int]:
    """How many labels show some response twice, and how many of these show no other."""
    responses = batch.responses
    pairs = list(combinations(range(responses.shape[1]), 2))
    if not pairs:
        return 0, 0
    same = torch.stack([(responses[:, i] == responses[:, j]).all(1) for i, j in pairs], 1)
    return int(same.any(1).sum()), int(same.all(1).sum())


def _say(path: Path, notes: list[str]) -> None:
    if notes and is_first_to_say(line := f"{path}: {'; '.join(notes)}"):
        print(line)


def _label_of_tokens(
    entry: object, kind: LabelType, task: TaskParams, encoding: Encoding, where: str, cut: _Cut
) -> dict[str, Any]:
    """An entry as it stands, or with the tokens of its texts. Raises UserError for a missing key."""
    names = ["query", *kind.response_names(), kind.answer]
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object with {', '.join(names)}")
    if kind.is_choice and "target" in entry and kind.answer not in entry:
        names[-1] = "target"
    if "responses" in entry or isinstance(entry.get("query"), str):
        entry = _tokenised(entry, kind, task, encoding, where, cut)
    elif encoding.base is not encoding:
        entry = _with_its_padding(entry, names, encoding, where)
    for name in names:
        if name not in entry:
            raise UserError(f"{where}: the key {name!r} is missing; {kind.name} needs {', '.join(names)}")
    return entry


def _tokenised(
    entry: dict[str, Any], kind: LabelType, task: TaskParams, encoding: Encoding, where: str, cut: _Cut
) -> dict[str, Any]:
    """A label of texts as one of padded token lists. Texts longer than the task's lengths are cut on the right."""
    texts = entry.get("responses", [])
    if (
        not isinstance(entry.get("query"), str)
        or not isinstance(texts, list)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise UserError(f'{where}: expected {{"query": text, "responses": [text, ...]}}')
    if len(texts) != kind.n_responses:
        raise UserError(f"{where}: {kind.name} needs {kind.n_responses} responses, found {len(texts)}")
    end, padding = closing_token(task, encoding), encoding.padding_token
    result = {name: value for name, value in entry.items() if name not in ("query", "responses")}
    result["query"] = cut.padded(encoding.encode(entry["query"]), task.query_length, padding, "queries")
    for name, text in zip(kind.response_names(), texts, strict=True):
        tokens = encoding.encode(text)
        written = tokens[-1:] == end and end != [encoding.end_of_text]  # an added token may stand in the text
        closed = tokens if written else tokens + end
        result[name] = cut.padded(closed, task.response_length, padding, "responses")
    return result


def _with_its_padding(entry: dict[str, Any], names: list[str], encoding: Encoding, where: str) -> dict[str, Any]:
    """A label of token lists, which are GPT-2's own, for an encoding with added tokens: padding has another number."""
    base, result = encoding.base, dict(entry)
    for name in names:
        tokens = entry.get(name)
        if not isinstance(tokens, list) or not set(map(type, tokens)) <= {int}:
            continue
        added = [token for token in tokens if token >= base.n_vocab and token != base.padding_token]
        if added:
            raise UserError(
                f"{where}: {name}: token {added[0]} is none of GPT-2's own, which token lists are of; write labels "
                "that hold added tokens as texts"
            )
        result[name] = [encoding.padding_token if token == base.padding_token else token for token in tokens]
    return result


def _checked_tokens(
    value: object, length: int, vocabulary: frozenset[int], encoding: Encoding, where: str
) -> list[int]:
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:  # a bool is not a token
        raise UserError(f"{where}: expected a list of {length} token ids")
    if len(value) != length:
        raise UserError(f"{where} has {len(value)} tokens, the task's length is {length}")
    if not vocabulary.issuperset(value):
        token = next(token for token in value if token not in vocabulary)
        raise UserError(
            f"{where}: token {token} is out of range (0..{encoding.n_vocab - 1}, or {encoding.padding_token} for "
            "padding)"
        )
    return value


def _answer(label: dict[str, Any], kind: LabelType, where: str) -> int | float | list[int] | list[float]:
    """The answer as it stands in `LabelBatch.target`. UserError for one that cannot be."""
    if kind.is_ranking:
        return _ranking(label[kind.answer], kind.n_responses, where)
    if kind.is_choice and kind.answer not in label:
        return _distribution(label["target"], kind.n_responses, where)
    value = label[kind.answer]
    if kind.is_choice:
        if type(value) is not int or not 0 <= value < kind.n_responses:
            raise UserError(f"{where}: 'best' is {value!r}; it must be a whole number from 0 to {kind.n_responses - 1}")
        return value
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not abs(value) <= torch.finfo(torch.float32).max
    ):
        raise UserError(f"{where}: {kind.answer!r} is {value!r}; it must be a number")
    return float(value)


def _ranking(value: object, n: int, where: str) -> list[int]:
    if not isinstance(value, list) or not 1 <= len(value) == len(
        {number for number in value if type(number) is int and 0 <= number < n}
    ):
        raise UserError(f"{where}: 'ranking' is {value!r}; it must be a list of different numbers from 0 to {n - 1}")
    return [*value, *(-1 - number for number in range(n) if number not in value)]


def _distribution(value: object, n: int, where: str) -> list[float]:
    if (
        not isinstance(value, list)
        or len(value) != n
        or not all(type(share) in (int, float) and 0 <= share <= 1 for share in value)
        or abs(sum(value) - 1) > 1e-3
    ):
        raise UserError(f"{where}: 'target' is {value!r}; it must be {n} shares from 0 to 1 that sum to 1")
    return [share / sum(value) for share in value]


def _targets(answers: list[Any], kind: LabelType) -> torch.Tensor:
    """All answers as `LabelBatch.target`; choices whose distributions each have one response alone are indices."""
    if kind.is_choice and any(isinstance(answer, list) for answer in answers):
        eye = torch.eye(kind.n_responses)
        rows = torch.stack([torch.tensor(answer) if isinstance(answer, list) else eye[answer] for answer in answers])
        return rows.argmax(1) if bool((rows.amax(1) == 1).all()) else rows
    return torch.tensor(answers, dtype=torch.int64 if kind.is_choice or kind.is_ranking else torch.float32)


def load_texts(path: str, task: TaskParams, encoding: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Given responses, padded: queries int64 [n, Q] and responses int64 [n, R] of a file of {"query": text,
    "response": text}, or of a label file in any form the chosen responses or all that are rated. Texts are cut as
    `load_labels` cuts them. UserError for a file that is neither.
    """
    if not is_address(path) and not Path(path).is_file():
        raise UserError(f"the file of texts {path} does not exist")
    entries = read_file(local_file(path), "row")
    start, first = next(entries, ("", None))
    answers = {"best", "target", "ranking", "score"}
    if isinstance(first, dict) and "response" not in first and (answers.intersection(first) or fitting_form(first)):
        batch = load_labels(path, kind := infer_kind(path), task, encoding).to(torch.device("cpu"))
        if kind.n_responses == 1:
            return batch.queries, batch.responses[:, 0]
        return batch.queries, batch.responses[torch.arange(len(batch)), batch.best]
    rows, rating, cut = [], label_type("scalar_rating"), _Cut()
    for where, entry in chain([(start, first)] if start else [], entries):
        if (
            not isinstance(entry, dict)
            or not all(isinstance(entry.get(key), str) for key in ("query", "response"))
            or not entry["query"]
        ):
            raise UserError(
                f'{where}: expected {{"query": text, "response": text}}, or choices with responses and best'
            )
        texts = {"query": entry["query"], "responses": [entry["response"]]}
        rows.append(_tokenised(texts, rating, task, encoding, where, cut))
    if not rows:
        raise UserError(f"{path} has no texts")
    _say(Path(path), cut.notes(task))
    return torch.tensor([row["query"] for row in rows]), torch.tensor([row["sample"] for row in rows])


# --- files of any task ---


def infer_kind(source: str, reading: ReadingParams | None = None) -> LabelType:
    """The type of a file's labels, from the keys of its first. Raises UserError if they are none that is known."""
    path = local_file(source)
    for where, entry in LabelFile(path, reading):
        return kind_of(entry, where)
    raise UserError(f"{path} has no labels")


def kind_of(entry: object, where: str) -> LabelType:
    """The type of a label, from its keys. Raises UserError if they are none that is known."""
    keys = entry.keys() if isinstance(entry, dict) else set()
    samples = (
        len(entry["responses"])
        if isinstance(entry, dict) and isinstance(entry.get("responses"), list)
        else sum(f"sample{i}" in keys for i in range(len(keys)))
    )
    for answer, name in (
        ("best", f"best_of_{samples}"),
        ("target", f"best_of_{samples}"),
        ("ranking", f"ranking_of_{samples}"),
        ("difference", "scalar_compare"),
        ("score", "scalar_rating"),
    ):
        if answer in keys and (answer not in ("best", "target", "ranking") or samples >= 2):
            return label_type(name)
    raise UserError(
        f"{where}: expected the answer in 'best', 'target' or 'ranking' (of two or more samples), 'score' or "
        f"'difference'; it has {', '.join(keys) or 'no keys'}"
    )


def label_texts(file: LabelFile, kind: LabelType | None = None) -> Iterator[dict[str, Any]]:
    """The labels of a file of texts, checked, with all that they say. `kind`: what they must be; None takes each as it
    is. UserError, naming file and entry, for one that is not a label of texts.
    """
    for where, entry in file:
        one = kind or kind_of(entry, where)
        if (
            not isinstance(entry, dict)
            or not _are_texts([entry.get("query")])
            or not _are_texts(entry.get("responses"))
        ):
            raise UserError(f'{where}: expected {{"query": text, "responses": [text, ...]}}')
        texts = entry["responses"]
        if len(texts) != one.n_responses:
            raise UserError(f"{where}: {one.name} needs {one.n_responses} responses, found {len(texts)}")
        if one.answer not in entry and not (one.is_choice and "target" in entry):
            raise UserError(f"{where}: the key {one.answer!r} is missing")
        _answer(entry, one, where)
        yield entry | {
            "query": whole_characters(entry["query"]),
            "responses": [whole_characters(text) for text in texts],
        }


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def are_tokens(file: LabelFile) -> bool:
    """Whether a file's labels are lists of tokens, as its first one is."""
    _, first = next(iter(file), ("", None))
    return isinstance(first, dict) and isinstance(first.get("query"), list)


def infer_lengths(
    source: str, kind: LabelType, encoding: Encoding, reading: ReadingParams | None = None
) -> tuple[int, int]:
    """Tokens of query and response: of the first label's lists, or of the longest texts where labels are texts."""
    query = response = 1
    for _, entry in LabelFile(local_file(source), reading):
        if not isinstance(entry, dict):
            break  # reading the file whole says what is wrong
        if isinstance(entry.get("query"), list):
            first = entry.get(kind.response_names()[0])
            return len(entry["query"]) or 1, len(first) if isinstance(first, list) and first else 1
        responses = entry.get("responses")
        texts = [
            text
            for text in [entry.get("query"), *(responses if isinstance(responses, list) else [])]
            if isinstance(text, str)
        ]
        sizes = [len(tokens) for tokens in encoding.encode_batch(texts)]
        query, response = max(query, *sizes[:1], 1), max(response, *sizes[1:], 1)
    return query, response


def readable_label(batch: LabelBatch, index: int, kind: LabelType, encoding: Encoding) -> dict[str, Any]:
    """One label as texts. What ends a response with <|endoftext|> is left out; padding decodes to nothing."""

    def text(tokens: torch.Tensor) -> str:
        real = [token for token in tokens.tolist() if token != encoding.padding_token]
        return encoding.decode(real[:-1] if real and real[-1] == encoding.end_of_text else real)

    return {
        "query": text(batch.queries[index]),
        "responses": [text(response) for response in batch.responses[index]],
        **_answer_as_written(batch, index, kind),
    }


def token_label(batch: LabelBatch, index: int, kind: LabelType, encoding: Encoding) -> dict[str, Any]:
    """One label as the original writes it. UserError if it holds an added token."""
    padding, base = encoding.padding_token, encoding.base

    def listed(tokens: torch.Tensor) -> list[int]:
        row: list[int] = tokens.tolist()
        if any(token >= base.n_vocab and token != padding for token in row):
            raise UserError(
                f"label {index} holds an added token, and token lists are of GPT-2's own; write texts, to a .jsonl file"
            )
        return [base.padding_token if token == padding else token for token in row]

    samples = {name: listed(batch.responses[index, n]) for n, name in enumerate(kind.response_names())}
    return {"query": listed(batch.queries[index]), **samples, **_answer_as_written(batch, index, kind)}


def _answer_as_written(batch: LabelBatch, index: int, kind: LabelType) -> dict[str, Any]:
    """The answer of one label under the key that files have."""
    answer = batch.target[index].tolist()
    if kind.is_ranking:
        return {"ranking": [number for number in answer if number >= 0]}
    return {"target" if isinstance(answer, list) else kind.answer: answer}


def save_labels(path: Path, labels: Iterator[dict[str, Any]]) -> int:
    """Write labels, atomically: .jsonl a line each, .json one list. Returns how many."""
    return write_json_records(path, labels)


def load_train_and_valid(
    params: LabelParams, kind: LabelType, task: TaskParams, encoding: Encoding
) -> tuple[LabelBatch, LabelBatch | None]:
    """Training labels (the first num_train) and held-out ones, None if there are none. UserError if there are too
    few.
    """
    following = 0 if params.valid_source else params.num_valid  # held-out labels that follow in the same file
    labels = load_labels(params.source, kind, task, encoding, limit=params.num_train + following, reading=params)
    if len(labels) < params.num_train:
        raise UserError(f"{params.source} has {len(labels)} labels, --labels.num_train asks for {params.num_train}")
    if params.valid_source and params.num_valid:
        return labels, load_labels(params.valid_source, kind, task, encoding, limit=params.num_valid, reading=params)
    train, valid = labels.rows(slice(params.num_train)), labels.rows(slice(params.num_train, None))
    return train, valid if len(valid) else None
