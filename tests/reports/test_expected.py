"""Ranges of documented runs: what they are, whose they are, what a report and tests/expected.py say of a run."""

import json
import math
import statistics

import numpy as np
import pytest

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import sha256, write_json
from lm_human_preferences.reports.evaluation_report import evaluation_table, write_evaluation_page
from lm_human_preferences.reports.expected import (
    compare,
    expected_of,
    figures_of,
    prediction_range,
    ranges_beside,
    stated_parameters,
)

from load_scripts import load_script, run_main

command = load_script("tests/expected.py")


def interval(mean, half=0.02):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def evaluation(kl=8.0, preferred=0.85):
    """What an evaluation of two policies finds."""

    def policy(kl, score):
        names = ("kl_per_token", "entropy", "length", "no_valid_end", "distinct_1", "distinct_2", "perplexity")
        return {"scores": {"words": interval(score)}, "kl": interval(kl), **{name: interval(0.3) for name in names}}

    return {
        "task": "movies",
        "split": "test",
        "queries": 1000,
        "reference": "before",
        "policies": {"before": policy(0.0, 0.2), "after": policy(kl, 1.8)},
        "wins": [
            {"judge": "words", "policy": "after", "against": "before", "share": interval(preferred), "queries": 1000}
        ],
    }


CONFIG = {
    "experiment": "demo_evaluation",
    "stage": "evaluate",
    "parameters": {"samples": 1000, "split": "test", "policies": "a=b", "device": "auto", "task": {"query_length": 8}},
    "computed": {"precision": "float32"},
}


