"""Judges: what each kind scores, and the one line that says why one cannot be had."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import FunctionJudge, PeoplesChoices, load_judge, sheet_row
from lm_human_preferences.language.encoding import LetterEncoding, get_encoding
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.reward_model import RewardModel

from small import CONFIG, PAD

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "the"]


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


# --- Hugging Face ---


def save_classifier(folder, labels: list[str], **settings):
    """A tiny random classifier with a tokenizer of WORDS; `labels` [] saves a language model instead."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        id2label=dict(enumerate(labels or ["x"])),
        initializer_range=1.0,
        **settings,
    )
    torch.manual_seed(0)
    model = (transformers.BertForSequenceClassification if labels else transformers.BertForMaskedLM)(config).eval()
    model.save_pretrained(folder)
    return model


QUERIES, RESPONSES = ["the film", "the bad"], [" good", " film good bad the"]
IDS = torch.tensor([[5, 4, 2, 0, 0, 0], [5, 3, 4, 2, 3, 5]])


def test_classifier_with_one_output(tmp_path):
    model = save_classifier(tmp_path, ["quality"])
    logits = model(IDS, attention_mask=(IDS != 0).long()).logits
    assert load_judge(f"hf:{tmp_path}").score(QUERIES, RESPONSES) == pytest.approx(logits[:, 0].tolist(), abs=1e-5)
    longest = load_judge(f"hf:{tmp_path}#quality").score(["film " * 50], ["the bad"])[0]
    whole = model(torch.tensor([[4] * 10 + [5, 3]])).logits.item()
    assert longest == pytest.approx(whole, abs=1e-5), "a text that is too long loses its beginning"


def test_classifier_with_several_labels(tmp_path):
    """The log-odds of a label, by its name in any case; the one with 'pos' in it if none is named."""
    model = save_classifier(tmp_path, ["NEGATIVE", "neutral", "POSITIVE"])
    p = model(IDS, attention_mask=(IDS != 0).long()).logits.softmax(1).double()
    for label, column in (("", 2), ("#neutral", 1), ("#negative", 0)):
        expected = (p[:, column] / (1 - p[:, column])).log()
        assert load_judge(f"hf:{tmp_path}{label}").score(QUERIES, RESPONSES) == pytest.approx(
            expected.tolist(), abs=1e-4
        )
    assert "no label joy; choose one" in refused(load_judge, f"hf:{tmp_path}#joy")


def test_classifier_with_a_sigmoid_for_each_label(tmp_path):
    model = save_classifier(tmp_path, ["angry", "positive"], problem_type="multi_label_classification")
    logits = model(IDS, attention_mask=(IDS != 0).long()).logits
    assert load_judge(f"hf:{tmp_path}").score(QUERIES, RESPONSES) == pytest.approx(logits[:, 1].tolist(), abs=1e-5)


def test_classifiers_refused(tmp_path):
    save_classifier(tmp_path / "stars", ["1 star", "2 stars"])
    assert "has no labels with 'pos' in the name; choose one" in (
        line := refused(load_judge, f"hf:{tmp_path / 'stars'}")
    )
    assert line.endswith("#LABEL: 1 star, 2 stars")
    save_classifier(tmp_path / "lm", [])
    assert "is no trained classifier: its weights lack" in refused(load_judge, f"hf:{tmp_path / 'lm'}")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded as a sequence classifier" in refused(load_judge, f"hf:{tmp_path / 'empty'}")


# --- functions ---


def test_function_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "import numpy as np\nWORD = 'x'\n\ndef length(queries, responses):\n    return np.array([len(r) for r in responses])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    judge = load_judge("my_scores:length")
    assert judge.score(["a", "b"], ["xyz", ""]) == [3.0, 0.0] and judge.name == "my_scores:length"
    assert judge.on_tokens(LetterEncoding())(torch.tensor([[1]]), torch.tensor([[1, 2, PAD]])).tolist() == [2.0]
    assert "has no function nothing" in refused(load_judge, "my_scores:nothing")
    assert "has no function WORD" in refused(load_judge, "my_scores:WORD")
    (tmp_path / "broken_scores.py").write_text("1 / 0")
    assert "cannot be imported: ZeroDivisionError" in refused(load_judge, "broken_scores:f")
    assert "No module named 'no_such_module'" in refused(load_judge, "no_such_module:f")


@pytest.mark.parametrize(
    "function, says",
    [
        (
            lambda queries, responses: 1 / 0,
            "the function m:f raised ZeroDivisionError: division by zero (test_judges.py, line ",
        ),
        (lambda queries, responses: [1.0], "a list of one number for each of the 2 responses, not 1 values"),
        (lambda queries, responses: 3.0, "not float"),
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
