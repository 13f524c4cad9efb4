"""`launch.py collect`: questions from a file and from policies, what is refused, Ctrl-C, and going on."""

import json
import os
import re
import signal
import socket
import subprocess
import urllib.request

import pytest
import torch

from lm_human_preferences.commands import collect
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.people import study
from lm_human_preferences.people.questions import Author, falls, sample_questions
from lm_human_preferences.people.records import VALIDATION, StudyParams
from lm_human_preferences.people.store import Store

from params import EXPERIMENTS
from small import LAUNCH, ROOT, flags, make_world, run_here, task_flags


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def questions(tmp_path):
    """A file of five questions, one of them gold."""
    lines = [{"query": f"Query {n}", "responses": [f" {letter}{n}" for letter in "abcd"]} for n in range(5)]
    lines[2]["gold"] = 1
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(world, **more):
    return [*task_flags(world), *flags(**(dict(port=0, save_dir=world / "runs", device="cpu") | more))]


def test_a_study_starts_stops_at_ctrl_c_and_goes_on(world, questions):
    words = ["collect", "movies", "study", *arguments(world, questions=questions, labellers="anna,Ben B")]
    for attempt in range(2):
        process = subprocess.Popen(
            [*LAUNCH, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
        )
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        link = re.search(r"anna +(http://127\.0\.0\.1:\d+/label/\S+)", said)[1]
        assert re.search(r"Ben B +http", said) and re.search(r"dashboard +http", said)
        assert f"{(5, 0)[attempt]} of 5 questions are new" in said and "1 gold, 4 plain questions" in said
        request = urllib.request.Request(f"{link}/next", headers={"Accept": "application/json"})
        assert json.load(urllib.request.urlopen(request, timeout=30))["state"] == "read"
        if attempt:
            with pytest.raises(UserError, match="being collected already"):
                run_here(*words)
        process.send_signal((signal.SIGINT, signal.SIGTERM)[attempt])
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and "everything that was answered is saved" in out and err == ""
    config = read_json(world / "runs/study/config.json")
    assert config["stage"] == "collect" and config["task"] == "movies"


def test_policies_write_the_questions(world, monkeypatch, capsys):
    monkeypatch.setattr(collect, "serve_study", lambda *arguments: None)
    policies = f"before={world / 'model'},after={world / 'model'}"
    words = arguments(world, policies=policies, labellers="anna", count=30, study__validation_share=0.2)
    run_here("collect", "movies", "written", *words)
    store = Store(world / "runs/written")
    found = store.questions()
    assert len(found) == 30
    for question in found:
        texts = [response.text for response in question.responses]
        assert len(set(texts)) == 4 and all(text.strip() for text in texts)
        sources = [response.source for response in question.responses]
        if question.kind == VALIDATION:
            assert sources == ["before", "before", "after", "after"]
        else:
            assert sorted(sources) == ["after", "after", "before", "before"]
        assert all(len(response.digest) == 64 and len(response.tokens) == 5 for response in question.responses)
        assert len(question.query_tokens) == 6
    assert sum(question.kind == VALIDATION for question in found) == 6
    monkeypatch.setattr(collect, "load_policy", None)  # nothing is to be written any more
    run_here("collect", "movies", "written", *words)
    assert len(store.questions()) == 30
    assert "24 plain, 6 validation questions" in capsys.readouterr().out


def test_what_is_written_does_not_depend_on_how_it_is_batched(world):
    entry = EXPERIMENTS["train_policy"]["movies"]()
    task = entry.task
    for name, value in dict(query_dataset=str(world / "data"), query_length=6, response_length=5).items():
        setattr(task, name, value)
    task.truncate_token, task.truncate_after = 26, 1
    from lm_human_preferences.language.encoding import get_encoding

    encoding, precision = get_encoding("letters"), choose_precision("cpu", "float32")
    author = Author("a", Policy.load(world / "model", QueryFormatter([], []), 1.0))

    def written(batch, numbers, skip=0):
        stream = query_stream(task, encoding, 0, "test")
        if skip:
            stream.batch(skip)
        study = StudyParams()
        batches = sample_questions([author], stream, numbers, study, task, encoding, precision, 0, "test", batch)
        return [question for some in batches for question in some]

    whole = written(20, range(20))
    assert written(7, range(20)) == whole and written(20, range(8, 20), 8) == whole[-12:]
    assert torch.equal(torch.tensor(whole[0].query_tokens), query_stream(task, encoding, 0, "test").batch(1)[0])


def test_shares_are_constant():
    """In any stretch of questions a share is what it is, up to one."""
    for share, phase in ((0.05, 0.0), (0.05, 0.5), (0.3, 0.0), (0.0, 0.5), (1.0, 0.0)):
        hits = [falls(number, share, phase) for number in range(1000)]
        for start in range(0, 900, 37):
            assert abs(sum(hits[start : start + 100]) - 100 * share) <= 1
    assert not any(falls(number, 0.05) and falls(number, 0.05, 0.5) for number in range(1000))


GOOD = {"query": "Q", "responses": [" a", " b", " c", " d"]}


@pytest.mark.parametrize(
    "record, said",
    [
        ({"query": "Q"}, "expected"),
        ({"query": 3, "responses": GOOD["responses"]}, "expected"),
        (GOOD | {"responses": [" a", " b", " c"]}, "has 3 responses, --study.responses is 4"),
        (GOOD | {"responses": [" a", " b", " c", " a "]}, "two of its responses are the same"),
        (GOOD | {"responses": [" a", " b", " c", ""]}, "no response empty"),
        (GOOD | {"gold": 4}, "'gold' is 4"),
        (GOOD | {"gold": True}, "'gold' is True"),
        ([], "expected"),
        (GOOD | {"query": "a \ud83d"}, "ud83d is half of a character"),
    ],
)
def test_a_bad_record_is_named(world, tmp_path, record, said):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=said) as raised:
        run_here("collect", "movies", "bad", *arguments(world, questions=path, labellers="anna"))
    assert "questions.jsonl" in str(raised.value) and "2" in str(raised.value)
    assert not (world / "runs/bad").exists()


