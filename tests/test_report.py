"""Figures and page of a run: what is drawn, what the page shows, that it needs no other file and runs nothing."""

import base64
import json
import math
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from lm_human_preferences.errors import UserError
from lm_human_preferences.figures import read_run, smooth, write_figures
from lm_human_preferences.report import write_report

EVIL = "<script>alert('x')</script> & \"quoted\" \x00"
POLICY = ("objective/kl", "objective/kl_coef", "objective/entropy", "objective/score", "objective/score_total", "ppo/loss/policy", "ppo/loss/value",
          "ppo/loss/total", "ppo/policy/entropy", "ppo/policy/approxkl", "ppo/policy/clipfrac", "ppo/returns/mean", "ppo/returns/var",
          "ppo/val/vpred", "ppo/val/error", "ppo/val/clipfrac", "ppo/val/mean", "ppo/val/var", "ppo/val/var_explained", "ppo/ratio/std_before",
          "lr", "elapsed/fps", "elapsed/time", "elapsed/updates", "elapsed/episodes", "memory/peak")


def make_run(folder, stage, rows, result=None, samples=(), parameters=None):
    folder.mkdir()
    config = {"stage": stage, "task": "movies", "experiment": "my_" + EVIL, "command": ["launch.py", stage, "a b", EVIL],
              "parameters": parameters or {"ppo": {"lr": 1e-5, "note": EVIL}, "run": {"seed": 1}}, "versions": {"torch": "2.0"}, "commit": None}
    (folder / "config.json").write_text(json.dumps(config))
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def policy_run(folder, steps=40, result=True):
    random = np.random.default_rng(0)
    rows = [{"step": step, **{name: float(random.random()) for name in POLICY}} for step in range(steps)]
    rows[3]["objective/kl"] = None
    rows[4]["ppo/val/var_explained"] = -500.0
    side = {"score": 0.5, "kl": 0.0, "valid": 0.9, "judge": {"mean": 0.1, "low": 0.0, "high": 0.2}, "other": 3}
    pair = {"query": EVIL, "before": "one " + EVIL, "after": "two", "score_before": -1.0, "score_after": 2.345, "judge_before": None,
            "judge_after": 1.0}
    samples = [{"step": step, "query": EVIL, "response": f"sampled {step}", "score": 0.5, "kl": 1.0} for step in range(steps)]
    compared = {"before": side, "after": side | {"score": 2.5, "valid": 1.0}, "queries": 256, "samples": [pair]}
    return make_run(folder, "train_policy", rows, compared if result else None, samples)


