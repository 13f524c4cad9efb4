"""Models that write beside each other: the tokens are those that sampling draws, the log-probabilities those that
training takes.
"""

import pytest
import torch
from players import small_model

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.language.sampling import sample
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.serving.side_by_side import SideBySide

FLOAT32 = choose_precision("cpu", "float32")


def columns(models, context, uniforms, temperature, precision=FLOAT32):
    """tokens int64 [K, R] and log-probabilities float32 [K models, K columns, R] of all steps."""
    writing, steps = SideBySide(models, context, uniforms, temperature, precision), []
    while (step := writing.step()) is not None:
        steps.append(step)
    return torch.stack([s.tokens for s in steps], 1), torch.stack([s.logprobs for s in steps], 2)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_each_column_is_what_its_model_samples_and_every_model_reads_it(temperature):
    models = [small_model(0), small_model(1)]
    context = torch.tensor([3, 1, 20, 7])
    uniforms = torch.rand(12, generator=generator_for(0, "test"))
    tokens, logprobs = columns(models, context, uniforms, temperature)
    assert not torch.equal(tokens[0], tokens[1])
    for k in range(2):
        drawn = sample(models[k], context[None], uniforms[None], temperature=temperature)
        assert torch.equal(tokens[k], drawn.tokens[0])
        assert torch.allclose(logprobs[k, k], drawn.logprobs[0], atol=1e-5)
        for m in range(2):
            policy = Policy(models[m], QueryFormatter([], []), temperature)
            read = policy.analyze(context[None], tokens[k : k + 1])
            assert torch.allclose(logprobs[m, k], read.logprobs[0], atol=1e-5)


def test_a_model_beside_itself_differs_nowhere():
    model = small_model(0)
    tokens, logprobs = columns([model, model], torch.tensor([1, 2]), torch.rand(8), 1.0)
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(logprobs[0], logprobs[1])


def test_in_bfloat16_the_vocabulary_stays_float32():
    precision = choose_precision("cpu", "bfloat16")
    _, logprobs = columns([small_model(0), small_model(1)], torch.tensor([1]), torch.rand(4), 1.0, precision)
    assert logprobs.dtype == torch.float32 and torch.isfinite(logprobs).all()