def expected_figure(mean, half, precision="float32"):
    return {precision: {"mean": mean, "low": mean - half, "high": mean + half, "seeds": [1, 1, 2, 2, 3]}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project whose expected.json documents an evaluation."""
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    model = tmp_path / "saved_models/tiny/model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"the start model")
    figures = {"after/kl": expected_figure(8.0, 1.0), "wins/words/after/before": expected_figure(0.85, 0.04)}
    runs = {"demo_evaluation": {"parameters": stated_parameters(CONFIG), "figures": figures}}
    write_json(tmp_path / "static/expected.json", {"model": sha256(model), "runs": runs})
    return tmp_path


def test_one_more_draw_falls_into_the_range():
    """The quantile is right: 99 of 100 draws after five others do, and the floor holds."""
    random, factor = np.random.default_rng(0), 4.604  # Student's t, 4 degrees of freedom, 0.995
    draws = random.normal(3, 2, (4000, 6))
    inside = [prediction_range(row[:5].tolist(), factor).holds(row[5]) for row in draws]
    assert abs(statistics.fmean(inside) - 0.99) < 0.006
    assert prediction_range([1.0, 1.0], 12.7, 0.25)[1:] == (0.75, 1.25)


def test_figures_by_name():
    figures = figures_of(evaluation())
    assert figures["after/kl"].value == 8.0 and figures["wins/words/after/before"].form == "{:.1%}"
    assert figures["before/scores/words"].half_width == pytest.approx(0.02)
    assert figures_of({"accuracy": 0.6, "standard_error": 0.01})["accuracy"].half_width == pytest.approx(0.0196)
    after = {"score": 2.0, "kl": 8.0, "valid": 0.9, "distinct_2": 0.3}
    assert {key: figure.value for key, figure in figures_of({"after": after}).items()} == {
        f"after/{name}": value for name, value in after.items()
    }
    unknown = evaluation()
    unknown["policies"]["after"]["distinct_2"] = {"mean": None, "low": None, "high": None}
    assert "after/distinct_2" not in figures_of(unknown)


def test_what_a_run_was_told_without_what_changes_nothing():
    assert stated_parameters(CONFIG) == {"samples": 1000, "split": "test", "task.query_length": 8}
    assert stated_parameters({"parameters": {"run": {"seed": 3}, "lr": 1.0, "x": None, "source": "a/b"}}) == {
        "lr": 1.0,
        "x": None,
    }


def test_how_many_samples_are_shown_changes_nothing(home):
    """Nor does it in a file of an earlier version, which states it."""
    parameters = CONFIG["parameters"] | {"evaluation": {"shown": 5}}
    assert stated_parameters({"parameters": parameters}) == stated_parameters(CONFIG)
    path = home / "static/expected.json"
    stored = json.loads(path.read_text())
    stored["runs"]["demo_evaluation"]["parameters"]["evaluation.shown"] = 10
    write_json(path, stored)
    assert expected_of(CONFIG | {"parameters": parameters}).seeds == 3, "different ones"


def test_reports_show_the_range_beside_the_figure(home, tmp_path):
    table = evaluation_table(evaluation(), ranges_beside(CONFIG))
    assert "8.00 (7.98 to 8.02; expected 7.00 to 9.00)" in table
    assert "85.0% (83.0% to 87.0%; expected 81.0% to 89.0%) of 1,000 queries" in table
    assert "99 of 100 such runs fall, by 3 seeds in float32" in table
    folder = tmp_path / "saved_models/demo_evaluation"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "result.json", evaluation() | {"wins": []})
    (folder / "evaluation.jsonl").write_text("")
    write_evaluation_page(folder, folder, shown=0)
    assert "expected 7.00 to 9.00" in (folder / "index.html").read_text()
    other = CONFIG | {"experiment": "mine"}
    assert "expected" not in evaluation_table(evaluation(), ranges_beside(other)).lower()


def test_whose_ranges_they_are(home):
    assert expected_of(CONFIG).ranges["after/kl"][1:] == (7.0, 9.0)

    def refused(config):
        with pytest.raises(UserError) as caught:
            expected_of(config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "knows no run mine; it has demo_evaluation" in refused(CONFIG | {"experiment": "mine"})
    told = CONFIG["parameters"] | {"samples": 10}
    assert "was told --samples 10; the expected figures are of 1000" in refused(CONFIG | {"parameters": told})
    assert "no figures of demo_evaluation in bfloat16" in refused(CONFIG | {"computed": {"precision": "bfloat16"}})
    (home / "saved_models/tiny/model.safetensors").write_bytes(b"another")
    assert "made with another saved_models/tiny" in refused(CONFIG)
    (home / "static/expected.json").unlink()
    assert "python -m benchmarks.demo_seeds makes it" in refused(CONFIG)
    assert ranges_beside(CONFIG) is None and ranges_beside({}) is None


@pytest.mark.parametrize(
    "result, status, says",
    [
        (evaluation(), 0, "every figure lies in its range"),
        (evaluation(kl=9.01), 1, "outside their range: demo_evaluation: after/kl\n"),
        (evaluation(preferred=0.5), 1, "outside their range: demo_evaluation: wins/words/after/before\n"),
        (evaluation() | {"wins": []}, 1, "outside their range: demo_evaluation: wins/words/after/before\n"),
        (evaluation(kl=math.nan), 1, "outside their range: demo_evaluation: after/kl\n"),
    ],
)
def test_the_command(home, result, status, says):
    folder = home / "saved_models/demo_evaluation"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    (folder / "result.json").write_text(json.dumps(result))
    done = run_main(command, "demo_evaluation", "--save_dir", home / "saved_models", check=False)
    assert (done.returncode or 0) == status and says in done.stdout + done.stderr
    assert ("OUTSIDE" in done.stdout) == bool(status) and "7.00 to 9.00" in done.stdout


def test_the_command_without_a_run(home):
    done = run_main(command, "nowhere", "--save_dir", home, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "config.json does not exist" in done.stderr


def test_a_missing_figure_is_outside(home):
    assert compare("demo_evaluation", CONFIG, {"accuracy": 0.5}).outside == [
        "demo_evaluation: after/kl",
        "demo_evaluation: wins/words/after/before",
    ]
