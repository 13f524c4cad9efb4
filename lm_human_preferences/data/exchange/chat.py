r"""Lists of chat messages as text, and back.

A template says how each message is written: `{system}\n\nHuman: {user}\n\nAssistant: {assistant}` writes before each
message what stands before its place, then its content, and after an assistant's message what stands at the template's
end. The query is all but the last answer, with what stands before `{assistant}`; the spaces at the end of that go to
the response, since GPT-2's tokens begin with the space.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from lm_human_preferences.foundation.errors import UserError

DIALOGUE = r"{system}\n\nHuman: {user}\n\nAssistant: {assistant}"  # as data/dialogues.py reads it
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot"),
}
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_PLACE = re.compile(r"\{(system|user|assistant)\}")


class Message(NamedTuple):
    role: str  # one of ROLES
    content: str


@dataclass(frozen=True)
class ChatTemplate:
    """What is written before the messages of each role, and after an assistant's."""

    before: dict[str, str]
    after: str

    @classmethod
    def parse(cls, text: str) -> "ChatTemplate":
        """UserError unless it has {user}, {assistant} and, perhaps, {system} before them, once each and in order."""
        first, *parts = _PLACE.split(text.replace("\\n", "\n").replace("\\t", "\t"))
        roles, texts = parts[::2], [first, *parts[1::2]]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
            raise UserError(
                f"--chat_template {text!r}: expected {{user}} and {{assistant}}, perhaps {{system}} before them, each "
                "once and in this order"
            )
        return cls(dict(zip(roles, texts, strict=False)), texts[-1])

    def write(self, messages: Sequence[Message], where: str) -> str:
        """All messages, one after the other. UserError for a role that the template has no place for."""
        text = ""
        for message in messages:
            if message.role not in self.before:
                raise UserError(f"{where}: a message is of {message.role}, for which --chat_template has no place")
            text += self.before[message.role] + message.content + (self.after if message.role == "assistant" else "")
        return text

    def query(self, messages: Sequence[Message], where: str) -> str:
        """What comes before an answer to these messages."""
        return self.write(messages, where) + self.before["assistant"].rstrip(" ")

    def response(self, messages: Sequence[Message], where: str) -> str:
        """What follows the query where these messages do, the first of them an assistant's."""
        if messages[0].role != "assistant":
            raise UserError(f"{where}: the answer begins with a message of {messages[0].role}; expected assistant")
        return self.write(messages, where).removeprefix(self.before["assistant"].rstrip(" "))

    def read(self, text: str) -> list[Message] | None:
        """The messages whose writing is `text`, the last of them perhaps without its content; None if there are none.
        Of a text that fits in several ways the one with the most messages.
        """
        marks = {role: self.before[role].rstrip(" ") for role in ("user", "assistant")}
        if not all(marks.values()):
            return None
        pieces = re.split("(" + "|".join(re.escape(marks[role]) for role in ("user", "assistant")) + ")", text)
        messages = []
        if pieces[0]:
            if not pieces[0].startswith(self.before.get("system", "\0")):
                return None
            messages.append(Message("system", pieces[0].removeprefix(self.before["system"])))
        for mark, content in zip(pieces[1::2], pieces[2::2], strict=True):
            role = "user" if mark == marks["user"] else "assistant"
            content = content.removeprefix(self.before[role][len(mark) :])
            messages.append(Message(role, content.removesuffix(self.after) if role == "assistant" else content))
        return messages or None


def is_messages(value: object) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether a value looks like a list of chat messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def messages_of(value: Sequence[Mapping[str, Any]], where: str) -> list[Message]:
    """Messages in either of the usual forms, `role` and `content` or `from` and `value`. UserError for one in neither,
    or of a role that is not known.
    """
    messages = []
    for number, one in enumerate(value):
        role, content = (one.get("role"), one.get("content")) if "role" in one else (one.get("from"), one.get("value"))
        if isinstance(content, list) and all(
            isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
        ):
            content = "".join(part["text"] for part in content)  # a message in parts, all of them texts
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f'{where}: message {number} is not {{"role": text, "content": text}}')
        if role.casefold() not in _ROLE_OF:
            raise UserError(f"{where}: message {number} has the role {role!r}; it must be system, user or assistant")
        messages.append(Message(_ROLE_OF[role.casefold()], content))
    return messages


def as_objects(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]
