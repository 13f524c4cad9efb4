"""datasets/prompts.py: queries from a column, their splits, what is left out and what is refused."""

import json

import pytest

from lm_human_preferences.data.queries import TokenFile, read_meta
from lm_human_preferences.language.encoding import gpt2_encoding

from load_scripts import load_script, run_main

script = load_script("datasets/prompts.py")
ROWS = [{"prompt": f"Question {n} about the film, please", "answer": f"Answer {n}.", "n": n} for n in range(60)]


def make(tmp_path, content, *words, name="a.csv", check=True):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return run_main(
        script, "--input", tmp_path / name, "--output", tmp_path / "out", "--processes", 1, *words, check=check
    )


def texts(tmp_path, *splits):
    decode = gpt2_encoding().decode
    return [decode(document.tolist()) for split in splits for document in TokenFile(tmp_path / "out", split)]


def csv(rows):
    return "prompt,answer,n\n" + "".join(f'"{row["prompt"]}",{row["answer"]},{row["n"]}\n' for row in rows)


def test_a_column_becomes_queries_each_once(tmp_path):
    done = make(tmp_path, csv(ROWS + ROWS[:3]) + ",left out,1\n")
    queries = texts(tmp_path, "train", "valid", "test")
    assert sorted(queries) == sorted(row["prompt"] for row in ROWS)
    assert "3 records repeat an earlier query" in done.stdout and "1 records are left out" in done.stdout
    meta = read_meta(tmp_path / "out")
    assert set(meta["splits"]) == {"train", "valid", "test"}
    sizes = [meta["splits"][split]["documents"] for split in ("train", "valid", "test")]
    assert sum(sizes) == 60 and sizes[0] > 30 and min(sizes) > 0


def test_splits_belong_to_the_text_whatever_the_order_or_form_of_the_file(tmp_path):
    make(tmp_path, csv(ROWS))
    before = {split: sorted(texts(tmp_path, split)) for split in ("train", "valid", "test")}
    make(tmp_path, "\n".join(json.dumps(row) for row in ROWS[::-1]), name="b.jsonl")
    assert {split: sorted(texts(tmp_path, split)) for split in before} == before
    assert "nothing to do" in make(tmp_path, "\n".join(map(json.dumps, ROWS[::-1])), name="b.jsonl").stdout


def test_a_template_and_what_people_answered(tmp_path):
    make(tmp_path, csv(ROWS), "--template", r"No. {n}:\n{prompt}", "--reference", "answer")
    for split in ("train", "valid", "test"):
        for query, answer in zip(texts(tmp_path, split), texts(tmp_path, f"references_{split}"), strict=True):
            number = query.partition(":")[0].removeprefix("No. ")
            assert (
                query == f"No. {number}:\nQuestion {number} about the film, please" and answer == f" Answer {number}."
            )


def test_a_column_by_name(tmp_path):
    make(tmp_path, csv(ROWS), "--column", "answer")
    assert sorted(texts(tmp_path, "train", "valid", "test")) == sorted(row["answer"] for row in ROWS)


@pytest.mark.parametrize(
    "content, words, says",
    [
        ("", (), "a.csv is empty"),
        ("prompt\n", (), "the source has no document for the split train"),
        ("frage\nx\n", (), "row 1 (line 2): which column is the query? It has frage; --column names one"),
        ("prompt\nx\n", ("--column", "Frage"), "the field 'Frage' is missing; it has prompt"),
        ("prompt\nx\n", ("--reference", "answer"), "the field 'answer' is missing"),
        ('prompt\n"x\n', (), "row 1 (line 2) is truncated"),
        ("prompt\ncaf\xe9\n".encode("cp1252"), (), "line 2: not UTF-8"),
        ("prompt\nx\n", ("--split", "source"), "expected percentages above 0 for valid and test"),
        ("prompt\nx\n", ("--column", "prompt", "--template", "{prompt}"), "exclude each other"),
        ('[{"prompt": 5}]', (), "record 0: 'prompt' is 5; expected a text"),
        ('{"prompt": "a"}\n{"prom', (), "line 2 is not JSON"),
        ("[1]", (), "record 0: expected an object with a field for the query"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, content, words, says):
    name = "a.json" if isinstance(content, str) and content.startswith(("[", "{")) else "a.csv"
    done = make(tmp_path, content, *words, name=name, check=False)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
