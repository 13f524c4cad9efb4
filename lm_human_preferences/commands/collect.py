"""People's choices over a web page: `python launch.py collect TASK EXPERIMENT --labellers anna,ben ...`."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lm_human_preferences.commands.evaluate import load_policy, path_and_beta
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import TaskParams, check_task
from lm_human_preferences.foundation.configuration import named_paths, param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import make_folder
from lm_human_preferences.language.encoding import describe_encoding, get_encoding, same_encoding
from lm_human_preferences.people.instructions import read_instructions
from lm_human_preferences.people.questions import Author, read_questions, sample_questions
from lm_human_preferences.people.records import Question, StudyParams, check_study
from lm_human_preferences.people.store import FILE, Store
from lm_human_preferences.people.study import LOCK, check_study_folder, open_study
from lm_human_preferences.runs.folder import check_name, model_folder
from lm_human_preferences.runs.input_digests import input_digests
from lm_human_preferences.serving.links import DASHBOARD, secret_of, token_of
from lm_human_preferences.serving.listener import (
    ServingParams,
    address_of,
    check_serving,
    expiry_of,
    hosts_of,
    listening,
    serve,
    warn_of_others,
)

PURPOSE = "collect"  # what the keys of questions that policies write begin with
_NAME = re.compile(r"[\w][\w .@-]{0,63}")


@dataclass
class CollectParams(ServingParams):
    """Who is asked what, and where the page is."""

    task: TaskParams = param(TaskParams, "")
    study: StudyParams = param(StudyParams, "")
    labellers: str = param("", "names with commas between them; each gets a personal link")
    policies: str = param(
        "",
        "NAME=PATH with commas: who writes the responses, runs or model folders; the first is the reference; PATH#BETA "
        "steers a policy of train_ilql with another strength than its own",
    )
    questions: str | None = param(None, "instead of policies: a JSONL file of queries and responses", "path")
    count: int = param(1000, "questions that the policies write, in all")
    split: str = param("train", "split of the task's queries")
    instructions: str | None = param(None, "Markdown that everybody reads first; none takes general ones", "path")
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
    known, first = known_of(folder)
    if not labellers and not known:
        raise UserError("nobody is to be asked: give names with --labellers anna,ben")
    write = writer_of(params, first) if params.policies and first < params.count else None
    with listening(params) as listener:
        make_folder(folder)
        with collecting(folder):
            store = open_study(folder, task, params.study, to_dict(params.task))
            store.add_labellers(labellers)
            store.instruct(*instructions)
            added = store.add_questions(given)
            if given:
                print(f"{params.questions}: {added:,} of {len(given):,} questions are new")
            for questions in write() if write is not None else ():
                store.add_questions(questions)
            print(summary(store))
            names = store.labellers()
            store.close()
            serve_study(folder, names, params, listener)


def check(params: CollectParams) -> None:
    """UserError for numbers and combinations that cannot work."""
    check_study(params.study)
    if params.policies and params.questions:
        raise UserError("--policies and --questions exclude each other; give one of them")
    if params.count < 1:
        raise UserError(f"--count {params.count}: must be at least 1")
    check_serving(params)


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


def known_of(folder: Path) -> tuple[list[str], int]:
    """The labellers of the study that lies there, and the number of the next question that policies write; nobody and 0
    where there is none yet.
    """
    if not (folder / FILE).is_file():
        return [], 0
    store = Store(folder)
    keys = [key for (key,) in store.rows("SELECT key FROM questions WHERE key LIKE ?", f"{PURPOSE}/%")]
    names = store.labellers()
    store.close()
    return names, max((int(key.rpartition("/")[2]) + 1 for key in keys), default=0)


def writer_of(params: CollectParams, first: int) -> Callable[[], Iterator[list[Question]]]:
    """What lets the policies write the questions from number `first` to `count`, some at a time. UserError, before they
    write, for policies and queries that do not fit.
    """
    precision = choose_precision(params.device, params.precision)
    authors = []
    for name, path in named_paths(params.policies, "--policies").items():
        path, beta = path_and_beta(path)
        folder = Path(model_folder(path, params.save_dir, ("policy", "lm")))
        policy = load_policy(folder, params.task, beta).to(precision.device)
        authors.append(Author(name, policy, input_digests({"model": str(folder)}).get("model")))
    config, reference = authors[0].policy.transformer.config, authors[0].name
    for name, other in ((author.name, author.policy.transformer.config) for author in authors):
        if not same_encoding(config, other):
            raise UserError(
                f"--policies: {name} has the encoding {describe_encoding(other)}, {reference} has "
                f"{describe_encoding(config)}; only policies of one encoding can answer the same queries"
            )
    encoding = get_encoding(config)
    check_task(params.task, encoding, config.n_ctx)
    stream = query_stream(params.task, encoding, params.study.seed, PURPOSE, params.split)
    if first:
        stream.batch(first)
    numbers = range(first, params.count)
    return lambda: sample_questions(
        authors, stream, numbers, params.study, params.task, encoding, precision, params.study.seed, PURPOSE
    )


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


def serve_study(folder: Path, names: list[str], params: CollectParams, listener: socket.socket) -> None:
    """Print the links and answer requests until Ctrl-C or SIGTERM."""
    from lm_human_preferences.people.dashboard import dashboard  # with the web server, which no other command needs
    from lm_human_preferences.people.server import Office, labelling

    print("Personal links; whoever has one is taken for that person:")
    print("\n".join(links_of(folder, names, address_of(params, listener), expiry_of(params))))
    warn_of_others(params)
    print("Ctrl-C stops; the same command goes on.", flush=True)
    office = Office(folder, secret_of(folder), hosts_of(params), dashboard)
    try:
        serve(labelling(office), listener)
    finally:
        office.desk.close()
    print("\nstopped; everything that was answered is saved, and the same command goes on")
