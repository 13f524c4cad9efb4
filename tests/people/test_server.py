"""The server tells nobody what is another's, loses nothing when it is killed, doubles nothing under load, and says when
the disk is full. What it keeps out as every page does is in tests/serving/test_guard.py.
"""

import http.client
import random
import statistics
import threading
import time

import pytest

from lm_human_preferences.people.desk import Desk
from lm_human_preferences.people.store import Full

from studies import Client, make_study, question, served, served_here


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A served study of two people; tests here store nothing in it."""
    folder = tmp_path_factory.mktemp("study")
    store = make_study(folder, [question(number) for number in range(5)])
    with served(folder) as server:
        yield server, store


def test_what_belongs_to_somebody_else_is_refused(study):
    server, store = study
    client = Client(server, "anna")
    body = client.choice(client.next(), 0)
    showing = Client(server, "ben").next()["showing"]
    assert client.ask("answer", body | {"showing": showing})[0] == 403  # ben's
    assert client.ask("flag", {"showing": showing, "note": "mine"})[0] == 403
    assert client.ask("instructions", {"digest": "another"})[0] == 409
    assert store.judgements() == [] and store.rows("SELECT * FROM flags") == []


@pytest.mark.parametrize("body", [b"{}", b'{"showing": 1e400}', b'{"showing": NaN}'])
def test_answers_to_no_question(study, body):
    server, store = study
    got, said = Client(server, "anna").ask("answer", body)
    assert got == 403 and "error" in said and store.judgements() == []


@pytest.mark.parametrize("action, name", [("flag", "note"), ("answer", "nonce")])
def test_half_a_character_is_refused(study, action, name):
    server, store = study
    client = Client(server, "anna")
    status, said = client.ask(action, client.choice(client.next(), 0) | {name: "\ud800" * 8})
    assert (status, "half a character" in said["error"]) == (400, True)
    assert store.judgements() == [] and store.rows("SELECT * FROM flags") == []


@pytest.mark.parametrize("back", ["0", "11", "-1", "x", "9" * 5000])
def test_earlier_answers_that_are_none(study, back):
    status, said = Client(study[0], "anna").ask(f"earlier/{back}")
    assert status == 404 and said["error"] == "only the last 10 answers can be changed"


def test_what_the_page_is_told_says_nothing_of_where_a_response_came_from(study):
    server, _ = study
    told = Client(server, "anna").next()
    assert set(told) == {"answered", "today", "open", "waits", "state", "showing", "query", "cards", "replaces"}
    assert "made up" not in str(told)


def test_changed_instructions_are_read_before_the_next_question(tmp_path):
    store = make_study(tmp_path, [question(number) for number in range(3)])
    with served(tmp_path) as server:
        client = Client(server, "anna")
        told = client.next()
        store.instruct("new digest", "# New\n\n<script>no</script> *take care*")
        status, told = client.ask("answer", client.choice(told, 0))
        assert status == 200 and told["state"] == "read" and "showing" not in told
        assert "&lt;script&gt;" in told["html"] and "<em>take care</em>" in told["html"]
        assert client.ask("instructions", {"digest": told["digest"]})[1]["state"] == "question"
        assert client.ask("answer", client.choice(client.next(), 0))[0] == 200
    first, second = (one.instructions for one in store.judgements())
    assert first != "new digest" == second  # the first was answered by the old ones


# --- many at once ---


def labour(server, name, answers, seconds, stop, pause):
    """Answer until there is nothing left, noting what was acknowledged (nonce -> showing) and how long it took.

    pause: seconds between answers.
    """
    client, told, body = Client(server, name), None, None
    while not stop.is_set():
        try:
            if told is None:
                told = client.next()
            if told["state"] != "question":
                return
            body = body or client.choice(told, 1)
            time.sleep(pause)
            began = time.perf_counter()
            status, said = client.ask("answer", body)
            seconds.append(time.perf_counter() - began)
            if status == 409:  # kept before the server was killed, but not acknowledged
                told, body = None, None
                continue
            assert status == 200, (status, said)
            answers[f"{name}/{body['nonce']}"] = body["showing"]
            told, body = said, None
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)  # the server was killed: the same answer again, with the same nonce
            client = Client(server, name)


def at_once(server, names, pause=0.0):
    """All at once until nothing is left or `stop`: what was acknowledged, and the seconds that each answer took."""
    answers, seconds, stop = {}, [], threading.Event()
    threads = [threading.Thread(target=labour, args=(server, name, answers, seconds, stop, pause)) for name in names]
    for thread in threads:
        thread.start()
    return threads, answers, seconds, stop


@pytest.mark.parametrize("attempt", [0])
def test_twenty_people_at_once(tmp_path, attempt):
    """5,000 questions, some ten answers a second each: none is lost, none doubled, 99 of 100 within 100 ms (where other
    programs have the processors, at the second attempt).
    """
    names = [f"person {number}" for number in range(20)]
    store = make_study(tmp_path / str(attempt), [question(number) for number in range(5000)], names)
    with served(store.path.parent) as server:
        threads, answers, seconds, _ = at_once(server, names, pause=0.05)
        for thread in threads:
            thread.join()
    held = store.judgements()
    assert len(held) == len(answers) == 5000 and len({one.showing.question for one in held}) == 5000
    assert dict(store.rows("SELECT nonce, showing FROM answers")) == answers and store.count_open() == 0
    slow = sorted(seconds)[int(0.99 * len(seconds))]
    print(f"half of the answers within {1000 * statistics.median(seconds):.0f} ms, 99% within {1000 * slow:.0f} ms")
    if slow >= 0.1 and attempt == 0:
        test_twenty_people_at_once(tmp_path, 1)
    else:
        assert slow < 0.1


def test_killed_at_random_moments_it_keeps_what_it_acknowledged(tmp_path):
    """kill -9, 50 times under load."""
    names = [f"person {number}" for number in range(8)]
    store = make_study(tmp_path, [question(number) for number in range(20_000)], names)
    draw = random.Random(0)
    with served(tmp_path) as server:
        threads, answers, _, stop = at_once(server, names)
        for _ in range(50):
            time.sleep(draw.uniform(0.05, 0.3))
            server.kill()
            acknowledged = dict(answers)
            stored = dict(store.rows("SELECT nonce, showing FROM answers"))
            assert acknowledged.items() <= stored.items()
            server.start()
        stop.set()
        for thread in threads:
            thread.join()
    assert len(answers) > 500 and store.rows("PRAGMA integrity_check") == [("ok",)]
    held = store.judgements()
    assert len({(one.showing.question, one.showing.labeller) for one in held}) == len(held)


def test_work_that_is_cancelled_is_not_done_and_the_next_is(tmp_path):
    make_study(tmp_path, [])
    desk, go, done = Desk(tmp_path), threading.Event(), []
    first = desk.submit(lambda store: go.wait(10))
    cancelled = desk.submit(lambda store: done.append("cancelled"))
    last = desk.submit(lambda store: done.append("last"))
    assert cancelled.cancel()
    go.set()
    assert first.result(10) is True and last.result(10) is None and done == ["last"]
    desk.close()


def test_a_full_disk_undoes_what_waited_together(tmp_path):
    store = make_study(tmp_path, [question(number) for number in range(3)])
    desk = Desk(tmp_path)
    pages = store.number("PRAGMA page_count")
    desk.submit(lambda inner: inner.connection.execute(f"PRAGMA max_page_count={pages}")).result()
    with pytest.raises(Full):
        desk.submit(lambda inner: inner.wait_for("x" * 200_000)).result()
    assert store.waited_for() == ""
    desk.close()
    assert store.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_full_disk_is_a_clear_line(tmp_path):
    store = make_study(tmp_path, [question(number) for number in range(3)])
    with served_here(tmp_path) as (server, office):
        client = Client(server, "anna")
        body = client.choice(client.next(), 0)
        limit = "PRAGMA max_page_count={}".format
        pages = store.number("PRAGMA page_count")
        office.desk.submit(lambda inner: inner.connection.execute(limit(pages))).result()
        kept = 0
        for _ in range(100):  # until the pages that are there are full
            status, said = client.ask("flag", {"showing": body["showing"], "note": "x" * 2000})
            if status != 200:
                break
            kept += 1
        assert (status, said["error"].startswith("The disk is full: nothing was saved")) == (507, True)
        assert store.number("SELECT COUNT(*) FROM flags") == kept
        office.desk.submit(lambda inner: inner.connection.execute(limit(1_000_000))).result()
        assert client.ask("flag", {"showing": body["showing"], "note": "x" * 2000})[0] == 200
        assert client.ask("answer", body)[0] == 200 and len(store.judgements()) == 1
