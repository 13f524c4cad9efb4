"""Dialogues as the helpful-and-harmless files have them: one text in which `Human:` and `Assistant:` take turns.

The file's pairs are two whole dialogues, `chosen` and `rejected`, that are the same up to where they part; what both
begin with is the query, and what follows the last `Assistant:` of it are the two responses. Source: Bai et al. 2022
(arXiv 2204.05862), github.com/anthropics/hh-rlhf.
"""

import os
import re
from typing import NamedTuple

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(f"({re.escape(HUMAN)}|{re.escape(ASSISTANT)})")


class Turn(NamedTuple):
    """What one of the two says, without its mark and with the white space that follows the mark."""

    speaker: str  # HUMAN or ASSISTANT
    text: str


class DialoguePair(NamedTuple):
    """Query and two responses: query + response is the dialogue, character by character."""

    query: str  # ends with ASSISTANT
    chosen: str  # begins with the space that follows the mark, where there is one
    rejected: str


def turns(dialogue: str) -> list[Turn] | None:
    """The turns of a dialogue, in order; None unless it begins with one. Their marks and texts joined are the
    dialogue.
    """
    before, *parts = _TURN.split(dialogue)
    if before or not parts:
        return None
    return [Turn(speaker, text) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]


def first_human_turn(dialogue: str) -> str | None:
    """What the human says first, without white space around it; None if that is nothing or the dialogue does not begin
    with a human's turn.
    """
    found = turns(dialogue)
    return (found[0].text.strip() or None) if found and found[0].speaker == HUMAN else None


def split_pair(chosen: str, rejected: str) -> DialoguePair | None:
    """The query that two dialogues share and what follows it in each; None if they share no `Assistant:`.

    The query is their common beginning up to the last `Assistant:` in it. Where two dialogues part before their last
    turn, the responses hold the turns that follow.
    """
    common = os.path.commonprefix([chosen, rejected])
    place = common.rfind(ASSISTANT)
    if place < 0:
        return None
    end = place + len(ASSISTANT)
    return DialoguePair(chosen[:end], chosen[end:], rejected[end:])
