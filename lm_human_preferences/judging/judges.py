"""Judges: anything that says how good a response to a query is, behind one small interface, made from a line of text.

saved_models/my_reward/reward_model   a reward model of ours
lexicon                               VADER's compound score
ratings:FOLDER                        words: a linear model of the human ratings held out in a data set (ratings.py)
embeddings:FOLDER[#sense]             sentences: the same ratings, by a sentence encoder; #sense: what is no sentence
                                      counts as the worst (embeddings.py)
hf:PATH_OR_NAME[?options][#label]     a sequence classifier of Hugging Face (classifier_spec.py)
module:function                       any Python function of queries and responses
choices:FILE                          people, who choose between two policies' responses (`PeoplesChoices`)

To add a judge, write a class with `score` as in `Judge`, or a function of texts for `SentenceJudge`, and give it a
spec: in `load_judge`, in SPECS and in docs/evaluation.md. To train a policy against it too, name it in
training_rewards.py: load_rewards.
"""

import abc
import importlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_human_preferences.data.tasks import readable
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging.embeddings import RATING, EmbeddingJudge
from lm_human_preferences.judging.hf_classifier import HFClassifier, first_line
from lm_human_preferences.judging.ratings import HeldOutJudge, lexicon_scores
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.learning.scoring import Rewards

SPECS = (
    "a reward-model folder, lexicon, ratings:FOLDER, embeddings:FOLDER[#sense], "
    "hf:PATH_OR_NAME[?options][#label[:form]], module:function or choices:FILE"
)
SENTENCE_JUDGES = ("hf:", "ratings:", "embeddings:")  # how specs begin whose judges can be a policy's reward too
MICRO_BATCH = 64  # texts in memory at once
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:\w+")
_CPU = torch.device("cpu")

# what a user's function does: queries, responses -> a number for each response, in a list or an array
ScoringFunction = Callable[[list[str], list[str]], Any]


