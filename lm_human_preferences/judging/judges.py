"""Judges: anything that says how good a response to a query is, behind one small interface, made from a line of text.

saved_models/my_reward/reward_model   a reward model of ours
lexicon                               VADER's compound score
ratings:FOLDER                        a linear model of the human ratings held out in a data set (ratings.py)
hf:PATH_OR_NAME[#label]               a sequence classifier of Hugging Face
module:function                       any Python function of queries and responses
choices:FILE                          people, who choose between two policies' responses (`PeoplesChoices`)
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

import numpy as np
import torch

from lm_human_preferences.data.tasks import readable
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.judging.ratings import HeldOutJudge, lexicon_scores
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.learning.scoring import Rewards

SPECS = "a reward-model folder, lexicon, ratings:FOLDER, hf:PATH_OR_NAME[#label], module:function or choices:FILE"
MICRO_BATCH = 64  # texts in memory at once
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:\w+")


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

    def __init__(self, name: str, model: RewardModel, device: torch.device = torch.device("cpu")):
        super().__init__(name)
        self.model = model.to(device).requires_grad_(False)
        self.config, self.device = model.transformer.config, device

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        encoding, padding, scores = get_encoding(self.config.encoding), self.config.padding_token, []
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
        if encoding.name != self.config.encoding:
            return super().on_tokens(encoding)

        def rewards(queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
            self._check_length(queries.shape[1] + responses.shape[1])
            return self.model(queries, responses)

        return rewards

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.n_ctx:
            raise UserError(
                f"judge {self.name}: query and response have {tokens} tokens, but the reward model's context is {self.config.n_ctx}"
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


class FunctionJudge(Judge):
    """A Python function of (list of query texts, list of response texts) that returns a finite number for each
    response.
    """

    def __init__(self, name: str, function: Callable):
        super().__init__(name)
        self.function = function

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        try:
            values = self.function(list(queries), list(responses))
        except Exception as error:  # whatever it is, it is not ours
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"the function {self.name} raised {type(error).__name__}: {_first_line(error)} "
                f"({Path(place.filename).name}, line {place.lineno})"
            ) from error
        if not hasattr(values, "__len__") or isinstance(values, str | bytes | dict) or len(values) != len(responses):
            given = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
            raise UserError(
                f"the function {self.name} must return a list of one number for each of the {len(responses)} responses, not {given}"
            )
        return [self._number(value) for value in values]

    def _number(self, value: object) -> float:
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if not abs(number) <= torch.finfo(torch.float32).max:
            raise UserError(f"the function {self.name} returned {value!r} for a response; it must be a finite number")
        return number


class Classifier:
    """A sequence classifier of Hugging Face. One output: the score itself; several: the log-odds of one label, log p /
    (1 - p).
    """

    def __init__(self, spec: str, device: torch.device):
        path, _, wanted = spec.partition("#")
        self.name, self.device = spec, device
        try:
            import transformers
        except ImportError:
            raise UserError(f"hf:{spec} needs the package transformers: pip install transformers") from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                path, truncation_side="left", padding_side="right"
            )
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # of many kinds: missing files, no network, unknown architectures
            raise UserError(f"hf:{path} cannot be loaded as a sequence classifier: {_first_line(error)}") from None
        if report["missing_keys"]:
            raise UserError(
                f"hf:{path} is no trained classifier: its weights lack {', '.join(sorted(report['missing_keys']))}"
            )
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.label = self._label(path, wanted)
        self._agree_on_padding(path)

    def _label(self, path: str, wanted: str) -> int | None:
        """The output that counts; None if there is but one."""
        labels = {index: str(label) for index, label in self.model.config.id2label.items()}
        found = [
            index
            for index, label in labels.items()
            if (label.lower() == wanted.lower() if wanted else "pos" in label.lower())
        ]
        if len(labels) == 1 and (found or not wanted):
            return None
        if len(found) != 1:
            what = (
                f"has no label {wanted}"
                if wanted
                else f"has {len(found) or 'no'} label{'s' * (len(found) != 1)} with 'pos' in the name"
            )
            raise UserError(f"hf:{path} {what}; choose one with hf:{path}#LABEL: {', '.join(labels.values())}")
        return found[0]

    def _agree_on_padding(self, path: str) -> None:
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token_id is None:
                raise UserError(
                    f"hf:{path}: its tokenizer has neither a padding nor an end token; give it one and save it again"
                )
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.config.pad_token_id is None:  # GPT-2's classifier finds the last token by it
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        places = getattr(self.model.config, "max_position_embeddings", None)
        longest = min(self.tokenizer.model_max_length, places or 512)
        self.longest = (
            longest - 2
            if longest == places and self.model.config.model_type in ("roberta", "xlm-roberta", "camembert")
            else longest
        )

    @torch.no_grad()
    def rate(self, texts: list[str]) -> list[float]:
        """A score each; texts longer than the classifier's context lose their beginning."""
        scores = []
        for start in range(0, len(texts), MICRO_BATCH):
            batch = self.tokenizer(
                texts[start : start + MICRO_BATCH],
                truncation=True,
                max_length=self.longest,
                padding=True,
                return_tensors="pt",
            )
            scores += self._log_odds(self.model(**batch.to(self.device)).logits).tolist()
        return scores

    def _log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """logits float32 [B, labels] -> scores [B]."""
        if (
            self.label is None or self.model.config.problem_type == "multi_label_classification"
        ):  # there each label has a sigmoid of its own
            return logits[:, self.label or 0]
        others = [index for index in range(logits.shape[1]) if index != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(1)


# --- people ---

CHOICES = {"first": 1.0, "second": 0.0, "tie": 0.5}


class PeoplesChoices:
    """Choices of people between two policies' responses, from a sheet as `sheet_row` makes it.

    A row counts where query, both policies' names and both responses are the same: a choice is about the very texts
    that were shown. Several rows about the same texts (several people) count as their mean.
    """

    def __init__(self, name: str, path: str):
        """Raises UserError, naming the row, for a file that is no such sheet, or on which nobody has chosen yet."""
        self.name, self.path = name, path
        self.shares: dict[tuple, list[float]] = {}
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
                    f'{where}: expected {{"query": text, "first": text, "second": text, "policies": [name, name], "choice": ...}}'
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


def sheet_row(query: str, names: tuple[str, str], responses: tuple[str, str], swapped: bool) -> dict:
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


def load_judge(spec: str, device: torch.device = torch.device("cpu")) -> Judge | PeoplesChoices:
    """The judge of a specification `[NAME=]SPEC`. Raises UserError in one line if it cannot be had."""
    given, text = re.fullmatch(r"(?:(\w[\w.-]*)=)?(.*)", spec, re.DOTALL).groups()
    kind, _, rest = text.partition(":")
    if text == "lexicon":
        lexicon_scores([])  # complains now if the package is missing
        return SentenceJudge(given or text, lexicon_scores)
    if kind == "ratings" and rest:
        return SentenceJudge(given or kind, HeldOutJudge.fit(Path(rest)).rate)
    if kind == "hf" and rest:
        return SentenceJudge(given or Path(rest).name, Classifier(rest, device).rate)
    if kind == "choices" and rest:
        return PeoplesChoices(given or "people", rest)
    folder = Path(text)
    if text and folder.is_dir():
        folder = folder / "reward_model" if (folder / "reward_model").is_dir() else folder
        name = given or (folder.parent.name if folder.name == "reward_model" else folder.name)
        return RewardModelJudge(name or "reward_model", RewardModel.load(folder), device)
    if _FUNCTION.fullmatch(text):
        return FunctionJudge(given or text, load_function(text))
    raise UserError(f"there is no judge {text!r}: expected {SPECS}")


def load_function(spec: str) -> Callable:
    """The function of `module:function`; the module is looked for in the current folder too. Raises UserError if there
    is none.
    """
    if not _FUNCTION.fullmatch(spec):
        raise UserError(f"{spec} is no module:function, as in my_scores:length for the function length in my_scores.py")
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a module may raise anything when it is imported
        raise UserError(
            f"{spec}: the module {module} cannot be imported: {type(error).__name__}: {_first_line(error)}"
        ) from None
    if not callable(found):
        raise UserError(f"{spec}: the module {module} has no function {name}")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
