"""datasets/corpus.py through its command line: what it reads, how it splits, what it refuses."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from lm_human_preferences.data.documents import SplitRule, pieces
from lm_human_preferences.data.queries import TokenFile, check_split, query_stream, read_meta
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.language.encoding import gpt2_encoding

from load_scripts import load_script, run_main
from small import ROOT

script = load_script("datasets/corpus.py")
STORY = "".join(f"Paragraph {n} of a story that is long.\n\n" for n in range(3000)) + "The end."  # encoded in pieces


def corpus(folder, *words, check=True):
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "datasets/corpus.py",
            "--input",
            folder / "texts",
            "--output",
            folder / "out",
            *map(str, words),
        ],
        capture_output=True,
        text=True,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def run(folder, *words, check=True):
    """The same in this process, which need not start again."""
    return run_main(
        script, "--input", folder / "texts", "--output", folder / "out", "--processes", 1, *words, check=check
    )


def documents(folder, split):
    file = TokenFile(folder / "out", split)
    return [gpt2_encoding().decode(file[i][:-1].tolist()) for i in range(len(file))]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("A café.")
    (folder / "b.txt").write_text(STORY)

    def row(source, text):
        return json.dumps({"source": source, "text": text}) + "\n"

    (folder / "c.jsonl").write_text(row("x", "first x") + row("y", "first y"))
    with gzip.open(folder / "valid.jsonl.gz", "wt") as file:
        file.write(row("x", "held out x") + row("y", "held out y"))
    return folder


def test_every_kind_of_file(texts, tmp_path):
    corpus(tmp_path)
    assert documents(tmp_path, "train") == ["A café.", STORY, "first x", "first y"]
    assert documents(tmp_path, "valid") == ["held out x", "held out y"]
    file = TokenFile(tmp_path / "out", "train")
    assert file[1].tolist() == [*gpt2_encoding().encode(STORY), 50256]  # pieces change no token
    assert read_meta(tmp_path / "out")["splits"]["train"]["documents"] == 4


def test_named_sources_only(texts, tmp_path):
    """A .txt has no source, so it is not among them."""
    run(tmp_path, "--sources", "x")
    assert documents(tmp_path, "train") == ["first x"] and documents(tmp_path, "valid") == ["held out x"]


def test_weights_repeat_and_thin_out_sources(texts, tmp_path):
    """Of the split train alone; a fraction takes a share of the documents, and always the same ones."""
    (texts / "d.jsonl").write_text("".join(json.dumps({"source": "z", "text": f"z {n}"}) + "\n" for n in range(400)))
    run(tmp_path, "--weights", "x=2,y=0,z=1.25")
    train = documents(tmp_path, "train")
    assert train[:4] == ["A café.", STORY, "first x", "first x"] and "first y" not in train
    counts = [train.count(f"z {n}") for n in range(400)]
    assert set(counts) == {1, 2} and 60 <= counts.count(2) <= 140
    assert documents(tmp_path, "valid") == ["held out x", "held out y"]
    run(tmp_path, "--weights", "x=2,y=0,z=1.25")
    assert documents(tmp_path, "train") == train


def test_weights_take_their_share_of_what_is_not_held_out():
    """By another hash than the splits', of which the first 20% are held out."""
    rule, texts = SplitRule(10, 10), [f"text {number}" for number in range(4000)]
    train = [text for text in texts if rule.of(text, "train") == "train"]
    for weight in (0.2, 0.5):
        share = sum(script.copies(text, weight) for text in train) / len(train)
        assert abs(share - weight) < 4 * (weight * (1 - weight) / len(train)) ** 0.5


@pytest.mark.parametrize("processes", [-1, -8])
def test_processes_that_cannot_be(texts, tmp_path, processes):
    said = run(tmp_path, "--processes", processes, check=False)
    assert said.returncode == 2 and said.stderr == f"error: --processes {processes}: expected a number from 0 up\n"
    assert not (tmp_path / "out").exists()


