"""Pairs of a chosen and a rejected text, as reward and DPO trainers take them: `chosen`, `rejected` and perhaps
`prompt`.

With a prompt the two are answers to it, else whole dialogues (`data/dialogues.py`). Each may be a text or a list of
chat messages, and the chosen one is the first response of the label.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_human_preferences.data.dialogues import split_pair
from lm_human_preferences.data.exchange.chat import ChatTemplate, Message, as_objects, is_messages, messages_of
from lm_human_preferences.data.exchange.reading import (
    Label,
    Reading,
    find_field,
    kept,
    names_of,
    text_of,
    value_of,
    whole_characters,
)
from lm_human_preferences.foundation.errors import UserError

ABOUT = '"chosen" and "rejected", texts or lists of chat messages, and perhaps "prompt"'
PROMPTS = ("prompt", "query", "question", "instruction", "input", "context")


def fits(record: Mapping[str, Any]) -> bool:
    return find_field(record, ("chosen",)) is not None and find_field(record, ("rejected",)) is not None


def read(record: Mapping[str, Any], where: str, reading: Reading, typed: bool = False) -> Iterator[Label]:
    """The label of one pair. UserError for a record of another form."""
    names = {role: reading.columns.get(role) or find_field(record, (role,)) or role for role in ("chosen", "rejected")}
    prompt = reading.columns.get("query") or find_field(record, PROMPTS)
    chosen, rejected = (record.get(names[role]) for role in ("chosen", "rejected"))
    more = kept(record, (*names.values(), prompt))
    if is_messages(chosen) and is_messages(rejected):
        given = None if prompt is None else value_of(record, prompt, where)
        yield _of_messages(given, messages_of(chosen, where), messages_of(rejected, where), more, where, reading)
        return
    for name in names.values():
        if not isinstance(record.get(name), str):
            raise UserError(f"{where}: expected {ABOUT}; it has {names_of(record)}")
    first, second = (text_of(record, name, where) for name in names.values())
    if prompt is None and not reading.template:
        pair = split_pair(first, second)
        if pair is None:
            raise UserError(
                f"{where}: 'chosen' and 'rejected' have no 'prompt' and do not begin with the same dialogue "
                r"(\n\nHuman: ...\n\nAssistant:)"
            )
        yield reading.label(pair.query, (pair.chosen, pair.rejected), {"best": 0}, more, typed=False)
        return
    asked = record.get(prompt) if prompt else None
    if is_messages(asked) and not reading.template:
        query, typed = reading.chat.query(messages_of(asked, where), where), True
    else:
        query = reading.query(record, prompt, where)
    yield reading.label(query, (first, second), {"best": 0}, more, typed)


def _of_messages(
    prompt: object, chosen: list[Message], rejected: list[Message], more: Label, where: str, reading: Reading
) -> Label:
    """The label of two lists of messages: with the prompt's before them, or whole conversations that begin alike."""
    asked: list[Message] = []
    if is_messages(prompt):
        asked = messages_of(prompt, where)
    elif isinstance(prompt, str) and chosen[0].role == "assistant":
        asked = [Message("user", prompt)]
    if asked and chosen[: len(asked)] != asked:
        chosen, rejected = asked + chosen, asked + rejected
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    while same and not chosen[same].role == rejected[same].role == "assistant":
        same -= 1
    if not same:
        raise UserError(f"{where}: 'chosen' and 'rejected' do not begin with the same messages, up to an assistant's")
    query = whole_characters(reading.chat.query(chosen[:same], where))
    responses = [whole_characters(reading.chat.response(some[same:], where)) for some in (chosen, rejected)]
    return reading.label(query, responses, {"best": 0}, more, typed=False)


def pairs_of(label: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(chosen, rejected) of each two responses of a label of which one is better: the best and each other one, the
    higher and the lower share, the earlier and the later rank (what has no rank comes after all that have one). None of
    a rating.
    """
    texts = label["responses"]
    if "ranking" in label:
        worth = [0.0] * len(texts)
        for place, number in enumerate(label["ranking"]):
            worth[number] = float(len(texts) - place)
    elif "best" in label:
        worth = [float(number == label["best"]) for number in range(len(texts))]
    elif "difference" in label:  # how much more the second is liked
        worth = [0.0, float(label["difference"])]
    else:
        worth = label.get("target", [0.0] * len(texts))
    for chosen, better in enumerate(worth):
        for rejected, worse in enumerate(worth):
            if better > worse:
                yield texts[chosen], texts[rejected]


def more_of(label: Mapping[str, Any]) -> dict[str, Any]:
    """What a label says besides query, responses and answer."""
    return {
        name: value
        for name, value in label.items()
        if name not in ("query", "responses", "best", "target", "ranking", "score", "difference")
    }


def write(labels: Iterable[Label], reading: Reading) -> Iterator[dict[str, Any]]:
    """`prompt`, `chosen` and `rejected` as texts."""
    for label in labels:
        for chosen, rejected in pairs_of(label):
            yield {"prompt": label["query"], "chosen": chosen, "rejected": rejected, **more_of(label)}


def write_messages(labels: Iterable[Label], reading: Reading) -> Iterator[dict[str, Any]]:
    """`prompt`, `chosen` and `rejected` as lists of chat messages, read out of the texts by the chat template; a query
    that is no conversation is one message of the user. Those that the template does not write back are counted.
    """
    for label in labels:
        for chosen, rejected in pairs_of(label):
            asked, answers = conversation(reading.chat, label["query"], (chosen, rejected))
            again = [(reading.chat.query(asked, ""), reading.chat.response([answer], "")) for answer in answers]
            if again != [(label["query"], chosen), (label["query"], rejected)]:
                reading.counts["pairs of messages do not read back as the same texts"] += 1
            one, other = (as_objects([answer]) for answer in answers)
            yield {"prompt": as_objects(asked), "chosen": one, "rejected": other, **more_of(label)}


def conversation(chat: ChatTemplate, query: str, responses: Iterable[str]) -> tuple[list[Message], list[Message]]:
    """The messages of a query, and of each response to it."""
    found = chat.read(query)
    if found and found[-1] == Message("assistant", ""):
        asked = found[:-1]
    else:
        asked = [Message("user", query)]
    gap = chat.before["assistant"][len(chat.before["assistant"].rstrip(" ")) :]
    return asked, [Message("assistant", response.removeprefix(gap).removesuffix(chat.after)) for response in responses]
