"""datasets/movies.py and movies_reference.py on a small made-up source of the true format; nothing is downloaded."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lm_human_preferences.data.queries import TokenFile, read_meta
from lm_human_preferences.language.encoding import gpt2_encoding

from load_scripts import load_script, run_main
from small import ROOT

TEXTS, RATINGS = "movieReviewSnippets_GroundTruth.txt", "movieReviewSnippets_anonDataRatings.txt"
SPLITS = ("train", "valid", "test")
PADDING, END = 50259, 50256


movies, reference = load_script("datasets/movies.py"), load_script("datasets/movies_reference.py")


def write_source(folder: Path, count: int = 240) -> Path:
    """`count` sentences with ratings that their adjective decides, give or take a few; openings are shared by many."""
    folder.mkdir(parents=True)
    openings = ("The film is", "The film was", "The plot of this", "A story that feels", "It's", "This movie seems")
    adjectives = {"superb": 4, "lovely": 3, "good": 2, "passable": 0, "dull": -2, "awful": -3, "dreadful": -4}
    texts, ratings = [], []
    for i in range(count):
        word, value = list(adjectives.items())[i * 5 % 7]
        given = [max(-4, min(4, value + (i * 7 + j * j) % 3 - 1)) for j in range(15 + i % 3)]
        mean = sum(given) / len(given)
        length = " and far too long to be told in so many words" * (i % 5)
        text = f"{openings[i % 6]} {word}, number {i} of its kind{length}."
        texts.append(f"{i + 1}\t{mean:.9f}\t{text}")
        ratings.append(f"{i + 1}\t{mean:.9f}\t1.0\t{given}")
    (folder / TEXTS).write_bytes("\r\n".join(texts).encode())
    (folder / RATINGS).write_bytes(("\r\n".join(ratings) + "\r\n").encode())
    return folder


def run_script(*arguments, **environment) -> subprocess.CompletedProcess:
    """The script in its own process, as a user runs it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "datasets" / "movies.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT.parent,
        timeout=120,
    )


def run(*arguments) -> subprocess.CompletedProcess:
    """The same in this process, which need not import torch again."""
    command, out, err = ["movies.py", *map(str, arguments)], io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = movies.main() or 0
        except SystemExit as stop:
            status = stop.code
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("movies") / "source")


