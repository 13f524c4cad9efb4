"""Web servers on loopback: one that serves a folder, resumes ranges, and breaks connections off when told to; and any
application in this process.
"""

import base64
import contextlib
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Server:
    """`url` of a folder. `requests` lists (path, Range header). `break_after`: bytes after which a connection is
    closed, once an entry.

    `fail`: answers to give instead, an HTTP status each. `headers`: more headers by path. `published`: whether MD5s are
    sent.
    """

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: list[int] = []
        self.fail: list[int] = []
        self.headers: dict[str, dict[str, str]] = {}
        self.redirects: dict[str, tuple[str, dict[str, str]]] = {}
        self.published = True


def _handler(server: Server) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_GET(self):
            wanted = self.headers["Range"]
            server.requests.append((self.path, wanted))
            self.close_connection = True
            if self.path in server.redirects:
                target, more = server.redirects[self.path]
                self.send_response(302)
                for name, value in (more | {"Location": target, "Content-Length": "0"}).items():
                    self.send_header(name, value)
                self.end_headers()
                return
            path = server.folder / self.path.lstrip("/")
            status = server.fail.pop(0) if server.fail else 200 if path.is_file() else 404
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            etag, start = f'"{hashlib.md5(content).hexdigest()}"', 0
            if wanted and self.headers["If-Range"] == etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", etag)
            if server.published:
                name = (
                    "x-ms-blob-content-md5" if start else "Content-MD5"
                )  # as Azure: of a part, Content-MD5 would be the part's own
                self.send_header(name, base64.b64encode(hashlib.md5(content).digest()).decode())
                if start:
                    self.send_header("Content-MD5", base64.b64encode(hashlib.md5(content[start:]).digest()).decode())
            for name, value in server.headers.get(self.path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            end = start + server.break_after.pop(0) if server.break_after else len(content)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content[start:end])

    return Handler


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve `folder` while the block runs."""
    server = Server(folder, "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http_server:
        server.url = f"http://127.0.0.1:{http_server.server_port}"
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http_server.shutdown()
            thread.join()


@contextlib.contextmanager
def running(application: Any) -> Iterator[int]:
    """The port of an application that is served by this process while the block runs."""
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    config = uvicorn.Config(
        application, http="h11", ws="none", lifespan="off", log_config=None, log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