@pytest.mark.parametrize(
    "changed, said",
    [
        (dict(labellers=""), "nobody is to be asked"),
        (dict(labellers="anna,anna"), "anna twice"),
        (dict(labellers="anna,<b>"), "'<b>' must be letters"),
        (dict(labellers="anna,"), "'' must be letters"),
        (dict(questions="nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (dict(instructions="nowhere.md"), "nowhere.md does not exist; write one"),
        (dict(policies="a=b"), "exclude each other"),
        (dict(port=70000), "--port 70000"),
        (dict(host="203.0.113.7"), "cannot listen on 203.0.113.7"),
        (dict(study__responses=1), "must be 2 to 9"),
        (dict(study__mode="rate"), "must be choose or rank"),
        (dict(study__gold_share=0.9, study__repeat_share=0.2), "leave no room"),
        (dict(study__overlap_share=1.5), "between 0 and 1"),
        (dict(expires_hours=0), "must be positive"),
        (dict(public_address="labels.example.org"), "expected https://NAME"),
        (dict(questions="none", policies="a=nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(world, questions, changed, said):
    given = dict(questions=questions, labellers="anna") | changed
    with pytest.raises(UserError, match=said) as raised:
        run_here("collect", "movies", "bad", *arguments(world, **given))
    assert "\n" not in str(raised.value) and not (world / "runs/bad").exists()


def test_what_fails_changes_nothing_of_a_study(world, questions, monkeypatch, tmp_path):
    monkeypatch.setattr(collect, "serve_study", lambda *arguments: None)
    run_here("collect", "movies", "kept", *arguments(world, questions=questions, labellers="anna"))
    new = tmp_path / "new.md"
    new.write_text("# Read this\n")
    changed = dict(policies="a=nowhere", instructions=new, labellers="ben", study__overlap_people=9)
    with pytest.raises(UserError, match="nowhere"):
        run_here("collect", "movies", "kept", *arguments(world, **changed))
    store = Store(world / "runs/kept")
    assert store.labellers() == ["anna"] and store.number("SELECT COUNT(*) FROM instructions") == 1
    assert store.settings()["study"]["overlap_people"] == 5
    store.close()


def test_a_study_that_a_crash_left_half_made_is_made(world, questions, monkeypatch):
    """config.json is there before the store is."""
    monkeypatch.setattr(collect, "serve_study", lambda *arguments: None)
    words = ["collect", "movies", "half", *arguments(world, questions=questions, labellers="anna")]
    made = []

    class Crash(BaseException):
        pass

    def crash(folder, **more):
        made.extend(path.name for path in folder.iterdir())
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(study, "Store", crash)
        run_here(*words)
    assert "config.json" in made
    run_here(*words)
    store = Store(world / "runs" / words[2])
    assert store.labellers() == ["anna"]
    store.close()


def test_a_port_that_is_taken(world, questions):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: Address already in use; give another --port"):
            run_here("collect", "movies", "port", *arguments(world, questions=questions, labellers="a", port=port))
    assert not (world / "runs/port").exists()


def test_another_tasks_study_or_something_else(world, questions, monkeypatch):
    monkeypatch.setattr(collect, "serve_study", lambda *arguments: None)
    words = arguments(world, questions=questions, labellers="anna")
    run_here("collect", "movies", "taken", *words)
    with pytest.raises(UserError, match="is a study of task movies, not tldr"):
        run_here("collect", "tldr", "taken", *words)
    with pytest.raises(UserError, match="has questions with choose; give another name"):
        run_here("collect", "movies", "taken", *words, *flags(study__mode="rank"))
    (world / "runs/other").mkdir()
    (world / "runs/other/file").write_text("")
    with pytest.raises(UserError, match="holds no study"):
        run_here("collect", "movies", "other", *words)


def test_listening_elsewhere_says_what_that_means(world, questions, monkeypatch, capsys):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    words = arguments(world, questions=questions, labellers="anna", host="0.0.0.0", expires_hours=2)
    run_here("collect", "movies", "open", *words, *flags(public_address="https://labels.example.org/"))
    said = capsys.readouterr().out
    assert "whoever reaches this machine" in said and "https://labels.example.org/label/" in said
    assert not re.search(r"/label/0-", said)
