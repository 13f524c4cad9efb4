"""Choices by scores and by persons: credit, ties, standard errors."""

import numpy as np
import pytest

from lm_human_preferences.judging.rated_choices import choice_credit, point, rater_credit


def test_choice_credit():
    scores = np.array([[1.0, 2.0, 3.0, 0.0], [5.0, 5.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, 1.0]])
    assert choice_credit(scores, np.array([2, 1, 3, 1])).tolist() == [1.0, 1 / 3, 0.25, 0.0]
    assert point(np.array([1.0, 0.0, 1.0, 1.0])) == {"accuracy": 0.75, "standard_error": np.sqrt(0.75 * 0.25 / 4)}


def test_rater_credit():
    # Three persons (the shortest list): the first picks sentence 1, the second ties 0 and 1, the third picks 3.
    ratings = [[0, 2, 1, 4], [3, 2, 0], [1, 1, 1, 4], [-1, 0, 2, 4, 4]]
    assert rater_credit(ratings, 1) == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert rater_credit(ratings, 2) == 0
