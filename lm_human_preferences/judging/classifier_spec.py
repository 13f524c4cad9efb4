"""What `hf:` may say of a classifier: `PATH_OR_NAME[?OPTION&OPTION...][#LABEL[:FORM]]`.

    hf:lvwerra/distilbert-imdb                                   the label with "pos" in its name, log-odds
    hf:lvwerra/distilbert-imdb#POSITIVE:prob                     its probability
    hf:saved_models/stars#4:logit                                label number 4, counted from 0
    hf:OpenAssistant/reward-model-deberta-v3-large-v2?pair       query and response as two texts
    hf:PATH?query=Human: {query}%0A%0AAssistant:                 what the classifier reads in the query's place

Texts in options are percent-encoded where they hold one of `% & # ,` or a line break: %25 %26 %23 %2C %0A.
"""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.probability_rewards import SHAPES

LOG_ODDS, LOGIT = "logodds", "logit"
FORMS = (LOG_ODDS, LOGIT, *SHAPES)
SIDES = ("left", "right", "own")
OPTIONS = "pair, text, query=TEMPLATE, unwrap=TEMPLATE, truncate=left|right|own"
_PLACE = "{query}"


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier, how it reads a query and its response, and which of its outputs is the score."""

    path: str  # a folder, or a name on the hub
    label: str = ""  # by name or number; "" where none was asked for
    form: str = LOG_ODDS
    pair: bool | None = None  # whether query and response are two texts; None: as its card or configuration says
    query: str = _PLACE  # what it reads in the query's place
    unwrap: str = _PLACE  # what the task puts around the query, taken away first
    truncate: str = "left"  # the side that too long a text loses; "own": the tokenizer's

    @classmethod
    def parse(cls, spec: str) -> "ClassifierSpec":
        """From the text after `hf:`. Raises UserError, naming the part, for anything else."""
        before, _, label = spec.partition("#")
        path, _, options = before.partition("?")
        name, colon, form = label.rpartition(":")
        label, form = (name, form) if colon and form in FORMS else (label, LOG_ODDS)
        pair, texts = None, dict[str, str]()
        for option in filter(None, options.split("&")):
            key, equals, value = option.partition("=")
            if key in ("pair", "text") and not equals and pair in (None, key == "pair"):
                pair = key == "pair"
            elif key in ("query", "unwrap", "truncate") and equals and key not in texts:
                texts[key] = unquote(value)
            else:
                raise UserError(f"hf:{spec}: {option!r} is not an option here; expected each once, of {OPTIONS}")
        for key in ("query", "unwrap"):
            if texts.get(key, _PLACE).count(_PLACE) != 1:
                raise UserError(f"hf:{spec}: the template {key}={texts[key]} must hold {_PLACE} once")
        if (side := texts.get("truncate", "left")) not in SIDES:
            raise UserError(f"hf:{spec}: truncate={side} must be {', '.join(SIDES[:-1])} or {SIDES[-1]}")
        return cls(path, label, form, pair, **texts)

    def read(self, query: str) -> str:
        """What the classifier reads for a query of the task."""
        head, tail = self.unwrap.split(_PLACE)
        return self.query.replace(_PLACE, query.removeprefix(head).removesuffix(tail))


# --- pairs ---

_PAIR_TASKS = ("mnli", "mrpc", "qnli", "qqp", "rte", "stsb", "sts-b", "wnli")  # of GLUE, in `finetuning_task`
_ENTAILMENT = ("entailment", "not_entailment", "contradiction")
_CARD_TAGS = ("cross-encoder", "text-ranking", "natural-language-inference")
_FIRST, _SECOND = "question|query|prompt|premise|instruction|context", "answer|response|reply|completion|hypothesis"
_PAIR_CODE = re.compile(rf"tokenizer\(\s*(?:{_FIRST})s?\s*,\s*(?:{_SECOND})(?:e?s)?\s*[,)]", re.IGNORECASE)


def why_pairs(config: dict[str, Any], card: str) -> str | None:
    """What says that a classifier was trained on two texts, in words for people; None if nothing does.

    config: its config.json; card: its README.md, "" without one. Known by: the configuration of a CrossEncoder of
    sentence-transformers or of a GLUE task of two sentences; labels of entailment; in the card the tags of such models,
    or code that gives the tokenizer a question and an answer (OpenAssistant's reward models).
    """
    if isinstance(config.get("sentence_transformers"), dict):
        return "config.json is a CrossEncoder's"
    if str(config.get("finetuning_task")).lower() in _PAIR_TASKS:
        return f"config.json says finetuning_task {config['finetuning_task']}"
    labels = config.get("id2label")
    names = {str(name).lower() for name in labels.values()} if isinstance(labels, dict) else set()
    if found := names.intersection(_ENTAILMENT):
        return f"it has the label {min(found)}"
    head = re.match(r"---\s*\n(.*?)\n---\s*\n", card, re.DOTALL)
    if head and (
        tag := next((tag for tag in _CARD_TAGS if re.search(rf"(?m)^\W*(?:pipeline_tag:\s*)?{tag}\W*$", head[1])), None)
    ):
        return f"its card has the tag {tag}"
    if code := _PAIR_CODE.search(card):
        return f"its card has the code {' '.join(code[0].split())}"
    return None
