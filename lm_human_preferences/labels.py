"""Human labels: their types and losses, and label files in and out.

Two forms of a file are read. The original's JSON is a list of objects with token lists (`query`, `sample0`, ..., `best`); the readable JSONL
has texts, a line a label: {"query": text, "responses": [text, ...], "best": 2}. Original: label_types.py, train_reward.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from lm_human_preferences.configuration import param
from lm_human_preferences.errors import UserError
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.tasks import TaskParams


@dataclass
class LabelParams:
    """Which labels."""

    type: str = param("best_of_4", "best_of_N for any N, scalar_rating or scalar_compare (also called scalar_comparison)")
    num_train: int = param(4992, "labels to train on: the first of the file; a multiple of the batch size")
    source: str = param("", "label file (JSON of token lists or JSONL of texts)")
    valid_source: str | None = param(None, "label file to measure on; none takes what the source has beyond num_train")
    num_valid: int = param(2000, "labels to measure on, at most")


@dataclass
class LabelBatch:
    """Labels as tensors. `target` is the best response's index (int64) for best_of_N, else a float32 rating or difference."""

    queries: torch.Tensor  # int64 [B, Q]
    responses: torch.Tensor  # int64 [B, N, R]; N is 1 for scalar_rating, 2 for scalar_compare
    target: torch.Tensor  # [B]

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, index) -> "LabelBatch":
        return LabelBatch(self.queries[index], self.responses[index], self.target[index])

    def to(self, device: torch.device) -> "LabelBatch":
        return LabelBatch(self.queries.to(device), self.responses.to(device), self.target.to(device))