class Judge(abc.ABC):
    """Scores responses; a higher score is a better response."""

    def __init__(self, name: str):
        self.name = name

    @abc.abstractmethod
    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        """The score of each response to its query, both as texts."""

    def on_tokens(self, encoding: Encoding) -> Rewards:
        """This judge as a function of token tensors, padded, responses truncated. It reads them as texts, without
        padding and end-of-text.

        What it computes is its own affair: autocast is off inside.
        """

        def rewards(queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
            with torch.autocast(queries.device.type, enabled=False):
                scores = self.score(
                    [readable(encoding, row) for row in queries], [readable(encoding, row) for row in responses]
                )
            return torch.tensor(scores, dtype=torch.float32, device=queries.device)

        return rewards


class RewardModelJudge(Judge):
    """A reward model. It takes token tensors of its own encoding as they are; what was never a text (an end-of-text
    token) counts there.
    """

    def __init__(self, name: str, model: RewardModel, device: torch.device = _CPU):
        super().__init__(name)
        self.model = model.to(device).requires_grad_(False)
        self.config, self.device = model.transformer.config, device

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        encoding, padding, scores = get_encoding(self.config), self.config.padding_token, []
        rows = [
            encoding.encode(query) + encoding.encode(response) or [encoding.end_of_text]
            for query, response in zip(queries, responses, strict=True)
        ]
        for part in (rows[start : start + MICRO_BATCH] for start in range(0, len(rows), MICRO_BATCH)):
            longest = max(len(row) for row in part)
            self._check_length(longest)
            tokens = torch.tensor([row + [padding] * (longest - len(row)) for row in part], device=self.device)
            scores += self.model(tokens, tokens[:, :0]).tolist()
        return scores

    def on_tokens(self, encoding: Encoding) -> Rewards:
        if encoding != get_encoding(self.config):
            return super().on_tokens(encoding)

        def rewards(queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
            self._check_length(queries.shape[1] + responses.shape[1])
            scores: torch.Tensor = self.model(queries, responses)
            return scores

        return rewards

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.n_ctx:
            raise UserError(
                f"judge {self.name}: query and response have {tokens} tokens, "
                f"but the reward model's context is {self.config.n_ctx}"
            )


class SentenceJudge(Judge):
    """Rates the text that query and response make together."""

    def __init__(self, name: str, rate: Callable[[list[str]], Iterable[float]]):
        super().__init__(name)
        self.rate = rate

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        return [
            float(score)
            for score in self.rate([query + response for query, response in zip(queries, responses, strict=True)])
        ]


class ClassifierJudge(Judge):
    """A classifier of Hugging Face, of texts or of pairs."""

    def __init__(self, name: str, classifier: HFClassifier):
        super().__init__(name)
        self.classifier = classifier

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        return self.classifier.score(queries, responses)


class FunctionJudge(Judge):
    """A Python function of (list of query texts, list of response texts) that returns a finite number for each
    response.
    """

    def __init__(self, name: str, function: ScoringFunction):
        super().__init__(name)
        self.function = function

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        """Raises UserError, naming the function, if it raises anything or returns anything else."""
        try:
            values = self.function(list(queries), list(responses))
        except (Exception, SystemExit) as error:  # whatever it is, it is not ours
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"the function {self.name} raised {type(error).__name__}: {first_line(error)} "
                f"({Path(place.filename).name}, line {place.lineno})"
            ) from error
        given = self._count(values)
        if given != len(responses):
            what = type(values).__name__ if given is None else f"{given} values"
            raise UserError(
                f"the function {self.name} must return a list of one number for each of the {len(responses)} "
                f"responses, not {what}"
            )
        return [self._number(value) for value in values]

    @staticmethod
    def _count(values: Any) -> int | None:
        """How many values these are; None if they are not values in an order."""
        if isinstance(values, str | bytes | dict | set | frozenset):
            return None
        try:
            return len(values)
        except TypeError:  # a number, a generator, an array without dimensions
            return None

    def _number(self, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if not abs(number) <= torch.finfo(torch.float32).max:
            shown = " ".join(repr(value).split())  # a matrix has several lines
            shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
            raise UserError(f"the function {self.name} returned {shown} for a response; it must be a finite number")
        return number


# --- people ---

CHOICES = {"first": 1.0, "second": 0.0, "tie": 0.5}


class PeoplesChoices:
    """Choices of people between two policies' responses, from a sheet as `sheet_row` makes it.

    A row counts where query, both policies' names and both responses are the same: a choice is about the very texts
    that were shown. Several rows about the same texts (several people) count as their mean.
    """

    def __init__(self, name: str, path: str):
        """Raises UserError, naming the row, for a file that is not such a sheet, or on which nobody has chosen yet."""
        self.name, self.path = name, path
        self.shares: dict[tuple[str, ...], list[float]] = {}
        if not Path(path).is_file():
            raise UserError(f"the sheet of choices {path} does not exist")
        for where, row in read_records(Path(path), "row"):
            if (
                not isinstance(row, dict)
                or not all(isinstance(row.get(key), str) for key in ("query", "first", "second"))
                or not isinstance(row.get("policies"), list)
                or len(row["policies"]) != 2
            ):
                raise UserError(
                    f'{where}: expected {{"query": text, "first": text, "second": text, '
                    f'"policies": [name, name], "choice": ...}}'
                )
            if row.get("choice") is None:
                continue
            if str(row["choice"]) not in CHOICES:
                raise UserError(f"{where}: 'choice' is {row['choice']!r}; it must be first, second, tie or null")
            a, b = (str(name) for name in row["policies"])
            share = CHOICES[str(row["choice"])]
            self.shares.setdefault((row["query"], a, b, row["first"], row["second"]), []).append(share)
            self.shares.setdefault((row["query"], b, a, row["second"], row["first"]), []).append(1 - share)
        if not self.shares:
            raise UserError(f"{path}: nobody has chosen yet; write first, second or tie into the rows' 'choice'")

    def wins(self, queries: list[str], names: tuple[str, str], responses: tuple[list[str], list[str]]) -> np.ndarray:
        """For each query the share of people who chose the first policy's response, ties split; NaN where nobody
        judged. float64 [n].
        """
        found = (
            self.shares.get((query, *names, first, second))
            for query, first, second in zip(queries, *responses, strict=True)
        )
        return np.array([math.nan if shares is None else sum(shares) / len(shares) for shares in found])


def sheet_row(query: str, names: tuple[str, str], responses: tuple[str, str], swapped: bool) -> dict[str, Any]:
    """A row of the sheet that people fill in; the second policy's response comes first where `swapped`. Equal responses
    are a tie already.
    """
    order = (1, 0) if swapped else (0, 1)
    return {
        "query": query,
        "first": responses[order[0]],
        "second": responses[order[1]],
        "choice": "tie" if responses[0] == responses[1] else None,
        "policies": [names[i] for i in order],
    }


# --- from a line of text ---


def load_judge(spec: str, device: torch.device = _CPU) -> Judge | PeoplesChoices:
    """The judge of a specification `[NAME=]SPEC`. Raises UserError in one line if it cannot be had."""
    named = re.match(r"(\w[\w.-]*)=", spec)
    given, text = (named[1], spec[named.end() :]) if named else (None, spec)
    kind, _, rest = text.partition(":")
    if text == "lexicon":
        lexicon_scores([])  # complains now if the package is missing
        return SentenceJudge(given or text, lexicon_scores)
    if kind == "ratings" and rest:
        return SentenceJudge(given or kind, HeldOutJudge.fit(find_path(rest)).rate)
    if kind == "embeddings" and rest:
        path, mark, what = rest.partition("#")
        return SentenceJudge(given or what or kind, EmbeddingJudge.load(f"{find_path(path)}{mark}{what}", device).rate)
    if kind == "hf" and rest:
        return ClassifierJudge(given or Path(rest.partition("?")[0]).name, HFClassifier(rest, device))
    if kind == "choices" and rest:
        return PeoplesChoices(given or "people", str(find_path(rest)))
    folder = find_path(text)
    if text and folder.is_dir():
        folder = folder / "reward_model" if (folder / "reward_model").is_dir() else folder
        name = given or (folder.parent.name if folder.name == "reward_model" else folder.name)
        return RewardModelJudge(name or "reward_model", RewardModel.load(folder), device)
    if _FUNCTION.fullmatch(text):
        return FunctionJudge(given or text, load_function(text))
    raise UserError(f"there is no judge {text!r}: expected {SPECS}")


def held_out_judges(data: Path) -> str | None:
    """The judges of a data set's held-out ratings, as a specification: those of sentences, without and with sense,
    where `datasets/movies_judge.py` or its like has made them, and that of words. None where there are no ratings.
    """
    if not (data / "sentences.jsonl").is_file():
        return None
    folder = data.with_name(f"{data.name}_judge")
    made = (folder / RATING).is_file()
    return (f"embeddings:{folder},sense=embeddings:{folder}#sense," if made else "") + f"ratings:{data}"


def load_function(spec: str) -> ScoringFunction:
    """The function of `module:function`; the module is looked for in the current folder too. Raises UserError if there
    is none.
    """
    if not _FUNCTION.fullmatch(spec):
        raise UserError(
            f"{spec} is not module:function, as in my_scores:length for the function length in my_scores.py"
        )
    name, _, function = spec.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0]:  # it is there, but needs another one that is not
            raise UserError(_not_imported(spec, name, error)) from None
        raise UserError(
            f"{spec}: there is no module {name} in {here}, where it is looked for, nor among the installed ones: start "
            f"from the folder that holds {name.replace('.', '/')}.py, or name that folder in PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        raise UserError(_not_imported(spec, name, error)) from None
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(
            f"{spec}: the module {name} ({getattr(module, '__file__', None) or 'built in'}) has no function {function}"
        )
    scoring: ScoringFunction = found
    return scoring


def _not_imported(spec: str, module: str, error: BaseException) -> str:
    return f"{spec}: the module {module} cannot be imported: {type(error).__name__}: {first_line(error)}"
