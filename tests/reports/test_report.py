"""Figures and pages of runs and results: what is drawn, what a page shows, that it needs no other file and runs nothing
but its own script.
"""

import base64
import hashlib
import json
import math
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.reports import page
from lm_human_preferences.reports.figures import write_figures
from lm_human_preferences.reports.logged_run import read_run
from lm_human_preferences.reports.report import write_report
from lm_human_preferences.reports.run_figures import charts_of, drawings_of, smooth
from lm_human_preferences.reports.samples import Piece, Sample, Side, pieces, sample_cards
from lm_human_preferences.reports.tables import aligned

SCRIPT = (page.TEMPLATES / "page.js").read_text()
EVIL = "<script>alert('x')</script> & \"quoted\" \x00"
POLICY = (
    "objective/kl",
    "objective/kl_coef",
    "objective/entropy",
    "objective/score",
    "objective/score_total",
    "ppo/loss/policy",
    "ppo/loss/value",
    "ppo/loss/total",
    "ppo/policy/entropy",
    "ppo/policy/approxkl",
    "ppo/policy/clipfrac",
    "ppo/returns/mean",
    "ppo/returns/var",
    "ppo/val/vpred",
    "ppo/val/error",
    "ppo/val/clipfrac",
    "ppo/val/mean",
    "ppo/val/var",
    "ppo/val/var_explained",
    "ppo/ratio/std_before",
    "lr",
    "elapsed/fps",
    "elapsed/time",
    "elapsed/updates",
    "elapsed/episodes",
    "cache/hits",
)


def make_run(folder, stage, rows, result=None, samples=(), parameters=None):
    folder.mkdir()
    config = {
        "stage": stage,
        "task": "movies",
        "experiment": "my_" + EVIL,
        "command": ["launch.py", stage, "a b", EVIL],
        "parameters": parameters or {"ppo": {"lr": 1e-5, "note": EVIL}, "run": {"seed": 1}},
        "versions": {"torch": "2.0"},
        "commit": None,
    }
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
    side = {"score": 0.5, "kl": 0.0, "valid": 0.9, "other": 3}
    pair = {"query": EVIL, "before": "one " + EVIL, "after": "two", "score_before": -1.0, "score_after": 2.345}
    samples = [
        {"step": step, "query": EVIL, "response": f"sampled {step}", "score": 0.5, "kl": 1.0} for step in range(steps)
    ]
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
def policy_report(tmp_path_factory):
    """The report's folder."""
    return write_report(policy_run(tmp_path_factory.mktemp("report") / "run")).parent


@pytest.fixture(scope="module")
def policy_page(policy_report):
    return Page(policy_report / "index.html")


def names_of(run) -> list[str]:
    """Of the figures that a run has."""
    return [drawing.name for drawing in drawings_of(read_run(run))]


def test_figures_of_a_policy_run(policy_report):
    names = names_of(policy_report.parent)
    assert names == [
        "score",
        "kl",
        "entropy",
        "losses",
        "clipping",
        "value",
        "value_errors",
        "checks",
        "pace",
        "other_cache",
    ]
    paths = [policy_report / f"{name}.png" for name in names]
    for path in paths:
        width, height = png_size(path.read_bytes())
        assert 900 <= width <= 1100 and 500 <= height <= 1100 and 8_000 < path.stat().st_size < 400_000
    assert sorted(policy_report.iterdir()) == sorted([*paths, policy_report / "index.html"])


def test_the_page_needs_no_other_file_and_runs_nothing_but_its_own_script(policy_page):
    links = [
        value
        for _, name, value in policy_page.values
        if name in ("src", "href", "srcset", "data", "action") and not value.startswith("#part")
    ]
    assert len(links) == 11 and all(link.startswith("data:") for link in links)
    assert (
        policy_page.text.count("<script>") == 1 == policy_page.tags.count("script")
        and f"<script>{SCRIPT}</script>" in policy_page.text
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        in policy_page.text
    )
    assert not {"iframe", "object", "embed", "base", "form"} & set(policy_page.tags)
    assert not re.search(r"@import|url\(", policy_page.text) and not [
        name for _, name, _ in policy_page.values if name.startswith("on")
    ]
    for link in links[1:]:
        png_size(base64.b64decode(link.removeprefix("data:image/png;base64,"), validate=True))


