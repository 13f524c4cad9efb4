"""The server lets no one in, loses nothing when it is killed, doubles nothing under load, and says when the disk is
full.
"""

import contextlib
import http.client
import random
import socket
import statistics
import threading
import time

import pytest

from lm_human_preferences.people.desk import Desk
from lm_human_preferences.people.store import Full
from lm_human_preferences.serving.guard import HEADERS, LARGEST_BODY
from lm_human_preferences.serving.links import secret_of, token_of

from studies import Client, make_study, question, served, served_here


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A served study of two people; tests here store nothing in it."""
    folder = tmp_path_factory.mktemp("study")
    store = make_study(folder, [question(number) for number in range(5)])
    with served(folder) as server:
        yield server, store


def get(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response, text


def test_every_answer_has_the_headers(study):
    server, _ = study
    for path in ("/", server.path("anna"), "/nothing", "/static/label.js", server.dashboard_path()):
        response, _ = get(server, path)
        assert {name: response.headers[name] for name in HEADERS} == HEADERS, path
        assert len(response.headers.get_all("Cache-Control")) == 1
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")


def test_pages_hold_no_script_or_style_of_their_own(study):
    """The policy would refuse it."""
    server, _ = study
    for path in (server.path("anna"), server.dashboard_path(), "/"):
        _, text = get(server, path)
        assert "<style" not in text and " style=" not in text and " on" + "click" not in text
        assert text.count("<script") == text.count('<script src="/static/')


@pytest.mark.parametrize(
    "path, status",
    [
        ("/", 403),
        ("/label/", 404),
        ("/label/wrong", 403),
        ("/label/wrong/next", 403),
        ("/label/0-" + "A" * 43, 403),
        ("/dashboard/wrong", 403),
        ("/static/../server.py", 404),
        ("/static/..%2fserver.py", 404),
        ("/static/%2e%2e/%2e%2e/store.py", 404),
        ("/../../../../etc/passwd", 404),
        ("/static/secret", 404),
        ("/study.sqlite", 404),
    ],
)
def test_who_has_no_link_gets_nothing(study, path, status):
    server, _ = study
    response, text = get(server, path)
    assert response.status == status and "Query" not in text and "Traceback" not in text


def test_a_labellers_link_opens_no_dashboard_and_the_other_way_round(study):
    server, _ = study
    token, dashboard = server.path("anna").rpartition("/")[2], server.dashboard_path().rpartition("/")[2]
    assert get(server, f"/dashboard/{token}")[0].status == 403
    assert get(server, f"/label/{dashboard}")[0].status == 403
    assert get(server, server.dashboard_path())[0].status == 200


def test_links_expire(study):
    server, _ = study
    secret = secret_of(server.folder)
    for expires, status in ((int(time.time()) - 1, 403), (int(time.time()) + 600, 200)):
        assert get(server, f"/label/{token_of(secret, 'anna', expires)}")[0].status == status


def test_requests_from_elsewhere_are_refused(study):
    server, store = study
    client = Client(server, "anna")
    told = client.next()
    body = client.choice(told, 0)
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1.evil.example:{server.port}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 400),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ):
        got, said = client.ask("answer", body, **headers)
        assert got == status and "error" in said, headers
    showing = Client(server, "ben").next()["showing"]
    assert client.ask("answer", body | {"showing": showing})[0] == 403  # ben's
    assert client.ask("flag", {"showing": showing, "note": "mine"})[0] == 403
    assert client.ask("instructions", {"digest": "another"})[0] == 409
    assert store.judgements() == [] and store.rows("SELECT * FROM flags") == []


@pytest.mark.parametrize(
    "body, status",
    [
        (b"x" * (LARGEST_BODY + 1), 413),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b"{}", 403),
        (b'{"showing": 1e400}', 403),
        (b'{"showing": NaN}', 403),
    ],
)
def test_bodies_that_are_none(study, body, status):
    server, store = study
    got, said = Client(server, "anna").ask("answer", body)
    assert got == status and "error" in said and store.judgements() == []


def test_a_body_of_ten_megabytes_is_refused_before_it_is_read(study):
    server, store = study
    path = server.path("anna")
    for length in (b"Content-Length: 10000000\r\n", b"Transfer-Encoding: chunked\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            head = f"POST {path}/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()
            connection.sendall(head + length + b"\r\n")
            with contextlib.suppress(OSError):
                for _ in range(160):
                    part = b"x" * 65536
                    connection.sendall(part if b"Content" in length else b"10000\r\n" + part + b"\r\n")
            with contextlib.suppress(ConnectionResetError):
                told = connection.recv(65536)
                assert told.startswith(b"HTTP/1.1 413"), told[:100]
    assert get(server, path)[0].status == 200 and store.judgements() == []


def test_a_thousand_malformed_requests(study):
    server, store = study
    draw, path = random.Random(0), server.path("anna").encode()
    lines = [
        b"GET " + path + b"/next HTTP/1.1",
        b"POST " + path + b"/answer HTTP/1.1",
        b"GET / HTTP/9.9",
        b"\x16\x03\x01\x02\x00",
        b"GET /" + b"a" * 70_000,
        b"POST " + path + b"/earlier/-1 HTTP/1.1",
        b"GET " + path + b"/earlier/99999999999999999999 HTTP/1.1",
        b"",
    ]
    heads = [b"Host: 127.0.0.1", b"Content-Length: -5", b"Content-Length: 5\r\nContent-Length: 6", b"\x00: \x00",
             b"Transfer-Encoding: gzip, chunked", b"Host: 127.0.0.1\r\nContent-Type: application/json"]  # fmt: skip
    for _ in range(1000):
        request = bytearray(draw.choice(lines) + b"\r\n" + draw.choice(heads) + b"\r\n\r\n" + draw.randbytes(20))
        for _ in range(draw.randrange(4)):
            request[draw.randrange(len(request))] = draw.randrange(256)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                told = connection.recv(65536)
                assert not told or not told.startswith(b"HTTP/1.1 5"), (bytes(request), told)
    assert store.judgements() == [] and Client(server, "anna").next()["state"] == "question"
    assert server.process.poll() is None


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
