"""Argilla's exports: records with `fields` and people's `responses` to questions, nested (`records.to_json`) or
flattened (`question.responses`, `question.responses.users`), and the lists of {value, user_id, status} of version 1.

Each submitted answer is a label. A question whose answers name fields is a choice, one whose answers are lists of them
a ranking (left out where two share a rank), and one whose answers are numbers a rating of the one response.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lm_human_preferences.data.exchange.pairs import PROMPTS, more_of
from lm_human_preferences.data.exchange.reading import (
    TIES,
    Label,
    Reading,
    find_field,
    is_blank,
    names_of,
    number_of,
    numbered_fields,
    plain_name,
    short,
    text_of,
    uniform,
)
from lm_human_preferences.data.exchange.rows import RESPONSES
from lm_human_preferences.foundation.errors import UserError

ABOUT = '"fields" and "responses" to a question, or fields and "QUESTION.responses"'
_SUFFIX = ".responses"


class _Given(NamedTuple):
    """One person's answer to one question."""

    value: Any
    worker: str | None
    status: str | None


def fits(record: Mapping[str, Any]) -> bool:
    return (isinstance(record.get("fields"), Mapping) and "responses" in record) or any(
        name.endswith(_SUFFIX) or _is_version_1(value) for name, value in record.items()
    )


def _is_version_1(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and "value" in one and "user_id" in one for one in value)
    )


def read(record: Mapping[str, Any], where: str, reading: Reading, typed: bool = False) -> Iterator[Label]:
    """A label of each submitted answer. UserError for a record of another form."""
    nested = record.get("fields")
    if isinstance(nested, Mapping):
        fields, answers = nested, _nested(record.get("responses"), where)
    else:
        fields, answers = record, _flat(record)
    question = _question(answers, reading, where)
    if question is None:
        reading.leave_out("nobody has answered")
        return
    numbered = numbered_fields(fields, (*RESPONSES, "option", "candidate"))
    responses = list(numbered.values()) or [
        name for name in [reading.columns.get("response") or find_field(fields, RESPONSES)] if name
    ]
    if not responses:
        raise UserError(f"{where}: which field is the response? It has {names_of(fields)}; --columns response=NAME")
    query = reading.query(fields, reading.columns.get("query") or find_field(fields, PROMPTS), where)
    texts = [text_of(fields, name, where) for name in responses]
    for given in answers[question]:
        if given.status not in (None, "submitted"):
            reading.leave_out(f"an answer was {given.status}")
            continue
        answer = _answer(given.value, responses, f"{where}: the answer to {question!r}")
        if answer is None:
            reading.leave_out("a ranking has ties")
            continue
        more = {} if given.worker is None else {"worker": given.worker}
        yield reading.label(query, texts, answer, more, typed=True)


def _nested(responses: object, where: str) -> dict[str, list[_Given]]:
    """The answers to each question; version 1 has a list of people's answers instead, each to all questions."""
    answers: dict[str, list[_Given]] = {}
    if isinstance(responses, list):
        for one in responses:
            values = one.get("values") if isinstance(one, Mapping) else None
            if not isinstance(values, Mapping):
                raise UserError(f"{where}: 'responses' has {short(one)}; expected an object with \"values\"")
            for question, value in values.items():
                inner = value.get("value") if isinstance(value, Mapping) else value
                answers.setdefault(question, []).append(_Given(inner, _worker(one.get("user_id")), one.get("status")))
    elif isinstance(responses, Mapping):
        for question, given in responses.items():
            if not isinstance(given, list) or not all(isinstance(one, Mapping) and "value" in one for one in given):
                raise UserError(f'{where}: the answers to {question!r} are {short(given)}; expected [{{"value": ...}}]')
            answers[question] = [_Given(one["value"], _worker(one.get("user_id")), one.get("status")) for one in given]
    elif responses is not None:
        raise UserError(f"{where}: 'responses' is {short(responses)}; expected the answers to each question")
    return answers


