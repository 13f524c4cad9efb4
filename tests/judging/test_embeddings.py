"""The sentence encoder against Hugging Face's, and the judge that is fitted on its vectors."""

import json

import numpy as np
import pytest
import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.embeddings import (
    LAYERS,
    RATING,
    EmbeddingJudge,
    Linear,
    damage,
    fit_ratings,
    fit_sense,
    ridge,
    save_judge,
    text_vectors,
    with_sense,
)
from lm_human_preferences.judging.judges import load_judge
from lm_human_preferences.judging.sentence_encoder import SentenceEncoder, WordPieces, words_of

from encoders import CONFIG, PIECES, write_encoder

TEXTS = [
    "",
    "the film",
    "The  FILM\tis goodly!",
    "It's $5, isn't it?...",
    "Crème brûlée — “naïve”",
    "中film",
    "zero\u200bwidth\x07bell\ufffd",
    "a\u00a0b\u2028c",
    "x" * 101,
    "goodfilm @home #1",
    "İstanbul ǅ ß ﬁ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_tokens_are_those_of_hugging_face(folder):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.BertTokenizer(vocab=str(folder / "vocab.txt")), WordPieces.load(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_a_long_text_loses_its_beginning():
    pieces = WordPieces(PIECES)
    whole = pieces.encode("film " * 30 + "good")
    assert pieces.encode("film " * 30 + "good", 10) == [whole[0], *whole[-9:]]
    assert len(pieces.encode("a " * 10, 10)) == 10 and pieces.encode("a", 3) == pieces.encode("a")


def test_words():
    assert list(words_of("Don't stop—ever.")) == ["don", "'", "t", "stop", "—", "ever", "."]


def test_states_are_those_of_hugging_face(folder):
    """After each block, of padded texts, and whatever stands before the names of the weights."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokens = torch.tensor([[2, 4, 5, 3], [2, 6, 3, 0]])
    seen = torch.tensor([[True] * 4, [True] * 3 + [False]])
    with torch.no_grad():
        theirs = model(tokens, attention_mask=seen.long(), output_hidden_states=True).hidden_states
        ours = SentenceEncoder.load(folder)(tokens, seen)
    assert len(ours) == len(theirs) == CONFIG.blocks + 1
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[seen], other[seen], atol=1e-5, rtol=1e-5)


def test_vectors_do_not_depend_on_their_company(folder):
    encoder, pieces = SentenceEncoder.load(folder), WordPieces.load(folder)
    texts = ["the film", "a", "good good good good", ""] * 20  # more than one micro-batch
    together = text_vectors(encoder, pieces, texts)
    alone = np.concatenate([text_vectors(encoder, pieces, [text]) for text in texts[:4]])
    np.testing.assert_allclose(together, np.tile(alone, (20, 1)), atol=1e-5)
    for part in np.split(together, LAYERS, axis=1):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
    assert text_vectors(encoder, pieces, []).shape == (0, LAYERS * CONFIG.width)


def test_ridge_minimises_what_it_says():
    random = np.random.default_rng(0)
    x, y, alpha = random.normal(3, [1, 5, 2], (40, 3)), random.normal(size=40), 7.0
    ((weights, bias),) = ridge(x, y, (alpha,))

    def loss(weights, bias):
        return ((x @ weights + bias - y) ** 2).sum() + alpha * ((weights * x.std(0)) ** 2).sum()

    for _ in range(20):
        step = random.normal(size=4) * 1e-3
        assert loss(weights + step[:3], bias + step[3]) > loss(weights, bias)
    constant = np.column_stack([x, np.ones(40)])  # a feature without spread changes nothing
    np.testing.assert_allclose(ridge(constant, y, (alpha,))[0][0], [*weights, 0], atol=1e-12)


def test_fit_is_measured_on_what_it_was_not_fitted_on():
    """Pure noise is agreed with in the fit and not out of it; a true relation is found."""
    random = np.random.default_rng(1)
    x = random.normal(size=(400, 30))
    noise = fit_ratings(x, random.normal(size=400))
    assert abs(noise.pearson) < 0.2 and noise.r2 < 0.05
    y = x[:, 0] * 2 + random.normal(size=400) * 0.1
    found = fit_ratings(x, y)
    assert found.alpha == 300 and found.pearson > 0.9
    np.testing.assert_allclose(found.pearson, np.corrcoef(found.out_of_fold, y)[0, 1])


def test_sense_is_measured_on_what_it_was_not_fitted_on():
    """What cannot be told apart is not, out of fold; what can be is."""
    random = np.random.default_rng(2)
    whole, damaged = random.normal(size=(200, 20)), random.normal(size=(200, 20))
    assert 0.4 < fit_sense(whole, damaged).accuracy < 0.6
    found = fit_sense(whole + 2, damaged)
    assert found.accuracy > 0.95 and found.function(whole[:1] + 2)[0] > 0 > found.function(damaged[:1] - 2)[0]


def test_damaged_copies():
    """Always the same; each way leaves the words it should."""
    texts = ["one two three four five six seven eight", "a b c d e f g h i j", "p q r s t u v w x y z", "k l m n o"]
    copies = damage(texts)
    assert copies == damage(texts) and len(copies) == 4
    assert all(copy != text for copy, text in zip(copies, texts, strict=True))
    for copy, text in zip(copies[:2], texts[:2], strict=True):
        assert sorted(copy.split()) == sorted(text.split()), "another order"
    assert len(copies[2].split()) == 11 and set(copies[2].split()) - set(texts[2].split()), "words of other texts"
    assert len(copies[3].split()) > 5 and set(copies[3].split()) == set(texts[3].split()), "words said again"
    assert damage(["", "", "", ""]) == ["", "", "", ""]


def test_sense_weighs_the_rating():
    scores = with_sense(np.array([3.0, 3.0, -4.0, 3.0]), np.array([40.0, -40.0, 0.0, 0.0]))
    np.testing.assert_allclose(scores, [3.0, -4.0, -4.0, -0.5], atol=1e-9)


def test_judge(folder, tmp_path):
    """It rates query and response together, by its name, within the scale."""
    encoder, pieces = SentenceEncoder.load(folder), WordPieces.load(folder)
    texts = [f"the film is {word} {i}" for i in range(40) for word in ("good", "bad")]
    judge = write_encoder(tmp_path / "judge")
    vectors, damaged = (text_vectors(encoder, pieces, given) for given in (texts, damage(texts)))
    fit, sense = fit_ratings(vectors, np.array([3.0, -3.0] * 40)), fit_sense(vectors, damaged)
    save_judge(judge / RATING, fit.function, sense.function)
    loaded = load_judge(f"rating=embeddings:{judge}")
    assert loaded.name == "rating" and load_judge(f"embeddings:{judge}").name == "embeddings"
    good, bad = loaded.score(["the film is", "the film"], [" good 7", " is bad 7"])
    assert good > 0 > bad
    assert loaded.score(["the film is"], [" good 7"]) == pytest.approx([good], abs=1e-5)
    sensible, odds = load_judge(f"embeddings:{judge}#sense"), sense.function(vectors[:1])
    expected = with_sense(fit.function(vectors[:1]).clip(-4, 4), odds)
    assert sensible.name == "sense"
    assert sensible.score(["the film is"], [" good 0"]) == pytest.approx(expected.tolist(), abs=1e-4)
    zero = Linear(np.zeros(LAYERS * CONFIG.width), 9.0)
    save_judge(judge / RATING, zero, zero._replace(bias=0.0))
    assert load_judge(f"embeddings:{judge}").score(["a"], ["b"]) == [4.0]
    assert load_judge(f"embeddings:{judge}#sense").score(["a"], ["b"]) == [0.0], "half of 4 and half of -4"


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refused(tmp_path):
    assert "python datasets/movies_judge.py" in refused(load_judge, f"embeddings:{tmp_path}")
    folder = write_encoder(tmp_path / "judge")

    def load():
        return EmbeddingJudge.load(folder, torch.device("cpu"))

    good = Linear(np.zeros(LAYERS * CONFIG.width), 0.0)
    for weights in (np.zeros(3), np.full(LAYERS * CONFIG.width, np.nan)):
        save_judge(folder / RATING, Linear(weights, 0.0), good)
        assert "does not fit the encoder" in refused(load)
    save_judge(folder / RATING, good, Linear(np.zeros(3), 0.0))
    load()
    assert "does not fit the encoder" in refused(load_judge, f"embeddings:{folder}#sense")
    assert "there is no #nonsense" in refused(load_judge, f"embeddings:{folder}#nonsense")
    (folder / RATING).write_bytes(b"no tensors")
    assert f"{RATING} is damaged" in refused(load)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "roberta"}, "does not describe a BERT"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"intermediate_size": 8}, "intermediate.dense.weight is of shape"),
        ({"num_hidden_layers": 5}, "encoder.layer.4.attention.self.query.weight is missing"),
    ],
)
def test_encoders_refused(tmp_path, change, says):
    folder = write_encoder(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    assert says in refused(SentenceEncoder.load, folder)


def test_damaged_files_are_named(tmp_path):
    folder = write_encoder(tmp_path)
    (folder / "vocab.txt").write_text("a\nb\n")
    assert "vocab.txt lacks [CLS]" in refused(WordPieces.load, folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors is damaged" in refused(SentenceEncoder.load, folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors does not exist" in refused(SentenceEncoder.load, folder)
