"""A site: its pages' templates, its files, the hosts it answers for, and the application that a web server runs."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lm_human_preferences.serving.guard import LOCAL_HOSTS, NOT_VALID, Guard
from lm_human_preferences.serving.links import holder_of
from lm_human_preferences.serving.refused import Refused

HERE = Path(__file__).parent
FILES = {"page.css": "text/css", "icon.svg": "image/svg+xml"}  # of every site, in static/

Troubles = Mapping[type[Exception], tuple[int, str]]  # what can go wrong -> the status and line that say so


class Site:
    """What the functions that answer requests share: templates, files, the secret of the links, and the hosts."""

    def __init__(self, folder: Path, files: Mapping[str, str], secret: bytes, hosts: Sequence[str]):
        """folder: with templates/ and static/ of this site; files: of the latter those that are served, with their
        media types; hosts: names under which the site is reached, without ports.
        """
        self.secret, self.hosts = secret, frozenset((*LOCAL_HOSTS, *hosts))
        loader = FileSystemLoader([folder / "templates", HERE / "templates"])
        self.templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        self.files = {
            name: ((home / "static" / name).read_bytes(), kind)
            for home, some in ((HERE, FILES), (folder, files))
            for name, kind in some.items()
        }

    def check_holder(self, name: str, request: Request) -> None:
        """Refused (403) unless the request came by this name's link."""
        if holder_of(self.secret, [name], request.path_params["token"]) is None:
            raise Refused(403, NOT_VALID)

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self.templates.get_template(template).render(values), status)


OneSite = TypeVar("OneSite", bound=Site)
Endpoint = Callable[[OneSite, Request], Awaitable[Response]]


def route(site: OneSite, path: str, endpoint: "Endpoint[OneSite]", method: str = "GET") -> Route:
    """Requests to `path` are answered by `endpoint` of this site."""

    async def answered(request: Request) -> Response:
        return await endpoint(site, request)

    return Route(path, answered, methods=[method])


def application(site: Site, routes: Sequence[Route], troubles: Troubles = MappingProxyType({})) -> Starlette:
    """The routes, a front page and the files, within what every request has to pass."""

    def explain(request: Request, error: Exception) -> Response:
        """What went wrong, as one line: JSON for the page's own requests, else a page."""
        if isinstance(error, Refused):
            status, line = error.status, str(error)
        elif isinstance(error, HTTPException):
            status, line = error.status_code, error.detail
        else:
            status, line = next(told for kind, told in troubles.items() if isinstance(error, kind))
        if request.method == "POST" or request.headers.get("accept") == "application/json":
            return JSONResponse({"error": line}, status)
        return site.page("refused.html", status, line=line)

    app = Starlette(routes=[route(site, "/", front), route(site, "/static/{name}", static), *routes])
    for kind in (Refused, HTTPException, *troubles):
        app.add_exception_handler(kind, explain)
    app.add_middleware(Guard, hosts=site.hosts, explain=explain)
    return app


async def front(site: Site, request: Request) -> Response:
    raise Refused(403, "Please open the personal link that you were given.")


async def static(site: Site, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in site.files:
        raise Refused(404, "there is no such file")
    content, kind = site.files[name]
    return Response(content, media_type=kind)
