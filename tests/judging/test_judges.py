"""Judges: what each kind scores, and the one line that says why one cannot be had."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import FunctionJudge, PeoplesChoices, load_function, load_judge, sheet_row
from lm_human_preferences.language.encoding import LetterEncoding, get_encoding
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.reward_model import RewardModel

from small import CONFIG, PAD


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    model = RewardModel(GPT2(CONFIG).initialise(generator_for(0, "test/reward")))
    model.head.initialise(generator_for(0, "test/head"))
    folder = tmp_path_factory.mktemp("runs") / "my_run" / "reward_model"
    model.save(folder)
    return folder


def test_reward_model(reward_model):
    """Token tensors are taken as they are, padding and end-of-text included; texts are encoded, in micro-batches; a
    run's folder will do.
    """
    judge, model = load_judge(str(reward_model.parent)), RewardModel.load(reward_model)
    assert judge.name == "my_run" and load_judge(f"r={reward_model}").name == "r"
    queries = torch.tensor([[3, 4, PAD], [5, 6, 7]])
    responses = torch.tensor([[1, 2, 26, PAD], [8, PAD, PAD, PAD]])
    expected = model(queries, responses).detach()
    assert torch.equal(judge.on_tokens(LetterEncoding())(queries, responses), expected)
    texts = judge.score(["de", "fgh"] * 40, ["bc.", "i"] * 40)
    assert texts == pytest.approx(expected.tolist() * 40, abs=1e-5)
    assert judge.score(["", "a"], ["", ""])[0] == pytest.approx(
        model(torch.tensor([[26]]), responses[:1, :0]).item(), abs=1e-5
    )


def test_reward_model_of_another_encoding_reads_texts(reward_model):
    gpt2 = get_encoding("gpt2")
    tokens = [torch.tensor([gpt2.encode(text)]) for text in ("abc", "de")]
    judge = load_judge(str(reward_model))
    assert judge.on_tokens(gpt2)(*tokens).tolist() == pytest.approx(judge.score(["abc"], ["de"]))


def test_reward_model_refuses(reward_model, tmp_path):
    judge = load_judge(str(reward_model))
    assert "65 tokens, but the reward model's context is 64" in refused(judge.score, ["a" * 60], ["b" * 5])
    assert "context is 64" in refused(
        judge.on_tokens(LetterEncoding()), torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 30, dtype=torch.int64)
    )
    assert "config.json does not exist" in refused(load_judge, str(tmp_path))


def test_lexicon():
    analyzer = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    scores = load_judge("lexicon").score(["The film is", "The film is"], [" wonderful.", " awful."])
    assert (
        scores == [analyzer.polarity_scores(f"The film is {word}.")["compound"] for word in ("wonderful", "awful")]
        and scores[0] > 0 > scores[1]
    )


def test_ratings(tmp_path):
    pytest.importorskip("sklearn")
    rows = [
        {"split": split, "text": f"It was {word} {i}.", "rating": value}
        for split in ("train", "valid", "test")
        for i in range(6)
        for word, value in (("fine", 2.0), ("dull", -2.0))
        if split != "train"
    ]
    rows.append({"split": "train", "text": "lovely", "rating": -4.0})  # a training sentence teaches the judge nothing
    (tmp_path / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad, unknown = load_judge(f"ratings:{tmp_path}").score(
        ["It was", "It was", "Lovely"], [" fine.", " dull.", " lovely"]
    )
    assert good > 1 and bad < -1 and abs(unknown) < 1
    assert "sentences.jsonl does not exist" in refused(load_judge, f"ratings:{tmp_path / 'nowhere'}")
    (tmp_path / "sentences.jsonl").write_text('{"text": "a"}\n')
    assert 'expected {"text": text, "rating": number' in refused(load_judge, f"ratings:{tmp_path}")


RATED = [{"split": "test", "text": f"It was fine {i}.", "rating": i} for i in range(12)]


@pytest.mark.parametrize(
    "rows, says",
    [
        (RATED[:9], "holds 9 held-out sentences, the judge needs at least 10"),
        ([*RATED, {"split": "test", "text": "x", "rating": math.nan}], "expected {"),
        ([row | {"rating": [1, 2]} for row in RATED], "expected {"),
        ([*RATED, ["test", "x", 1]], "line 13: expected {"),
        ([row | {"rating": 2} for row in RATED], "all held-out sentences have the same rating, 2"),
        ([row | {"text": "..."} for row in RATED], "no judge can be made of its held-out sentences"),
    ],
)
def test_ratings_refused(tmp_path, rows, says):
    pytest.importorskip("sklearn")
    (tmp_path / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert says in refused(load_judge, f"ratings:{tmp_path}")


# --- functions ---


def test_function_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "import numpy as np\nWORD = 'x'\n\n"
        "def length(queries, responses):\n    return np.array([len(r) for r in responses])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    judge = load_judge("my_scores:length")
    assert judge.score(["a", "b"], ["xyz", ""]) == [3.0, 0.0] and judge.name == "my_scores:length"
    assert judge.on_tokens(LetterEncoding())(torch.tensor([[1]]), torch.tensor([[1, 2, PAD]])).tolist() == [2.0]
    assert "has no function nothing" in refused(load_judge, "my_scores:nothing")
    assert "has no function WORD" in refused(load_judge, "my_scores:WORD")
    assert f"my_scores ({tmp_path / 'my_scores.py'})" in refused(load_judge, "my_scores:nothing")


@pytest.mark.parametrize(
    "text, says",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: "),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('usage: f FILE')", "SystemExit: usage: f FILE"),
        ("raise ValueError('one line\\nand another')", "ValueError: one line"),
    ],
)
def test_module_that_cannot_be_imported(tmp_path, monkeypatch, text, says):
    (tmp_path / "broken_scores.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "broken_scores", raising=False)
    assert f"the module broken_scores cannot be imported: {says}" in refused(load_judge, "broken_scores:f")


def test_module_of_another_folder(tmp_path, monkeypatch):
    """The line says where it was looked for, since a command may be given from elsewhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "scores_of_elsewhere.py").write_text("def f(q, r): return [0.0] * len(r)")
    monkeypatch.chdir(tmp_path / "here")
    says = refused(load_judge, "scores_of_elsewhere:f")
    assert f"there is no module scores_of_elsewhere in {tmp_path / 'here'}" in says and "PYTHONPATH" in says
    assert "no/such:f is not module:function" in refused(load_function, "no/such:f")


