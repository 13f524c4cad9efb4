"""What every served page keeps out, asked of each of them: the labelling page, and the one to play with."""

import contextlib
import http.client
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from players import SECRET, play_path, small_stage, wish

from lm_human_preferences.serving.guard import HEADERS, LARGEST_BODY
from lm_human_preferences.serving.links import secret_of, token_of
from lm_human_preferences.serving.play_page import PLAYER, playing

from studies import Client, make_study, question, served_here
from web import running


class Served(NamedTuple):
    """A site: who opens `path` by its link, and posts `body` to `action` below it, does what the page is there for."""

    port: int
    path: str
    action: str
    body: dict[str, Any]
    link: Callable[[int], str]  # the path of a link that expires then
    others: tuple[str, ...]  # further pages
    script: str
    is_untouched: Callable[[], bool]  # nothing was kept of any request

    def get(self, path: str | None = None, **headers: str) -> tuple[http.client.HTTPResponse, str]:
        return self.ask("GET", self.path if path is None else path, None, headers)

    def post(self, body: bytes | dict, **headers: str) -> tuple[int, Any]:
        """Status and JSON of what the page's own request gets."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content_Type": "application/json"} | headers
        response, text = self.ask("POST", f"{self.path}/{self.action}", data, headers)
        return response.status, json.loads(text.partition("\n")[0])

    def ask(self, method, path, data, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, text


@contextlib.contextmanager
def labelling_page(folder):
    store = make_study(folder, [question(number) for number in range(5)])
    with served_here(folder) as (server, _):
        client, secret = Client(server, "anna"), secret_of(folder)
        yield Served(
            server.port,
            server.path("anna"),
            "answer",
            client.choice(client.next(), 0),
            lambda expires: f"/label/{token_of(secret, 'anna', expires)}",
            (server.dashboard_path(),),
            "label.js",
            lambda: store.judgements() == [] and store.rows("SELECT * FROM flags") == [],
        )


@contextlib.contextmanager
def page_to_play_with(folder):
    stage = small_stage(prompt="Query")
    with running(playing(stage)) as port:
        untouched = lambda: not stage.newest  # noqa: E731  # as short as the other one's
        yield Served(port, play_path(), "write", wish(), play_path, (), "play.js", untouched)
    stage.close()


@pytest.fixture(scope="module", params=[labelling_page, page_to_play_with], ids=["labelling", "play"])
def site(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("site")) as served:
        yield served


def test_every_answer_has_the_headers(site):
    for path in ("/", site.path, *site.others, "/nothing", f"/static/{site.script}", "/static/page.css"):
        response, _ = site.get(path)
        assert {name: response.headers[name] for name in HEADERS} == HEADERS, path
        assert len(response.headers.get_all("Cache-Control")) == 1
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")


def test_pages_hold_no_script_or_style_of_their_own(site):
    """The policy would refuse it."""
    for path in (site.path, *site.others, "/"):
        _, text = site.get(path)
        assert "<style" not in text and " style=" not in text and " on" + "click" not in text
        assert text.count("<script") == text.count('<script src="/static/')
        assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize(
    "path, status",
    [
        ("/", 403),
        ("/{page}/", 404),
        ("/{page}/wrong", 403),
        ("/{page}/wrong/next", 403),
        ("/{page}/0-" + "A" * 43, 403),
        ("/{page}/" + "f" * 5000 + "-" + "A" * 43, 403),
        ("/static/../server.py", 404),
        ("/static/..%2fguard.py", 404),
        ("/static/%2e%2e/%2e%2e/store.py", 404),
        ("/../../../../etc/passwd", 404),
        ("/static/secret", 404),
        ("/static/label.html", 404),
        ("/study.sqlite", 404),
    ],
)
def test_who_has_no_link_gets_nothing(site, path, status):
    path = path.format(page=site.path.split("/")[1])
    if path.endswith("/next") and site.action == "write":
        path, status = path.replace("next", "write"), 405  # is posted to
    response, text = site.get(path)
    assert response.status == status and "Query" not in text and "Traceback" not in text


def test_without_a_link_nothing_is_done(site):
    wrong = site._replace(path=f"{site.path.rpartition('/')[0]}/0-{'A' * 43}")
    status, said = wrong.post(site.body)
    assert status == 403 and "not valid" in said["error"] and site.is_untouched()


def test_links_expire(site):
    for expires, status in ((int(time.time()) - 1, 403), (int(time.time()) + 600, 200)):
        assert site.get(site.link(expires))[0].status == status


def test_a_link_names_one_holder_alone(site):
    """Whoever has a labeller's link, say, has no other page."""
    for other in site.others:
        mine, theirs = (path.rpartition("/") for path in (site.path, other))
        assert site.get(f"{theirs[0]}/{mine[2]}")[0].status == 403
        assert site.get(f"{mine[0]}/{theirs[2]}")[0].status == 403
        assert site.get(other)[0].status == 200
    if site.action == "write":
        name = f"/play/{token_of(SECRET, PLAYER + 'x', 0)}"
        assert site.get(name)[0].status == 403 and site.get()[0].status == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Origin": "http://["}, 400),
        ({"Host": "evil.example"}, 400),
        ({"Host": "192.168.1.5.evil.example"}, 400),
        ({"Host": "192.168.1.5", "Origin": "http://evil.example"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_requests_from_elsewhere_are_refused(site, headers, status):
    got, said = site.post(site.body, **headers)
    assert got == status and "error" in said and site.is_untouched()


def test_a_page_is_reached_by_any_address(site):
    """A phone's request names the address that it was sent to, of which a machine need not know; no other site has it
    for a name.
    """
    for host in ("192.168.1.5:8642", "10.0.0.7", "[fe80::1]:8642", "LocalHost:8642"):
        assert site.get(Host=host)[0].status == 200, host


def test_half_a_character_is_refused(site):
    """However it is written; whole ones in two halves are none."""
    body = json.dumps(site.body | {"more": ["HERE"]}).encode()
    for half in (b"\\ud800", b"\xed\xa0\x80", b"\\udc00\\ud800"):
        status, said = site.post(body.replace(b"HERE", half))
        assert (status, "half a character" in said["error"]) == (400, True) and site.is_untouched()


@pytest.mark.parametrize(
    "body, status",
    [(b"x" * (LARGEST_BODY + 1), 413), (b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b"[" * 60_000, 400)],
)  # fmt: skip
def test_bodies_that_are_none(site, body, status):
    got, said = site.post(body)
    assert got == status and "error" in said and site.is_untouched()


def test_a_body_of_ten_megabytes_is_refused_before_it_is_read(site):
    for length in (b"Content-Length: 10000000\r\n", b"Transfer-Encoding: chunked\r\n"):
        with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
            head = f"POST {site.path}/{site.action} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + length + b"\r\n")
            with contextlib.suppress(OSError):
                for _ in range(160):
                    part = b"x" * 65536
                    connection.sendall(part if b"Content" in length else b"10000\r\n" + part + b"\r\n")
            with contextlib.suppress(ConnectionResetError):
                told = connection.recv(65536)
                assert told.startswith(b"HTTP/1.1 413"), told[:100]
    assert site.get()[0].status == 200 and site.is_untouched()


def test_a_thousand_malformed_requests(site):
    draw, path, action = random.Random(0), site.path.encode(), site.action.encode()
    lines = [
        b"GET " + path + b"/next HTTP/1.1",
        b"POST " + path + b"/" + action + b" HTTP/1.1",
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
        with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                told = connection.recv(65536)
                assert not told or not told.startswith(b"HTTP/1.1 5"), (bytes(request), told)
    assert site.is_untouched() and site.get()[0].status == 200


def test_what_the_page_is_there_for_is_done_with_the_link(site):
    """Last, so that the tests above cannot pass for a site that does nothing."""
    status, told = site.post(site.body | {"more": "\U0001f600"})
    assert status == 200 and "error" not in told and not site.is_untouched()
