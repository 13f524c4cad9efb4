"""Rows with a field for each thing, as spreadsheets and their like have them: ratings, choices, rankings, shares.

| what | fields |
|---|---|
| a rating | query, response, score |
| a choice | query, answer_1, answer_2, ..., and best: the number or letter in the column's name, or `tie` |
| a ranking | query, answer_1, answer_2, ..., and ranking: numbers or letters, the best first, as 2>1>3 |
| shares | query, answer_1, answer_2, ..., share_1, share_2, ...: how many people, or what part, chose each |
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_human_preferences.data.exchange.pairs import PROMPTS, more_of
from lm_human_preferences.data.exchange.reading import (
    TIES,
    Label,
    Reading,
    find_field,
    is_blank,
    kept,
    names_of,
    number_of,
    numbered_fields,
    short,
    text_of,
    uniform,
    value_of,
)
from lm_human_preferences.foundation.errors import UserError

ABOUT = "a query with response and score, or answer_1, answer_2, ... with best, ranking or share_1, share_2, ..."
RESPONSES = ("response", "answer", "completion", "output", "reply", "continuation", "generation", "summary", "text")
SCORES = ("score", "rating", "stars", "grade", "points")
BEST = ("best", "choice", "preferred", "preference", "winner")
RANKINGS = ("ranking", "ranks", "rank", "order")
SHARES = ("share", "votes", "target")
_STEMS = (*RESPONSES, "option", "candidate", "model")


def fits(record: Mapping[str, Any]) -> bool:
    answers = len(numbered_fields(record, _STEMS)) > 1 and bool(
        find_field(record, (*BEST, *RANKINGS)) or numbered_fields(record, SHARES)
    )
    return answers or bool(find_field(record, RESPONSES) and find_field(record, SCORES))


def read(record: Mapping[str, Any], where: str, reading: Reading, typed: bool = False) -> Iterator[Label]:
    """The label of one row, none where the answer is blank. UserError for a row of another form."""
    roles = reading.columns
    query = roles.get("query") or find_field(record, PROMPTS)
    named = {role.removeprefix("response_"): name for role, name in roles.items() if role.startswith("response_")}
    answers = named or numbered_fields(record, _STEMS)
    best, ranking = roles.get("best") or find_field(record, BEST), roles.get("ranking") or find_field(record, RANKINGS)
    shares = numbered_fields(record, SHARES)
    if len(answers) > 1 and (best or ranking or shares):
        if best:
            answer = _best(record, best, answers, where)
        elif ranking:
            answer = _ranking(record, ranking, answers, where)
        else:
            answer = _shares(record, shares, answers, where)
        used = (query, *answers.values(), best or ranking, *shares.values())
        texts = [text_of(record, name, where) for name in answers.values()]
    else:
        response, score = (
            roles.get("response") or find_field(record, RESPONSES),
            roles.get("score") or find_field(record, SCORES),
        )
        if response is None or score is None:
            raise UserError(f"{where}: expected {ABOUT}; it has {names_of(record)} (--columns says which is what)")
        value = value_of(record, score, where)
        answer = None if is_blank(value) else {"score": number_of(value, where, score)}
        used, texts = (query, response, score), [text_of(record, response, where)]
    if answer is None:
        reading.leave_out("their answer is blank")
        return
    yield reading.label(reading.query(record, query, where), texts, answer, kept(record, used), typed)


def _best(record: Mapping[str, Any], best: str, answers: Mapping[str, str], where: str) -> Label | None:
    value = record.get(best)
    if is_blank(value):
        return None
    if str(value).strip().casefold() in TIES:
        return uniform(len(answers))
    return {"best": _place(value, answers, f"{where}: {best!r}")}


def _place(value: object, answers: Mapping[str, str], what: str) -> int:
    """Which of the answers a cell names, from 0: by the number or letter in the field's name, or by the whole name."""
    said = str(value).strip().casefold()
    said = said.removesuffix(".0")  # a number as spreadsheets that count in fractions write it
    for place, (number, name) in enumerate(answers.items()):
        if said in (number, name.strip().casefold()):
            return place
    raise UserError(f"{what} is {short(value)}; expected {', '.join(answers)}, as in {', '.join(answers.values())}")


def _ranking(record: Mapping[str, Any], ranking: str, answers: Mapping[str, str], where: str) -> Label | None:
    value = record.get(ranking)
    if is_blank(value):
        return None
    parts = value if isinstance(value, list) else re.split(r"\s*[>,;\s]\s*", str(value).strip(" []"))
    places = [_place(part, answers, f"{where}: {ranking!r}") for part in parts]
    if len(set(places)) != len(places):
        raise UserError(f"{where}: {ranking!r} is {short(value)}, which names an answer twice")
    return {"ranking": places}


def _shares(
    record: Mapping[str, Any], shares: Mapping[str, str], answers: Mapping[str, str], where: str
) -> Label | None:
    if list(shares) != list(answers):
        raise UserError(f"{where}: {names_of(shares.values())} do not belong to {names_of(answers.values())}")
    given = [0.0 if is_blank(record[name]) else number_of(record[name], where, name) for name in shares.values()]
    if min(given) < 0:
        raise UserError(f"{where}: {names_of(shares.values())} are {short(given)}; expected numbers of 0 or more")
    total = sum(given)
    if not total:
        return None
    return {"target": [share / total for share in given]}


def write(labels: Iterable[Label], reading: Reading) -> Iterator[dict[str, Any]]:
    """Rows that `read` reads back: `prompt`, then `answer` and `rating`, or `answer_1`, ... and `best`, `ranking` or
    `share_1`, ...
    """
    for label in labels:
        texts = label["responses"]
        if "score" in label:
            row = {"prompt": label["query"], "answer": texts[0], "rating": label["score"]}
        else:
            row = {"prompt": label["query"], **{f"answer_{number}": text for number, text in enumerate(texts, 1)}}
            if "best" in label:
                row["best"] = label["best"] + 1
            elif "ranking" in label:
                row["ranking"] = ">".join(str(place + 1) for place in label["ranking"])
            else:
                shares = label.get("target") or shares_of_difference(label, "a table")
                row |= {f"share_{number}": share for number, share in enumerate(shares, 1)}
        yield {**row, **more_of(label)}


def shares_of_difference(label: Mapping[str, Any], what: str) -> list[float]:
    raise UserError(f"differences between two responses have no place in {what}; write pairs, .json or .jsonl")
