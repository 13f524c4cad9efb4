"""Runs of white space that are too long for tiktoken's pattern."""

import numpy as np
import pytest

from lm_human_preferences.language import white_space
from lm_human_preferences.language.encoding import gpt2_encoding


def test_parts_give_the_tokens_of_the_whole(monkeypatch):
    """Made-up texts with runs of every kind of white space, cut out wherever there are three characters of it."""
    random, encoding, runs = np.random.default_rng(0), gpt2_encoding(), 0
    white = ["\n", " ", " ", "\t", "\u00a0", "\u2028", "\u3000", "\x85", "\r\n"]
    parts = [*white, *white, *white, "\x1c", "word", "It's", "12", "...", "é", "\U0001f600", "\u200b", "\ud800"]
    texts = ["".join(random.choice(parts, size=30)) for _ in range(500)]
    expected = encoding.encode_batch(texts)
    monkeypatch.setattr(white_space, "LONG", 3)
    for text, tokens in zip(texts, expected, strict=True):
        assert encoding.encode(text) == tokens
        runs += sum(is_run for _, is_run in white_space.split_at_long_runs(text))
    assert encoding.encode_batch(texts) == expected and runs > 1000


@pytest.mark.parametrize(
    "text, first",
    [
        (" " * 1_001_000, []),
        ("a" + "\n" * 1_001_000 + "b", [64]),
        ("x" + " " * 600_000 + "y" + " " * 1_001_000 + "z", [87]),
    ],
)
def test_a_million_characters(text, first):
    """Which tiktoken alone answers with a panic."""
    encoding = gpt2_encoding()
    tokens = encoding.encode(text)
    assert encoding.decode(tokens) == text and tokens[: len(first)] == first
    assert encoding.encode_batch(["short", text])[1] == tokens