@pytest.mark.parametrize(
    "function, says",
    [
        (
            lambda queries, responses: 1 / 0,
            "the function m:f raised ZeroDivisionError: division by zero (test_judges.py, line ",
        ),
        (lambda queries, responses: [1.0], "a list of one number for each of the 2 responses, not 1 values"),
        (lambda queries, responses: 3.0, "not float"),
        (lambda queries, responses: np.array(3.0), "not ndarray"),
        (lambda queries, responses: torch.tensor(3.0), "not Tensor"),
        (lambda queries, responses: {1.0, 2.0}, "not set"),
        (lambda queries, responses: (float(len(r)) for r in responses), "not generator"),
        (lambda queries, responses: np.ones((2, 3)), "returned array([1., 1., 1.]) for a response"),
        (lambda queries, responses: torch.ones(2, 9, 9), "returned tensor([[1., 1., 1., 1., 1., 1., 1., 1., 1."),
        (lambda queries, responses: np.ones((1, 2)), "not 1 values"),
        (lambda queries, responses: sys.exit("no"), "raised SystemExit: no (test_judges.py, line "),
        (lambda queries, responses: ["1", "2"], "returned '1' for a response; it must be a finite number"),
        (lambda queries, responses: [1.0, None], "returned None"),
        (lambda queries, responses: [1.0, math.nan], "returned nan"),
        (lambda queries, responses: torch.tensor([1.0, math.inf]), "returned tensor(inf)"),
    ],
)
def test_function_that_goes_wrong(function, says):
    assert says in refused(FunctionJudge("m:f", function).score, ["a", "b"], ["c", "d"])


@pytest.mark.parametrize("spec", ["", "lexicons", "ratings:", "hf:", "no/such/folder", "a=b=c", "module:function:x"])
def test_no_such_judge(spec):
    assert "expected a reward-model folder, lexicon, ratings:FOLDER" in refused(load_judge, spec)


# --- people ---


def test_choices_of_people(tmp_path):
    """Names and texts must be those of the sheet; several people about the same texts count as their mean; either
    order.
    """
    path = tmp_path / "sheet.jsonl"
    rows = [
        sheet_row("q", ("a", "b"), ("one", "two"), swapped=True) | {"choice": "first"},
        sheet_row("q", ("a", "b"), ("one", "two"), swapped=False) | {"choice": "first"},
        sheet_row("r", ("a", "b"), ("three", "four"), swapped=True) | {"choice": "second"},
        sheet_row("s", ("a", "b"), ("same", "same"), swapped=True),
        sheet_row("t", ("a", "b"), ("five", "six"), swapped=False),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    people = load_judge(f"choices:{path}")
    queries, a, b = (
        ["q", "r", "s", "t", "r"],
        ["one", "three", "same", "five", "other"],
        ["two", "four", "same", "six", "four"],
    )
    np.testing.assert_equal(people.wins(queries, ("a", "b"), (a, b)), [0.5, 1.0, 0.5, np.nan, np.nan])
    np.testing.assert_equal(people.wins(queries, ("b", "a"), (b, a)), [0.5, 0.0, 0.5, np.nan, np.nan])
    assert np.isnan(people.wins(queries, ("a", "c"), (a, b))).all()
    (tmp_path / "sheet.json").write_text(json.dumps(rows))
    assert PeoplesChoices("people", str(tmp_path / "sheet.json")).shares == people.shares


@pytest.mark.parametrize(
    "row, says",
    [
        ({"query": "q"}, "line 1: expected"),
        (
            sheet_row("q", ("a", "b"), ("x", "y"), False) | {"choice": "a"},
            "'choice' is 'a'; it must be first, second, tie or null",
        ),
        (sheet_row("q", ("a", "b"), ("x", "y"), False), "nobody has chosen yet"),
    ],
)
def test_sheets_refused(tmp_path, row, says):
    (tmp_path / "sheet.jsonl").write_text(json.dumps(row))
    assert says in refused(load_judge, f"choices:{tmp_path / 'sheet.jsonl'}")
    assert "the sheet of choices nowhere.jsonl does not exist" in refused(load_judge, "choices:nowhere.jsonl")
