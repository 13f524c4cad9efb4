"""Figures on texts (copying, lead-3, distinct n-grams, ROUGE) by hand-made cases, and the intervals around them."""

import numpy as np
import pytest

from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.text_metrics import (
    copied_ngrams,
    copied_sentences,
    copy_places,
    distinct,
    is_copied,
    lead,
    rouge,
    sentences,
    unrepeated,
)

ARTICLE = (
    'Dr. Smith left Rome. She said "it is over!" Then J. R. Hill came.\nNobody knew why? The U.S. team won 3.5 points.'
)


def test_sentences():
    assert sentences(ARTICLE) == [
        "Dr. Smith left Rome.",
        'She said "it is over!"',
        "Then J. R. Hill came.",
        "Nobody knew why?",
        "The U.S. team won 3.5 points.",
    ]
    assert sentences(" ... \n\n") == [] and sentences("no end") == ["no end"]


def test_lead():
    assert lead(ARTICLE) == 'Dr. Smith left Rome. She said "it is over!" Then J. R. Hill came.'
    assert lead("One. Two.") == "One. Two." and lead("") == ""


def test_copied_ngrams():
    assert copied_ngrams("the cat sat on the mat", "The cat sat, the dog sat.", 1) == (5, 6)
    assert copied_ngrams("the cat sat on the mat", "The cat sat, the dog sat.", 2) == (2, 5)
    assert copied_ngrams("the cat sat on the mat", "The cat sat, the dog sat.", 3) == (1, 4)
    assert copied_ngrams("the cat", "cat", 2) == (0, 0)


def test_copied_sentences_and_where_from():
    summary = "then j r hill came. Smith left Rome! He wept."
    assert copied_sentences(ARTICLE, summary) == (2, 3)
    assert not is_copied(ARTICLE, summary) and is_copied(ARTICLE, "Nobody knew why? Dr. Smith left Rome.")
    assert copy_places(ARTICLE, summary) == [pytest.approx(9 / 25), pytest.approx(1 / 25)]
    assert not is_copied("the cathedral", "the cat"), "words count as wholes"
    assert not is_copied(ARTICLE, "") and copy_places(ARTICLE, "...") == [] and copied_sentences("", "A b.") == (0, 1)


def test_distinct():
    responses = [[1, 2, 1], [2, 1], [3], []]
    found = distinct(responses, 1)
    assert found.share == 3 / 6
    assert found.pseudo_values.tolist() == pytest.approx(
        [4 * 0.5 - 3 * share for share in (3 / 3, 3 / 4, 2 / 5, 3 / 6)]
    )
    assert distinct(responses, 2).share == 2 / 3 and distinct([[1]], 2).share == 0


def test_rouge_is_the_package_s():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], use_stemmer=True
    )
    pairs = [
        ("The cats were sitting on the mat.", "A cat sits on mats"),
        ("x y", ""),
        ("Rome fell. Slowly.", "Rome fell. Slowly."),
    ]
    found = rouge(*zip(*pairs, strict=True))
    for ours, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[ours].tolist() == [scorer.score(*pair)[theirs].fmeasure for pair in pairs]
    assert found["rouge_1"][2] == 1


def test_intervals():
    """Near the normal approximation; the same twice; a ratio weighs by its denominators."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = Bootstrap(400, seed=1).mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found["mean"] == pytest.approx(values.mean()) and found["low"] == pytest.approx(
        values.mean() - half, abs=0.03
    )
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.03) and found == Bootstrap(400, seed=1).mean(
        values
    )
    assert found != Bootstrap(400, seed=2).mean(values)
    ratio = Bootstrap(2, seed=0).ratio(np.array([1.0, 8.0]), np.array([1.0, 2.0]), np.exp)
    assert ratio["mean"] == pytest.approx(np.exp(3)) and (ratio["low"], ratio["high"]) == (
        pytest.approx(np.exp(1)),
        pytest.approx(np.exp(4)),
    )


def test_intervals_of_what_is_missing():
    bootstrap = Bootstrap(4, seed=0)
    assert bootstrap.mean(np.array([1.0, np.nan, 1.0, np.nan])) == {"mean": 1, "low": 1, "high": 1}
    assert bootstrap.mean(np.full(4, np.nan)) == {"mean": None, "low": None, "high": None}


def test_interval_of_distinct_lies_around_it():
    """Plain resampling would repeat responses and lie below."""
    responses = np.random.default_rng(0).integers(0, 300, (200, 5)).tolist()
    found = distinct(responses, 2)
    interval = Bootstrap(200, seed=0).jackknife_interval(*found)
    assert interval["low"] < found.share == interval["mean"] < interval["high"] <= 1


def test_unrepeated_words():
    assert unrepeated(["x"] * 4, ["great, GREAT film great", "a b c", "", "!?"]) == [0.5, 1.0, 1.0, 1.0]