@pytest.fixture(scope="module")
def prepared(source) -> Path:
    output = source.parent / "prepared"
    done = run_script("--input", source, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def assert_padded(tokens: list[int], length: int) -> list[int]:
    """The tokens before the padding, which is only on the right."""
    assert len(tokens) == length
    real = tokens[: tokens.index(PADDING)] if PADDING in tokens else tokens
    assert tokens == real + [PADDING] * (length - len(real)) and real
    assert all(0 <= token <= END for token in real)
    return real


def test_sentences_and_token_files(prepared):
    encoding, rows, meta = gpt2_encoding(), lines(prepared / "sentences.jsonl"), read_meta(prepared)
    assert meta["verified"] is False and meta["licence"] == "MIT" and meta["sentences"] == len(rows) == 240
    assert {name: digest for name, digest in digests(prepared).items() if name != "meta.json"} == meta["files"]
    for split in SPLITS:
        texts = [row["text"] for row in rows if row["split"] == split]
        file, queries = TokenFile(prepared, split), TokenFile(prepared, f"queries_{split}")
        assert len(texts) == len(file) == meta["splits"][split]["documents"] > 0
        for i, text in enumerate(texts):
            assert file[i].tolist() == encoding.encode(text) + [END]
            opening = encoding.decode(queries[i])  # every made-up sentence has five words
            assert (
                text.startswith(opening + " ") and len(opening.split()) <= 3 and len(queries[i]) <= movies.QUERY_LENGTH
            )
            assert queries[i].tolist() + encoding.encode(text[len(opening) :]) == encoding.encode(text)


def test_labels(prepared):
    encoding, rows = gpt2_encoding(), {row["id"]: row for row in lines(prepared / "sentences.jsonl")}
    for split in SPLITS:
        labels, twins = (
            json.loads((prepared / f"labels_{split}.json").read_text()),
            lines(prepared / f"labels_{split}.jsonl"),
        )
        assert len(labels) == len(twins) == read_meta(prepared)["splits"][split]["labels"] > 0
        assert len({frozenset(twin["ids"]) for twin in twins}) == len(twins)
        for label, twin in zip(labels, twins, strict=True):
            four = [rows[number] for number in twin["ids"]]
            assert (
                set(label) == {"query", "sample0", "sample1", "sample2", "sample3", "best"}
                and label["best"] == twin["best"]
            )
            assert len(set(twin["ids"])) == 4 and {row["split"] for row in four} == {split}
            ratings = sorted(((row["rating"], i) for i, row in enumerate(four)), reverse=True)
            assert ratings[0][1] == label["best"] and ratings[0][0] > ratings[1][0]
            assert split == "test" or ratings[0][0] - ratings[1][0] > 0.2 - 1e-9
            assert len(twin["query"].split()) <= (3 if split == "train" else 1)
            query = assert_padded(label["query"], movies.QUERY_LENGTH)
            for i, row in enumerate(four):
                assert twin["query"] + twin["responses"][i] == row["text"]
                whole = encoding.encode(row["text"]) + [END]
                sample = assert_padded(label[f"sample{i}"], movies.RESPONSE_LENGTH)
                assert query + sample == whole[: len(query) + movies.RESPONSE_LENGTH]


def test_best_is_in_every_place(prepared):
    best = [label["best"] for label in json.loads((prepared / "labels_train.json").read_text())]
    counts = np.bincount(best, minlength=4)
    assert (
        (counts - len(best) / 4) ** 2 / (len(best) / 4)
    ).sum() < 16.3  # chi-square, 3 degrees of freedom: 0.1 percent


def test_ratings(prepared):
    encoding, by_text = gpt2_encoding(), {row["text"]: row for row in lines(prepared / "sentences.jsonl")}
    for split in SPLITS:
        ids = []
        for entry in json.loads((prepared / f"ratings_{split}.json").read_text()):
            assert set(entry) == {"query", "sample", "score"}
            tokens = assert_padded(entry["query"], movies.QUERY_LENGTH) + assert_padded(
                entry["sample"], movies.RESPONSE_LENGTH
            )
            text = encoding.decode([token for token in tokens if token != END])
            row = by_text[text] if tokens[-1] == END else next(row for t, row in by_text.items() if t.startswith(text))
            assert row["split"] == split and (
                tokens[-1] != END or entry["score"] == row["rating"] == np.mean(row["ratings"])
            )
            ids.append(row["id"])
        drift = np.corrcoef(np.arange(len(ids)), ids)[0, 1]
        assert abs(drift) < 4 / len(ids) ** 0.5, "the first ratings of a file are like all: the source's order is gone"


def test_no_held_out_sentence_in_training(prepared):
    rows = lines(prepared / "sentences.jsonl")
    held_out = {row["text"] for row in rows if row["split"] != "train"}
    for twin in lines(prepared / "labels_train.jsonl"):
        assert not held_out & {twin["query"] + response for response in twin["responses"]}
    keys = [
        {"".join(filter(str.isalnum, row["text"].lower())) for row in rows if row["split"] == split} for split in SPLITS
    ]
    assert sum(map(len, keys)) == len(set.union(*keys)) == len(rows)


def test_same_source_same_files(source, prepared, tmp_path):
    assert run_script("--input", source, "--output", tmp_path / "again", PYTHONHASHSEED="7").returncode == 0
    assert digests(tmp_path / "again") == digests(prepared)


def test_second_run_does_nothing_unless_needed(source, tmp_path):
    output = tmp_path / "deep" / "er"
    assert run("--input", source, "--output", output).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    done = run("--input", source, "--output", output)
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    whole = digests(output)
    (output / "labels_test.json").write_text("[]")
    assert "nothing to do" not in run("--input", source, "--output", output).stdout
    assert digests(output) == whole
    assert run("--input", source, "--output", output, "--limit", 100).returncode == 0
    assert read_meta(output)["sentences"] == 100
    assert "nothing to do" not in run("--input", source, "--output", output, "--limit", 100, "--force").stdout


def test_duplicates_keep_the_first():
    first, second = movies.Sentence(1, "A good film.", (1,)), movies.Sentence(2, "a GOOD film!", (2,))
    assert movies.without_duplicates([first, second]) == [first]


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("''Minority Report'' works", '"Minority Report" works'),
        ("Heated passions    jealousy   betrayal", "Heated passions -- jealousy -- betrayal"),
        ("It is what it is – a nice film...", "It is what it is -- a nice film..."),
        ("...(a) strained comedy , by a co writer/director", "A strained comedy, by a co-writer/director"),
        (
            "(T)he sci fi plot isn't re creating anything &amp; they're low key",
            "The sci-fi plot isn't re-creating anything & they're low-key",
        ),
        ("Pull(s) off ( cool) `Memento' ... twice", "Pull(s) off (cool) 'Memento' ... twice"),
        ("cliché laden", "Cliché laden"),
    ],
)
def test_clean(given, wanted):
    assert movies.clean(given) == wanted and movies.clean(wanted) == wanted


