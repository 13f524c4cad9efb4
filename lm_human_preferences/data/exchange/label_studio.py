"""Label Studio's exports: tasks with `data` and people's `annotations` (JSON), or a row an annotation (JSON-MIN, CSV).

Each annotation that was not cancelled is a label: a pairwise result (left, right) or a choice is a choice, the order of
a ranker a ranking, a rating a rating of the one response.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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

ABOUT = '"data" and "annotations", or the rows of JSON-MIN and CSV'
_SIDES = {"left": 0, "right": 1}
_TYPES = ("pairwise", "choices", "ranker", "rating")


def fits(record: Mapping[str, Any]) -> bool:
    tasks = isinstance(record.get("data"), Mapping) and ("annotations" in record or "completions" in record)
    return tasks or ("annotation_id" in record and "annotator" in record)


def read(record: Mapping[str, Any], where: str, reading: Reading, typed: bool = False) -> Iterator[Label]:
    """A label of each annotation. UserError for a record of another form."""
    data = record.get("data")
    if isinstance(data, Mapping):
        annotations = record.get("annotations", record.get("completions"))
        if not isinstance(annotations, list) or not all(isinstance(one, Mapping) for one in annotations):
            raise UserError(f"{where}: 'annotations' is {short(annotations)}; expected a list")
        answers = [one for one in annotations if not one.get("was_cancelled")]
        if len(answers) < len(annotations):
            reading.counts["annotations are left out: they were cancelled"] += len(annotations) - len(answers)
        if not annotations:
            reading.leave_out("nobody has annotated them")
    elif data is None and "annotation_id" in record:
        data, answers = record, [_flat(record)]
    else:
        raise UserError(f"{where}: expected {ABOUT}; it has {names_of(record)}")
    for one in answers:
        results = one.get("result")
        wanted = reading.columns.get("question")
        found = [
            result
            for result in (results if isinstance(results, list) else [])
            if isinstance(result, Mapping)
            and result.get("type") in _TYPES
            and wanted in (None, result.get("from_name"))
        ]
        if len(found) > 1:
            names = ", ".join(str(result.get("from_name")) for result in found)
            raise UserError(f"{where}: which result counts, {names}? Say it with --columns question=NAME")
        if not found:
            reading.leave_out("an annotation has no answer")
            continue
        yield _label(data, found[0], one, where, reading)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation of a row, its one result from the column that holds left, right or a number."""
    results = []
    for name, value in record.items():
        if isinstance(value, str) and value in _SIDES:
            results.append({"type": "pairwise", "from_name": name, "value": {"selected": value}})
        elif plain_name(name) in ("rating", "score", "stars") and not is_blank(value):
            results.append({"type": "rating", "from_name": name, "value": {"rating": value}})
    return {"result": results, "completed_by": record.get("annotator")}


def _label(
    data: Mapping[str, Any], result: Mapping[str, Any], one: Mapping[str, Any], where: str, reading: Reading
) -> Label:
    kind, value = result["type"], result.get("value")
    inner = value.get({"pairwise": "selected"}.get(kind, kind)) if isinstance(value, Mapping) else None
    what = f"{where}: the {kind} {result.get('from_name')!r}"
    worker = one.get("completed_by")
    worker = worker.get("email", worker.get("id")) if isinstance(worker, Mapping) else worker
    more = {} if is_blank(worker) else {"worker": str(worker)}
    query = reading.query(data, reading.columns.get("query") or find_field(data, PROMPTS), where)
    if kind == "ranker":
        items = _items(data, where)
        return reading.label(query, list(items.values()), _ranking(inner, list(items), what), more, typed=True)
    named = [name.strip() for name in str(result.get("to_name", "")).split(",")]
    numbered = numbered_fields(data, (*RESPONSES, "option", "candidate"))
    responses = named if len(named) > 1 and all(name in data for name in named) else list(numbered.values())
    if kind == "rating" or not responses:
        response = reading.columns.get("response") or find_field(data, RESPONSES)
        responses = responses if response is None else [response]
    if not responses:
        raise UserError(f"{where}: which fields are the responses? It has {names_of(data)}; --columns response=NAME")
    texts = [text_of(data, name, where) for name in responses]
    if kind == "rating":
        return reading.label(query, texts[:1], {"score": number_of(inner, what, "it")}, more, typed=True)
    chosen = inner[0] if isinstance(inner, list) and len(inner) == 1 else inner
    return reading.label(query, texts, _choice(chosen, responses, what), more, typed=True)


