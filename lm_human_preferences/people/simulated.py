"""Simulated people: they answer through the same tables as real ones, so that tests and the demo run everything.

`simulated:JUDGE?noise=0.3&first=0.1&people=5` are five who choose what the judge scores highest; in 30% of the
questions they click anywhere, in 10% they take the first card. What each answers follows from seed, name and question.
"""

import random
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import Judge, PeoplesChoices, load_judge
from lm_human_preferences.people.queue import Turn, next_turn, study_of
from lm_human_preferences.people.records import CHOICE, RANKING, Answer, Question
from lm_human_preferences.people.store import Store

PREFIX = "simulated:"
TOGETHER = 64  # questions that the judge reads at once


@dataclass
class Simulated:
    """People of one kind."""

    judge: Judge
    noise: float = 0.0  # share of questions answered at random
    first: float = 0.0  # share of questions where the first card is taken
    people: int = 1
    seed: int = 0
    scores: dict[int, list[float]] = field(default_factory=dict)  # question -> the judge's scores of its responses

    @property
    def names(self) -> list[str]:
        return [f"simulated-{number + 1}" for number in range(self.people)]


def parse_simulated(text: str, seed: int, device: torch.device) -> Simulated:
    """The people of a line of text. UserError, with an example, for one that is not of the form."""
    example = "expected simulated:JUDGE?noise=0.3&first=0.1&people=5"
    if not text.startswith(PREFIX):
        raise UserError(f"--online.labellers {text}: {example}")
    spec, _, query = text.removeprefix(PREFIX).partition("?")
    found = {"noise": 0.0, "first": 0.0, "people": 1.0}
    for name, value in parse_qsl(query, keep_blank_values=True):
        try:
            if name not in found:
                raise ValueError
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--online.labellers: {name}={value} is unknown; {example}") from None
    noise, first, people = found["noise"], found["first"], found["people"]
    if not (0 <= noise and 0 <= first and noise + first <= 1 and people >= 1 and people.is_integer()):
        raise UserError("--online.labellers: noise and first are shares that sum to at most 1, people a whole number")
    judge = load_judge(spec, device)
    if isinstance(judge, PeoplesChoices):
        raise UserError("--online.labellers: a sheet of people's choices scores no text; name another judge")
    return Simulated(judge, noise, first, int(people), seed)


def answer_of(people: Simulated, labeller: str, turn: Turn, scores: list[float], mode: str) -> Answer:
    """What a simulated labeller answers; scores: of the question's responses."""
    chance = random.Random(f"{people.seed}/{labeller}/{turn.question.id}/{turn.showing.repeat}")
    draw, cards = chance.random(), len(scores)
    if draw < people.noise:
        order = chance.sample(range(cards), cards)
    elif draw < people.noise + people.first:
        order = list(turn.showing.places)
    else:
        order = sorted(range(cards), key=lambda number: -scores[number])
    return Answer(RANKING, order) if mode == "rank" else Answer(CHOICE, order[:1])


def judge_scores(people: Simulated, store: Store, question: Question) -> list[float]:
    """The judge's scores of a question's responses; the first time with those of the questions that come after it,
    since a judge that is a network reads many texts in hardly more time than four.
    """
    if question.id not in people.scores:
        after = store.questions_after(question.id, TOGETHER - 1)
        some = [question, *(other for other in after if other.id not in people.scores)]
        pairs = [(one.query, response.text) for one in some for response in one.responses]
        scores = iter(people.judge.score([query for query, _ in pairs], [text for _, text in pairs]))
        people.scores |= {one.id: [next(scores) for _ in one.responses] for one in some}
    return people.scores[question.id]


def answer_open(store: Store, people: Simulated, count: int | None = None) -> int:
    """Let simulated people answer in turn what is open, `count` answers at most; returns how many they gave."""
    study, instructions = study_of(store), store.instructions()
    digest = instructions[0] if instructions else ""
    store.add_labellers(people.names)
    for name in people.names:
        store.read(name, digest)
    given, idle = 0, 0
    begun = store.number("SELECT COUNT(*) FROM showings")  # whose turn it is follows from the store alone
    while idle < people.people and (count is None or given < count):
        name = people.names[(begun + given + idle) % people.people]
        with store.transaction():
            turn = next_turn(store, name, study)
            if turn is None:
                idle += 1
                continue
            answer = answer_of(people, name, turn, judge_scores(people, store, turn.question), study.mode)
            store.answer(turn.showing.id, answer, digest, f"{name}/simulated/{turn.showing.id}")
        given, idle = given + 1, 0
    return given
