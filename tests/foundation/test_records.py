"""Records read one by one, whatever the file is cut into, and every kind of damage."""

import gzip
import json

import numpy as np
import pytest

from lm_human_preferences.foundation import records
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.records import read_records

HARD = [
    {"a": 'brace } in a "string" \\'},
    {"b": {"nested": [{"}": "{"}]}},
    {},
    {"c": '\\"}'},
    {"d": [1, 2]},
    {"e": "é\u2028"},
]


def values(path):
    return [record for _, record in read_records(path)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 22])
@pytest.mark.parametrize("indent, ascii", [(None, True), (2, False)])
def test_a_list_of_objects_in_any_chunks(tmp_path, monkeypatch, chunk, indent, ascii):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(" " + json.dumps(HARD, indent=indent, ensure_ascii=ascii) + "\n", encoding="utf-8")
    assert values(path) == HARD
    path.write_text("[]")
    assert values(path) == []


@pytest.mark.parametrize("chunk", [1, 5, 1 << 22])
def test_lines_in_any_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in HARD[:3]) + "\n\n  \n" + json.dumps("text"))
    assert values(path) == [*HARD[:3], "text"]
    assert [where.rpartition(" ")[2] for where, _ in read_records(path)] == ["1", "2", "3", "6"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert values(tmp_path / "a.jsonl.gz") == [*HARD[:3], "text"]


def test_other_lists_and_lines_without_the_name(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('["x", null, {"a": 1}, 345]')
    for chunk in (1, 2, 3, 1 << 22):
        monkeypatch.setattr(records, "_CHUNK", chunk)  # a number that is cut in two is not taken for a whole one
        assert values(path) == ["x", None, {"a": 1}, 345]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert values(path) == [{"a": 1}, {"a": 2}]
    path.write_text('[{"a": "half a pair \\ud800", "b": NaN}]')
    assert values(path)[0]["a"] == "half a pair \ud800"


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", '\ufeff[{"a": 1}, {"a": 2}]'),
        ("a.jsonl", '\ufeff{"a": 1}\n{"a": 2}\n'),
        ("a.jsonl", '{"a": 1}\r\n\ufeff\r\n\ufeff{"a": 2}'),
        ("a.json", '\ufeff{"a": 1}\n{"a": 2}\n'),
        ("a.jsonl.gz", '\ufeff{"a": 1}\n{"a": 2}\n'),
        ("a.json.gz", '\ufeff [{"a": 1}, {"a": 2}]'),
    ],
)
def test_byte_order_marks_are_passed_over(tmp_path, name, text):
    content = text.encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert values(tmp_path / name) == [{"a": 1}, {"a": 2}]


def test_a_list_is_never_held_whole(tmp_path, monkeypatch):
    """Nor are lines: while the first record is looked at, hardly more than a chunk of the file has been read."""
    monkeypatch.setattr(records, "_CHUNK", 1000)
    (tmp_path / "a.json").write_text(json.dumps([{"a": "x" * 100}] * 5000))
    (tmp_path / "a.jsonl").write_text((json.dumps({"a": "x" * 100}) + "\n") * 5000)
    for name in ("a.json", "a.jsonl"):
        seen = []
        assert next(read_records(tmp_path / name, progress=seen.append))
        assert sum(seen) < 50_000 < (tmp_path / name).stat().st_size


def test_random_objects_in_random_chunks(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for _ in range(50):
        rows = [
            {
                "k": "".join(random.choice(list('"\\{}[],: ab\n'), size=8)),
                "n": [int(n) for n in random.integers(0, 9, 3)],
            }
            for _ in range(5)
        ]
        monkeypatch.setattr(records, "_CHUNK", int(random.integers(1, 40)))
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert values(tmp_path / "a.json") == rows


def test_progress_counts_the_bytes_of_the_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(HARD))
    seen = []
    list(read_records(tmp_path / "a.json", progress=seen.append))
    assert sum(seen) == (tmp_path / "a.json").stat().st_size


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.json", b'[{"a": 1}, {"a": 2', "record 1 is truncated: the file ends within it"),
        ("a.json", b'[{"a": 1},', "is truncated: its list is not closed after record 0"),
        ("a.json", b"[", "is truncated"),
        ("a.json", b'[{"a": 1}] x', "something follows the end"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "expected a comma or the list's end after record 0"),
        ("a.json", b'[{"a": 1}, {"a": nope}, {"a": 3}]', "a.json, record 1 is not JSON"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "is truncated: its list is not closed after record 1"),
        ("a.json", b'[{"a": 1}, {"a": "b', "record 1 is truncated: the file ends within it"),
        ("a.json", b'[{"a": 1}, {"a": "b"}, ]', "record 2 is not JSON"),
        ("a.json", b'[{"a": "caf\xe9"}]', "not UTF-8 (invalid continuation byte at byte 11)"),
        ("a.json", b'[{"a": "caf\xc3', "not UTF-8 (unexpected end of data at byte 11)"),
        ("a.json", b'[{"a": ' + b"[" * 100_000, "record 0 is not JSON"),
        ("a.json", b"<html>", "line 1 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "line 2 is not JSON"),
        ("a.jsonl", b'"caf\xe9"', "line 1: not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "is damaged"),
        ("a.jsonl.gz", gzip.compress(b'"x"\n' * 1000, mtime=0)[:-9], "is damaged"),
        ("a.jsonl", b"[" * 100_000, "is not JSON"),
    ],
)
def test_damage_names_file_and_place(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        values(tmp_path / name)
    assert says in str(caught.value)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        values(tmp_path / "x.json")
