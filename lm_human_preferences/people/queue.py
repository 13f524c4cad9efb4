"""Who gets which question next, with the cards in which order, and what may be answered.

An open question belongs to whom it was shown for some minutes, then it goes to somebody else too; an answer that comes
later all the same is kept. Nobody gets a question twice but as a repeat. What is drawn follows from the study's seed,
the labeller and the number of questions that they have had.
"""

import random
from typing import NamedTuple

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.people.records import (
    ALIKE,
    CHOICE,
    GOLD,
    LONGEST_NOTE,
    RANKING,
    SKIP,
    Answer,
    Question,
    Showing,
    StudyParams,
)
from lm_human_preferences.people.store import Store
from lm_human_preferences.serving.refused import Refused

CHANGEABLE = 10  # a labeller's last answers that may still be changed
# whether the labeller of the showing `s` has answered its question, through this showing or an earlier one of it
_ANSWERED = (
    "EXISTS (SELECT 1 FROM showings t CROSS JOIN answers a ON a.showing = t.id "
    "WHERE t.question = s.question AND t.labeller = s.labeller AND t.repeat = s.repeat)"
)
REPEAT_AFTER = 10  # questions that lie at least between one and its repeat


class Turn(NamedTuple):
    """A question in front of a labeller."""

    showing: Showing
    question: Question
    replaces: int | None = None  # the answer that a new one would replace
    answer: Answer | None = None  # that answer


def next_turn(store: Store, labeller: str, study: StudyParams) -> Turn | None:
    """What a labeller gets now; None while there is nothing for them. In a transaction."""
    cut = store.clock() - 60 * study.lease_minutes
    if open_turn := _open_turn(store, labeller, cut):
        return open_turn
    seen = store.number("SELECT COUNT(*) FROM showings WHERE labeller = ?", labeller)
    draw = random.Random(f"{study.seed}/{labeller}/{seen}").random()
    question, repeat = None, False
    if draw < study.gold_share:
        question = _unseen_gold(store, labeller)
    elif draw < study.gold_share + study.repeat_share:
        question = _to_repeat(store, labeller)
        repeat = question is not None
    if question is None:
        question = _unanswered(store, labeller, cut)
    if question is None:
        return None
    found = store.question(question)
    return Turn(store.show(question, labeller, card_order(found, labeller, repeat, study.seed), repeat), found)


def card_order(question: Question, labeller: str, repeat: bool, seed: int) -> list[int]:
    """The number of the response on each card: a permutation of its own for each labeller, question and repeat."""
    places = list(range(len(question.responses)))
    random.Random(f"{seed}/{labeller}/{question.id}/{repeat}").shuffle(places)
    return places


def _open_turn(store: Store, labeller: str, cut: float) -> Turn | None:
    """The question that is in front of a labeller already."""
    row = store.one(
        f"SELECT id FROM showings s WHERE labeller = ? AND shown > ? AND NOT {_ANSWERED} ORDER BY id DESC LIMIT 1",
        labeller,
        cut,
    )
    showing = store.showing(row[0]) if row else None
    return Turn(showing, store.question(showing.question)) if showing else None


def _unseen_gold(store: Store, labeller: str) -> int | None:
    row = store.one(
        "SELECT id FROM questions q WHERE kind = ? AND NOT EXISTS "
        "(SELECT 1 FROM showings s WHERE s.question = q.id AND s.labeller = ?) ORDER BY id LIMIT 1",
        GOLD,
        labeller,
    )
    return row[0] if row else None


def _to_repeat(store: Store, labeller: str) -> int | None:
    """The oldest question of theirs that they have answered, were not asked again, and that lies back far enough."""
    row = store.one(
        "SELECT s.question FROM showings s JOIN answers a ON a.showing = s.id AND a.replaces IS NULL "
        "JOIN questions q ON q.id = s.question "
        "WHERE s.labeller = ?1 AND s.repeat = 0 AND q.kind <> 'gold' AND a.kind <> 'skip' AND NOT EXISTS "
        "(SELECT 1 FROM showings r WHERE r.question = s.question AND r.labeller = ?1 AND r.repeat = 1) "
        "AND (SELECT COUNT(*) FROM showings n WHERE n.labeller = ?1 AND n.id > s.id) >= ?2 ORDER BY s.id LIMIT 1",
        labeller,
        REPEAT_AFTER,
    )
    return row[0] if row else None