def test_everything_is_escaped(policy_page):
    assert "<script>a" not in policy_page.text and "alert('x')" not in policy_page.text and "\0" not in policy_page.text
    assert policy_page.text.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;") >= 7


def test_what_the_page_shows(policy_page):
    for words in (
        "Before and after on 256 held-out queries",
        "0.500 2.500 +2.000",
        "90.0% 100.0% +10.0 points",
        "score -1.00",
        "score 2.35",
        "Step 0",
        "Step 20",
        "Step 39",
        "sampled 39",
        "python launch.py train_policy 'a b'",
        "ppo.lr 1e-05",
        "run.seed 1",
        "torch 2.0",
        "40 steps",
        "other 3 3",
    ):
        assert words in policy_page.shown, words
    assert policy_page.tags.count("img") == 10 and all(
        value for tag, name, value in policy_page.values if (tag, name) == ("img", "alt")
    )


def test_an_unfinished_run_has_a_page(tmp_path):
    rows = [{"step": step, "objective/score": 0.1 * step, "objective/kl": 0.0} for step in range(2)]
    page = Page(write_report(make_run(tmp_path / "run", "train_policy", rows)))
    assert "So far" in page.shown and "score objective/score 0.000 0.100" in page.shown and page.tags.count("img") == 2
    make_run(tmp_path / "one", "train_policy", rows[:1])
    assert "1 steps" in Page(write_report(tmp_path / "one")).shown


def test_a_reward_run_is_compared_with_its_reference_points(tmp_path):
    rows = [
        {
            "step": step,
            "train/loss": 1.3,
            "train/error": 1.3,
            "train/accuracy": 0.3,
            "train/gain": 1.0,
            "train/lr": 1e-5,
        }
        for step in range(5)
    ]
    rows.append({"step": 5, "validation/accuracy": 0.6, "normalize_after/mean": 0.1})
    result = {
        "accuracy": 0.6,
        "standard_error": 0.01,
        "choices": 2000,
        "chance": 0.25,
        "reference_points": {
            "choices": 2000,
            "chance": {"accuracy": 0.25},
            "lexicon": {"accuracy": 0.43, "standard_error": 0.01},
            "somebody_new": {"accuracy": 0.7},
        },
    }
    run = make_run(tmp_path / "run", "train_reward", rows, result)
    page = Page(write_report(run))
    assert "somebody new 70.0% this reward model 60.0% ± 1.0% VADER lexicon 43.0% ± 1.0% chance 25.0%" in page.shown
    assert "5 steps" in page.shown and "2,000 held-out choices" in page.shown
    assert {path.stem for path in (run / "report").glob("*.png")} == {
        "accuracy_compared",
        "loss",
        "accuracy",
        "scale",
        "pace",
    }


@pytest.mark.parametrize("result", [{}, {"loss": 0.4, "error": 0.4, "corr": 0.5, "labels": 12}])
def test_a_reward_run_without_choices(tmp_path, result):
    rows = [{"step": step, "train/loss": 1.3, "train/corr": 0.5, "train/label_var": 2.0} for step in range(5)]
    run = make_run(tmp_path / "run", "train_reward", rows, result, parameters={"labels": {"type": "scalar_rating"}})
    page = Page(write_report(run))
    assert ("corr 0.500" if result else "So far") in page.shown
    assert (run / "report/other_train.png").exists()


