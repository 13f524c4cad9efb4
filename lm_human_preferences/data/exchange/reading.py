"""How a file of other people's labels is read: settings, and what all forms do with texts and answers."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_human_preferences.data.exchange.chat import DIALOGUE, ChatTemplate
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError

Label = dict[str, Any]  # a label of texts: `query`, `responses`, an answer, and what else is known
ANSWERS = ("best", "target", "ranking", "score", "difference")
TIES = frozenset(("tie", "both", "equal", "same", "alike", "draw"))  # people like the responses alike
JOINS = ("auto", "space", "none")
_PLACES = re.compile(r"\{([^{}]*)\}")
_NUMBERED = re.compile(r"(?:(?P<stem>.*?)_?)(?P<number>\d+|(?<=_)[a-h])")
_KEPT = (str, int, float, bool)  # what else a record says and is kept as it is


@dataclass
class ReadingParams:
    """How a label file is read that is not in the project's own form."""

    format: str = param(
        "auto",
        "form of the label file: auto finds it in its content; ours, pairs, table, summaries, argilla, label_studio",
    )
    columns: str = param(
        "", "which fields are what where names do not say: query=NAME,response=NAME,score=NAME,best=NAME,...", "text"
    )
    query_template: str = param(
        "", "a query made of several fields, in braces: {title} {post}; empty is the query's own field", "text"
    )
    chat_template: str = param(
        DIALOGUE, "how lists of chat messages become text, with {system}, {user}, {assistant}", "text"
    )
    join: str = param(
        "auto", "space puts one before a response where nothing parts it from its query, none leaves texts as they are"
    )
    axis: str = param("overall", "which axis of rated summaries is the score")


@dataclass
class Reading:
    """Settings, understood, and what is counted while a file is read."""

    columns: dict[str, str]  # role -> the file's name for it
    template: str
    chat: ChatTemplate
    join: str
    axis: str
    counts: Counter[str] = field(default_factory=Counter)  # of what is worth saying afterwards

    @classmethod
    def of(cls, params: ReadingParams) -> "Reading":
        """UserError, naming the flag, for settings that mean nothing."""
        if params.join not in JOINS:
            raise UserError(f"--join {params.join}: must be {', '.join(JOINS)}")
        columns = {}
        for part in filter(None, params.columns.split(",")):
            role, found, name = part.partition("=")
            if not found or not role.strip() or not name.strip():
                raise UserError(f"--columns {part}: expected ROLE=NAME, such as query=Frage")
            columns[role.strip()] = name.strip()
        template = with_line_breaks(params.query_template)
        return cls(columns, template, ChatTemplate.parse(params.chat_template), params.join, params.axis)

    def notes(self) -> list[str]:
        return [f"{count:,} {what}" for what, count in self.counts.items()]

    def query(self, fields: Mapping[str, Any], own: str | None, where: str) -> str:
        """The query of a record: its template filled in, or the field `own`. UserError for a field that is missing, no
        text, or empty.
        """
        if self.template:
            return filled(self.template, fields, where)
        if own is None:
            raise UserError(
                f"{where}: which field is the query? It has {names_of(fields)}; say it with --columns query=NAME"
            )
        text = text_of(fields, own, where)
        if not text.strip():
            raise UserError(f"{where}: {own!r}, the query, is empty")
        return text

    def label(self, query: str, responses: Sequence[str], answer: Label, more: Mapping[str, Any], typed: bool) -> Label:
        """A label, its responses parted from the query. `typed`: people typed the texts, and nobody thought of the
        space before a response.
        """
        if self.join == "space" or (self.join == "auto" and typed):
            responses = [_apart(query, response) for response in responses]
        else:
            together = sum(_apart(query, response) != response for response in responses)
            if together:
                self.counts["responses follow their query without white space (--join space puts one between)"] += (
                    together
                )
        if empty := sum(not response.strip() for response in responses):
            self.counts["responses are empty"] += empty
        return {"query": query, "responses": list(responses), **answer, **more}

    def leave_out(self, why: str) -> None:
        self.counts[f"records are left out: {why}"] += 1


def _apart(query: str, response: str) -> str:
    """The response, with a space in front where neither it nor the query's end has white space."""
    return f" {response}" if response and not response[0].isspace() and not query[-1:].isspace() else response


def with_line_breaks(text: str) -> str:
    r"""A template as typed on a command line: `\n` and `\t` are a line break and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def filled(template: str, fields: Mapping[str, Any], where: str) -> str:
    """A template with its places filled. UserError for a place that the record does not have."""
    return _PLACES.sub(lambda place: text_of(fields, place[1], where), template)


def value_of(fields: Mapping[str, Any], name: str, where: str) -> Any:
    """What a field holds. UserError where it is missing."""
    if name not in fields:
        raise UserError(f"{where}: the field {name!r} is missing; it has {names_of(fields)}")
    return fields[name]


def text_of(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A field's text, halves of surrogate pairs replaced. UserError where it is missing or no text."""
    value = value_of(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {short(value)}; expected a text")
    return whole_characters(value)


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def names_of(fields: Collection[str]) -> str:
    return ", ".join(map(str, fields)) or "none"


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain_name(name: str) -> str:
    """A field's name as it is compared: `Answer 1`, `answer-1` and `answer_1` are one."""
    return re.sub(r"[\s\-.]+", "_", name.strip().casefold())


def find_field(fields: Collection[str], names: Sequence[str]) -> str | None:
    """The field whose name is the first of `names` that there is."""
    by_name = {plain_name(name): name for name in reversed(list(fields))}
    return next((by_name[name] for name in names if name in by_name), None)


def numbered_fields(fields: Collection[str], stems: Collection[str]) -> dict[str, str]:
    """The fields `stem_1`, `stem_2`, ... or `stem_a`, ... of the first stem that has two or more: number -> name, in
    order.
    """
    found: dict[str, dict[str, str]] = {}
    for name in fields:
        match = _NUMBERED.fullmatch(plain_name(name))
        if match and match["stem"] in stems:
            found.setdefault(match["stem"], {})[match["number"]] = name
    several = (numbers for numbers in found.values() if len(numbers) > 1)
    return dict(sorted(next(several, {}).items(), key=lambda item: (len(item[0]), item[0])))


def number_of(value: object, where: str, name: str) -> float:
    """A number in a cell: `4`, `4.5` or `4,5`. UserError for anything else."""
    try:
        if isinstance(value, bool):
            raise ValueError
        text = str(value).strip()
        number = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
        if not abs(number) < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(f"{where}: {name!r} is {short(value)}; expected a number") from None
    return number


def is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def kept(record: Mapping[str, Any], used: Collection[str | None]) -> dict[str, Any]:
    """What else a record says, texts and numbers only; who answered is called `worker`."""
    worker = find_field(record, ("worker", "rater", "annotator", "labeler", "labeller", "user_id", "user"))
    return {
        "worker" if name == worker else name: whole_characters(value) if isinstance(value, str) else value
        for name, value in record.items()
        if name not in used
        and name not in (*ANSWERS, "query", "responses")
        and isinstance(value, _KEPT)
        and not is_blank(value)
    }


def uniform(n: int) -> Label:
    """The answer of somebody who likes n responses alike."""
    return {"target": [1 / n] * n}