# ---- what users do wrong


def assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


@pytest.mark.parametrize(
    "file, line, text, expected",
    [
        (TEXTS, 3, "3\t1.0", "id, mean rating and text"),
        (TEXTS, 4, "4\t9.75\tA film.", "the mean of its ratings"),
        (TEXTS, 5, "999\t1.0\tA film.", "ratings for id 999"),
        (TEXTS, 6, "5\t1.0\tA film.", "each id once"),
        (TEXTS, 7, "seven\t1.0\tA film.", "id, mean rating and text"),
        (TEXTS, 8, b"8\t1.0\tclich\xe9", "not UTF-8"),
        (RATINGS, 2, "2\t1.0\t1.0\t[1, 2, 9]", "whole numbers from -4 to 4"),
        (RATINGS, 9, "9\t1.0\t1.0\t[1, 2", "whole numbers from -4 to 4"),
        (RATINGS, 240, "", "id, mean, deviation and [ratings]"),
    ],
)
def test_bad_line(tmp_path, file, line, text, expected):
    folder = write_source(tmp_path / "source")
    rows = (folder / file).read_bytes().split(b"\r\n")
    rows[line - 1] = text if isinstance(text, bytes) else text.encode()
    (folder / file).write_bytes(b"\r\n".join(rows))
    command = run_script if (file, line) == (RATINGS, 2) else run
    assert_one_line(command("--input", folder, "--output", tmp_path / "out"), file, f"line {line}:", expected)
    assert not (tmp_path / "out").exists()


