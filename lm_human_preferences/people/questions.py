"""Where questions come from: a file of one's own texts, or policies that write responses to a task's queries."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import QueryStream
from lm_human_preferences.data.tasks import TaskParams, recorded_text, response_ends, truncate_responses
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.people.records import GOLD, PLAIN, VALIDATION, Question, Response, StudyParams

ATTEMPTS = 20  # drawings of a response that equals another one before its query is given up


class Author(NamedTuple):
    """A policy that writes responses, and what the record says of it."""

    name: str
    policy: Policy
    digest: str | None = None  # of its model folder
    step: int | None = None  # of its training


class Chooser(NamedTuple):
    """Shows the K of several candidate responses from which most is learnt (`asking.py`)."""

    candidates: int  # written for each question, at least K
    random_share: float  # of the questions whose responses are not chosen, so that something can be measured on them
    # numbers, queries int64 [B, Q], of each question's candidates int64 [n, R] -> the places of those to show
    choose: Callable[[Sequence[int], torch.Tensor, Sequence[torch.Tensor]], list[list[int]]]


def falls(number: int, share: float, phase: float = 0.0) -> bool:
    """Whether `number` (0, 1, ...) is one of the evenly spaced ones that make up a share of all."""
    return int((number + 1) * share + phase) > int(number * share + phase)


def is_chosen(number: int, kind: str, random_share: float) -> bool:
    """Whether a chooser chooses the responses of question `number`; the phase keeps what it leaves apart from
    validation questions.
    """
    return kind == PLAIN and not falls(number, random_share, 0.25)


def kind_and_demand(number: int, study: StudyParams, both: bool) -> tuple[str, int]:
    """The kind of question `number`, and how many people it goes to. both: reference and policy can write."""
    kind = VALIDATION if both and falls(number, study.validation_share) else PLAIN
    return kind, study.overlap_people if falls(number, study.overlap_share, 0.5) else 1


# --- from a file ---


def read_questions(path: str, study: StudyParams) -> list[Question]:
    """The questions of a JSONL file: {"query": text, "responses": [text, ...]}, with "gold": number of the best
    response where that is known. UserError, naming file and record, for anything else.
    """
    if not Path(path).is_file():
        raise UserError(f"--questions {path} does not exist; name a JSONL file of queries and responses")
    found: list[Question] = []
    for where, record in read_records(Path(path), "question"):
        texts = record.get("responses") if isinstance(record, dict) else None
        if (
            not isinstance(record, dict)
            or not isinstance(record.get("query"), str)
            or not isinstance(texts, list)
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f'{where}: expected {{"query": text, "responses": [text, ...]}}, no response empty')
        try:
            "".join([record["query"], *texts]).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(f"{where}: {half} is half of a character; remove it, or write the whole one") from None
        if len(texts) != study.responses:
            raise UserError(f"{where}: has {len(texts)} responses, --study.responses is {study.responses}")
        if len({text.strip() for text in texts}) < len(texts):
            raise UserError(f"{where}: two of its responses are the same; nobody could choose between them")
        gold = record.get("gold")
        if gold is not None and (type(gold) is not int or not 0 <= gold < len(texts)):
            raise UserError(f"{where}: 'gold' is {gold!r}; it must be the number of a response, 0 to {len(texts) - 1}")
        kind, wanted = kind_and_demand(len(found), study, both=False)
        key = hashlib.sha256(json.dumps([record["query"], texts]).encode()).hexdigest()
        responses = [Response(text, Path(path).name) for text in texts]
        found.append(
            Question(record["query"], responses, GOLD if gold is not None else kind, gold, wanted=wanted, key=key)
        )
    if not found:
        raise UserError(f"--questions {path} has no questions")
    return found


# --- from policies ---


class Slot(NamedTuple):
    """A response to be written."""

    question: int  # its place in the batch
    author: int


@torch.no_grad()
def write_questions(
    authors: Sequence[Author],
    queries: torch.Tensor,
    numbers: Sequence[int],
    study: StudyParams,
    task: TaskParams,
    encoding: Encoding,
    precision: Precision,
    seed: int,
    purpose: str,
    in_turn: bool = True,
    chooser: Chooser | None = None,
) -> list[Question]:
    """A question for each of the queries int64 [n, Q], numbered by `numbers` in the study; fewer where a query's
    responses stay equal however often they are drawn.

    The first author is the reference and the last one the policy: half of the responses of a validation question are
    each one's, of an odd number one more is the one's or the other's by chance. Other questions have the authors in
    turn, or the policy alone (in_turn False). What is drawn follows from seed and number; `purpose` only names the
    questions in the study. With a chooser more responses are written than shown; of those, one that equals another is
    drawn anew only where fewer than K are left.
    """
    kinds = [kind_and_demand(number, study, len(authors) > 1) for number in numbers]
    lists = encoding.base is encoding  # labels of token lists are of GPT-2's own; with added tokens they are texts
    generators = [generator_for(seed, "people/questions", number) for number in numbers]
    chosen = [
        chooser is not None and is_chosen(number, kind, chooser.random_share)
        for number, (kind, _) in zip(numbers, kinds, strict=True)
    ]
    slots = []
    for i, (number, (kind, _)) in enumerate(zip(numbers, kinds, strict=True)):
        count = chooser.candidates if chooser is not None and chosen[i] else study.responses
        slots.append([Slot(i, author) for author in authors_of(number, kind, count, len(authors), in_turn)])
    written: list[dict[int, tuple[str, list[int]]]] = [{} for _ in numbers]  # response number -> text and tokens
    for attempt in range(ATTEMPTS):
        missing = [
            (i, j)
            for i in range(len(numbers))
            if attempt == 0 or len(written[i]) < study.responses
            for j in range(len(slots[i]))
            if j not in written[i]
        ]
        if not missing:
            break
        for (i, j), drawn in zip(
            missing, _respond(authors, queries, slots, missing, generators, task, encoding, precision), strict=True
        ):
            text = recorded_text(encoding, drawn)
            if text.strip() and text not in [other for other, _ in written[i].values()]:
                written[i][j] = (text, drawn.tolist())
    shown = {i: sorted(responses) for i, responses in enumerate(written) if len(responses) >= study.responses}
    if chooser is not None and (asked_about := [i for i in shown if chosen[i]]):
        candidates = [torch.tensor([written[i][j][1] for j in shown[i]]) for i in asked_about]
        places = chooser.choose([numbers[i] for i in asked_about], queries[asked_about], candidates)
        shown |= {i: [shown[i][place] for place in some] for i, some in zip(asked_about, places, strict=True)}
    questions = []
    for i in shown:
        number, (kind, wanted) = numbers[i], kinds[i]
        responses = []
        for j in shown[i]:
            author = authors[slots[i][j].author]
            text, tokens = written[i][j]
            responses.append(Response(text, author.name, tokens if lists else None, author.digest, author.step))
        query = recorded_text(encoding, queries[i])
        asked = queries[i].tolist() if lists else None
        questions.append(Question(query, responses, kind, None, asked, wanted, key=f"{purpose}/{seed}/{number}"))
    return questions


def authors_of(number: int, kind: str, responses: int, authors: int, in_turn: bool) -> list[int]:
    """The author of each response of question `number`."""
    if kind == VALIDATION:
        references = (responses + random.Random(f"validation/{number}").getrandbits(1)) // 2
        return [0 if j < references else authors - 1 for j in range(responses)]
    if not in_turn:
        return [authors - 1] * responses
    return [(number + j) % authors for j in range(responses)]


def _respond(
    authors: Sequence[Author],
    queries: torch.Tensor,
    slots: list[list[Slot]],
    missing: list[tuple[int, int]],
    generators: list[torch.Generator],
    task: TaskParams,
    encoding: Encoding,
    precision: Precision,
) -> Iterator[torch.Tensor]:
    """A response int64 [R], truncated, for each missing (question, response)."""
    uniforms = torch.stack([torch.rand(task.response_length, generator=generators[i]) for i, _ in missing])
    drawn = torch.zeros(len(missing), task.response_length, dtype=torch.int64)
    for number, author in enumerate(authors):
        rows = [row for row, (i, j) in enumerate(missing) if slots[i][j].author == number]
        if rows:
            asked = queries[[missing[row][0] for row in rows]]
            with precision.autocast():
                where = precision.device
                sampled = author.policy.respond(asked.to(where), uniforms[rows].to(where), captured=False)
            drawn[rows] = sampled.tokens.cpu()
    return iter(truncate_responses(drawn, response_ends(task, encoding), encoding.padding_token))


def sample_questions(
    authors: Sequence[Author],
    stream: QueryStream,
    numbers: range,
    study: StudyParams,
    task: TaskParams,
    encoding: Encoding,
    precision: Precision,
    seed: int,
    purpose: str,
    batch: int = 64,
    in_turn: bool = True,
    chooser: Chooser | None = None,
) -> Iterator[list[Question]]:
    """Batches of questions on a stream's next queries, one query a number."""
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        queries = stream.batch(len(some))
        yield write_questions(authors, queries, some, study, task, encoding, precision, seed, purpose, in_turn, chooser)
