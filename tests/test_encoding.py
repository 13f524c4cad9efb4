"""GPT-2's encoding against the recorded ids. ORIGINAL details 42-44; hazard 5."""

import pytest

from conftest import Goldens
from lm_human_preferences.language.encoding import LetterEncoding, gpt2_encoding


def test_recorded_tokens():
    recorded, encoding = Goldens.json("bpe"), gpt2_encoding()
    assert (encoding.n_vocab, encoding.padding_token) == (recorded["n_vocab"], recorded["padding_token"])
    for case in recorded["cases"]:
        assert encoding.encode(case["text"]) == case["tokens"] and encoding.decode(case["tokens"]) == case["text"]
    for case in recorded["decode_cases"]:
        assert encoding.decode(case["tokens"]) == case["text"]
    for case in recorded["test_encoder"]["cases"]:
        assert LetterEncoding().encode(case["text"]) == case["tokens"]


@pytest.mark.parametrize("token", [50257, 50258, -1])
def test_ids_outside_the_vocabulary(token):
    with pytest.raises(KeyError):
        gpt2_encoding().decode([token])


def test_affixes_alone():
    assert gpt2_encoding().encode("\n\n") == [628] and gpt2_encoding().encode("a\n\nb")[1:3] == [198, 198]
