"""Small studies for tests: a store with questions, its server in a process of its own, and a client."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_human_preferences.people.dashboard import dashboard
from lm_human_preferences.people.instructions import read_instructions
from lm_human_preferences.people.records import GOLD, PLAIN, Question, Response, StudyParams
from lm_human_preferences.people.server import Office, labelling
from lm_human_preferences.people.store import Store
from lm_human_preferences.serving.links import DASHBOARD, secret_of, token_of

from web import running

ROOT = Path(__file__).resolve().parent.parent
PLAIN_STUDY = dict(overlap_share=0.0, repeat_share=0.0, gold_share=0.0, validation_share=0.0)
SERVE = """
import socket, sys
from pathlib import Path
import uvicorn
from lm_human_preferences.people.dashboard import dashboard
from lm_human_preferences.serving.links import secret_of
from lm_human_preferences.people.server import Office, labelling
folder, port = Path(sys.argv[1]), int(sys.argv[2])
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
listener.listen(128)
print(listener.getsockname()[1], flush=True)
office = Office(folder, secret_of(folder), (), dashboard)
config = uvicorn.Config(labelling(office), http="h11", ws="none", lifespan="off", log_level="warning",
    access_log=False, timeout_keep_alive=75)
uvicorn.Server(config).run(sockets=[listener])
"""


def question(number: int, kind: str = PLAIN, wanted: int = 1, cards: int = 4) -> Question:
    """A made-up question; the best response of a gold one is 0."""
    responses = [Response(f" response {letter} of {number}.", "made up") for letter in "abcdefghi"[:cards]]
    return Question(f"Query {number}", responses, kind, 0 if kind == GOLD else None, wanted=wanted, key=f"t/{number}")


def make_study(
    folder: Path, questions: Sequence[Question], names: Sequence[str] = ("anna", "ben"), read: bool = True, **study: Any
) -> Store:
    """A study in `folder`, open. read: everybody has read the instructions."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder, make=True)
    store.settle({"task": "movies", "study": asdict(StudyParams(**(PLAIN_STUDY | study)))})
    store.add_labellers(names)
    digest, text = read_instructions(None)
    store.instruct(digest, text)
    for name in names if read else ():
        store.read(name, digest)
    store.add_questions(questions)
    return store


class Server:
    """A study's server in a process of its own, which may be killed and started again on the same port."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, 0
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.folder), str(self.port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.port = int(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def path(self, name: str, expires: int = 0) -> str:
        return f"/label/{token_of(secret_of(self.folder), name, expires)}"

    def dashboard_path(self) -> str:
        return f"/dashboard/{token_of(secret_of(self.folder), DASHBOARD, 0)}"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    secret_of(folder)
    server = Server(folder)
    try:
        yield server
    finally:
        server.kill()


class Here:
    """As `Server`, in this process: what it shares can be reached."""

    path, dashboard_path, address = Server.path, Server.dashboard_path, Server.address

    def __init__(self, folder: Path, port: int):
        self.folder, self.port = folder, port


@contextlib.contextmanager
def served_here(folder: Path) -> Iterator[tuple[Here, Office]]:
    office = Office(folder, secret_of(folder), (), dashboard)
    try:
        with running(labelling(office)) as port:
            yield Here(folder, port), office
    finally:
        office.desk.close()


class Client:
    """One labeller's browser, without a browser: keeps its connection."""

    def __init__(self, server: Server | Here, name: str):
        self.server, self.path = server, server.path(name)
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a request; POST where there is a body."""
        headers = {"Accept": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.connection.request("GET" if body is None else "POST", f"{self.path}/{path}", data, headers)
            response = self.connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode("utf-8", "replace")

    def next(self) -> dict[str, Any]:
        status, told = self.ask("next")
        assert status == 200, told
        return told

    @staticmethod
    def choice(told: dict[str, Any], place: int, **more: Any) -> dict[str, Any]:
        """An answer to the question that the server told."""
        return {
            "showing": told["showing"],
            "kind": "choice",
            "places": [place],
            "sureness": None,
            "nonce": uuid.uuid4().hex,
            "replaces": told["replaces"],
        } | more