@dataclass(frozen=True)
class LabelType:
    """One kind of question to people: how many responses it shows, what the answer is called, and the loss of rewards [B, N]."""

    name: str
    n_responses: int
    answer: str
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # rewards [B, N], target [B] -> losses [B]

    @property
    def is_choice(self) -> bool:
        return self.answer == "best"

    def response_names(self) -> list[str]:
        return ["sample"] if self.answer == "score" else [f"sample{i}" for i in range(self.n_responses)]

    def target_mean_std(self, target: torch.Tensor) -> tuple[float, float]:
        """Mean and deviation that rewards are normalised to *before* training: 0 and 1 for choices, else those of the labels.

        Biased deviation over all labels; of `difference` / 2 for comparisons. After training it is always 0 and 1.
        """
        if self.is_choice:
            return 0.0, 1.0
        values = target.double() / (2 if self.answer == "difference" else 1)
        return float(values.mean()), float(values.std(correction=0))

    def stats(self, rewards: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
        """Statistics of a whole global batch: `loss` and `error` (the same number, as in the original), and what else the type has."""
        loss = float(self.losses(rewards, target).mean())
        stats = {"loss": loss, "error": loss}
        if self.is_choice:
            stats["accuracy"] = float((rewards.argmax(1) == target).float().mean())
        if self.answer == "score":
            stats |= {"label_mean": float(target.mean()), "label_var": float(target.var(correction=0)),
                      "corr": float(pearson_r(rewards[:, 0], target))}
        return stats


def label_type(name: str) -> LabelType:
    """The label type of that name. Raises UserError for an unknown one."""
    if name.startswith("best_of_") and name.removeprefix("best_of_").isdigit() and int(name.removeprefix("best_of_")) >= 2:
        n = int(name.removeprefix("best_of_"))
        return LabelType(name, n, "best", lambda rewards, best: F.cross_entropy(rewards, best, reduction="none"))
    if name == "scalar_rating":
        return LabelType(name, 1, "score", lambda rewards, score: (rewards[:, 0] - score) ** 2)
    if name in ("scalar_compare", "scalar_comparison"):
        return LabelType(name, 2, "difference", lambda rewards, difference: (rewards[:, 1] - rewards[:, 0] - difference) ** 2)
    raise UserError(f"--labels.type {name}: must be best_of_N (N at least 2), scalar_rating or scalar_compare")


def pearson_r(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Correlation of two vectors [B] (original: utils/core.py pearson_r)."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).mean() / ((x * x).mean() * (y * y).mean()).sqrt()


def load_labels(path: str, kind: LabelType, task: TaskParams, encoding: Encoding, limit: int | None = None, skip: int = 0,
                needed: bool = True) -> LabelBatch | None:
    """The labels skip .. skip + limit of a file; None if there are none and none are `needed`. Other fields of the file are ignored.

    Raises UserError, naming file, entry and what was expected, for a file that is no JSON, lacks a key, has a token out of range, an answer
    out of range or a length other than the task's.
    """
    entries = read_entries(path)[skip:][:limit]
    if not entries and not needed:
        return None
    if not entries:
        raise UserError(f"{path} has no labels{f' after the first {skip}' if skip else ''}")
    names = ["query", *kind.response_names(), kind.answer]
    queries, responses, answers = [], [], []
    for number, entry in enumerate(entries, skip):
        where = f"{path}, label {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected an object with {', '.join(names)}")
        if "responses" in entry or isinstance(entry.get("query"), str):
            entry = _tokenised(entry, kind, task, encoding, where)
        missing = [name for name in names if name not in entry]
        if missing:
            raise UserError(f"{where}: the key {missing[0]!r} is missing; {kind.name} needs {', '.join(names)}")
        queries.append(_tokens(entry["query"], task.query_length, encoding, f"{where}: query"))
        responses.append([_tokens(entry[name], task.response_length, encoding, f"{where}: {name}") for name in kind.response_names()])
        answers.append(_answer(entry[kind.answer], kind, where))
    target = torch.tensor(answers, dtype=torch.int64 if kind.is_choice else torch.float32)
    return LabelBatch(torch.tensor(queries), torch.tensor(responses), target)


def read_entries(path: str, what: str = "label file") -> list:
    """The list in a JSON file, or the lines of a .jsonl file. Raises UserError, which calls it `what`, if it is missing or no such thing."""
    if "://" in str(path):
        raise UserError(f"{path}: a {what} is read from disk; download it and give its path")
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = list(_json_lines(path, text, what)) if str(path).endswith(".jsonl") else json.loads(text)
    except FileNotFoundError:
        raise UserError(f"the {what} {path} does not exist; prepare the data set first, or name another file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the {what} {path} is no JSON: {error}") from None
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a list of {'labels' if what == 'label file' else 'rows'}")
    return values


def _json_lines(path: str, text: str, what: str) -> Iterator[object]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028, which a JSON string may hold
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            raise UserError(f"the {what} {path} is no JSON in line {number}: {error}") from None


def _tokenised(entry: dict, kind: LabelType, task: TaskParams, encoding: Encoding, where: str) -> dict:
    """A label of texts as one of padded token lists. Texts longer than the task's lengths are cut on the right."""
    texts = entry.get("responses", [])
    if not isinstance(entry.get("query"), str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: expected {{\"query\": text, \"responses\": [text, ...]}}")
    if len(texts) != kind.n_responses:
        raise UserError(f"{where}: {kind.name} needs {kind.n_responses} responses, found {len(texts)}")

    def padded(tokens: list[int], length: int) -> list[int]:
        return (tokens + [encoding.padding_token] * length)[:length]

    end = [encoding.end_of_text] if task.truncate_token == encoding.end_of_text else []
    result = {name: value for name, value in entry.items() if name not in ("query", "responses")}
    result["query"] = padded(encoding.encode(entry["query"]), task.query_length)
    for name, text in zip(kind.response_names(), texts, strict=True):
        result[name] = padded(encoding.encode(text) + end, task.response_length)
    return result


def _tokens(value: object, length: int, encoding: Encoding, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise UserError(f"{where}: expected a list of {length} token ids")
    if len(value) != length:
        raise UserError(f"{where} has {len(value)} tokens, the task's length is {length}")
    for token in value:
        if not (0 <= token < encoding.n_vocab or token == encoding.padding_token):
            raise UserError(f"{where}: token {token} is out of range (0..{encoding.n_vocab - 1}, or {encoding.padding_token} for padding)")
    if value[0] == encoding.padding_token and where.endswith("query"):
        raise UserError(f"{where} is empty: it starts with padding")
    return value


def _answer(value: object, kind: LabelType, where: str) -> int | float:
    if kind.is_choice:
        if type(value) is not int or not 0 <= value < kind.n_responses:
            raise UserError(f"{where}: 'best' is {value!r}; it must be a whole number from 0 to {kind.n_responses - 1}")
        return value
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= torch.finfo(torch.float32).max:
        raise UserError(f"{where}: {kind.answer!r} is {value!r}; it must be a number")
    return float(value)


def load_texts(path: str, task: TaskParams, encoding: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Given responses, padded: queries int64 [n, Q] and responses int64 [n, R] of a JSONL file of {"query": text, "response": text}, or the
    chosen responses of a file of choices in either form. Texts are cut as `load_labels` cuts them. UserError for a file that is neither.
    """
    entries = read_entries(path, "file of texts")
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    if "best" in first:
        n = len(first["responses"]) if isinstance(first.get("responses"), list) else sum(name.startswith("sample") for name in first)
        batch = load_labels(path, label_type(f"best_of_{max(2, n)}"), task, encoding)
        return batch.queries, batch.responses[torch.arange(len(batch)), batch.target]
    rows = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("query", "response")) or not entry["query"]:
            raise UserError(f'{path}, row {number}: expected {{"query": text, "response": text}}, or choices with responses and best')
        rows.append(_tokenised({"query": entry["query"], "responses": [entry["response"]]}, label_type("scalar_rating"), task, encoding, path))
    if not rows:
        raise UserError(f"{path} has no texts")
    return torch.tensor([row["query"] for row in rows]), torch.tensor([row["sample"] for row in rows])


def save_labels(path: Path, batch: LabelBatch, kind: LabelType) -> None:
    """Write labels in the original's JSON form."""
    from lm_human_preferences.files import write_json
    rows = []
    for i in range(len(batch)):
        row = {"query": batch.queries[i].tolist(), kind.answer: batch.target[i].item()}
        row |= {name: batch.responses[i, n].tolist() for n, name in enumerate(kind.response_names())}
        rows.append(row)
    write_json(path, rows)
