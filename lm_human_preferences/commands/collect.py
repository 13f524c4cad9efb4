"""People's choices over a web page: `python launch.py collect TASK EXPERIMENT --labellers anna,ben ...`."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lm_human_preferences.commands.evaluate import load_policy
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import TaskParams, check_task
from lm_human_preferences.foundation.configuration import named_paths, param, to_dict
from lm_human_preferences.foundation.errors import Terminated, UserError
from lm_human_preferences.foundation.files import make_folder
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.people.instructions import read_instructions
from lm_human_preferences.people.links import DASHBOARD, secret_of, token_of
from lm_human_preferences.people.questions import Author, read_questions, sample_questions
from lm_human_preferences.people.records import StudyParams, check_study
from lm_human_preferences.people.store import Store
from lm_human_preferences.people.study import LOCK, check_study_folder, open_study
from lm_human_preferences.runs.folder import check_name, model_folder
from lm_human_preferences.runs.input_digests import input_digests

_NAME = re.compile(r"[\w][\w .@-]{0,63}")


@dataclass
class CollectParams:
    """Who is asked what, and where the page is."""

    task: TaskParams = param(TaskParams, "")
    study: StudyParams = param(StudyParams, "")
    labellers: str = param("", "names with commas between them; each gets a personal link")
    policies: str = param(
        "", "NAME=PATH with commas: who writes the responses, runs or model folders; the first is the reference"
    )
    questions: str | None = param(None, "instead of policies: a JSONL file of queries and responses", "path")
    count: int = param(1000, "questions that the policies write, in all")
    split: str = param("train", "split of the task's queries")
    instructions: str | None = param(None, "Markdown that everybody reads first; none takes general ones", "path")
    host: str = param("127.0.0.1", "network address to listen on; 0.0.0.0 is all")
    port: int = param(8642, "port to listen on; 0 takes a free one")
    public_address: str | None = param(
        None, "https://... under which a reverse proxy offers the page; the links are made with it"
    )
    expires_hours: float | None = param(None, "hours after which the links that are printed are void; none: never")
    save_dir: str = param("saved_models", "folder that holds the study's folder", "path")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto, float32 or bfloat16")


def collect(params: CollectParams, task: str, experiment: str) -> None:
    """Make the study or go on with it, then serve the page until Ctrl-C. UserError, before anything is written, for
    whatever cannot work.
    """
    check_name(experiment)
    check(params)
    labellers = names_of(params.labellers)
    instructions = read_instructions(params.instructions)
    given = read_questions(params.questions, params.study) if params.questions else []
    folder = Path(params.save_dir) / experiment
    check_study_folder(folder, task)
    with listening(params.host, params.port) as listener:
        make_folder(folder)
        with collecting(folder):
            store = open_study(folder, task, params.study, to_dict(params.task))
            store.add_labellers(labellers)
            store.instruct(*instructions)
            if not store.labellers():
                raise UserError("nobody is to be asked: give names with --labellers anna,ben")
            added = store.add_questions(given)
            if given:
                print(f"{params.questions}: {added:,} of {len(given):,} questions are new")
            if params.policies:
                write_missing_questions(store, params)
            print(summary(store))
            names = store.labellers()
            store.close()
            serve(folder, names, params, listener)


def check(params: CollectParams) -> None:
    """UserError for numbers and combinations that cannot work."""
    check_study(params.study)
    if params.policies and params.questions:
        raise UserError("--policies and --questions exclude each other; give one of them")
    if params.count < 1:
        raise UserError(f"--count {params.count}: must be at least 1")
    if not 0 <= params.port < 65536:
        raise UserError(f"--port {params.port}: must lie between 0 and 65535")
    if params.expires_hours is not None and not params.expires_hours > 0:
        raise UserError(f"--expires_hours {params.expires_hours}: must be positive")
    if params.public_address is not None and not re.fullmatch(r"https?://[\w.:-]+", params.public_address.rstrip("/")):
        raise UserError(f"--public_address {params.public_address}: expected https://NAME, with nothing after the name")


def names_of(text: str) -> list[str]:
    """The labellers' names. UserError for one that is empty, twice there or has odd characters."""
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"--labellers: {name!r} must be letters, digits, spaces, . @ _ or -, at most 64 of them")
        if names.count(name) > 1:
            raise UserError(f"--labellers has {name} twice; give each a name of their own")
    return names


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. UserError if the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol's number asyncio sends each part at once, without it after some 40 ms
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen on {host}:{port}: {why}; give another --port (0 takes a free one) or --host"
            ) from None
        yield listener


