"""Label files in both forms, and the answers that each type takes. ORIGINAL details 45-48."""

import json
import math

import pytest
import torch

from lm_human_preferences.errors import UserError
from lm_human_preferences.labels import label_type, load_labels, save_labels
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.tasks import TaskParams

LETTERS, TASK = get_encoding("letters"), TaskParams(query_length=3, response_length=4, truncate_token=26)
CHOICES = [{"query": "ab", "responses": ["c", "defghij", "k", ""], "best": 1}, {"query": "lmnop", "responses": ["q", "r", "s", "t"], "best": 3}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return str(path)


def test_texts_are_cut_padded_and_ended(tmp_path):
    """A response ends with the encoding's end of text where the task truncates at that; what is too long is cut."""
    batch = load_labels(write(tmp_path / "a.jsonl", CHOICES), label_type("best_of_4"), TASK, LETTERS)
    assert batch.queries.tolist() == [[0, 1, 27], [11, 12, 13]] and batch.target.tolist() == [1, 3]
    assert batch.responses[0].tolist() == [[2, 26, 27, 27], [3, 4, 5, 6], [10, 26, 27, 27], [26, 27, 27, 27]]


@pytest.mark.parametrize("name, rows", [
    ("best_of_4", CHOICES), ("best_of_2", [{"query": "a", "responses": ["b", "c"], "best": 0}]),
    ("scalar_rating", [{"query": "a", "responses": ["b"], "score": -1.5}, {"query": "a", "responses": ["c"], "score": 2}]),
    ("scalar_compare", [{"query": "a", "responses": ["b", "c"], "difference": 0.25}])])
def test_both_forms_give_the_same_tensors(tmp_path, name, rows):
    kind = label_type(name)
    texts = load_labels(write(tmp_path / "a.jsonl", rows), kind, TASK, LETTERS)
    save_labels(tmp_path / "b.json", texts, kind)
    tokens = load_labels(str(tmp_path / "b.json"), kind, TASK, LETTERS)
    for field in ("queries", "responses", "target"):
        assert torch.equal(getattr(texts, field), getattr(tokens, field))


@pytest.mark.parametrize("name, row, says", [
    ("best_of_4", {"query": "a", "responses": ["b", "c"], "best": 0}, "label 0: best_of_4 needs 4 responses, found 2"),
    ("best_of_2", {"query": "a", "responses": ["b", 5], "best": 0}, "label 0: expected"),
    ("best_of_2", {"query": ["a"], "responses": ["b", "c"], "best": 0}, "label 0: expected"),
    ("best_of_2", {"query": "a", "responses": ["b", "c"], "best": True}, "'best' is True"),
    ("best_of_2", {"query": "a", "responses": ["b", "c"], "best": -1}, "'best' is -1"),
    ("best_of_2", {"query": "", "responses": ["b", "c"], "best": 1}, "query is empty"),
    ("best_of_2", {"query": [1, 2, 3], "sample0": [1] * 4, "sample1": [1] * 5, "best": 1}, "sample1 has 5 tokens, the task's length is 4"),
    ("best_of_2", {"query": [1, 2, 3], "sample0": [1] * 4, "sample1": [1, 2, 3, 4.0], "best": 1}, "sample1: expected a list of 4 token ids"),
    ("best_of_2", "a", "expected an object"),
    ("best_of_2", {"query": [1, 2, 27], "sample0": [1] * 4, "sample1": [28] * 4, "best": 1}, "sample1: token 28 is out of range"),
    ("best_of_2", {"query": [1, 2], "sample0": [1] * 4, "sample1": [1] * 4, "best": 1}, "query has 2 tokens, the task's length is 3"),
    ("scalar_rating", {"query": "a", "responses": ["b"], "score": "good"}, "'score' is 'good'"),
    ("scalar_rating", {"query": "a", "responses": ["b"], "score": 1e39}, "'score' is 1e.39; it must be a number"),
    ("scalar_compare", {"query": "a", "responses": ["b", "c"], "difference": -10 ** 400}, "'difference' is -1000"),
    ("scalar_compare", {"query": "a", "responses": ["b", "c"], "difference": float("nan")}, "'difference' is nan"),
    ("scalar_rating", {"query": "a", "responses": ["b"], "best": 0}, "the key 'score' is missing"),
])
def test_what_is_wrong_is_said(tmp_path, name, row, says):
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=says) as error:
        load_labels(path, label_type(name), TASK, LETTERS)
    assert path in str(error.value) and "label 0" in str(error.value)


@pytest.mark.parametrize("name", ["best_of_1", "best_of_x", "best", "scalar"])
def test_unknown_types(name):
    with pytest.raises(UserError, match="must be best_of_N"):
        label_type(name)


def test_a_line_may_hold_other_line_separators(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "a\u2028b", "responses": ["c"], "score": 1}\n')
    assert len(load_labels(str(tmp_path / "a.jsonl"), label_type("scalar_rating"), TASK, LETTERS)) == 1


def test_a_file_with_too_few(tmp_path):
    path = write(tmp_path / "a.jsonl", CHOICES)
    assert len(load_labels(path, label_type("best_of_4"), TASK, LETTERS, skip=1)) == 1
    with pytest.raises(UserError, match="no labels after the first 2"):
        load_labels(path, label_type("best_of_4"), TASK, LETTERS, skip=2)


@pytest.mark.parametrize("name, content, says", [
    ("a.jsonl", b'{"query": "a"}\n\n{"query"\n', "a.jsonl is no JSON in line 3"), ("a.jsonl", b"\n", "has no labels"),
    ("a.json", b"[]", "has no labels"), ("a.json", b'[{"query": ', "a.json is no JSON"), ("a.json", b'["caf\xe9"]', "is no JSON.*utf-8")])
def test_files_that_hold_no_labels(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_labels(str(tmp_path / name), label_type("best_of_4"), TASK, LETTERS)


def test_losses_and_statistics_by_hand():
    """Cross entropy of the best, squared error of a rating, squared error of the second reward minus the first."""
    rewards, best = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([1, 0])
    torch.testing.assert_close(label_type("best_of_2").losses(rewards, best), torch.tensor([2.0, 1 + math.exp(-2)]).log())
    assert label_type("best_of_2").stats(rewards, best)["accuracy"] == 0.5  # of equal rewards the first counts as chosen
    assert label_type("scalar_compare").losses(rewards, torch.tensor([1.0, 1.0])).tolist() == [1.0, 9.0]
    ratings, kind = torch.tensor([1.0, 2.0, 6.0]), label_type("scalar_rating")
    stats = kind.stats(-2 * ratings[:, None], ratings)
    assert stats["loss"] == stats["error"] == 9 * 41 / 3 and stats["corr"] == pytest.approx(-1)
    assert label_type("scalar_compare").stats(torch.stack([0 * ratings, ratings], 1), 3 * ratings)["corr"] == pytest.approx(1)
    assert (stats["label_mean"], stats["label_var"]) == (3.0, pytest.approx(14 / 3))
