"""What ends responses of a task: ids and texts on the command line, one list with truncate_token."""

import pytest

from lm_human_preferences.data.tasks import TaskParams, check_task, ends_in_words, response_ends
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.added_tokens import AddedToken
from lm_human_preferences.language.encoding import ExtendedEncoding, get_encoding, gpt2_encoding
from lm_human_preferences.language.ends import Ends


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("50256", (50256,)),
        ("<|endoftext|>", (50256,)),
        ("13, 0,13", (13, 0)),
        ("\n", (198,)),
        (" END,END", (23578, 10619)),
        ('["\\n", " END", 50256]', (198, 23578, 50256)),
        ('[","]', (11,)),
        ('["5"]', (20,)),
        ("[", (58,)),
    ],
)
def test_stop_tokens_by_id_and_by_text(text, tokens):
    task = TaskParams(stop_tokens=text)
    assert response_ends(task, gpt2_encoding()).tokens == tokens
    check_task(task, gpt2_encoding(), 1024)


def test_truncate_token_is_one_of_them():
    """First, and once."""
    task = TaskParams(truncate_token=26, stop_tokens="a,26", truncate_after=3)
    assert response_ends(task, get_encoding("letters")) == Ends((26, 0), 3)
    assert ends_in_words(task) == "26, a,26 after 3" and ends_in_words(TaskParams()) == "nothing"
    assert response_ends(TaskParams(truncate_token=13), gpt2_encoding()) == Ends((13,), 0)


@pytest.mark.parametrize("text", ["", "13,", "[]", "[13, 1.5]", "[true]", '[""]', "[[13]]"])
def test_what_is_no_token_is_refused(text):
    with pytest.raises(UserError, match="expected ids or texts of one token each"):
        response_ends(TaskParams(stop_tokens=text), gpt2_encoding())


@pytest.mark.parametrize(
    "text, says",
    [
        ("### End", "--task.stop_tokens '### End' is 2 tokens; it must be exactly one"),
        ("50257", "--task.stop_tokens 50257: must lie in 0..50256"),
        ("-1", "--task.stop_tokens '-1' is 2 tokens"),
    ],
)
def test_texts_of_several_tokens_and_ids_that_are_none(text, says):
    with pytest.raises(UserError, match=says.replace("..", r"\.\.")):
        check_task(TaskParams(stop_tokens=text), gpt2_encoding(), 1024)


def test_a_text_needs_an_encoding():
    """It is never passed over."""
    assert response_ends(TaskParams(stop_tokens="13")).tokens == (13,)
    with pytest.raises(ValueError, match="needs an encoding"):
        response_ends(TaskParams(stop_tokens="."))


def test_a_token_that_a_model_has_added():
    """Where the encoding has the text as one token it ends responses; its id is the model's."""
    added = (AddedToken(50257, "### End"), AddedToken(50259, "### Response:\n"))
    encoding = ExtendedEncoding(gpt2_encoding(), added, 50260)
    for text, tokens in (("### End", (50257,)), ('["### Response:\\n", "<|endoftext|>"]', (50259, 50256))):
        task = TaskParams(stop_tokens=text)
        check_task(task, encoding, 1024)
        assert response_ends(task, encoding).tokens == tokens
