"""Classifiers of Hugging Face as judges: what they score, and the one line about those that cannot."""

import pytest
import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import load_judge

from classifiers import WORDS, save_classifier, save_tokenizer

transformers = pytest.importorskip("transformers")


def refused(spec) -> str:
    with pytest.raises(UserError) as caught:
        load_judge(f"hf:{spec}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    assert "no label joy; choose one" in refused(f"{tmp_path}#joy")


def test_classifier_with_a_sigmoid_for_each_label(tmp_path):
    model = save_classifier(tmp_path, ["angry", "positive"], problem_type="multi_label_classification")
    logits = model(IDS, attention_mask=(IDS != 0).long()).logits
    assert load_judge(f"hf:{tmp_path}").score(QUERIES, RESPONSES) == pytest.approx(logits[:, 1].tolist(), abs=1e-5)


def test_classifiers_refused(tmp_path):
    save_classifier(tmp_path / "stars", ["1 star", "2 stars"])
    assert "has no labels with 'pos' in the name; choose one by name or number" in (line := refused(tmp_path / "stars"))
    assert line.endswith("#LABEL: 1 star, 2 stars")
    save_classifier(tmp_path / "lm", [])
    assert "is not a trained classifier: its weights lack" in refused(tmp_path / "lm")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded as a sequence classifier" in refused(tmp_path / "empty")


# --- parts that do not fit together ---

SHAPE = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
GPT2_SHAPE = dict(n_embd=16, n_layer=1, n_head=2)
LAYOUTS = {  # configuration, and how many tokens it has places for
    "BertConfig": (SHAPE | dict(max_position_embeddings=12), 12),
    "GPT2Config": (GPT2_SHAPE | dict(n_positions=12), 12),
    "OpenAIGPTConfig": (GPT2_SHAPE | dict(n_positions=12), 12),
    "RobertaConfig": (SHAPE | dict(max_position_embeddings=12, pad_token_id=0), 11),  # places begin after padding's
    "MPNetConfig": (SHAPE | dict(max_position_embeddings=14, pad_token_id=1), 12),
    "LongformerConfig": (SHAPE | dict(max_position_embeddings=14, pad_token_id=1, attention_window=[4]), 12),
    "OPTConfig": (
        dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16)
        | dict(max_position_embeddings=12),
        12,
    ),
    "XLNetConfig": (dict(d_model=16, n_layer=1, n_head=2, d_inner=16), 512),  # relative positions: there is no limit
}


def save_layout(folder, name: str, **settings):
    """A tiny random classifier of one output, laid out as `name` says, with a tokenizer that pads as it does."""
    layout = LAYOUTS[name][0] | settings
    padding = layout.setdefault("pad_token_id", 0)
    config = getattr(transformers, name)(
        vocab_size=len(WORDS), id2label={0: "x"}, **{"bos_token_id": 2, "eos_token_id": 2} | layout
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder, WORDS if padding == 0 else ["[UNK]", "[PAD]", *WORDS[2:]])
    return model


@pytest.mark.parametrize("name", LAYOUTS)
def test_texts_beyond_a_classifiers_places(tmp_path, name):
    """They lose their beginning, whatever the architecture calls its places and wherever they begin."""
    model = save_layout(tmp_path, name)
    places = LAYOUTS[name][1]
    judge = load_judge(f"hf:{tmp_path}")
    assert judge.classifier.longest == places
    text = "bad " * 3 * places + "the bad"
    kept = torch.tensor([[3] * (places - 2) + [5, 3]])
    with torch.no_grad():
        expected = model(input_ids=kept, attention_mask=torch.ones_like(kept)).logits.item()
    assert judge.score([text], [""]) == pytest.approx([expected], abs=1e-5)
    beyond = judge.score([text, "good"], ["", " film"])
    assert beyond == pytest.approx([expected, judge.score(["good"], [" film"])[0]], abs=1e-5)


@pytest.mark.parametrize("name", ["BertConfig", "RobertaConfig", "GPT2Config", "XLNetConfig"])
def test_without_its_tokenizer(tmp_path, name):
    """A model saved alone. transformers gives it an empty tokenizer, to which all texts are alike."""
    save_layout(tmp_path / "whole", name)
    alone = tmp_path / "alone"
    transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").save_pretrained(alone)
    says = refused(alone)
    assert "tokenizer" in says and f"save_pretrained('{alone}')" in says


def test_tokenizer_of_another_model(tmp_path):
    save_layout(tmp_path, "BertConfig")
    save_tokenizer(tmp_path, [*WORDS[1:], "dull", "[PAD]"])  # padding is token 6 of a model that has six
    assert "its tokenizer gives token 6, but the model has 6 tokens" in refused(tmp_path)
    save_tokenizer(tmp_path, [*WORDS, "dull"])
    judge = load_judge(f"hf:{tmp_path}")
    assert len(judge.score(["a"], [" film"])) == 1
    with pytest.raises(UserError, match="its tokenizer gives token 6"):
        judge.score(["a"], [" dull film"])


def test_padding_is_the_tokenizers(tmp_path):
    """GPT-2's classifier scores the last token before its padding; with the padding token of its own configuration it
    would score the padding of all but the longest text.
    """
    save_layout(tmp_path, "GPT2Config", pad_token_id=2)
    save_tokenizer(tmp_path)
    judge = load_judge(f"hf:{tmp_path}")
    alone = judge.score(["the film"], [""])
    assert judge.score(["the film", "the film bad the film"], ["", ""])[0] == pytest.approx(alone[0], abs=1e-5)


def test_texts_without_a_token(tmp_path):
    save_layout(tmp_path, "BertConfig")
    judge = load_judge(f"hf:{tmp_path}")
    empty = judge.score([""], [""])
    assert judge.score(["", "the film"], ["", " good"])[0] == pytest.approx(empty[0], abs=1e-5)


def test_classifier_that_cannot_score(tmp_path):
    """It is loaded, and fails at every text: T5 wants an end token that this tokenizer does not give."""
    config = transformers.T5Config(
        vocab_size=len(WORDS),
        id2label={0: "x"},
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    transformers.T5ForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert "cannot score texts: ValueError: All examples must have the same number of <eos>" in refused(tmp_path)