def _unanswered(store: Store, labeller: str, cut: float) -> int | None:
    """The first question that wants more answers than it has and are being given, and that they have not answered."""
    row = store.one(
        "SELECT d.question FROM demand d WHERE d.answered < d.wanted AND NOT EXISTS "
        "(SELECT 1 FROM showings s CROSS JOIN answers a ON a.showing = s.id "
        "WHERE s.question = d.question AND s.labeller = ?1) "
        "AND d.wanted - d.answered > (SELECT COUNT(*) FROM showings o WHERE o.question = d.question "
        "AND o.labeller <> ?1 AND o.shown > ?2 AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.showing = o.id)) "
        "ORDER BY d.question LIMIT 1",
        labeller,
        cut,
    )
    return row[0] if row else None


def earlier_turn(store: Store, labeller: str, back: int) -> Turn:
    """The `back`-th last question that a labeller has answered, 1 the last. Refused beyond the last ten."""
    if not 1 <= back <= CHANGEABLE:
        raise Refused(404, f"only the last {CHANGEABLE} answers can be changed")
    found = store.newest_answers(labeller, back)
    if len(found) < back:
        raise Refused(404, "there is no earlier answer")
    number, showing, answer = found[back - 1]
    return Turn(showing, store.question(showing.question), number, answer)


def own_showing(store: Store, labeller: str, number: object) -> tuple[Showing, Question]:
    """A showing by its number. Refused (403) unless it is this labeller's."""
    showing = store.showing(number) if type(number) is int and 0 <= number < 2**63 else None
    if showing is None or showing.labeller != labeller:
        raise Refused(403, "this question is not yours")
    return showing, store.question(showing.question)


def keep_answer(store: Store, labeller: str, study: StudyParams, body: dict[str, object]) -> int:
    """Keep what the page sends: {showing, kind, places, sureness, nonce, replaces}. Returns the answer's number.

    Refused for what is not of this form (400), not theirs (403), already answered or changed (409). In a transaction.
    """
    showing, _ = own_showing(store, labeller, body.get("showing"))
    answer = read_answer(body, showing, study)
    nonce, replaces = body.get("nonce"), body.get("replaces")
    if not isinstance(nonce, str) or not 8 <= len(nonce) <= 64:
        raise Refused(400, "nonce must be a text of 8 to 64 characters")
    nonce = f"{labeller}/{nonce}"
    if known := store.one("SELECT id FROM answers WHERE nonce = ?", nonce):  # the page sends it again
        return int(known[0])
    if replaces is not None:
        changeable = {number: past for number, past, _ in store.newest_answers(labeller, CHANGEABLE)}
        if type(replaces) is not int or replaces not in changeable:
            raise Refused(409, f"only the last {CHANGEABLE} answers can be changed, and each once at a time")
        if changeable[replaces].id != showing.id:
            raise Refused(400, "the answer to be replaced belongs to another question")
    elif store.one(f"SELECT 1 FROM showings s WHERE s.id = ? AND {_ANSWERED}", showing.id):
        raise Refused(409, "this question is answered already; reload the page")
    return store.answer(showing.id, answer, store.last_read(labeller), nonce, replaces)


def read_answer(body: dict[str, object], showing: Showing, study: StudyParams) -> Answer:
    """The answer that a request holds, its places turned into response numbers. Refused (400) if it is none."""
    kind, places, sureness = body.get("kind"), body.get("places", []), body.get("sureness")
    cards = len(showing.places)
    if not isinstance(places, list) or not all(type(place) is int and 0 <= place < cards for place in places):
        raise Refused(400, f"places must be a list of numbers from 0 to {cards - 1}")
    if sureness is not None and (type(sureness) is not int or not 1 <= sureness <= 3 or not study.sureness):
        raise Refused(400, "sureness must be 1, 2 or 3, where the study asks for it")
    wanted = RANKING if study.mode == "rank" else CHOICE
    fits = {
        CHOICE: len(places) == 1,
        RANKING: 1 <= len(places) == len(set(places)),
        ALIKE: not places,
        SKIP: not places,
    }
    if kind not in (wanted, ALIKE, SKIP) or not fits[str(kind)]:
        raise Refused(400, f"kind must be {wanted}, {ALIKE} or {SKIP}, with the places that it needs")
    value = list(range(cards)) if kind == ALIKE else [showing.places[place] for place in places]
    return Answer(str(kind), value, sureness)


def keep_flag(store: Store, labeller: str, body: dict[str, object]) -> None:
    """Keep a note on a question: {showing, note}. Refused as `keep_answer` does."""
    showing, _ = own_showing(store, labeller, body.get("showing"))
    note = body.get("note", "")
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise Refused(400, f"note must be a text of at most {LONGEST_NOTE} characters")
    store.flag(showing.id, note)


def study_of(store: Store) -> StudyParams:
    """The settings that hold now. UserError in an empty study."""
    settings = store.settings()
    if settings is None:
        raise UserError(f"{store.path} is empty: begin the study with python launch.py collect")
    return StudyParams(**settings["study"])
