"""The labelling page and the dashboard: a small web server for people with personal links.

Whoever sends a request is known by the token in its path, and by nothing else: no cookies, so no other site can act for
a labeller. A request that is refused stores nothing and gets one line. What an answer acknowledges is on disk.
"""

import asyncio
import functools
import re
import sqlite3
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lm_human_preferences.people.desk import Desk
from lm_human_preferences.people.instructions import as_html
from lm_human_preferences.people.queue import Turn, earlier_turn, keep_answer, keep_flag, next_turn, study_of
from lm_human_preferences.people.records import LONGEST_NOTE
from lm_human_preferences.people.store import Full, Store
from lm_human_preferences.serving.guard import NOT_VALID, json_body
from lm_human_preferences.serving.links import DASHBOARD, holder_of
from lm_human_preferences.serving.refused import Refused
from lm_human_preferences.serving.site import Site, application, route

FILES = {"label.js": "text/javascript", "people.css": "text/css"}
TROUBLES = {
    Full: (507, "The disk is full: nothing was saved. Tell whoever runs this study, then press again."),
    sqlite3.OperationalError: (503, "The answers are being written by another program. Please press again."),
}

DashboardPage = Callable[[Store], Mapping[str, Any]]  # what the dashboard's template shows


class Office(Site):
    """What the server's functions share besides what every site has: the desk, and who the labellers are."""

    def __init__(self, folder: Path, secret: bytes, hosts: tuple[str, ...], dashboard: DashboardPage):
        """hosts: names under which the page is reached, without ports."""
        super().__init__(Path(__file__).parent, FILES, secret, hosts)
        self.folder, self.dashboard = Path(folder), dashboard
        self.desk = Desk(self.folder)
        self.names: list[str] = []  # of the labellers, as they were last read

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


def labelling(office: Office) -> Starlette:
    """The application: the labelling page and the dashboard."""
    routes = [
        route(office, "/label/{token}", label_page),
        route(office, "/label/{token}/next", show_next),
        route(office, "/label/{token}/earlier/{back}", show_earlier),
        route(office, "/label/{token}/answer", take_answer, "POST"),
        route(office, "/label/{token}/flag", take_flag, "POST"),
        route(office, "/label/{token}/instructions", show_instructions),
        route(office, "/label/{token}/instructions", take_reading, "POST"),
        route(office, "/dashboard/{token}", dashboard_page),
    ]
    return application(office, routes, TROUBLES)


# --- what is served ---


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
    number = request.path_params["back"]
    back = int(number) if re.fullmatch("[0-9]{1,9}", number) else 0
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
    office.check_holder(DASHBOARD, request)

    def found() -> Mapping[str, Any]:
        store = Store(office.folder)  # of its own: figures take a moment, and nobody shall wait for them
        try:
            return office.dashboard(store)
        finally:
            store.close()

    return office.page("dashboard.html", **await run_in_threadpool(found))


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
