"""Tokens that people add to GPT-2's, like `### End` or `[PAD]`, and how a text is searched for them.

They are found before the rest is encoded, by the rules of Hugging Face's `tokenizers`: the leftmost one, of several
there the longest, and what lies between them is encoded by itself.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AddedToken:
    """One added token. Two are equal if they encode every text alike."""

    id: int
    text: str
    lstrip: bool = False  # white space before it belongs to it, and is lost
    rstrip: bool = False  # white space after it belongs to it, and is lost
    single_word: bool = False  # it is not found inside a word
    normalized: bool = False  # it is looked for after those that are not
    special: bool = field(default=True, compare=False)  # `transformers` can leave it out of a text
    roles: tuple[str, ...] = field(default=(), compare=False)  # what `transformers` takes it for: pad_token, eos_token


class TokenFinder:
    """Cuts texts at added tokens."""

    def __init__(self, tokens: Iterable[AddedToken]):
        tokens = list(tokens)
        passes = ([token for token in tokens if token.normalized is normalized] for normalized in (False, True))
        self._passes = [_Pass(group) for group in passes if group]

    def split(self, text: str) -> list[str | int]:
        """The text's parts in order: what is to be encoded, none of it empty, and the ids of added tokens."""
        parts: list[str | int] = [text] if text else []
        for one in self._passes:
            parts = [
                part for whole in parts for part in (one.split(whole) if isinstance(whole, str) else iter([whole]))
            ]
        return parts


class _Pass:
    """The search for some of the tokens. Original: tokenizers, added_vocabulary.rs, find_matches."""

    def __init__(self, tokens: list[AddedToken]):
        self._tokens = {token.text: token for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> Iterator[str | int]:
        done = 0
        for match in self._pattern.finditer(text):
            token, start, end = self._tokens[match[0]], *match.span()
            if token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
                continue
            while token.lstrip and done < start and _is_space(text[start - 1]):
                start -= 1
            while token.rstrip and end < len(text) and _is_space(text[end]):
                end += 1
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]


def _is_space(character: str) -> bool:
    """Whether it is white space as Unicode has it; Python counts four control characters more."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_word(character: str) -> bool:
    """Whether it can be a part of a word, as Unicode's regular expressions have it; no character is not."""
    kind = unicodedata.category(character) if character else "Zs"
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in ("\u200c", "\u200d")