def archive_of(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_bad_sources(source, tmp_path):
    out = tmp_path / "out"
    texts = {f"folder/{name}": (source / name).read_bytes() for name in (TEXTS, RATINGS)}
    inner = archive_of(tmp_path / "inner.tar.gz", **texts)
    nested = archive_of(tmp_path / "nested.tar.gz", **{"p/hutto_ICWSM_2014.tar.gz": inner.read_bytes()})
    cut, garbage, empty = tmp_path / "cut.tar.gz", tmp_path / "garbage.tar.gz", tmp_path / "empty"
    cut.write_bytes(inner.read_bytes()[:-400])
    garbage.write_bytes(b"no archive at all")
    empty.mkdir()
    truncated_inner = archive_of(tmp_path / "truncated.tar.gz", **{"p/hutto_ICWSM_2014.tar.gz": cut.read_bytes()})
    for path, *expected in (
        (truncated_inner, "hutto_ICWSM_2014.tar.gz in", "truncated"),
        (inner, "wrong digest", "expected"),
        (nested, "wrong digest"),
        (cut, "truncated"),
        (garbage, "no .tar.gz"),
        (archive_of(tmp_path / "other.tar.gz", readme=b"x"), "holds no", TEXTS),
        (empty, "holds no", TEXTS),
        (tmp_path / "missing.tar.gz", "does not exist"),
        (source, "--limit", "from 1 up"),
    ):
        limit = ["--limit", 0] if path == source else []
        assert_one_line(run("--input", path, "--output", out, *limit), *expected)
        assert not out.exists()
    assert_one_line(run("--input", source, "--output", out, "--limit", 1), "too few")
    assert not out.exists()


def test_pip_reaches_nothing(tmp_path):
    done = run_script(
        "--output", tmp_path / "out", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_CONFIG_FILE=os.devnull
    )
    assert_one_line(done, "pip could not download", "--input")
    assert not (tmp_path / "out").exists()


def test_unwritable_output(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_one_line(run("--input", source, "--output", tmp_path / "file" / "out"), "cannot write to", "--output")
    assert (tmp_path / "file").read_text() == "in the way"
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert_one_line(run("--input", source, "--output", tmp_path / "locked" / "out"), "no permission")


def test_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(movies, "write_meta", lambda *_, **__: full())
    with pytest.raises(movies.UserError, match="No space left"):
        movies.prepare_movies(source, tmp_path / "new" / "out", None, False)
    assert not (tmp_path / "new").exists()


# ---- reference points


def test_reference_points(tmp_path):
    """A hand-made data set of one choice: the lexicon and the linear model both know which word is good."""
    pytest.importorskip("sklearn")
    pytest.importorskip("vaderSentiment")
    words = {"wonderful": 3, "terrible": -3, "boring": -2, "fine": 1}
    rows = [
        {
            "id": number,
            "split": split,
            "text": f"It was {word}.",
            "rating": float(value),
            "ratings": [value, value - 1, 0],
        }
        for number, (split, word, value) in enumerate((s, w, v) for s in SPLITS for w, v in words.items())
    ]
    (tmp_path / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [row["id"] for row in rows if row["split"] == "test"]
    label = {"query": "It", "responses": [f" was {word}." for word in words], "best": 0, "ids": ids}
    for split in ("valid", "test"):
        (tmp_path / f"labels_{split}.jsonl").write_text(json.dumps(label) + "\n")
    points = reference.reference_points(tmp_path)
    assert points["choices"] == 1 and points["chance"]["accuracy"] == 0.25
    assert points["lexicon"]["accuracy"] == points["tfidf_ridge"]["accuracy"] == 1.0
    assert points["one_rater"]["accuracy"] == pytest.approx((1 + 1 + 1 / 4) / 3)


def test_judge(prepared):
    pytest.importorskip("sklearn")
    judge = reference.HeldOutJudge.fit(prepared)
    rated = judge.rate(["The film is superb, a lovely thing.", "The plot of this is dreadful and awful."])
    assert rated.shape == (2,) and (np.abs(rated) <= 4).all() and rated[0] > 1 and rated[1] < -1
    assert judge.rate([]).shape == (0,)
    measured = judge.cross_validation()
    assert 0.5 < measured["pearson"] <= 1 and measured["r2"] <= measured["pearson"] ** 2 + 1e-9
    assert measured["sentences"] == sum(row["split"] != "train" for row in lines(prepared / "sentences.jsonl"))


@pytest.mark.parametrize(
    "result, says",
    [({"loss": 0.4, "corr": 0.5}, "its result.json has no accuracy"), (None, "result.json does not exist")],
)
def test_a_run_without_accuracy_stays_as_it_is(prepared, tmp_path, result, says):
    path = tmp_path / "result.json"
    (tmp_path / "config.json").write_text("{}")
    if result is not None:
        path.write_text(json.dumps(result))
    assert_one_line(run_main(reference, "--data", prepared, "--compare", tmp_path, check=False), says)
    assert (json.loads(path.read_text()) if path.exists() else None) == result


def test_reference_without_data(tmp_path):
    assert_one_line(
        run_main(reference, "--data", tmp_path, check=False),
        "sentences.jsonl does not exist",
        "python datasets/movies.py",
    )
