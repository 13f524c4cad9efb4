"""The labelling page and the dashboard: a small web server for people with personal links.

Whoever sends a request is known by the token in its path, and by nothing else: no cookies, so no other site can act for
a labeller. A request that is refused stores nothing and gets one line. What an answer acknowledges is on disk.
"""

import asyncio
import functools
import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_human_preferences.people.desk import Desk
from lm_human_preferences.people.instructions import as_html
from lm_human_preferences.people.links import DASHBOARD, holder_of
from lm_human_preferences.people.queue import Refused, Turn, earlier_turn, keep_answer, keep_flag, next_turn, study_of
from lm_human_preferences.people.records import LONGEST_NOTE
from lm_human_preferences.people.store import Full, Store

HERE = Path(__file__).parent
LARGEST_BODY = 64 * 1024  # bytes
FILES = {"label.js": "text/javascript", "people.css": "text/css", "icon.svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NOT_VALID = "this link is not valid, or no longer; ask whoever gave it to you for a new one"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")

Endpoint = Callable[["Office", Request], Awaitable[Response]]
DashboardPage = Callable[[Store], Mapping[str, Any]]  # what the dashboard's template shows


class Office:
    """What the server's functions share: the desk, the secret, and the hosts it answers for."""

    def __init__(self, folder: Path, secret: bytes, hosts: tuple[str, ...], dashboard: DashboardPage):
        """hosts: names under which the page is reached, without ports."""
        self.folder, self.secret, self.dashboard = Path(folder), secret, dashboard
        self.hosts = frozenset((*LOCAL_HOSTS, *hosts))
        self.desk = Desk(self.folder)
        self.names: list[str] = []  # of the labellers, as they were last read
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self.files = {name: (HERE / "static" / name).read_bytes() for name in FILES}

    async def at_desk(self, work: Callable[[Store], Any]) -> Any:
        """The result of work on the store, once what it wrote is on disk."""
        return await asyncio.wrap_future(self.desk.submit(work))

    async def labeller(self, request: Request) -> str:
        """Whose link the request came by. Refused (403) if nobody's."""
        name = holder_of(self.secret, self.names, request.path_params["token"])
        if name is None:  # perhaps somebody who has joined since
            self.names = await self.at_desk(Store.labellers)
            name = holder_of(self.secret, self.names, request.path_params["token"])
        if name is None:
            raise Refused(403, NOT_VALID)
        return name

    def check_dashboard(self, request: Request) -> None:
        if holder_of(self.secret, [DASHBOARD], request.path_params["token"]) is None:
            raise Refused(403, NOT_VALID)

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self.templates.get_template(template).render(values), status)


def application(office: Office) -> Starlette:
    """The routes, within what every request has to pass."""

    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        async def answered(request: Request) -> Response:
            return await endpoint(office, request)

        return Route(path, answered, methods=[method])

    routes = [
        route("/", front),
        route("/static/{name}", static),
        route("/label/{token}", label_page),
        route("/label/{token}/next", show_next),
        route("/label/{token}/earlier/{back:int}", show_earlier),
        route("/label/{token}/answer", take_answer, "POST"),
        route("/label/{token}/flag", take_flag, "POST"),
        route("/label/{token}/instructions", show_instructions),
        route("/label/{token}/instructions", take_reading, "POST"),
        route("/dashboard/{token}", dashboard_page),
    ]
    app = Starlette(routes=routes)
    for kind in (Refused, Full, sqlite3.OperationalError, HTTPException):
        app.add_exception_handler(kind, functools.partial(explain, office))
    app.add_middleware(Guard, office=office)
    return app


class Guard:
    """Refuses other hosts, foreign origins and large bodies before anything else, and puts the headers on answers."""

    def __init__(self, app: ASGIApp, office: Office):
        self.app, self.office = app, office

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *(pair for pair in message["headers"] if pair[0] != b"cache-control"),
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        request = Request(scope)
        try:
            self.check(request)
            body = await read_body(request.headers.get("content-length"), receive)
        except Refused as refused:
            await explain(self.office, request, refused).__call__(scope, receive, with_headers)
            return

        async def read_again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, read_again, with_headers)

    def check(self, request: Request) -> None:
        """Refused for a host that is not ours (400), and for what another site's page sends (403)."""
        host = host_of(request.headers.get("host", ""))
        if host not in self.office.hosts:
            raise Refused(400, "this server is not reached under that name; give it with --public_address")
        origin = request.headers.get("origin")
        if origin is not None and host_of(urlsplit(origin).netloc) != host:
            raise Refused(403, "requests from other sites are refused")
        if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise Refused(403, "requests from other sites are refused")


def host_of(authority: str) -> str:
    """`name` of `name:port`, in lower case."""
    name, colon, port = authority.rpartition(":")
    return (name if colon and port.isdigit() else authority).lower()


async def read_body(length: str | None, receive: Receive) -> bytes:
    """The whole body. Refused (413) as soon as it is known to be too large."""
    if length is not None and length.isdigit() and int(length) > LARGEST_BODY:
        raise Refused(413, f"a request has at most {LARGEST_BODY} bytes")
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += bytes(message.get("body", b""))
        if len(body) > LARGEST_BODY:
            raise Refused(413, f"a request has at most {LARGEST_BODY} bytes")
        if not message.get("more_body"):
            return body


