"""The socket that a page is served on, the addresses under which it is reached, and the web server."""

import ipaddress
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import Terminated, UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ALL = ("0.0.0.0", "::")
_MOST_HOURS = 24 * 365 * 100  # that a link may hold: a hundred years


@dataclass
class ServingParams:
    """Where a page is served, and for how long its links hold."""

    host: str = param("127.0.0.1", "network address to listen on; 0.0.0.0 is all")
    port: int = param(8642, "port to listen on; 0 takes a free one")
    public_address: str | None = param(
        None, "https://... under which a reverse proxy offers the page; the links are made with it"
    )
    expires_hours: float | None = param(None, "hours after which the links that are printed are void; none: never")


def check_serving(params: ServingParams) -> None:
    """UserError for numbers and addresses that cannot work."""
    if not 0 <= params.port < 65536:
        raise UserError(f"--port {params.port}: must lie between 0 and 65535")
    if params.expires_hours is not None and not 0 < params.expires_hours <= _MOST_HOURS:
        raise UserError(
            f"--expires_hours {params.expires_hours}: must be positive and at most {_MOST_HOURS} (a hundred years); "
            "leave it out for links that hold for ever"
        )
    if params.public_address is not None and not re.fullmatch(r"https?://[\w.:-]+", params.public_address.rstrip("/")):
        raise UserError(f"--public_address {params.public_address}: expected https://NAME, with nothing after the name")
    hosts_of(params)


@contextmanager
def listening(params: ServingParams) -> Iterator[socket.socket]:
    """A socket that listens. UserError if the port is taken or the address is not this machine's."""
    host, port = params.host, params.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol's number asyncio sends each part at once, without it after some 40 ms
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except (OSError, OverflowError, TypeError) as error:  # TypeError: no host can have such a name
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen on {host}:{port}: {why}; give another --port (0 takes a free one) or --host"
            ) from None
        yield listener


def address_of(params: ServingParams, listener: socket.socket) -> str:
    """What links begin with."""
    return (params.public_address or f"http://{_shown(params.host)}:{listener.getsockname()[1]}").rstrip("/")


def hosts_of(params: ServingParams) -> tuple[str, ...]:
    """The names under which the page is reached, in lower case and without ports, besides the loopback's. By an
    address it always is (`is_address`). UserError for a public address that no host can have.
    """
    hosts = [_shown(params.host).lower()]
    if params.public_address:
        name = host_of(params.public_address.rstrip("/").partition("://")[2])
        try:
            hosts.append(name.encode("idna").decode())  # as browsers send a name with letters beyond ASCII
        except UnicodeError as error:
            raise UserError(
                f"--public_address {params.public_address}: no host can be called {name} ({error})"
            ) from None
    if params.host in _ALL:
        name = socket.gethostname().lower()
        short = name.partition(".")[0]
        hosts += [name, short, f"{short}.local"]  # the last is what phones and other machines find without a DNS server
    return tuple(hosts)


def expiry_of(params: ServingParams) -> int:
    """Unix time in seconds after which links that are made now are void; 0 for never."""
    return 0 if params.expires_hours is None else int(time.time() + 3600 * params.expires_hours)


def warn_of_others(params: ServingParams) -> None:
    """Print what it means that others can reach the page, where they can."""
    if params.host.lower() not in _LOOPBACK:
        print(
            f"Listening on {params.host}: whoever reaches this machine can try links, and without TLS whoever is on "
            "the way can read them. docs/people.md says how to put a reverse proxy in front."
        )


def serve(application: "Starlette", listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    import uvicorn  # the web server, which no other command needs

    config = uvicorn.Config(
        application,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,  # uvicorn's own closes every handler of the process that was there before
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        proxy_headers=False,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except (KeyboardInterrupt, Terminated):
        pass


def host_of(authority: str) -> str:
    """`name` of `name:port`, in lower case."""
    name, colon, port = authority.rpartition(":")
    return (name if colon and port.isdigit() else authority).lower()


def is_address(host: str) -> bool:
    """Whether a request's host is an address, `192.168.1.5` or `[fe80::1]`, and not a name. Only a name can be made to
    lead here by somebody else (DNS rebinding).
    """
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return False
    return bracketed == (address.version == 6) and "%" not in host


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
