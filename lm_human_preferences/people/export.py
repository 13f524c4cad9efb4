"""A study's answers as files: labels for training, pairs of chosen and rejected, the whole record, and a datasheet."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lm_human_preferences.data.exchange.pairs import write as pairs_of
from lm_human_preferences.data.exchange.reading import Reading, ReadingParams
from lm_human_preferences.data.label_files import save_labels
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_folder
from lm_human_preferences.people.merging import answer_distribution, merged
from lm_human_preferences.people.quality import Quality, describe, quality
from lm_human_preferences.people.records import PLAIN, RANKING, VALIDATION, Judgement, Question
from lm_human_preferences.people.store import Store

Label = dict[str, Any]  # `best`, `target` or `ranking` of a question


def label_of_target(target: np.ndarray) -> Label:
    """`best` where all of a target float64 [K] is on one response, else `target`."""
    best = int(target.argmax())
    return {"best": best} if target[best] == 1 else {"target": [float(share) for share in target]}


def labels_of(
    questions: Mapping[int, Question], judgements: Sequence[Judgement], how: str
) -> Iterator[tuple[Question, Label]]:
    """The labels of questions by number: one of each for `majority` and `dawid_skene`, one of each answer for `each`,
    where an order that somebody gave stays one.
    """
    given = [one for one in judgements if one.showing.question in questions and not one.showing.repeat]
    if how == "each":
        for one in given:
            question = questions[one.showing.question]
            if one.answer.kind == RANKING and one.answer.sureness is None:
                yield question, {"ranking": one.answer.value}
            elif one.answer.usable:
                yield question, label_of_target(answer_distribution(one.answer, len(question.responses)))
        return
    responses = len(next(iter(questions.values())).responses) if questions else 0
    for number, target in merged(given, responses, how).items():
        yield questions[number], label_of_target(target)


def as_texts(question: Question, label: Label) -> dict[str, Any]:
    """A line of the readable label file."""
    return {"query": question.query, "responses": [response.text for response in question.responses], **label}


def as_tokens(question: Question, label: Label) -> dict[str, Any]:
    """An entry of the original's label file; of questions with tokens alone."""
    samples = {f"sample{number}": response.tokens for number, response in enumerate(question.responses)}
    return {"query": question.query_tokens, **samples, **label}


def has_tokens(question: Question) -> bool:
    return question.query_tokens is not None and all(response.tokens is not None for response in question.responses)


def record_of(question: Question, one: Judgement) -> dict[str, Any]:
    """All that is known of an answer, as JSON."""
    return {
        "answer": one.id,
        "question": question.id,
        "kind": question.kind,
        "query": question.query,
        "query_tokens": question.query_tokens,
        "responses": [vars(response) for response in question.responses],
        "gold": question.gold,
        "labeller": one.showing.labeller,
        "places": one.showing.places,
        "repeat": one.showing.repeat,
        "said": one.answer.kind,
        "value": one.answer.value,
        "sureness": one.answer.sureness,
        "flagged": one.note,
        "shown": one.showing.shown,
        "answered": one.answered,
        "replaces": one.replaces,
        "instructions": one.instructions,
    }


def write_export(store: Store, folder: Path, how: str) -> dict[str, int]:
    """Write the files into `folder`, which must not exist or be an older export; returns how many lines each has.
    UserError if nothing can be learnt from the answers yet.
    """
    if folder.exists() and not (folder / "datasheet.md").is_file():
        raise UserError(f"{folder} exists and holds no export; give another folder with --output")
    questions = {question.id: question for question in store.questions()}
    judgements = store.judgements()
    labels = {
        kind: list(labels_of({n: one for n, one in questions.items() if one.kind == kind}, judgements, how))
        for kind in (PLAIN, VALIDATION)
    }
    if not any(labels.values()):
        raise UserError(f"{store.path} has no answers to learn from yet")
    lines: dict[str, int] = {}
    with atomic_folder(folder) as temporary:

        def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
            lines[name] = save_labels(temporary / name, iter(rows))

        for kind, name in ((PLAIN, "labels"), (VALIDATION, "validation")):
            some = labels[kind]
            write(f"{name}.jsonl", (as_texts(*one) for one in some))
            if some and all(has_tokens(question) for question, _ in some):
                write(f"{name}.json", (as_tokens(*one) for one in some))
        write("pairs.jsonl", pairs_of((as_texts(*one) for one in labels[PLAIN]), Reading.of(ReadingParams())))
        every = store.judgements(replaced=True)
        write("answers.jsonl", (record_of(questions[one.showing.question], one) for one in every))
        sheet = datasheet(store, quality(questions, judgements), judgements, how, lines)
        (temporary / "datasheet.md").write_text(sheet, encoding="utf-8")
    return lines


FILES = {
    "labels.jsonl": "labels to train on, texts",
    "labels.json": "the same as token lists, as the original has them",
    "validation.jsonl": "questions of two policies, texts; keep them apart from training",
    "validation.json": "the same as token lists",
    "pairs.jsonl": "prompt, chosen, rejected, of labels.jsonl",
    "answers.jsonl": "every answer with all that is known of it, replaced ones too",
}


def datasheet(
    store: Store, found: Quality, judgements: Collection[Judgement], how: str, lines: Mapping[str, int]
) -> str:
    """Who, how many, when, how asked, and how far they agree, in Markdown."""
    settings, (digest, instructions) = store.settings() or {}, store.instructions() or ("", "")
    times = [one.answered for one in judgements]
    period = " to ".join(datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d") for time in (min(times), max(times)))
    files = "\n".join(f"| `{name}` | {count:,} | {FILES[name]} |" for name, count in lines.items())
    quoted = "\n".join(f"> {line}".rstrip() for line in instructions.splitlines())
    return f"""# Datasheet

{len(found.labellers)} people gave {found.answers:,} answers to {found.questions:,} questions of task \
{settings.get("task")}, {period} (UTC). Several answers to one question were merged by `{how}`.

| file | lines | what |
|---|--:|---|
{files}

## How people were asked

```json
{json.dumps(settings.get("study"), indent=2)}
```

Instructions (SHA-256 {digest}):

{quoted}

## How far they agree

```
{describe(found)}
```
"""