def test_paragraphs_with_unwanted_words(texts, tmp_path):
    """Whole words in any case, in all splits; a document of which nothing is left goes."""
    words = tmp_path / "words.txt"
    words.write_text("# a comment with fine words\nUgly\nhalf-bad\n\n")
    rows = ["An ugly one.\n\nAn uglier, fine one.", "UGLY", "a Half-Bad one", "half, bad", "A comment."]
    (texts / "c.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (texts / "valid.txt").write_text("Held out.\n\nSo ugly.")
    result = run(tmp_path, "--drop_words", words)
    assert documents(tmp_path, "train")[2:] == ["An uglier, fine one.", "half, bad", "A comment."]
    assert "Held out." in documents(tmp_path, "valid")
    assert "left out 4 of " in result.stdout and f"for words of {words}" in result.stdout


@pytest.mark.parametrize(
    "weights, says",
    [
        ("x", "--weights x: expected SOURCE=WEIGHT"),
        ("x=2,=1", "--weights =1: expected SOURCE=WEIGHT"),
        ("x=-1", "--weights x=-1: expected SOURCE=WEIGHT"),
        ("x=nan", "--weights x=nan: expected SOURCE=WEIGHT"),
        ("x=1,q=2", "--weights q: no document is of this source; x, y are"),
    ],
)
def test_weights_that_cannot_be(texts, tmp_path, weights, says):
    result = run(tmp_path, "--weights", weights, check=False)
    assert result.returncode == 2 and says in result.stderr and not (tmp_path / "out").exists()


def test_lists_of_words_that_cannot_be(texts, tmp_path):
    (tmp_path / "words.txt").write_text("# nothing\n")
    result = run(tmp_path, "--drop_words", tmp_path / "words.txt", check=False)
    assert result.returncode == 2 and "words.txt holds no word; expected one a line" in result.stderr
    result = run(tmp_path, "--drop_words", tmp_path / "missing.txt", check=False)
    assert result.returncode == 2 and "missing.txt is not readable" in result.stderr


def test_a_share_is_held_out_where_no_file_is(texts, tmp_path):
    for path in texts.iterdir():
        path.unlink()
    (texts / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(200)) + '{"text": "half a pair: \\ud800"}\n'
    )
    run(tmp_path, "--valid_percent", 20)
    train, valid = documents(tmp_path, "train"), documents(tmp_path, "valid")
    assert (
        sorted(train + valid) == sorted([f"document {n}" for n in range(200)] + ["half a pair: \ufffd"])
        and 20 <= len(valid) <= 60
    )


def test_a_share_for_testing(texts, tmp_path):
    """By a hash of the text, beside the share for validation; without it what an earlier call left goes."""
    for path in texts.iterdir():
        path.unlink()
    (texts / "a.jsonl").write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(200)))
    run(tmp_path, "--valid_percent", 20, "--test_percent", 30)
    parts = {split: documents(tmp_path, split) for split in ("train", "valid", "test")}
    assert sorted(sum(parts.values(), [])) == sorted(f"document {n}" for n in range(200))
    assert 20 <= len(parts["valid"]) <= 60 and 40 <= len(parts["test"]) <= 80
    run(tmp_path, "--valid_percent", 20)
    assert documents(tmp_path, "valid") == parts["valid"] and set(parts["test"]) < set(documents(tmp_path, "train"))
    assert not list((tmp_path / "out").glob("test*")) and list(read_meta(tmp_path / "out")["splits"]) == [
        "train",
        "valid",
    ]
    (texts / "test.txt").write_text("for the test")
    run(tmp_path, "--valid_percent", 20, "--test_percent", 30)  # a file is named so: nothing else
    assert documents(tmp_path, "test") == ["for the test"]


def test_short_prompts_become_queries(texts, tmp_path):
    """Prompts of one's own as docs/own_data.md says: no query ends with the mark that closes documents."""
    for path in texts.iterdir():
        path.unlink()
    rows = [json.dumps({"text": f"The film number {n} is"}) for n in range(40)]
    (texts / "a.jsonl").write_text("\n".join(rows))
    run(tmp_path, "--valid_percent", 20, "--test_percent", 20)
    check_split(str(tmp_path / "out"), "test", "--evaluation.split")
    task = TaskParams(query_dataset=str(tmp_path / "out"), query_length=8)
    queries = query_stream(task, gpt2_encoding(), 0, "test", "train").batch(20)
    assert all(gpt2_encoding().decode(query).endswith(" is") for query in queries.tolist())


@pytest.mark.parametrize("words", [["--valid_percent", -1], ["--test_percent", 100], ["--valid_percent", "nan"]])
def test_percentages_that_cannot_be(texts, tmp_path, words):
    said = run_main(script, "--input", texts, "--output", tmp_path / "out", *words, check=False)
    assert said.returncode == 2 and "must not be negative and leave something to train on" in said.stderr
    assert not (tmp_path / "out").exists()


