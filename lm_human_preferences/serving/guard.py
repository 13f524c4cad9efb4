"""What every request has to pass, whatever it wants: an address or our own host's name, no other site's
page, a small body.

Nobody is known by a cookie, so no other site can act for somebody: who holds a link is known by the token in its path
(links.py). No page may load or run anything but this server's own files.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_human_preferences.serving.listener import host_of, is_address
from lm_human_preferences.serving.refused import Refused

LARGEST_BODY = 64 * 1024  # bytes
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
LOCAL_HOSTS = ("localhost",)  # besides addresses


class Guard:
    """Refuses other hosts, foreign origins and large bodies before anything else, and puts the headers on answers."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str], explain: Callable[[Request, Exception], Response]):
        """hosts: names under which the server is reached, in lower case, without ports; explain: what a refused request
        gets.
        """
        self.app, self.hosts, self.explain = app, hosts, explain

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
            await self.explain(request, refused).__call__(scope, receive, with_headers)
            return
        await self.app(scope, read_again(body, receive), with_headers)

    def check(self, request: Request) -> None:
        """Refused for a host's name that is not ours and an origin that is none (400), and for what another site's page
        sends (403).
        """
        host = host_of(request.headers.get("host", ""))
        if host not in self.hosts and not is_address(host):
            raise Refused(400, "this server is not reached under that name; give it with --public_address")
        origin = request.headers.get("origin")
        try:
            source = None if origin is None else host_of(urlsplit(origin).netloc)
        except ValueError:
            raise Refused(400, "the origin must be the address of a site, such as http://localhost:8642") from None
        if source is not None and source != host:
            raise Refused(403, "requests from other sites are refused")
        if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise Refused(403, "requests from other sites are refused")


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


def read_again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """`receive` for whoever comes next: first the body that was read already, then what the client does, such as going
    away while it is answered bit by bit.
    """
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Refused where it is none or holds half a character (400), or says that it is
    something else (415).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the content type must be application/json")
    try:
        body = json.loads(await request.body())
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "the text holds half a character (a lone surrogate); leave it out") from None
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body
