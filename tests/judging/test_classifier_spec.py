"""What `hf:` takes: which label, in which form, a text or a pair, templates; and what tells pairs by themselves."""

import json

import pytest
import torch

from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging import hf_classifier
from lm_human_preferences.judging.classifier_spec import ClassifierSpec, why_pairs
from lm_human_preferences.judging.judges import FunctionJudge, load_function, load_judge
from lm_human_preferences.judging.probability_rewards import SHAPES
from lm_human_preferences.judging.training_rewards import RewardSource, load_rewards
from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.runs.input_digests import input_digests

from classifiers import ARCHITECTURES, save_folder

transformers = pytest.importorskip("transformers")

QUERIES = ["is the film good?", "the film", "a question: is it bad, or is it not so bad?"]
RESPONSES = [" the answer is that it is good.", " is bad", ""]

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def refused(spec) -> str:
    with pytest.raises(UserError) as caught:
        load_judge(f"hf:{spec}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits_of(model, tokenizer, *texts) -> torch.Tensor:
    """One call of transformers a row, float64 [n, labels]. Lists of one text each, for beside a single text it takes
    an empty second one for none.
    """
    with torch.no_grad():
        rows = [
            model(**tokenizer(*([text] for text in row), return_tensors="pt")).logits[0]
            for row in zip(*texts, strict=True)
        ]
    return torch.stack(rows).double()


# --- scores are transformers' own ---


@pytest.mark.parametrize("labels", [1, 2, 5])
@architectures
def test_scores_are_those_of_transformers(tmp_path, architecture, labels):
    """Of a pair as of a text; a label by its number, since configurations like these do not name them."""
    model, tokenizer = save_folder(tmp_path, architecture, labels)
    together = [query + response for query, response in zip(QUERIES, RESPONSES, strict=True)]
    wanted = labels - 1
    label = "" if labels == 1 else str(wanted)
    for options, texts in (("?pair", (QUERIES, RESPONSES)), ("?text", (together,)), ("", (together,))):
        logits = logits_of(model, tokenizer, *texts)[:, wanted].tolist()
        assert load_judge(f"hf:{tmp_path}{options}#{label}:logit").score(QUERIES, RESPONSES) == pytest.approx(
            logits, abs=1e-5
        )
    pairs, joined = (logits_of(model, tokenizer, *texts) for texts in ((QUERIES, RESPONSES), (together,)))
    assert (pairs - joined).abs().max() > 1e-3, "a pair is not the joined text"


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_forms_of_the_score(tmp_path, labels):
    names = ["a", "b", "POSITIVE", "d", "e"] if labels == 5 else ["POSITIVE", "NEGATIVE"][:labels]
    model, tokenizer = save_folder(tmp_path, "Bert", labels, names)
    logits = logits_of(model, tokenizer, QUERIES, RESPONSES)
    column = names.index("POSITIVE")
    p = logits.sigmoid()[:, 0] if labels == 1 else logits.softmax(1)[:, column]
    expected = {
        "": (p / (1 - p)).log(),
        "#POSITIVE": (p / (1 - p)).log(),
        f"#{column}": (p / (1 - p)).log(),
        "#positive:logodds": (p / (1 - p)).log(),
        "#:prob": p,
        "#POSITIVE:prob": p,
        "#POSITIVE:logit": logits[:, column],
        "#POSITIVE:neutral": 1 - (p - 0.5).abs() * 2,
        "#POSITIVE:decided": (p - 0.5).abs() * 2,
        "#POSITIVE:margin": p - (1 - p),
    }
    for label, values in expected.items():
        found = load_judge(f"hf:{tmp_path}?pair{label}").score(QUERIES, RESPONSES)
        assert found == pytest.approx(values.tolist(), abs=1e-5), label


def test_a_sigmoid_for_each_label(tmp_path):
    model, tokenizer = save_folder(tmp_path, "Bert", 3, ["toxic", "rude", "positive"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    logits = logits_of(model, tokenizer, QUERIES, RESPONSES)
    found = load_judge(f"hf:{tmp_path}?pair#rude:prob").score(QUERIES, RESPONSES)
    assert found == pytest.approx(logits.sigmoid()[:, 1].tolist(), abs=1e-5)


def test_a_number_is_a_label_unless_a_label_is_called_so(tmp_path):
    model, tokenizer = save_folder(tmp_path, "Bert", 2, ["1", "0"])
    logits = logits_of(model, tokenizer, QUERIES, RESPONSES)
    assert load_judge(f"hf:{tmp_path}?pair#1:logit").score(QUERIES, RESPONSES) == pytest.approx(
        logits[:, 0].tolist(), abs=1e-5
    )


# --- what the folder has ---


@architectures
def test_weights_in_pytorch_bin(tmp_path, architecture):
    """They give the same scores; a file that holds more than tensors is not read."""
    model, tokenizer = save_folder(tmp_path, architecture, bin=True)
    found = load_judge(f"hf:{tmp_path}?pair#1:logit").score(QUERIES, RESPONSES)
    assert found == pytest.approx(logits_of(model, tokenizer, QUERIES, RESPONSES)[:, 1].tolist(), abs=1e-5)
    weights = dict(model.state_dict())
    torch.save(weights | {"more": Planted(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    assert "holds more than tensors" in refused(f"{tmp_path}#1")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    assert "pytorch_model.bin" in refused(f"{tmp_path}#1")


class Planted:
    """Code that runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


@pytest.mark.parametrize("labels", [1, 2, 5])
@architectures
def test_a_configuration_without_labels(tmp_path, architecture, labels):
    """transformers takes it for one of two labels: how many there are is seen in the weights."""
    model, tokenizer = save_folder(tmp_path, architecture, labels, [f"stars {i}" for i in range(labels)])
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if labels > 1:
        names = ", ".join(f"LABEL_{i}" for i in range(labels))
        assert refused(f"{tmp_path}?pair").endswith(
            f"no labels with 'pos' in the name; choose one by name or number with hf:{tmp_path}#LABEL: {names}"
        )
    label = "" if labels == 1 else f"LABEL_{labels - 1}"
    found = load_judge(f"hf:{tmp_path}?pair#{label}:logit").score(QUERIES, RESPONSES)
    assert found == pytest.approx(logits_of(model, tokenizer, QUERIES, RESPONSES)[:, -1].tolist(), abs=1e-5)


def test_a_configuration_that_names_other_labels_than_the_weights_have(tmp_path):
    save_folder(tmp_path, "Bert", 5, ["a", "b", "c", "d", "positive"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "negative", "1": "positive"}}))
    assert "has shape [5], by config.json it has [2]" in refused(tmp_path)


@architectures
def test_without_its_tokenizer(tmp_path, architecture):
    save_folder(tmp_path, architecture)
    for file in tmp_path.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    says = refused(f"{tmp_path}#1")
    assert "tokenizer" in says and f"save_pretrained('{tmp_path}')" in says


def test_a_tokenizer_in_sentencepieces_own_file(tmp_path, monkeypatch):
    """Without the package transformers takes it for another kind of file, and says nothing that helps."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(hf_classifier, "find_spec", lambda name: None)
    save_folder(tmp_path, "DebertaV2", 1)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spm.model").write_bytes(b"\x0a\x05pieces")
    assert "spm.model needs a package: pip install sentencepiece protobuf" in refused(tmp_path)


# --- pairs that show by themselves ---


@pytest.mark.parametrize(
    "config, card, says",
    [
        ({}, "", None),
        ({"id2label": {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}}, "# Sentiment", None),
        ({}, "---\ntags:\n- text-classification\n---\n`tokenizer(text, return_tensors='pt')`", None),
        ({}, "---\ntags: []\n---\ncompared with a cross-encoder", None),
        ({"id2label": {"0": "contradiction", "1": "neutral"}}, "", "label contradiction"),
        ({"finetuning_task": "MRPC"}, "", "finetuning_task MRPC"),
        ({"finetuning_task": "sst2"}, "", None),
        ({"sentence_transformers": {"version": "5"}}, "", "CrossEncoder"),
        ({}, "---\nlanguage: en\npipeline_tag: text-ranking\ntags:\n- x\n---\n", "tag text-ranking"),
        ({}, "---\nlicense: mit\ntags:\n- transformers\n- cross-encoder\n---\n# A model", "tag cross-encoder"),
        (
            {},
            "```python\ninputs = tokenizer(question, answer, return_tensors='pt')\n```",
            "tokenizer(question, answer,",
        ),
        ({}, "features = tokenizer(\n    prompts,\n    responses)", "tokenizer( prompts, responses)"),
    ],
)
def test_what_says_that_texts_come_in_pairs(config, card, says):
    why = why_pairs(config, card)
    assert why is None if says is None else says in why


def test_a_card_makes_pairs(tmp_path, capsys):
    model, tokenizer = save_folder(tmp_path, "DebertaV2", 1)
    (tmp_path / "README.md").write_text("score = model(**tokenizer(question, answer, return_tensors='pt')).logits")
    judge = load_judge(f"hf:{tmp_path}")
    assert capsys.readouterr().out.count("reads query and response as a pair, for its card has the code") == 1
    expected = logits_of(model, tokenizer, QUERIES, RESPONSES)[:, 0].tolist()
    assert judge.score(QUERIES, RESPONSES) == pytest.approx(expected, abs=1e-5)
    joined = load_judge(f"hf:{tmp_path}?text").score(QUERIES, RESPONSES)
    assert capsys.readouterr().out == "" and joined != pytest.approx(expected, abs=1e-3)


# --- templates and truncation ---


def test_templates(tmp_path):
    """What the task puts around the query is taken away, and what the classifier was trained with put there."""
    model, tokenizer = save_folder(tmp_path, "Bert", 1)
    asked = [f"### the: {query}\n\n### answer:" for query in QUERIES]
    wrapped = [f"question: {query}, answer: " for query in QUERIES]
    options = "unwrap=%23%23%23 the: {query}%0A%0A%23%23%23 answer:&query=question: {query}%2C answer: "
    together = [one + other for one, other in zip(wrapped, RESPONSES, strict=True)]
    for given in (asked, QUERIES):
        for kind, texts in (("pair", (wrapped, RESPONSES)), ("text", (together,))):
            found = load_judge(f"hf:{tmp_path}?{kind}&{options}").score(given, RESPONSES)
            assert found == pytest.approx(logits_of(model, tokenizer, *texts)[:, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize("saved", ["left", "right"])
@pytest.mark.parametrize("asked", ["", "left", "right", "own"])
@pytest.mark.parametrize("pair", [False, True])
def test_too_long_a_text(tmp_path, saved, asked, pair):
    """The beginning is lost; or the side asked for; or the model's own, at its tokenizer's length."""
    model, tokenizer = save_folder(tmp_path, "Bert", 1, truncation_side=saved, model_max_length=20)
    side = {"": "left", "own": saved}.get(asked, asked)
    tokenizer.truncation_side = side
    queries, responses = [" good" * 15 + " film"], [" bad" * 12 + " is the end"]
    texts = (queries, responses) if pair else ([queries[0] + responses[0]],)
    with torch.no_grad():
        expected = model(**tokenizer(*texts, truncation=True, max_length=20, return_tensors="pt")).logits[:, 0]
    spec = f"hf:{tmp_path}?{'pair' if pair else 'text'}" + (f"&truncate={asked}" if asked else "")
    judge = load_judge(spec)
    assert judge.classifier.longest == 20
    assert judge.score(queries, responses) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "spec, says",
    [
        ("m?pairs", "'pairs' is not an option here"),
        ("m?pair&text", "'text' is not an option here; expected each once"),
        ("m?pair=yes", "'pair=yes' is not an option"),
        ("m?query=Q", "the template query=Q must hold {query} once"),
        ("m?unwrap={query}{query}", "must hold {query} once"),
        ("m?truncate=middle", "truncate=middle must be left, right or own"),
    ],
)
def test_specifications_refused(spec, says):
    assert says in refused(spec)


def test_parts_of_a_specification():
    assert ClassifierSpec.parse("a/b#x:y:prob") == ClassifierSpec("a/b", "x:y", "prob")
    assert ClassifierSpec.parse("a/b#x:y") == ClassifierSpec("a/b", "x:y")
    assert ClassifierSpec.parse("a?#") == ClassifierSpec("a")


def test_an_unknown_form_is_named(tmp_path):
    save_folder(tmp_path, "Bert", 2, ["NEGATIVE", "POSITIVE"])
    assert "no label POSITIVE:probability (after the colon: one of logodds, logit, prob," in refused(
        f"{tmp_path}#POSITIVE:probability"
    )


# --- as a reward ---


def test_rewards_of_a_pair(tmp_path):
    """From token tensors, padded: query and response are told apart, and neither padding nor the end mark is read."""
    model, tokenizer = save_folder(tmp_path, "DistilBert", 2, ["NEGATIVE", "POSITIVE"])
    encoding = gpt2_encoding()
    source = RewardSource(trained_model=f"hf:{tmp_path}?pair#POSITIVE:prob")
    source.check()
    rewards = load_rewards(source, GPT2Config(), TaskParams(), torch.device("cpu"))
    rows = [[encoding.encode(text) for text in texts] for texts in (QUERIES, RESPONSES)]
    rows[1][1] = [*rows[1][1], encoding.end_of_text]
    tokens = [
        torch.tensor([row + [encoding.padding_token] * (max(map(len, side)) + 1 - len(row)) for row in side])
        for side in rows
    ]
    expected = logits_of(model, tokenizer, QUERIES, RESPONSES).softmax(1)[:, 1]
    assert rewards(*tokens).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_folder_that_changes_is_noticed(tmp_path):
    """A resumed run must find its reward as it was, whichever file has the weights."""
    digests = set()
    for seed, bin in ((0, False), (0, True), (1, True)):
        save_folder(tmp_path, "Bert", 2, ["NEGATIVE", "POSITIVE"], bin=bin, seed=seed)
        digests |= set(input_digests({"rewards.trained_model": f"hf:{tmp_path}?pair#1:prob"}).values())
    assert len(digests) == 3
    assert input_digests({"rewards.trained_model": "hf:nobody/has_this#1"}) == {}


# --- functions of a probability ---


def test_shapes():
    assert {name: [shape(p) for p in (0.0, 0.25, 0.5, 1.0)] for name, shape in SHAPES.items()} == {
        "prob": [0, 0.25, 0.5, 1],
        "neutral": [0, 0.5, 1, 0],
        "decided": [1, 0.5, 0, 1],
        "margin": [-1, -0.5, 0, 1],
    }


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    """As documented: a file with a function that `shaped` makes is a reward."""
    save_folder(tmp_path / "model", "DistilBert", 2, ["NEGATIVE", "POSITIVE"])
    (tmp_path / "my_shapes.py").write_text(
        "from lm_human_preferences.judging.probability_rewards import neutral, shaped\n"
        "undecided = shaped('hf:model#POSITIVE:prob', neutral)\n"
    )
    monkeypatch.chdir(tmp_path)
    reward = FunctionJudge("my_shapes:undecided", load_function("my_shapes:undecided"))
    assert reward.score(QUERIES, RESPONSES) == pytest.approx(
        load_judge("hf:model#POSITIVE:neutral").score(QUERIES, RESPONSES), abs=1e-6
    )