@contextmanager
def collecting(folder: Path) -> Iterator[None]:
    """Keeps a second page of the same study out. UserError if there is one."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"{folder} is being collected already, by another process; open that one's links") from None
    try:
        yield
    finally:
        lock.release()


def write_missing_questions(store: Store, params: CollectParams) -> None:
    """Let the policies write what is missing of `count` questions."""
    purpose = "collect"
    keys = [key for (key,) in store.rows("SELECT key FROM questions WHERE key LIKE ?", f"{purpose}/%")]
    start = max((int(key.rpartition("/")[2]) + 1 for key in keys), default=0)
    if start >= params.count:
        return
    precision = choose_precision(params.device, params.precision)
    authors = []
    for name, path in named_paths(params.policies, "--policies").items():
        folder = Path(model_folder(path, params.save_dir, ("policy", "lm")))
        policy = load_policy(folder, params.task).to(precision.device)
        authors.append(Author(name, policy, input_digests({"model": str(folder)}).get("model")))
    config = authors[0].policy.transformer.config
    encoding = get_encoding(config.encoding)
    check_task(params.task, encoding, config.n_ctx)
    stream = query_stream(params.task, encoding, params.study.seed, purpose, params.split)
    if start:
        stream.batch(start)
    numbers = range(start, params.count)
    for questions in sample_questions(
        authors, stream, numbers, params.study, params.task, encoding, precision, params.study.seed, purpose
    ):
        store.add_questions(questions)


def summary(store: Store) -> str:
    kinds = store.rows("SELECT kind, COUNT(*) FROM questions GROUP BY kind ORDER BY kind")
    answers = store.number("SELECT COUNT(*) FROM answers WHERE replaces IS NULL")
    questions = ", ".join(f"{count:,} {kind}" for kind, count in kinds) or "no"
    return f"{store.path}: {questions} questions, {answers:,} answers, {store.count_open():,} questions open"


def links_of(folder: Path, names: list[str], address: str, expires: int) -> list[str]:
    """A line with the link of each labeller, and of the dashboard."""
    secret = secret_of(folder)
    width = max(len(name) for name in [*names, "dashboard"])
    lines = [f"  {name:<{width}}  {address}/label/{token_of(secret, name, expires)}" for name in names]
    return [*lines, f"  {'dashboard':<{width}}  {address}/dashboard/{token_of(secret, DASHBOARD, expires)}"]


def serve(folder: Path, names: list[str], params: CollectParams, listener: socket.socket) -> None:
    """Print the links and answer requests until Ctrl-C or SIGTERM."""
    import uvicorn  # the web server, which no other command needs

    from lm_human_preferences.people.dashboard import dashboard
    from lm_human_preferences.people.server import Office, application, host_of

    port = listener.getsockname()[1]
    shown = f"[{params.host}]" if ":" in params.host else params.host
    address = (params.public_address or f"http://{shown}:{port}").rstrip("/")
    hosts = [shown, host_of(address.partition("://")[2])]
    if params.host in ("0.0.0.0", "::"):
        hosts += [socket.gethostname().lower(), *machine_addresses()]
    expires = 0 if params.expires_hours is None else int(time.time() + 3600 * params.expires_hours)
    print("Personal links; whoever has one is taken for that person:")
    print("\n".join(links_of(folder, names, address, expires)))
    if params.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"Listening on {params.host}: whoever reaches this machine can try links, and without TLS whoever is on "
            "the way can read them. docs/people.md says how to put a reverse proxy in front."
        )
    print("Ctrl-C stops; the same command goes on.", flush=True)
    office = Office(folder, secret_of(folder), tuple(hosts), dashboard)
    config = uvicorn.Config(
        application(office),
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
    finally:
        office.desk.close()
    print("\nstopped; everything that was answered is saved, and the same command goes on")


def machine_addresses() -> list[str]:
    """This machine's own IPv4 addresses, under which others reach it."""
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)})
    except OSError:
        return []
