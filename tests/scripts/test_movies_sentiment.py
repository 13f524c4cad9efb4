"""datasets/movies_sentiment.py with a small random encoder; nothing is downloaded."""

import json

import pytest
import torch

from lm_human_preferences.judging.judges import load_judge

from encoders import write_encoder
from load_scripts import load_script, run_main
from rated import write_rated_sentences

transformers = pytest.importorskip("transformers")
movies_sentiment = load_script("datasets/movies_sentiment.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rated_sentences(tmp_path_factory.mktemp("datasets") / "movies")


def make(data, *words, check=True):
    return run_main(movies_sentiment, "--data", data, *words, check=check)


def test_the_classifier_is_made_once_and_measured(data, tmp_path, monkeypatch):
    """It learns the word that decides; transformers and a judge read the same of it; twice it is the same one."""
    monkeypatch.setattr(movies_sentiment, "RATE", 3e-3)  # of a small random encoder
    encoder, output = write_encoder(tmp_path / "encoder"), tmp_path / "made"
    said = make(data, "--input", encoder, "--output", output, "--epochs", "30").stdout
    meta = json.loads((output / "meta.json").read_text())
    assert "fine-tuning on 80 sentences of train, 40 of them positive" in said
    assert meta["trained_on"] == 80 and meta["measured"]["decided"]["sentences"] == 80
    assert meta["measured"]["decided"]["accuracy"] > 0.9 and "sentences of test" in said
    assert {path.name for path in output.iterdir()} == {*meta["files"], "meta.json"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    with torch.no_grad():
        p = model.eval()(**tokenizer("the film is good 3.", return_tensors="pt")).logits.softmax(1)[0, 1].item()
    judge = load_judge(f"hf:{output}#POSITIVE:prob")
    assert judge.score(["the film is"], [" good 3."]) == pytest.approx([p], abs=1e-5) and p > 0.5
    assert "nothing to do" in make(data, "--input", encoder, "--output", output, "--epochs", "30").stdout
    digest = meta["files"]["model.safetensors"]
    make(data, "--input", encoder, "--output", output, "--epochs", "30", "--force")
    assert json.loads((output / "meta.json").read_text())["files"]["model.safetensors"] == digest


def test_what_is_learnt_from(data):
    """Of `train` alone, without those that people were undecided about."""
    texts, positive = movies_sentiment.training_sentences(data)
    assert len(texts) == 80 and positive.sum() == 40
    rows = [json.loads(line) for line in (data / "sentences.jsonl").read_text().splitlines()]
    clear = {row["text"]: row["rating"] for row in rows if row["split"] == "train"}
    assert [clear[text] > 0 for text in texts] == positive.astype(bool).tolist()
    rates = [movies_sentiment.rate_at(step, 100) for step in range(100)]
    assert max(rates) == rates[9] == 1 and rates[0] == 0.1 and 0 < rates[-1] < 0.02


def test_each_sentence_is_read_once_beside_others_of_its_length():
    lengths = [(7 * i) % 50 + 3 for i in range(1000)]
    batches = movies_sentiment.batches(lengths, torch.Generator().manual_seed(0))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert max(map(len, batches)) == movies_sentiment.BATCH and max(spread) <= 3


def test_refusals(data, tmp_path):
    output, encoder = tmp_path / "out", write_encoder(tmp_path / "encoder")

    def refused(*words):
        done = make(*words, "--output", output, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not output.exists()
        return done.stderr

    assert "does not exist" in refused(data, "--input", tmp_path / "nowhere")
    assert "holds no config.json" in refused(data, "--input", tmp_path)
    assert "--epochs 0: must be at least 1" in refused(data, "--input", encoder, "--epochs", "0")
    assert "python datasets/movies.py" in refused(tmp_path)
    few = write_rated_sentences(tmp_path / "few", each=2)
    assert "has 4 positive and 4 negative sentences to train on" in refused(few, "--input", encoder)
    (encoder / "config.json").write_text('{"model_type": "gpt2"}')
    assert "is not a BERT that transformers can read" in refused(data, "--input", encoder)