def _choice(value: object, responses: list[str], what: str) -> Label:
    said = plain_name(str(value))
    if said in TIES:
        return uniform(len(responses))
    places = {plain_name(name): place for place, name in enumerate(responses)}
    places |= {name.replace("_", ""): place for name, place in places.items()}
    if len(responses) == 2:
        places |= _SIDES
    place = places.get(said, places.get(said.replace("_", "")))
    if place is None:
        sides = "left, right, " if len(responses) == 2 else ""
        raise UserError(f"{what} is {short(value)}; expected {sides}{', '.join(responses)} or tie")
    return {"best": place}


def _items(data: Mapping[str, Any], where: str) -> dict[str, str]:
    """The texts that a ranker orders, by their id: the task's one list of {id, body}."""
    lists = [value for value in data.values() if isinstance(value, list)]
    items = lists[0] if len(lists) == 1 else None
    if not items or not all(isinstance(item, Mapping) and "id" in item for item in items):
        raise UserError(f'{where}: expected one list of {{"id", "body"}} to rank in "data"')
    return {str(item["id"]): text_of(item, "body" if "body" in item else "title", where) for item in items}


def _ranking(value: object, ids: list[str], what: str) -> Label:
    if isinstance(value, Mapping):  # buckets, of which `_` holds what was not put into one
        filled = [order for order in value.values() if order]
        value = filled[0] if len(filled) == 1 else None
    if not isinstance(value, list) or not value or not {str(one) for one in value} <= set(ids):
        raise UserError(f"{what} is {short(value)}; expected one order of {', '.join(ids)}")
    return {"ranking": [ids.index(str(one)) for one in value]}


def write(labels: Iterable[Label], reading: Reading) -> Iterator[dict[str, Any]]:
    """Tasks with an annotation each, as Label Studio imports them. UserError for answers that have no tag there."""
    for number, label in enumerate(labels, 1):
        texts, more = label["responses"], more_of(label)
        names = ["answer"] if len(texts) == 1 else [f"answer{place}" for place in range(1, len(texts) + 1)]
        data: dict[str, Any] = {"prompt": label["query"], **dict(zip(names, texts, strict=True))}
        if "score" in label:
            kind, value = "rating", {"rating": label["score"]}
        elif "best" in label and len(texts) == 2:
            kind, value = "pairwise", {"selected": ("left", "right")[label["best"]]}
        elif "best" in label or label.get("target") == uniform(len(texts))["target"]:
            kind, value = "choices", {"choices": [names[label["best"]] if "best" in label else "tie"]}
        elif "ranking" in label:
            data = {
                "prompt": label["query"],
                "items": [{"id": n, "body": t} for n, t in zip(names, texts, strict=True)],
            }
            kind, value = "ranker", {"ranker": [names[place] for place in label["ranking"]]}
        else:
            raise UserError(
                f"label {number}: shares and differences have no place in Label Studio's form; write .jsonl"
            )
        worker = more.pop("worker", None)
        data |= {name: value for name, value in more.items() if isinstance(value, str | int | float)}
        to_name = ",".join(names) if kind == "pairwise" else "items" if kind == "ranker" else "prompt"
        result = {"type": kind, "value": value, "from_name": kind, "to_name": to_name}
        yield {"id": number, "data": data, "annotations": [{"result": [result], "completed_by": worker}]}
