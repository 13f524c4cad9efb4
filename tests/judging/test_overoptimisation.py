"""Fits of gold score against distance, against recorded ones and on points whose coefficients are known."""

import numpy as np
import pytest

from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.frontier import best_of_n_kl, best_of_n_weights
from lm_human_preferences.judging.overoptimisation import curve, describe_fit, fit, peak

from methods import assert_recorded, recorded

NAMES = {"best_of_n": "bon", "policies": "rl"}


@pytest.mark.parametrize("kind", NAMES)
def test_the_recorded_fits(kind):
    g, name = recorded("formulas"), f"gao/{NAMES[kind]}"
    assert_recorded("formulas", f"{name}/fit", fit(g[f"{name}/kl"], g[f"{name}/gold_noisy"], kind))
    assert_recorded("formulas", f"{name}/gold_exact", curve(g[f"{name}/true"], np.sqrt(g[f"{name}/kl"]), kind))
    assert_recorded("formulas", f"{name}/peak", peak(g[f"{name}/true"], kind))
    np.testing.assert_allclose(fit(g[f"{name}/kl"], g[f"{name}/gold_exact"], kind), g[f"{name}/true"], rtol=1e-9)


def test_the_recorded_best_of_n():
    """Its KL, and proxy and gold of the best of n without bias."""
    g = recorded("formulas")
    assert_recorded("formulas", "bon_kl/kl", np.array([best_of_n_kl(int(n)) for n in g["bon_kl/n"]]))
    proxy, gold = g["bon_estimate/proxy"], g["bon_estimate/gold"]
    weights = [best_of_n_weights(proxy, n) for n in range(1, proxy.shape[1] + 1)]
    for what, values in (("proxy", proxy), ("gold", gold)):
        estimates = np.stack([(w * values).sum(1) for w in weights], axis=1)
        assert_recorded("formulas", f"bon_estimate/{what}_of_best", estimates)


def test_no_peak_where_there_is_none():
    """A score that rises for ever, and one that falls from the start."""
    assert np.isnan(peak(np.array([1.0, -0.1]), "best_of_n")).all()
    assert np.isnan(peak(np.array([-1.0, 0.5]), "best_of_n")).all()
    assert np.isnan(peak(np.array([1.0, -0.1]), "policies")).all()
    assert peak(np.array([[1.0, 0.5], [1.0, -1.0]]), "best_of_n")[0].tolist() == [1.0, 0.5]


def test_intervals_over_queries():
    """They hold the coefficients that the points were made with, and are narrower with more queries."""
    random, true, d = np.random.default_rng(1), np.array([1.5, 0.3]), np.linspace(0.5, 4, 6)
    widths = []
    for n in (100, 1600):
        gold = curve(true, d, "best_of_n")[:, None] + random.normal(size=(6, n))
        kl = (d**2)[:, None] + random.normal(size=(6, n)) * 0.3
        found = describe_fit(kl, gold, "best_of_n", Bootstrap(n, 1))
        for name, value in (("alpha", 1.5), ("beta", 0.3), ("peak_kl", 2.5**2)):
            assert found[name]["low"] < value < found[name]["high"], name
        widths.append(found["beta"]["high"] - found["beta"]["low"])
        assert found["points"] == 6 and found["has_peak"] > 0.9
    assert widths[1] < widths[0] / 2


def test_too_few_points_have_no_fit():
    n = 20
    assert describe_fit(np.ones((2, n)), np.ones((2, n)), "policies", Bootstrap(n, 1)) is None
    reference_among_them = np.concatenate([np.zeros((1, n)), np.ones((2, n))])
    assert describe_fit(reference_among_them, np.ones((3, n)), "policies", Bootstrap(n, 1)) is None
