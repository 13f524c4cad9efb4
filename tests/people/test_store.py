"""The record and the queue: append-only, leases, overlap, repeats, gold, changes; nobody gets a question twice."""

import json
import sqlite3
import uuid
from collections import Counter

import pytest

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.people.queue import Refused, earlier_turn, keep_answer, next_turn, study_of
from lm_human_preferences.people.records import GOLD, SKIP, VALIDATION, Answer
from lm_human_preferences.people.store import Full, Store
from lm_human_preferences.serving.links import holder_of, secret_of, token_of

from studies import make_study, question


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def turn_of(store, name):
    with store.transaction():
        return next_turn(store, name, study_of(store))


def answer(store, turn, place=0, nonce=None, **more):
    body = {
        "showing": turn.showing.id,
        "kind": "choice",
        "places": [place],
        "nonce": nonce or f"nonce-{turn.showing.id}-{place}",
        "replaces": turn.replaces,
    } | more
    with store.transaction():
        return keep_answer(store, turn.showing.labeller, study_of(store), body)


def test_nothing_in_the_record_can_be_changed_or_deleted(tmp_path):
    store = make_study(tmp_path, [question(0)])
    turn = turn_of(store, "anna")
    answer(store, turn)
    with store.transaction():
        store.flag(turn.showing.id, "odd")
        store.wait_for("something")
    tables = [name for (name,) in store.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert len(tables) == 10
    for table in set(tables) - {"demand"}:
        column = store.rows(f"PRAGMA table_info({table})")[0][1]
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                store.connection.execute(statement)


def test_a_study_is_there_again_as_it_was_left(tmp_path):
    store = make_study(tmp_path, [question(0), question(1)])
    answer(store, turn_of(store, "anna"), 2)
    store.close()
    again = Store(tmp_path)
    (held,) = again.judgements()
    assert held.place == 2 and held.showing.labeller == "anna" and held.answer.usable
    assert again.count_open() == 1 and again.add_questions([question(0), question(2)]) == 1
    assert again.settings()["study"]["responses"] == 4


def test_what_is_no_study_is_one_line(tmp_path):
    with pytest.raises(UserError, match="begin the study with"):
        Store(tmp_path)
    (tmp_path / "study.sqlite").write_text("something else " * 100)
    with pytest.raises(UserError, match="cannot be opened as a study"):
        Store(tmp_path)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("PRAGMA user_version=7")
    other.close()
    (tmp_path / "other.sqlite").replace(tmp_path / "study.sqlite")
    with pytest.raises(UserError, match="version 7"):
        Store(tmp_path)


def test_an_open_question_is_nobody_elses_until_the_lease_ends(tmp_path):
    store = make_study(tmp_path, [question(0), question(1)])
    store.clock = Clock()
    first = turn_of(store, "anna")
    assert turn_of(store, "anna").showing == first.showing  # the page was loaded again
    assert turn_of(store, "ben").question.id != first.question.id
    store.clock.now += 601
    taken = turn_of(store, "ben")
    assert taken.question.id == first.question.id  # its own lease ran out too; the first in line comes first
    answer(store, taken)
    late = answer(store, first)  # what anna says after all is kept
    assert [one.id for one in store.judgements()][-1] == late
    assert turn_of(store, "anna").question.id == 2 == turn_of(store, "anna").question.id


def test_a_late_answer_does_not_make_a_question_come_twice(tmp_path):
    store = make_study(tmp_path, [question(0), question(1)])
    store.clock = Clock()
    early = turn_of(store, "anna")
    store.clock.now += 601
    again = turn_of(store, "anna")
    assert again.question.id == early.question.id and again.showing.id != early.showing.id
    assert again.showing.places == early.showing.places
    answer(store, early)
    assert turn_of(store, "anna").question.id == 2
    with pytest.raises(Refused, match="answered already"):
        answer(store, again, 1)


def test_shares_of_overlap_repeats_and_gold(tmp_path):
    """Five people answer everything there is: each question as often as it is wanted, repeats and gold in their shares,
    and nothing else twice.
    """
    names = ["anna", "ben", "cleo", "dan", "eve"]
    questions = [question(n, wanted=5 if n % 10 == 0 else 1) for n in range(400)]
    questions += [question(n, GOLD) for n in range(400, 460)]
    store = make_study(tmp_path, questions, names, repeat_share=0.1, gold_share=0.1)
    store.connection.execute("PRAGMA synchronous=OFF")
    while [turn for name in names if (turn := turn_of(store, name)) and answer(store, turn)]:
        pass
    held = store.judgements()
    plain = Counter(one.showing.question for one in held if one.kind == "plain" and not one.showing.repeat)
    assert plain == {number + 1: 5 if number % 10 == 0 else 1 for number in range(400)}
    once = Counter((one.showing.labeller, one.showing.question, one.showing.repeat) for one in held)
    assert set(once.values()) == {1}
    repeats = [one for one in held if one.showing.repeat]
    assert 0.06 < len(repeats) / len(held) < 0.14
    assert 0.06 < sum(one.kind == GOLD for one in held) / len(held) < 0.14
    for one in repeats:
        own = [other.showing for other in held if other.showing.labeller == one.showing.labeller]
        (first,) = [other for other in own if other.question == one.showing.question and not other.repeat]
        assert sum(first.id < other.id < one.showing.id for other in own) >= 9
    assert store.count_open() == 0


def test_each_labeller_has_an_order_of_their_own_and_all_places_are_alike(tmp_path):
    names = [f"person {n}" for n in range(5)]
    store = make_study(tmp_path, [question(n, wanted=5) for n in range(100)], names)
    store.connection.execute("PRAGMA synchronous=OFF")
    firsts, orders = Counter(), {}
    for name in names:
        while turn := turn_of(store, name):
            firsts[turn.showing.places[0]] += 1
            orders.setdefault(turn.question.id, set()).add(tuple(turn.showing.places))
            assert sorted(turn.showing.places) == [0, 1, 2, 3]
            answer(store, turn)
    assert all(90 < count < 160 for count in firsts.values())
    assert sum(len(some) > 1 for some in orders.values()) > 95


def test_the_last_ten_answers_can_be_changed(tmp_path):
    store = make_study(tmp_path, [question(n) for n in range(12)])
    for _ in range(12):
        answer(store, turn_of(store, "anna"))
    earlier = earlier_turn(store, "anna", 1)
    assert earlier.question.query == "Query 11" and earlier.answer.kind == "choice"
    changed = answer(store, earlier, 3, nonce="changed-once")
    assert answer(store, earlier, 3, nonce="changed-once") == changed  # sent again: kept once
    with pytest.raises(Refused, match="changed"):
        answer(store, earlier, 1, nonce="changed-twice")  # meanwhile there is a newer one
    again = earlier_turn(store, "anna", 1)
    assert again.replaces == changed
    answer(store, again, kind=SKIP, places=[], nonce="now-skipped")
    assert store.count_open() == 1  # the question is open again for somebody else
    assert earlier_turn(store, "anna", 10).question.query == "Query 2"
    for back in (0, 11):
        with pytest.raises(Refused, match="last 10"):
            earlier_turn(store, "anna", back)
    held = store.judgements()
    assert len(held) == 12 and len(store.judgements(replaced=True)) == 14
    assert store.judgements(until=changed)[-1].id == changed and len(store.judgements(until=changed)) == 12
    assert turn_of(store, "ben").question.query == "Query 11"


def test_cannot_tell_leaves_the_question_to_others(tmp_path):
    store = make_study(tmp_path, [question(0)])
    answer(store, turn_of(store, "anna"), kind=SKIP, places=[])
    assert turn_of(store, "anna") is None and store.count_answerable() == 1
    answer(store, turn_of(store, "ben"), kind=SKIP, places=[])
    assert store.count_labelled() == 0 and store.count_answerable() == 0 and store.count_open() == 1


def test_the_first_labels_stay_what_they_were(tmp_path):
    """However answers are changed, and taken back, after there were so many."""
    store = make_study(tmp_path, [question(number) for number in range(6)], ["anna"])
    turns = [turn_of(store, "anna") for _ in range(1)]
    for _ in range(4):
        answer(store, turns[-1])
        turns.append(turn_of(store, "anna"))
    first = store.first_labelled(4)
    assert first == ([1, 2, 3, 4], 4)

    def change(number, **more):
        body = dict(showing=turns[number - 1].showing.id, kind="choice", places=[1], nonce=f"c{uuid.uuid4()}")
        with store.transaction():
            held = store.judgements()
            last = next(one.id for one in held if one.showing.question == number)
            keep_answer(store, "anna", study_of(store), body | {"replaces": last} | more)

    answer(store, turns[4])
    change(4)
    change(2, kind=SKIP, places=[])
    assert store.first_labelled(4) == first and store.first_labelled(5)[0] == [1, 2, 3, 4, 5]
    assert store.count_labelled() == 4
    change(2)
    answer(store, turn_of(store, "anna"))
    assert store.first_labelled(6) == ([1, 3, 4, 5, 2, 6], 9) and store.count_labelled() == 6
    with pytest.raises(ValueError, match="6 labels, 7 wanted"):
        store.first_labelled(7)


def test_a_question_for_more_people_than_there_are_is_answered_all_the_same(tmp_path):
    store = make_study(tmp_path, [question(0, wanted=5)])
    for name in ("anna", "ben"):
        answer(store, turn_of(store, name))
    assert store.count_open() == 1 and store.count_answerable() == 0 and store.count_labelled() == 1


@pytest.mark.parametrize(
    "wrong, status",
    [
        ({"showing": 99}, 403),
        ({"showing": True}, 403),
        ({"showing": 2**70}, 403),
        ({"kind": "ranking"}, 400),
        ({"kind": None}, 400),
        ({"places": [4]}, 400),
        ({"places": [-1]}, 400),
        ({"places": [0, 1]}, 400),
        ({"places": "0"}, 400),
        ({"places": [1.0]}, 400),
        ({"sureness": 2}, 400),
        ({"nonce": "short"}, 400),
        ({"nonce": 7}, 400),
        ({"replaces": 1}, 409),
    ],
)
def test_a_wrong_answer_is_refused_and_nothing_kept(tmp_path, wrong, status):
    store = make_study(tmp_path, [question(0)])
    turn = turn_of(store, "anna")
    with pytest.raises(Refused) as refused:
        answer(store, turn, **{"nonce": "long enough"} | wrong)
    assert refused.value.status == status and store.judgements() == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    store = make_study(tmp_path, [question(0), question(1)])
    turn = turn_of(store, "anna")
    pages = store.number("PRAGMA page_count")
    store.connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(Full):
        with store.transaction():
            store.answer(turn.showing.id, Answer("choice", [0]), "x", "nonce")
            store.wait_for("x" * 100_000)
    assert store.judgements() == [] and store.waited_for() == ""
    store.connection.execute("PRAGMA max_page_count=100000")
    assert answer(store, turn)


def test_an_inner_block_that_fails_undoes_its_own_writes_alone(tmp_path):
    store = make_study(tmp_path, [])
    with store.transaction():
        store.wait_for("kept")
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.wait_for("undone")
            raise ZeroDivisionError
    assert store.waited_for() == "kept"


def test_changed_instructions_are_read_again_and_old_ones_come_back(tmp_path):
    store = make_study(tmp_path, [])
    old = store.instructions()
    store.instruct("new", "new text")
    assert not store.has_read("anna", "new") and store.has_read("anna", old[0])
    store.instruct(*old)
    assert store.instructions() == old


def test_links(tmp_path):
    secret, names = secret_of(tmp_path), ["anna", "ben"]
    assert secret_of(tmp_path) == secret and (tmp_path / "secret").stat().st_mode & 0o077 == 0
    forever, brief = token_of(secret, "anna", 0), token_of(secret, "ben", 2000)
    assert holder_of(secret, names, forever) == "anna"
    assert holder_of(secret, names, brief, now=1999) == "ben" and holder_of(secret, names, brief, now=2000) is None
    assert holder_of(secret, ["ben"], forever) is None and holder_of(b"x" * 32, names, forever) is None
    later = brief.replace(f"{2000:x}", f"{9000:x}")
    for wrong in (later, "", "-", "0-", forever[:-1], forever + "a", "é" + forever, "0" + brief, "\ud800"):
        assert holder_of(secret, names, wrong, now=1) is None
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        secret_of(tmp_path)


def test_validation_questions_are_counted_apart(tmp_path):
    store = make_study(tmp_path, [question(0, VALIDATION), question(1)])
    for _ in range(2):
        answer(store, turn_of(store, "anna"))
    assert store.first_labelled(1) == ([2], 2) and json.loads(store.rows("SELECT value FROM answers")[0][0])