def _flat(record: Mapping[str, Any]) -> dict[str, list[_Given]]:
    answers = {}
    for name, value in record.items():
        if name.endswith(_SUFFIX) and isinstance(value, list):
            users, statuses = record.get(f"{name}.users") or [], record.get(f"{name}.status") or []
            answers[name.removesuffix(_SUFFIX)] = [
                _Given(one, _worker(_at(users, number)), _at(statuses, number)) for number, one in enumerate(value)
            ]
        elif _is_version_1(value):
            answers[name] = [_Given(one["value"], _worker(one.get("user_id")), one.get("status")) for one in value]
    return answers


def _at(values: object, number: int) -> Any:
    return values[number] if isinstance(values, list) and number < len(values) else None


def _worker(value: object) -> str | None:
    return None if is_blank(value) else str(value)


def _question(answers: Mapping[str, list[_Given]], reading: Reading, where: str) -> str | None:
    """The question that was asked about the responses, None where there is no answer. UserError if there are several
    and none is told.
    """
    told = reading.columns.get("question")
    asked = [name for name, given in answers.items() if given and name == (told or name)]
    if len(asked) > 1:
        raise UserError(f"{where}: which question counts, {', '.join(asked)}? Say it with --columns question=NAME")
    return asked[0] if asked else None


def _answer(value: Any, responses: list[str], what: str) -> Label | None:
    """The answer that a value is; None for a ranking with ties, which a list of numbers cannot hold."""
    if len(responses) == 1:
        return {"score": number_of(value, what, "it")}
    places = {plain_name(name).replace("_", ""): place for place, name in enumerate(responses)}

    def place(name: object) -> int:
        found = places.get(plain_name(str(name)).replace("_", ""))
        if found is None:
            raise UserError(f"{what} is {short(value)}; expected {', '.join(responses)}, a list of them, or tie")
        return found

    if isinstance(value, list):
        ranks = [float(number) for number in range(len(value))]
        if value and all(isinstance(one, Mapping) and "rank" in one for one in value):
            ranks = [number_of(one["rank"], what, "rank") for one in value]
            value = [one.get("value") for one in value]
        ranked = [place(name) for name in value]
        if not ranked or len(set(ranked)) != len(ranked):
            raise UserError(f"{what} is {short(value)}; expected different ones of {', '.join(responses)}")
        if len(set(ranks)) < len(ranks):
            return None
        return {"ranking": [number for _, number in sorted(zip(ranks, ranked, strict=True))]}
    if isinstance(value, str) and value.casefold() in TIES:
        return uniform(len(responses))
    return {"best": place(value)}


def write(labels: Iterable[Label], reading: Reading) -> Iterator[dict[str, Any]]:
    """Records as `records.to_json` writes and `records.from_json` reads them; a record a label. UserError for answers
    that Argilla has no question for.
    """
    for number, label in enumerate(labels):
        texts, more = label["responses"], more_of(label)
        names = ["response"] if len(texts) == 1 else [f"response{place}" for place in range(1, len(texts) + 1)]
        if "score" in label:
            question, value = "rating", label["score"]
        elif "best" in label:
            question, value = "preference", names[label["best"]]
        elif "ranking" in label:
            question, value = "ranking", [names[place] for place in label["ranking"]]
        elif label.get("target") == uniform(len(texts))["target"]:
            question, value = "preference", "tie"
        else:
            raise UserError(f"label {number}: shares and differences have no place in Argilla's form; write .jsonl")
        worker = more.pop("worker", None)
        yield {
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{number} {label['query']}")),
            "fields": {"prompt": label["query"], **dict(zip(names, texts, strict=True))},
            "metadata": {name: value for name, value in more.items() if isinstance(value, str | int | float)},
            "suggestions": {},
            "responses": {question: [{"value": value, "user_id": worker}]},
            "vectors": {},
        }