@pytest.mark.parametrize(
    "kind, label, chance, loss",
    [
        ("best_of_4", "nats per choice", 0.25, math.log(4)),
        ("best_of_4", "nats per choice", 0.4, math.log(4)),  # shares, of which several are the highest
        ("ranking_of_4", "nats per ranking", 0.25, math.log(24)),
        ("scalar_rating", "squared error", None, None),
        ("scalar_compare", "squared error", None, None),
        (None, "nats per choice", 0.25, math.log(4)),
    ],
)
def test_the_loss_of_each_kind_of_labels(tmp_path, kind, label, chance, loss):
    rows = [{"step": step, "train/loss": 1.3} for step in range(5)]
    result = {"loss": 0.4} if chance is None else {"accuracy": 0.6, "chance": chance}
    run = read_run(make_run(tmp_path / "run", "train_reward", rows, result, parameters={"labels": {"type": kind}}))
    (chart,) = (chart for chart in charts_of(run) if chart.name == "loss")
    assert chart.panels[0].label == label
    figure = Figure()
    next(drawing for drawing in drawings_of(run) if drawing.name == "loss").draw(figure)
    lines = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_label().startswith("chance")]
    assert lines == ([] if loss is None else [pytest.approx(loss)])


def test_an_sft_run_and_a_stage_that_is_unknown(tmp_path):
    rows = [{"step": step, "train/loss": 9 - step / 100, "lr": 1e-4, "tokens_per_second": 1e4} for step in range(200)]
    rows[-1] |= {"valid/loss": 7.0, "valid/perplexity": math.exp(7)}
    run = make_run(tmp_path / "run", "train_sft", rows, {"valid_perplexity": 1096.6})
    assert "validation perplexity 1,096.600" in Page(write_report(run)).shown
    assert names_of(run) == ["loss", "pace"]  # one perplexity is not a curve
    run = make_run(
        tmp_path / "new",
        "train_else",
        [{"step": step, **{f"a/{i}": 1.0 for i in range(4)}, "b": 2.0} for step in range(3)],
    )
    assert names_of(run) == ["other_a_1", "other_a_2", "other_other"]
    drawn = write_figures(drawings_of(read_run(run)), tmp_path / "out")
    assert [picture.path for picture in drawn] == sorted((tmp_path / "out").iterdir())


def test_a_second_report_replaces_the_first(tmp_path):
    rows = [{"step": step, "objective/score": 0.1 * step, "objective/kl": 0.0} for step in range(6)]
    run = make_run(tmp_path / "run", "train_policy", rows)
    first = write_report(run)
    (run / "report/stale.png").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in (run / "report").iterdir() if path.name != "stale.png"}
    assert write_report(run) == first
    assert {path.name: path.read_bytes() for path in (run / "report").iterdir()} == before
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


# --- samples side by side, in a browser too ---


def test_colour_under_the_words():
    """Each token's KL under its own characters, small ones plain; the bytes of one character spread over tokens count
    together.
    """
    cut = pieces(" a <b>é.", [0.05, -0.4, 0.2, 3.0, 0.0, -1.5], [2, 6, 6, 7, 8, 8])
    assert cut[:2] == [Piece("a", 0.05, ""), Piece(" <b>", -0.4, "n2")]
    assert page.part("response", cut).strip() == (
        'a<i class="n2" title="-0.40"> &lt;b&gt;</i><i class="p4" title="+3.20">é</i>.<i class="n3" title="-1.50">∎</i>'
    )
    for token_kl, ends in (
        ([], []),
        ([1.0], [1, 2]),
        ([1.0, 1.0], [2, 1]),
        ([1.0], [99]),
        ([1.0], [-1]),
    ):  # lists that do not fit the text
        assert page.part("response", pieces(" <i>", token_kl, ends)).strip() == "&lt;i&gt;"


def compared(count: int) -> list[Sample]:
    """Samples whose score falls with their number, KL rises, and of which the third lacks a judge's score."""
    return [
        Sample(
            f"query {i}",
            None,
            [
                Side("before", f"one {i} {EVIL}", {"judge": 0.0}, 0.0, [], []),
                Side("after", f"word{i}", {"judge": None if i == 2 else -float(i)}, i * 0.5, [0.5], [4]),
            ],
        )
        for i in range(count)
    ]


