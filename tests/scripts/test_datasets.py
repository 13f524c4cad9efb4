"""The paper's data sets: cleaning as recorded, the scripts on files of the true formats, and what they refuse. Hazards
26, 28, 30.
"""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm_human_preferences.data.queries import TokenFile, query_stream, read_meta
from lm_human_preferences.data.rows import make_rows
from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.language.gpt2 import GPT2Config

from load_scripts import load_script, run_main
from paper_files import some_stories, write_posts, write_stories
from web import serve

books, cnndm, tldr = (load_script(f"datasets/{name}.py") for name in ("books", "cnndm", "tldr"))


def prepare(module, output, *words, check=True):
    return run_main(module, "--output", output, "--processes", 1, *words, check=check)


def texts(folder, split):
    file = TokenFile(folder, split)
    return [gpt2_encoding().decode(file[i].tolist()) for i in range(len(file))]


# --- sources of the true formats ---


def write_parquet(folder: Path, **splits) -> Path:
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").table
    folder.mkdir(parents=True)
    for split, columns in splits.items():
        parquet.write_table(table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


# --- cleaning, against the recorded values ---


def test_the_start_of_articles(goldens):
    cases = goldens.json("datasets")["clean_up_start"]
    assert len(cases) == 65
    assert [cnndm.clean_up_start(case["text"]) for case in cases] == [case["result"] for case in cases]


def test_articles_of_the_original(goldens, tmp_path):
    """The script on .story files gives the recorded texts, in the lists' order and in the original's shuffled one."""
    recorded = goldens.json("datasets")["cnndm"]
    assert [cnndm.story_path(url) for url in recorded["urls"]] == recorded["paths"]
    train = dict(zip(recorded["urls"], recorded["stories"], strict=True))
    write_stories(tmp_path / "in", some_stories() | {"train": train})
    prepare(cnndm, tmp_path / "out", "--input", tmp_path / "in")
    assert texts(tmp_path / "out", "train") == recorded["generated_unshuffled"]
    shuffled = list(range(len(train)))
    random.Random(0).shuffle(shuffled)
    assert [recorded["generated_unshuffled"][i] for i in shuffled] == recorded["generated"]
    assert [text.split("\n")[-1].strip() for text in texts(tmp_path / "out", "references_train")] == [
        f"hl {n}" for n in range(len(train))
    ]
    assert [url.removesuffix(".txt").rpartition("_")[2] for (url, _) in recorded["files"].values()][::2] == [
        "train",
        "val",
        "test",
    ]
    assert {f"{cnndm.LISTS}/{name}" for name in cnndm.LIST_OF.values()} == {
        url for url, _ in recorded["files"].values()
    }


def test_posts_of_the_original(goldens, tmp_path):
    recorded = goldens.json("datasets")["tldr"]
    for name, contents in (("train", recorded["contents"]), ("valid", recorded["contents"][:2])):
        (tmp_path / f"{name}-subset.json").write_text(json.dumps([{"content": text} for text in contents]))
    prepare(tldr, tmp_path / "out", "--input", tmp_path)
    ours = texts(tmp_path / "out", "train")
    random.Random(0).shuffle(ours)
    assert ours == recorded["generated"]
    assert (
        texts(tmp_path / "out", "test") == texts(tmp_path / "out", "valid") != []
    )  # the original reads `valid` for test, too
    assert set(texts(tmp_path / "out", "references_train")) == {""}
    assert {f"{tldr.ADDRESS}/{name}" for name in tldr.FILES.values()} == {
        url for urls in recorded["files"].values() for url in urls
    }


@pytest.mark.parametrize("module", [cnndm, tldr])
def test_broken_accents_are_mended_beside_whole_ones(module):
    """ORIGINAL detail 41: the original's ftfy 5.4.1 mends a text as a whole or not at all, and leaves the last one."""
    for text, mended in (("cafÃ©", "café"), ("é ü café é ü", "é ü café é ü"), ("é ü cafÃ© é ü", "é ü café é ü")):
        assert module.clean(text) == mended and module.clean_reference(text) == " " + mended


def test_passages_of_the_original(goldens, tmp_path):
    recorded = goldens.json("datasets")["books"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(text) + "\n" for text in recorded["passages"]))
    prepare(books, tmp_path / "out", "--input", tmp_path / "train.jsonl", "--split", "20,20")
    ours = {split: texts(tmp_path / "out", split) for split in ("train", "valid", "test")}
    assert sorted(sum(ours.values(), [])) == sorted(recorded["passages"]) and all(ours.values())
    for seed, name in ((0, "generated"), (5, "generated_seed5")):
        shuffled = list(recorded["passages"])
        random.Random(seed).shuffle(shuffled)
        assert shuffled == recorded[name]


