"""Perplexity of held-out texts: whose tokens are counted, the interval, and one model against another."""

import math
import re

import numpy as np
import pytest
import torch

from lm_human_preferences.commands.perplexity import PerplexityParams, perplexity_lines
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.queries import write_token_file
from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.calibration import ratio_of_sums
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.model_folders import save_model

from small import CONFIG

DOCUMENTS = [[1, 2, 3, 4], [5], [6, 7] * 20, [9, 8], [3, 1, 4, 1, 5, 9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perplexity")
    for seed in (0, 1):
        save_model(folder / f"model{seed}", GPT2(CONFIG).initialise(generator_for(seed, "test")))
    write_token_file(folder / "data", "valid", DOCUMENTS)
    return folder


def measure(folder, **settings):
    params = PerplexityParams(device="cpu", precision="float32", save_dir=str(folder), **settings)
    return perplexity_lines(str(folder / "model0"), (str(folder / "data"),), params)


def losses(folder, model, document):
    """By the model itself, a document alone."""
    from lm_human_preferences.language.model_folders import load_model

    model, tokens = load_model(folder / model), torch.tensor([document])
    hidden = model(tokens)
    logits = hidden @ model.wte.weight.T
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:], reduction="sum").item()


def test_a_document_a_row_is_read_by_itself(folder):
    (line,) = measure(folder, rows="single", block=16)
    read = [document[:17] for document in DOCUMENTS if len(document) > 1]
    nats = [losses(folder, "model0", document) for document in read]
    tokens = [len(document) - 1 for document in read]
    assert f"({sum(nats) / sum(tokens):.4f} nats per token;" in line
    of_each = np.mean([math.exp(n / t) for n, t in zip(nats, tokens, strict=True)])
    assert f"mean of the texts' own {of_each:.1f}; 4 rows of 16 tokens)" in line


def test_against_another_model_on_the_same_rows(folder):
    one, other, times = measure(folder, rows="single", against=str(folder / "model1"))
    (alone,) = measure(folder, rows="single")
    assert one == alone and other.strip().startswith(f"{folder / 'model1'}: perplexity ")
    values = [float(re.search(r"\(([\d.]+) nats", line)[1]) for line in (one, other)]
    found, low, high = map(float, re.findall(r"\d+\.\d{3}", times)[:3])
    assert found == pytest.approx(math.exp(values[0] - values[1]), abs=1e-3) and low <= found <= high
    same = measure(folder, block=16, against=str(folder / "model0"))
    assert "1.000 [1.000, 1.000] times" in same[-1]


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random, inside = np.random.default_rng(0), 0
    for trial in range(400):
        tokens = random.integers(1, 40, 120)
        sums = tokens * 3.0 + random.normal(0, 2, 120) * np.sqrt(tokens)
        estimate = ratio_of_sums(sums, tokens)
        inside += abs(estimate["value"] - 3.0) < 1.96 * estimate["standard_error"]
        if not trial:
            resampled = Bootstrap(120, 1).ratio(sums, tokens)
            for sign, end in ((-1, "low"), (1, "high")):
                expected = estimate["value"] + sign * 1.96 * estimate["standard_error"]
                assert resampled[end] == pytest.approx(expected, abs=0.01)
    assert 0.9 < inside / 400 < 0.98
    assert ratio_of_sums(np.zeros(0), np.zeros(0)) == {"value": None, "standard_error": None}