def test_cards_carry_what_they_are_sorted_by():
    cards = sample_cards(compared(4), 9)
    assert re.findall(r'<option value="-?\d+">([^<]+)', cards) == [
        "order of the list",
        "judge, after",
        "judge, after less before",
        "KL, after",
        "judge, before",
        "KL, before",
    ]
    assert re.findall(r'data-v="([^"]+)"', cards)[1:3] == ["[-1.0,-1.0,0.5,0.0,0.0]", "[null,null,1.0,0.0,0.0]"]
    assert "The first 4 of 9 queries" in cards and "note legend" in cards and "are printed" not in cards
    assert f"the first {page.PRINTED} are printed" in sample_cards(compared(20), 20)
    assert f":nth-child(n + {page.PRINTED + 1} of :not([hidden]))" in (page.TEMPLATES / "page.css").read_text()


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ACTIONS = """
const seen = [];
const number = (card) => card.querySelector("p").textContent.slice(6);
const look = () => seen.push([...box.children].filter((card) => !card.hidden).map(number).join(" "));
const set = (input, value) => {
  input[input.type === "checkbox" ? "checked" : "value"] = value;
  input.dispatchEvent(new Event("input"));
};
look();
set(by, "0"); look();
set(up, true); look();
set(by, "2"); look();
set(up, false); look();
set(find, "WORD3"); look();
set(by, "-1"); set(find, ""); look();
seen.push(count.textContent, document.documentElement.scrollWidth <= innerWidth);
document.title = seen.join(" | ");
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_sorting_and_filtering_in_a_browser(tmp_path, width):
    """The page in headless Chromium: no console message, nothing of a sample runs, no sideways scrolling, sorts and
    finds.
    """
    evil = [
        Sample(
            "query 4",
            None,
            [
                Side(name, "<img src=x onerror=document.title=1>", {"judge": -4.0}, 2.0, [], [])
                for name in ("before", "after")
            ],
        )
    ]
    samples = page.Section("Samples", sample_cards(compared(4) + evil, 5))
    page.write_page(tmp_path / "page.html", "a run", [], [samples], script=True)
    digest = base64.b64encode(hashlib.sha256(ACTIONS.encode()).digest()).decode()
    text = (tmp_path / "page.html").read_text().replace("script-src ", f"script-src 'sha256-{digest}' ")
    text = text.replace("</body>", f"<script>{ACTIONS}</script></body>")
    (tmp_path / "test.html").write_text(text)
    run = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            f"--window-size={width},800",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"file://{tmp_path / 'test.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not [line for line in run.stderr.splitlines() if "CONSOLE" in line], run.stderr
    title = re.search(r"<title>(.*?)</title>", run.stdout).group(1)
    assert title.split(" | ") == [
        "0 1 2 3 4",
        "0 1 3 4 2",
        "4 3 1 0 2",
        "0 1 2 3 4",
        "4 3 2 1 0",
        "3",
        "0 1 2 3 4",
        "5 of 5",
        "true",
    ]


def test_the_doctors_findings_are_on_the_page(tmp_path):
    rows = [
        {"step": step, "objective/kl": 100.0, "objective/score": 0.1, "ppo/ratio/std_before": 0.2} for step in range(30)
    ]
    page = Page(
        write_report(make_run(tmp_path / "run", "train_policy", rows, parameters={"task": {"response_length": 10}}))
    )
    assert "Severe: ratio step 0" in page.shown and "Severe: kl_exploding" in page.shown
    assert "no numbers for" in page.shown and "<code>--run.precision</code>" in page.text


def test_rows_of_a_table_are_aligned():
    rows = [["", "a", "long head"], ["name", "1.25", "2"], ["n", "", ""]]
    assert aligned(rows) == ["            a   long head", "  name   1.25           2", "  n"]
    assert aligned(rows, left=3, indent="", gap="  ") == ["      a     long head", "name  1.25  2", "n"]


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