# --- the scripts ---


def test_stories_posts_and_books_become_token_files(tmp_path):
    write_stories(tmp_path / "stories", some_stories())
    said = prepare(cnndm, tmp_path / "cnndm", "--input", tmp_path / "stories")
    assert "train: 3 documents" in said.stdout and "references_test: 3 documents" in said.stdout
    assert texts(tmp_path / "cnndm", "valid")[1] == "Number 1 of valid said it's so.\n\nA second paragraph follows."
    assert texts(tmp_path / "cnndm", "references_valid")[1] == " First thing\nSecond thing 1"
    prepare(tldr, tmp_path / "tldr", "--input", write_posts(tmp_path / "posts"))
    assert texts(tmp_path / "tldr", "train")[2] == "Post 2 of train.\n\nIt 'goes' on."
    assert texts(tmp_path / "tldr", "references_train")[2] == " it goes on 2"
    meta = read_meta(tmp_path / "tldr")
    assert (
        meta["splits"]["train"]["documents"] == 4
        and meta["files"]["train.bin"] == meta["splits"]["train"]["sha256_bin"]
    )


def test_stories_without_highlights_have_no_reference(tmp_path):
    """They are queries like any other, and supervised training leaves them out."""
    stories = some_stories(4)
    without = [url for files in stories.values() for url in list(files)[:2]]
    for files in stories.values():
        for url in files.keys() & set(without):
            files[url] = files[url].split("@highlight")[0] + ("@highlight\n\n \n" if url == without[0] else "")
    write_stories(tmp_path / "in", stories)
    prepare(cnndm, tmp_path / "out", "--input", tmp_path / "in")
    assert texts(tmp_path / "out", "references_train")[:2] == ["", ""] and len(texts(tmp_path / "out", "train")) == 4
    task = _task(tmp_path / "out", 24, end_text="\n")
    rows = make_rows(tmp_path / "out", "train", "references", 0, GPT2Config(), task)
    assert rows.documents.tolist() == [2, 3]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_any_highlight_is_an_error(tmp_path, split):
    stories = some_stories()
    stories[split] = {url: story.split("@highlight")[0] for url, story in stories[split].items()}
    write_stories(tmp_path / "in", stories)
    said = prepare(cnndm, tmp_path / "out", "--input", tmp_path / "in", check=False)
    assert said.returncode == 2 and said.stderr.count("\n") == 1
    assert f"no document of the split {split} has a highlight (what follows @highlight" in said.stderr
    assert not (tmp_path / "out").exists()


def test_posts_without_summaries_have_no_reference(tmp_path):
    """The original's files have none at all; training on them says so."""
    for name in ("train", "valid"):
        posts = [{"content": f"Post {n} of {name}.", "summary": ("", " \n", "short")[n]} for n in range(3)]
        (tmp_path / f"{name}-subset.json").write_text(json.dumps(posts))
    prepare(tldr, tmp_path / "out", "--input", tmp_path)
    assert texts(tmp_path / "out", "references_train") == ["", "", " short"]
    task = _task(tmp_path / "out", 24)
    assert make_rows(tmp_path / "out", "train", "references", 0, GPT2Config(), task).documents.tolist() == [2]