def explain(office: Office, request: Request, error: Exception) -> Response:
    """What went wrong, as one line: JSON for the page's own requests, else a page."""
    if isinstance(error, Refused):
        status, line = error.status, str(error)
    elif isinstance(error, HTTPException):
        status, line = error.status_code, error.detail
    elif isinstance(error, Full):
        status, line = 507, "The disk is full: nothing was saved. Tell whoever runs this study, then press again."
    else:
        status, line = 503, "The answers are being written by another program. Please press again."
    if request.method == "POST" or request.headers.get("accept") == "application/json":
        return JSONResponse({"error": line}, status)
    return office.page("refused.html", status, line=line)


# --- what is served ---


async def front(office: Office, request: Request) -> Response:
    raise Refused(403, "Please open the personal link that you were given.")


async def static(office: Office, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in office.files:
        raise Refused(404, "there is no such file")
    return Response(office.files[name], media_type=FILES[name])


async def label_page(office: Office, request: Request) -> Response:
    """The page for one labeller; what it shows it asks for itself."""
    name = await office.labeller(request)
    study = await office.at_desk(study_of)
    return office.page("label.html", name=name, study=study, longest_note=LONGEST_NOTE)


async def show_next(office: Office, request: Request) -> Response:
    name = await office.labeller(request)
    return JSONResponse(await office.at_desk(lambda store: state(store, name)))


async def show_instructions(office: Office, request: Request) -> Response:
    await office.labeller(request)
    _, text = await office.at_desk(Store.instructions)
    return JSONResponse({"html": as_html_once(text)})


async def show_earlier(office: Office, request: Request) -> Response:
    name = await office.labeller(request)
    back = request.path_params["back"]
    return JSONResponse(
        await office.at_desk(lambda store: progress(store, name) | turn_shown(earlier_turn(store, name, back)))
    )


async def take_answer(office: Office, request: Request) -> Response:
    """Saves an answer and shows what comes next, in one commit."""
    name, body = await office.labeller(request), await json_body(request)

    def work(store: Store) -> dict[str, Any]:
        keep_answer(store, name, study_of(store), body)
        return state(store, name)

    return JSONResponse(await office.at_desk(work))


async def take_flag(office: Office, request: Request) -> Response:
    name, body = await office.labeller(request), await json_body(request)
    await office.at_desk(lambda store: keep_flag(store, name, body))
    return JSONResponse({"saved": True})


async def take_reading(office: Office, request: Request) -> Response:
    """Notes that the instructions were read, and shows what comes next."""
    name, body = await office.labeller(request), await json_body(request)

    def work(store: Store) -> dict[str, Any]:
        now = store.instructions()
        if now is None or body.get("digest") != now[0]:
            raise Refused(409, "the instructions have changed; read them again")
        store.read(name, now[0])
        return state(store, name)

    return JSONResponse(await office.at_desk(work))


async def dashboard_page(office: Office, request: Request) -> Response:
    office.check_dashboard(request)

    def found() -> Mapping[str, Any]:
        store = Store(office.folder)  # of its own: figures take a moment, and nobody shall wait for them
        try:
            return office.dashboard(store)
        finally:
            store.close()

    return office.page("dashboard.html", **await run_in_threadpool(found))


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Refused where it is none (400) or says that it is something else (415)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the content type must be application/json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


# --- what the page is told ---


def state(store: Store, labeller: str) -> dict[str, Any]:
    """What a labeller sees now: instructions to read, a question, or that there is none. In a transaction."""
    shown = progress(store, labeller)
    digest, text = store.instructions() or ("", "")
    if not store.has_read(labeller, digest):
        return shown | {"state": "read", "digest": digest, "html": as_html_once(text)}
    turn = next_turn(store, labeller, study_of(store))
    return shown | (turn_shown(turn) if turn else {"state": "none"})


@functools.lru_cache(maxsize=4)
def as_html_once(text: str) -> str:
    return as_html(text)


def progress(store: Store, labeller: str) -> dict[str, Any]:
    """How much a labeller has answered, in all and today (since midnight where the server is); what is open, and what
    a run waits for.
    """
    midnight = datetime.fromtimestamp(store.clock()).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    row = store.one(
        "SELECT COUNT(*), COALESCE(SUM(a.answered >= ?), 0) FROM showings s CROSS JOIN answers a ON a.showing = s.id "
        "WHERE s.labeller = ? AND +a.replaces IS NULL",  # in this order, and not by the index of what is replaced
        midnight,
        labeller,
    )
    assert row is not None
    return {"answered": row[0], "today": row[1], "open": store.count_open(), "waits": store.waited_for()}


def turn_shown(turn: Turn) -> dict[str, Any]:
    """A question as the page gets it: texts in the order of the cards, and nothing of where they came from."""
    places = turn.showing.places
    shown: dict[str, Any] = {
        "state": "question",
        "showing": turn.showing.id,
        "query": turn.question.query,
        "cards": [turn.question.responses[number].text for number in places],
        "replaces": turn.replaces,
    }
    if turn.answer is not None:
        shown["answer"] = {
            "kind": turn.answer.kind,
            "places": [places.index(number) for number in turn.answer.value],
            "sureness": turn.answer.sureness,
        }
    return shown
