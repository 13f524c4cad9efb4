"""Methods at equal distance, by hand."""

import numpy as np
import pytest

from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.matched import at_distance, matched_gains


def test_straight_lines_over_the_root_of_kl():
    """From the reference, in the order of KL whatever that of the points; nothing beyond the furthest."""
    kl, gain = np.array([9.0, 1.0]), np.array([3.0, 2.0])
    found = at_distance(kl, gain, np.array([0.25, 1.0, 4.0, 9.0, 16.0]))
    np.testing.assert_allclose(found[:4], [1.0, 2.0, 2.5, 3.0])
    assert np.isnan(found[4])


def test_gains_have_intervals_and_seeds_are_averaged():
    """Two seeds of one setting are one point; more queries narrow the interval; what is not reached is None."""
    random, widths = np.random.default_rng(0), []
    for n in (60, 960):
        kl = np.array([[4.0], [4.0], [16.0]]) + random.normal(size=(3, n)) * 0.1
        gain = np.array([[1.0], [3.0], [4.0]]) + random.normal(size=(3, n))
        near, middle, far = matched_gains(kl, gain, [1.0, 1.0, 0.25], [1.0, 9.0, 25.0], Bootstrap(n, 1))
        assert near["mean"] == pytest.approx(1.0, abs=0.3) and middle["mean"] == pytest.approx(3.0, abs=0.5)
        assert middle["low"] < 3.0 < middle["high"] and far == {"mean": None, "low": None, "high": None}
        widths.append(middle["high"] - middle["low"])
    assert widths[1] < widths[0] / 2