@pytest.mark.parametrize("name", ["posts", "stories", "books"])
def test_byte_order_marks_are_no_part_of_a_text(tmp_path, name):
    if name == "stories":
        write_stories(tmp_path / "in", some_stories())
        module, words = cnndm, []
    elif name == "posts":
        write_posts(tmp_path / "in")
        module, words = tldr, []
    else:
        (tmp_path / "in").mkdir()
        for n in range(30):
            (tmp_path / "in" / f"{n}.txt").write_text(f"Book {n} is short.")
        module, words = books, ["--split", "30,30", "--passage", 10]
    prepare(module, tmp_path / "plain", "--input", tmp_path / "in", *words)
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    prepare(module, tmp_path / "marked", "--input", tmp_path / "in", *words)
    for split in ("train", "valid", "test"):
        assert texts(tmp_path / "marked", split) == texts(tmp_path / "plain", split) != []


def test_books_as_text_are_cut_into_passages(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(
        "\n\n".join(f"Paragraph {n} is wrapped\nover two lines of text." for n in range(60))
    )
    prepare(books, tmp_path / "out", "--input", tmp_path / "in", "--split", "20,20", "--passage", 100)
    first = next(
        text
        for split in ("train", "valid", "test")
        for text in texts(tmp_path / "out", split)
        if "Paragraph 0 " in text
    )
    assert first == "\n\n".join(f"Paragraph {n} is wrapped over two lines of text." for n in range(3))
    together = "".join(text for split in ("train", "valid", "test") for text in texts(tmp_path / "out", split))
    assert all(f"Paragraph {n} " in together for n in range(60))


def test_a_second_run_does_nothing_until_something_changes(tmp_path):
    write_posts(tmp_path / "in")

    def run(*words):
        return prepare(tldr, tmp_path / "out", "--input", tmp_path / "in", *words).stdout

    assert "documents" in run()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert "nothing to do" in run() and before == {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()
    }
    assert "train: 2 documents" in run("--limit", 2) and "train: 4 documents" in run()
    (tmp_path / "out" / "valid.bin").write_bytes(b"damaged")
    assert "valid: 4 documents" in run() and "nothing to do" in run() and "train: 4" in run("--force")
    write_posts(tmp_path / "in", 5)
    assert "train: 5 documents" in run()


def test_processes_change_nothing(tmp_path):
    """Three in a process of its own, as a user starts it: the tests' own has threads, which do not outlive a fork."""
    write_stories(tmp_path / "in", {split: dict(files) for split, files in some_stories(40).items()})
    prepare(cnndm, tmp_path / "out1", "--input", tmp_path / "in")
    words = ["--input", tmp_path / "in", "--output", tmp_path / "out3", "--processes", "3"]
    done = subprocess.run(
        [sys.executable, cnndm.__file__, *words], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert read_meta(tmp_path / "out1") == read_meta(tmp_path / "out3")


def test_another_rule_divides_by_text(tmp_path):
    write_posts(tmp_path / "in", 200)
    prepare(tldr, tmp_path / "out", "--input", tmp_path / "in", "--split", "10,20")
    parts = {split: set(texts(tmp_path / "out", split)) for split in ("train", "valid", "test")}
    assert 20 <= len(parts["valid"]) <= 60 and 50 <= len(parts["test"]) <= 110
    assert len(parts["train"] | parts["valid"] | parts["test"]) == sum(map(len, parts.values())) == 400


def test_posts_from_the_web_after_a_broken_connection(tmp_path, monkeypatch):
    write_posts(tmp_path / "served")
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    with serve(tmp_path / "served") as server:
        server.break_after = [100]
        prepare(tldr, tmp_path / "out", "--url", server.url)
        assert [wanted for _, wanted in server.requests] == [None, "bytes=100-", None]
        prepare(tldr, tmp_path / "other", "--url", server.url)
        assert len(server.requests) == 3  # the second time both come from the cache
    assert len(texts(tmp_path / "out", "train")) == 4


def test_lists_of_addresses_from_the_web(tmp_path, monkeypatch):
    write_stories(tmp_path / "in", some_stories())
    (tmp_path / "in" / "url_lists").rename(tmp_path / "served")
    with serve(tmp_path / "served") as server:
        monkeypatch.setattr(cnndm, "LISTS", server.url)
        monkeypatch.setenv("LMHP_HOME", str(tmp_path))
        prepare(cnndm, tmp_path / "out", "--input", tmp_path / "in")
    assert len(texts(tmp_path / "out", "test")) == 3


# --- the hub's versions, from local files of the same format ---


def as_on_the_hub(story: str) -> dict[str, str]:
    """A story as cnn_dailymail 3.0.0 has it: lines joined by spaces, each closed by a mark."""

    def close(line):
        return line if line[-1] in ".!?'\"`)" else f"{line} ."

    article, highlights = cnndm.split_story(story)
    lines = [close(line.strip()) for line in article.split("\n") if line.strip()]
    return {
        "article": " ".join(lines),
        "highlights": "\n".join(close(line.strip()) for line in highlights.split("\n") if line.strip()),
    }


def test_articles_from_the_hub_end_their_queries_with_a_line(tmp_path):
    rows = [as_on_the_hub(story) for story in some_stories(4)["train"].values()]
    columns = {
        "article": [row["article"] for row in rows],
        "highlights": [row["highlights"] for row in rows],
        "id": [str(n) for n in range(4)],
    }
    hub = write_parquet(tmp_path / "hub", train=columns, validation=columns, test=columns)
    prepare(cnndm, tmp_path / "out", "--hub", hub)
    assert texts(tmp_path / "out", "valid")[1] == "Number 1 of train said it's so.\n\nA second paragraph follows."
    assert texts(tmp_path / "out", "references_valid")[1] == " First thing .\nSecond thing 1 ."
    assert "nothing to do" in prepare(cnndm, tmp_path / "out", "--hub", hub).stdout


@pytest.mark.parametrize(
    "article, lines",
    [
        (
            "By . Jane Doe . PUBLISHED: . 11:20 EST . It rained. Mr. Smith left the U.S. Army!",
            ["By", "Jane Doe", "PUBLISHED:", "11:20 EST", "It rained.", "Mr. Smith left the U.S. Army!"],
        ),
        (
            'He said: "So it is." Then he went. 5 others stayed.',
            ['He said: "So it is."', "Then he went.", "5 others stayed."],
        ),
        ("Prices rose by 3.5 percent . ", ["Prices rose by 3.5 percent"]),
    ],
)
def test_line_breaks_come_back(article, lines):
    assert cnndm.with_paragraphs(article) == "\n\n".join(lines) + "\n"


def test_sentences_from_the_hub_become_passages_whose_full_stops_are_token_13(tmp_path):
    """Hazard 26."""
    rows = [f"he did n't go , mr. {n} said . ``  it 's late ! ''" for n in range(300)]
    prepare(
        books,
        tmp_path / "out",
        "--hub",
        write_parquet(tmp_path / "hub", train={"text": rows}),
        "--passage",
        200,
        "--split",
        "10,10",
    )
    text = texts(tmp_path / "out", "train")[0]
    assert "he didn't go, mr. " in text and ' said. "it\'s late!" he' in text
    task = _task(tmp_path / "out", 24, start_text=".", end_text=".")
    queries = query_stream(task, gpt2_encoding(), 0, "test", "train").batch(20)
    assert all(13 in query.tolist() and 764 not in query.tolist() for query in queries)


def test_posts_from_the_hub(tmp_path):
    columns = {
        "content": [f"Post {n}. It goes on." for n in range(60)],
        "summary": [f"so {n}" for n in range(60)],
        "subreddit": ["x"] * 60,
    }
    hub = write_parquet(tmp_path / "hub", train=columns)
    prepare(tldr, tmp_path / "out", "--hub", hub, "--split", "20,20", "--limit", 50)
    counts = [len(texts(tmp_path / "out", split)) for split in ("train", "valid", "test")]
    assert sum(counts) == 50 and texts(tmp_path / "out", "references_train")[0].startswith(" so ")
    assert "no splits of their own" in prepare(tldr, tmp_path / "out", "--hub", hub, check=False).stderr
    assert "exclude each other" in prepare(tldr, tmp_path / "out", "--hub", hub, "--input", hub, check=False).stderr


def test_a_hub_that_cannot_be_reached(tmp_path):
    """In a process of its own, which is told not to go online."""
    import os

    done = subprocess.run(
        [sys.executable, books.__file__, "--hub", "nobody/nothing", "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2 and "nobody/nothing could not be read from the hub" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# --- queries ---


def _task(folder, length, **more):
    from lm_human_preferences.data.tasks import TaskParams

    return TaskParams(query_dataset=str(folder), query_length=length, **more)


def test_queries_of_articles_end_with_a_line_and_nothing_is_read_twice(tmp_path):
    write_stories(tmp_path / "in", some_stories(10))
    prepare(cnndm, tmp_path / "out", "--input", tmp_path / "in")
    queries = query_stream(_task(tmp_path / "out", 24, end_text="\n"), gpt2_encoding(), 0, "test", "train").batch(10)
    assert len({tuple(query.tolist()) for query in queries}) == 10
    for query in queries:
        real = [token for token in query.tolist() if token != 50259]
        assert real[-2:] == [198, 198]  # a blank line inside a text is two tokens, not 628


# --- refusals ---

CASES = [
    (
        tldr,
        lambda f: (f / "train-subset.json").write_text('[{"content": "a"}, {"title": "b"}]'),
        "train-subset.json, record 1: expected an object with",
    ),
    (
        tldr,
        lambda f: (f / "train-subset.json").write_text('[{"content": "a"}, {"content": "b"'),
        "train-subset.json, record 1 is truncated",
    ),
    (tldr, lambda f: (f / "valid-subset.json").write_text(""), "the source has no document for the split valid"),
    (tldr, lambda f: (f / "valid-subset.json").write_text("[]"), "the source has no document for the split valid"),
    (tldr, lambda f: (f / "train-subset.json").write_bytes(b'[{"content": "caf\xe9"}]'), "not UTF-8 (invalid"),
    (tldr, lambda f: (f / "train-subset.json").write_text('[{"content": 5}]'), "record 0: expected an object"),
    (
        tldr,
        lambda f: (f / "train-subset.json").write_text('[{"content": "a", "summary": 5}]'),
        "record 0: 'summary' is 5",
    ),
    (tldr, lambda f: (f / "train-subset.json").write_text("<html>404</html>"), "line 1 is not JSON"),
    (tldr, lambda f: (f / "train-subset.json").unlink(), "holds no train-subset.json"),
    (cnndm, lambda f: next((f / "cnn/stories").iterdir()).unlink(), "fetch both archives of stories"),
    (cnndm, lambda f: next((f / "cnn/stories").iterdir()).write_bytes(b"caf\xe9 (CNN)"), "not UTF-8"),
    (cnndm, lambda f: (f / "url_lists/all_train.txt").write_text(""), "no document for the split train"),
    (
        cnndm,
        lambda f: (f / "url_lists/all_train.txt").write_text("http://example.org/1\n"),
        "is no address of an article",
    ),
    (cnndm, lambda f: (f / "url_lists/all_val.txt").write_bytes(b"\xff\xfe"), "all_val.txt: not UTF-8"),
    (books, lambda f: (f / "a.jsonl").write_text('"a"\n5\n'), "a.jsonl, line 2: expected a text"),
    (books, lambda f: (f / "a.jsonl").write_text('"a"\n{"content": "b"}\n'), "a.jsonl, line 2: expected a text"),
    (books, lambda f: (f / "a.jsonl").write_bytes(b'"caf\xe9"\n'), "a.jsonl, line 1: not UTF-8"),
    (books, lambda f: (f / "a.jsonl").write_text('"a"\n'), "has no document for the split"),
    (books, lambda f: (f / "a.jsonl").write_text('"a"\n"b'), "a.jsonl, line 2 is not JSON"),
    (books, lambda f: (f / "a.jsonl.gz").write_bytes(gzip.compress(b'"a"\n' * 99)[:-9]), "a.jsonl.gz is damaged"),
    (books, lambda f: (f / "a.jsonl").write_bytes(b""), "has no document for the split"),
    (books, lambda f: (f / "a.jsonl").unlink(), "holds no *.txt"),
]


@pytest.mark.parametrize("module, damage, says", CASES, ids=[f"{case[0].__name__}-{n}" for n, case in enumerate(CASES)])
def test_bad_sources_are_one_line_and_the_right_one_works_afterwards(tmp_path, module, damage, says):
    def make():
        if module is books:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / "a.jsonl.gz").unlink(missing_ok=True)
            (tmp_path / "in" / "a.jsonl").write_text(
                "".join(json.dumps(f"Passage {n}. It is told.") + "\n" for n in range(300))
            )
        else:
            write_posts(tmp_path / "in") if module is tldr else write_stories(tmp_path / "in", some_stories())

    make()
    damage(tmp_path / "in")
    words = ["--input", tmp_path / "in", *(["--split", "20,20"] if module is books else [])]
    said = prepare(module, tmp_path / "out", *words, check=False)
    assert (
        said.returncode == 2
        and says in said.stderr
        and said.stderr.startswith("error: ")
        and said.stderr.count("\n") == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    make()
    prepare(module, tmp_path / "out", *words)
    assert len(texts(tmp_path / "out", "train")) > 0


@pytest.mark.parametrize(
    "words, says",
    [
        (["--input", "nowhere"], "--input nowhere does not exist"),
        (["--limit", "0"], "--limit 0: expected a number from 1 up"),
        (["--processes", "-1"], "--processes -1"),
        (["--split", "half"], "--split half: expected source, or percentages"),
        (["--split", "60,60"], "must not be negative and leave something"),
        (["--split", "source"], "books have no splits of their own"),
        (["--passage", "0"], "--passage 0"),
    ],
)
def test_bad_words(tmp_path, words, says):
    said = run_main(books, "--output", tmp_path / "out", *words, check=False)
    assert said.returncode == 2 and says in said.stderr and not (tmp_path / "out").exists()


def test_rows_that_lack_a_column(tmp_path):
    hub = write_parquet(tmp_path / "hub", train={"sentence": ["a"]})
    said = prepare(books, tmp_path / "out", "--hub", hub, check=False)
    assert said.returncode == 2 and "row 0: expected a text in the column 'text'; it has sentence" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_million_tokens_of_articles_and_back(tmp_path):
    """Offsets and tokens of a file with many documents agree wherever one looks."""
    write_stories(tmp_path / "in", some_stories(300))
    prepare(cnndm, tmp_path / "out", "--input", tmp_path / "in")
    file = TokenFile(tmp_path / "out", "train")
    assert len(file) == len(TokenFile(tmp_path / "out", "references_train")) == 300
    for n in np.random.default_rng(0).integers(0, 300, 20):
        assert f"Number {n} of train" in gpt2_encoding().decode(file[int(n)].tolist())
        assert f"Second thing {n}" in gpt2_encoding().decode(
            TokenFile(tmp_path / "out", "references_train")[int(n)].tolist()
        )
