"""Dialogues in one text, and pairs of them."""

import pytest

from lm_human_preferences.data.dialogues import ASSISTANT, HUMAN, first_human_turn, split_pair, turns

ASKED = f"{HUMAN} Who?{ASSISTANT} Me.{HUMAN} And\n\nwhere?{ASSISTANT}"


def test_a_pair_is_what_both_begin_with_up_to_the_last_assistant():
    assert split_pair(f"{ASKED} Here.", f"{ASKED} Hence.") == (ASKED, " Here.", " Hence.")
    assert split_pair(f"{ASKED} Here.", f"{ASKED} Here.") == (ASKED, " Here.", " Here.")
    assert split_pair(ASKED, f"{ASKED} Here.") == (ASKED, "", " Here.")


def test_dialogues_that_part_early_keep_their_turns():
    first = f"{HUMAN} Who?{ASSISTANT}"
    assert split_pair(f"{first} Me.{HUMAN} So?{ASSISTANT} Yes.", f"{first} You.") == (
        first,
        f" Me.{HUMAN} So?{ASSISTANT} Yes.",
        " You.",
    )


@pytest.mark.parametrize(
    "chosen, rejected", [("", ""), ("text", "text"), (f"{HUMAN} a", f"{HUMAN} b"), (f"{ASSISTANT} a", "b")]
)
def test_what_shares_no_assistant_is_no_pair(chosen, rejected):
    assert split_pair(chosen, rejected) is None


def test_turns_joined_are_the_dialogue():
    found = turns(ASKED)
    assert [turn.speaker for turn in found] == [HUMAN, ASSISTANT, HUMAN, ASSISTANT]
    assert "".join(turn.speaker + turn.text for turn in found) == ASKED
    assert turns(f"Well.{ASKED}") is None and turns("") is None


def test_the_first_human_turn():
    assert first_human_turn(ASKED) == "Who?"
    assert first_human_turn(f"{HUMAN} \n{ASSISTANT} Yes.") is None
    assert first_human_turn(f"{ASSISTANT} Yes.{HUMAN} Who?") is None