class Page(HTMLParser):
    """The tags, attributes and visible words of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.values, self.words = [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.shown = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


@pytest.fixture(scope="module")
def policy_page(tmp_path_factory):
    return Page(write_report(policy_run(tmp_path_factory.mktemp("report") / "run")))


def test_figures_of_a_policy_run(tmp_path):
    figures = write_figures(policy_run(tmp_path / "run"), tmp_path / "out")
    assert list(figures) == ["score", "kl", "entropy", "losses", "clipping", "value", "value_errors", "checks", "pace", "other_memory"]
    for path in figures.values():
        width, height = png_size(path.read_bytes())
        assert 900 <= width <= 1100 and 500 <= height <= 1100 and 8_000 < path.stat().st_size < 400_000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}.png" for name in figures)


def test_the_page_needs_no_other_file_and_runs_nothing(policy_page):
    links = [value for _, name, value in policy_page.values if name in ("src", "href", "srcset", "data", "action")]
    assert len(links) == 11 and all(link.startswith("data:") for link in links)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(policy_page.tags)
    assert not re.search(r"@import|url\(", policy_page.text) and not [name for _, name, _ in policy_page.values if name.startswith("on")]
    for link in links[1:]:
        png_size(base64.b64decode(link.removeprefix("data:image/png;base64,"), validate=True))


def test_everything_is_escaped(policy_page):
    assert "<script" not in policy_page.text and "\0" not in policy_page.text
    assert policy_page.text.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;") >= 7


def test_what_the_page_shows(policy_page):
    for words in ("Before and after on 256 held-out queries", "0.500 2.500 +2.000", "90.0% 100.0% +10.0 points", "0.100 0.000 to 0.200",
                  "score -1.00", "score 2.35 judge 1.00", "Step 0", "Step 20", "Step 39", "sampled 39", "python launch.py train_policy 'a b'",
                  "ppo.lr 1e-05", "run.seed 1", "torch 2.0", "40 steps", "other 3 3"):
        assert words in policy_page.shown, words
    assert policy_page.tags.count("img") == 10 and all(value for tag, name, value in policy_page.values if (tag, name) == ("img", "alt"))


def test_an_unfinished_run_has_a_page(tmp_path):
    rows = [{"step": step, "objective/score": 0.1 * step, "objective/kl": 0.0} for step in range(2)]
    page = Page(write_report(make_run(tmp_path / "run", "train_policy", rows)))
    assert "So far" in page.shown and "score objective/score 0.000 0.100" in page.shown and page.tags.count("img") == 2
    make_run(tmp_path / "one", "train_policy", rows[:1])
    assert "1 steps" in Page(write_report(tmp_path / "one")).shown


def test_a_reward_run_is_compared_with_its_points_of_reference(tmp_path):
    rows = [{"step": step, "train/loss": 1.3, "train/error": 1.3, "train/accuracy": 0.3, "train/gain": 1.0, "train/lr": 1e-5} for step in range(5)]
    rows.append({"step": 5, "validation/accuracy": 0.6, "normalize_after/mean": 0.1})
    result = {"accuracy": 0.6, "standard_error": 0.01, "choices": 2000, "chance": 0.25, "reference_points": {
        "choices": 2000, "chance": {"accuracy": 0.25}, "lexicon": {"accuracy": 0.43, "standard_error": 0.01}, "somebody_new": {"accuracy": 0.7}}}
    run = make_run(tmp_path / "run", "train_reward", rows, result)
    page = Page(write_report(run))
    assert "somebody new 70.0% this reward model 60.0% ± 1.0% VADER lexicon 43.0% ± 1.0% chance 25.0%" in page.shown
    assert "5 steps" in page.shown and "2,000 held-out choices" in page.shown
    assert {path.stem for path in (run / "report").glob("*.png")} == {"accuracy_compared", "loss", "accuracy", "scale", "pace"}


@pytest.mark.parametrize("result", [{}, {"loss": 0.4, "error": 0.4, "corr": 0.5, "labels": 12}])
def test_a_reward_run_without_choices(tmp_path, result):
    rows = [{"step": step, "train/loss": 1.3, "train/corr": 0.5, "train/label_var": 2.0} for step in range(5)]
    run = make_run(tmp_path / "run", "train_reward", rows, result, parameters={"labels": {"type": "scalar_rating"}})
    page = Page(write_report(run))
    assert ("corr 0.500" if result else "So far") in page.shown
    assert (run / "report/other_train.png").exists()


def test_an_sft_run_and_a_stage_that_is_unknown(tmp_path):
    rows = [{"step": step, "train/loss": 9 - step / 100, "lr": 1e-4, "tokens_per_second": 1e4} for step in range(200)]
    rows[-1] |= {"valid/loss": 7.0, "valid/perplexity": math.exp(7)}
    run = make_run(tmp_path / "run", "train_sft", rows, {"valid_perplexity": 1096.6})
    assert "validation perplexity 1,096.600" in Page(write_report(run)).shown
    assert list(write_figures(run, tmp_path / "out")) == ["loss", "pace"]  # one perplexity is no curve
    run = make_run(tmp_path / "new", "train_else", [{"step": step, **{f"a/{i}": 1.0 for i in range(4)}, "b": 2.0} for step in range(3)])
    assert list(write_figures(run, tmp_path / "out2")) == ["other_a_1", "other_a_2", "other_other"]


def test_a_second_report_replaces_the_first(tmp_path):
    run = policy_run(tmp_path / "run", steps=6, result=False)
    first = write_report(run)
    (run / "report/stale.png").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in (run / "report").iterdir() if path.name != "stale.png"}
    assert write_report(run) == first
    assert {path.name: path.read_bytes() for path in (run / "report").iterdir()} == before
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_smoothing_keeps_level_and_length():
    np.testing.assert_allclose(smooth(np.full(100, 3.0)), 3.0)
    line = np.arange(200.0)
    np.testing.assert_allclose(smooth(line)[5:-5], line[5:-5])
    noisy = np.random.default_rng(0).normal(size=1000)
    assert smooth(noisy).shape == (1000,) and smooth(noisy)[50:-50].std() < 0.25


@pytest.mark.parametrize("left", ["nothing", "no metrics", "empty metrics", "only steps", "no config"])
def test_what_is_no_run_is_one_line_and_leaves_no_report(tmp_path, left):
    run = tmp_path / "run"
    if left != "nothing":
        make_run(run, "train_policy", {"empty metrics": []}.get(left, [{"step": 0, "loss": None}]))
    if left in ("no metrics", "no config"):
        (run / {"no metrics": "metrics.jsonl", "no config": "config.json"}[left]).unlink()
    for attempt in (lambda: read_run(run), lambda: write_report(run)):
        with pytest.raises(UserError) as caught:
            attempt()
        assert "\n" not in str(caught.value) and "run" in str(caught.value)
    assert not (run / "report").exists()
