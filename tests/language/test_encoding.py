"""GPT-2's encoding against the recorded ids. ORIGINAL details 42-44; hazard 5."""

import hashlib

import pytest

from lm_human_preferences.language.encoding import LetterEncoding, get_encoding, gpt2_encoding, vocabulary_folder

from conftest import Goldens


def test_sizes_and_vocabulary_files():
    recorded, encoding = Goldens.json("bpe"), gpt2_encoding()
    assert (encoding.n_vocab, encoding.end_of_text, encoding.padding_token) == (
        recorded["n_vocab"],
        recorded["eot_token"],
        recorded["padding_token"],
    )
    assert {
        name: hashlib.sha256((vocabulary_folder() / name).read_bytes()).hexdigest() for name in recorded["sha256"]
    } == recorded["sha256"]


def test_recorded_tokens():
    encoding, cases = gpt2_encoding(), Goldens.json("bpe")["cases"]
    for case in cases:
        assert encoding.encode(case["text"]) == case["tokens"] and encoding.decode(case["tokens"]) == case["text"]
    assert encoding.encode_batch([case["text"] for case in cases]) == [case["tokens"] for case in cases]


def test_recorded_texts():
    """Padding decodes to nothing, 50256 to its name, invalid UTF-8 to replacement characters."""
    cases = Goldens.json("bpe")["decode_cases"]
    for case in cases:
        assert gpt2_encoding().decode(case["tokens"]) == case["text"]
    texts = "".join(case["text"] for case in cases)
    assert "�" in texts and "<|endoftext|>" in texts and any(50259 in case["tokens"] for case in cases)


@pytest.mark.parametrize("token", [50257, 50258, -1])
def test_ids_outside_the_vocabulary(token):
    with pytest.raises(KeyError):
        gpt2_encoding().decode([token])


def test_the_end_of_text_is_encoded_as_ordinary_characters():
    encoding = gpt2_encoding()
    tokens = encoding.encode("<|endoftext|>")
    assert (
        len(tokens) == 7
        and encoding.end_of_text not in tokens
        and encoding.decode(tokens) == encoding.decode([50256]) == "<|endoftext|>"
    )


def test_contractions_match_in_lower_case_only():
    """A piece of its own before merging is 's, but not 'S."""
    encoding = gpt2_encoding()

    def pieces(text: str) -> list[str]:
        return [encoding.decode([token]) for token in encoding.encode(text)]

    assert pieces("x'sun") == ["x", "'s", "un"] and pieces("x'Sun") == ["x", "'", "Sun"]
    assert pieces("x'red") == ["x", "'re", "d"] and pieces("x'Red") == ["x", "'", "Red"]


def test_affixes_alone():
    assert gpt2_encoding().encode("\n\n") == [628] and gpt2_encoding().encode("a\n\nb")[1:3] == [198, 198]


def test_letters():
    recorded, encoding = Goldens.json("bpe")["test_encoder"], get_encoding("letters")
    assert isinstance(encoding, LetterEncoding) and encoding.padding_token == recorded["padding_token"] == 27
    for case in recorded["cases"]:
        assert encoding.encode(case["text"]) == case["tokens"]
        assert encoding.decode(case["tokens"] + [27]) == "".join(
            c if c in "abcdefghijklmnopqrstuvwxyz" else "." for c in case["text"]
        )
    assert encoding.encode_batch(["ab", "Z"]) == [[0, 1], [26]]