def test_byte_order_marks_and_runs_of_a_million_spaces(texts, tmp_path):
    """With more than one process, whose panics could not even be passed on."""
    long = "before" + " " * 1_001_000 + "after"
    (texts / "a.txt").write_text("\ufeffA café.", encoding="utf-8")
    (texts / "c.jsonl").write_text("\ufeff" + json.dumps({"text": long}) + "\n", encoding="utf-8")
    corpus(tmp_path, "--processes", 2)
    assert documents(tmp_path, "train") == ["A café.", STORY, long]


@pytest.mark.parametrize(
    "damage, says",
    [
        (
            lambda folder: (folder / "c.jsonl").write_text('{"title": "no text"}\n'),
            "c.jsonl, line 1: expected a JSON object with a string field 'text'",
        ),
        (lambda folder: (folder / "c.jsonl").write_text('{"text": "fine"}\n{"text"'), "c.jsonl, line 2 is not JSON"),
        (
            lambda folder: (folder / "valid.jsonl.gz").write_bytes((folder / "valid.jsonl.gz").read_bytes()[:-12]),
            "valid.jsonl.gz is damaged",
        ),
        (
            lambda folder: (folder / "valid.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}')[:10] + b"\xff" * 30),
            "valid.jsonl.gz is damaged",
        ),
        (lambda folder: (folder / "c.jsonl").write_text('["text"]\n'), "c.jsonl, line 1: expected a JSON object"),
        (lambda folder: (folder / "c.jsonl").write_text('{"text": 5}\n'), "c.jsonl, line 1: expected a JSON object"),
        (lambda folder: (folder / "c.jsonl").write_bytes(b'{"text": "caf\xe9"}\n'), "c.jsonl, line 1: not UTF-8"),
        (lambda folder: (folder / "a.txt").write_bytes(b"caf\xe9"), "a.txt: not UTF-8"),
        (
            lambda folder: (folder / "valid.jsonl.gz").write_bytes(gzip.compress(b"")),
            "has no document for the split valid",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no .txt, .jsonl or .jsonl.gz file"),
    ],
)
def test_refusals_leave_nothing_behind(texts, tmp_path, monkeypatch, capsys, damage, says):
    damage(texts)
    monkeypatch.setattr(sys, "argv", ["corpus.py", "--input", str(texts), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:  # in this process, which need not start again
        script.main()
    [error] = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and error.startswith("error: ") and says in error
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_sources_that_no_document_has(texts, tmp_path):
    result = run(tmp_path, "--sources", "z,w", check=False)
    assert result.returncode == 2 and result.stderr.startswith(
        "error: --sources w: no document is of this source; x, y"
    )
    result = run(tmp_path, "--sources", "x,zz", check=False)
    assert result.returncode == 2 and result.stderr.startswith("error: --sources zz: no document is of this source")
    (texts / "c.jsonl").write_text(json.dumps({"source": "y", "text": "first y"}) + "\n")
    result = run(tmp_path, "--sources", "x", check=False)
    assert f"error: {texts} has no document for the split train of the sources x: give " in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_other_files_of_the_output_folder_stay(texts, tmp_path):
    """Even where the texts themselves lie there; what a refused run would have replaced stays as well."""
    for name in ("b.txt", "c.jsonl"):
        (texts / name).rename(tmp_path / name)
    (tmp_path / "out").symlink_to(texts)
    before = {path.name: path.read_bytes() for path in texts.iterdir()}
    run(tmp_path)
    assert documents(tmp_path, "train") == ["A café."]
    after = {path.name: path.read_bytes() for path in texts.iterdir()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"meta.json", "train.bin", "train.idx.npy", "valid.bin", "valid.idx.npy"}
    (texts / "valid.jsonl.gz").write_bytes(b"no gzip")
    assert run(tmp_path, check=False).returncode == 2
    assert {path.name: path.read_bytes() for path in texts.iterdir()} == after | {"valid.jsonl.gz": b"no gzip"}


def test_pieces_change_no_token():
    """Wherever a text may be cut: made-up texts of words, marks and many kinds of white space, in pieces as short as
    they can be.
    """
    random, encoding, cut = np.random.default_rng(0), gpt2_encoding(), 0
    parts = [
        "\n\n",
        "\n",
        " ",
        "\n\n\n",
        "\t",
        "\u00a0",
        "\u2028",
        "\x1c",
        "word",
        "It's",
        "12",
        "...",
        "é",
        "\U0001f600",
        "\r",
    ]
    for _ in range(300):
        text = "".join(random.choice(parts, size=20))
        cuts = list(pieces(text, size=1))
        assert sum(map(encoding.encode, cuts), []) == encoding.encode(text)
        cut += len(cuts) - 1
    assert cut > 300
