"""The comparison that ends a policy-training run, from made-up responses: means, pairs, files of a run's folder."""

import json

import pytest
import torch

from lm_human_preferences.judging.evaluation import (
    EvaluationParams,
    Responses,
    compared_means,
    compared_pairs,
    write_comparison,
)
from lm_human_preferences.language.encoding import LetterEncoding

from small import PAD

QUERIES = torch.tensor([[0, 1, PAD], [2, PAD, PAD]])


def side(tokens: list[list[int]], kl: list[list[float]], scores: list[float]) -> Responses:
    tokens, kl = torch.tensor(tokens), torch.tensor(kl)
    return Responses(tokens, torch.tensor([True, False]), kl, torch.ones_like(kl), torch.tensor(scores)[:, None])


@pytest.fixture
def sides() -> dict[str, Responses]:
    return {
        "before": side([[3, 4, 3, 4], [5, 26, PAD, PAD]], [[0.0] * 4] * 2, [1.0, -2.0]),
        "after": side([[3, 4, 5, 6], [5, 26, PAD, PAD]], [[0.5, 0.0, 0.25, 0.25], [1.0, 0, 3.0, 0]], [2.0, 0.0]),
    }


def test_means(sides):
    """Distinct pairs are de, ed and f. of four before, and de, ef, fg and f. of four after."""
    before = {"score": -0.5, "kl": 0.0, "valid": 0.5, "distinct_2": 0.75}
    after = {"score": 1.0, "kl": 2.5, "valid": 0.5, "distinct_2": 1.0}
    assert compared_means(sides, PAD) == {"before": before, "after": after, "queries": 2}


def test_pairs(sides):
    """KL of a token is shown only up to the response's end; its sum is of the raw response."""
    first, second = compared_pairs(QUERIES, sides, LetterEncoding())
    assert first == {
        "query": "ab",
        "before": "dede",
        "score_before": 1.0,
        "kl_before": 0.0,
        "after": "defg",
        "score_after": 2.0,
        "kl_after": 1.0,
        "token_kl_after": [0.5, 0.0, 0.25, 0.25],
        "token_ends_after": [1, 2, 3, 4],
    }
    assert second["kl_after"] == 4.0 and second["token_kl_after"] == [1.0, 0.0]


def test_files(sides, tmp_path, capsys):
    write_comparison(tmp_path, QUERIES, sides, LetterEncoding(), EvaluationParams(samples=2, split="test", shown=1))
    pairs = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert pairs == compared_pairs(QUERIES, sides, LetterEncoding())
    assert json.loads((tmp_path / "result.json").read_text()) == compared_means(sides, PAD) | {"samples": pairs}
    printed = capsys.readouterr().out
    assert "on 2 held-out queries (test):" in printed and "KL to the initial model" in printed
    assert "after  [+2.00] defg" in printed and "[+0.00]" not in printed, "as many pairs as are to be shown"
