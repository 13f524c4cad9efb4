"""What an update asks of its device. Here that is `meta`, whose tensors have shapes and no numbers: whatever would wait
for a GPU, because the host wants a number from it, raises there; so does most of what mixes up host and device.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from lm_human_preferences.compute import precision
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.language import logprobs
from lm_human_preferences.learning.ppo import Rollout

from conftest import Goldens, tensor
from recorded import make_policy, ppo_trainer

META = torch.device("meta")


@pytest.fixture
def trainer(goldens, monkeypatch):
    """Of the recorded PPO cycle, its models on `meta`; its minibatches cut into micro-batches."""
    for table in (logprobs.CHUNK_ROWS, logprobs.BLOCK_ROWS, logprobs.KEPT_BYTES):
        monkeypatch.setitem(table, "meta", table["cpu"])
    monkeypatch.setitem(precision.VOCABULARY_MULTIPLE, "meta", 64)  # as on a GPU
    monkeypatch.setattr("torch.autocast", lambda *args, **more: contextlib.nullcontext())  # there is none on `meta`
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device: False)
    trainer = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"], micro_batch=3)
    for model in (trainer.policy, trainer.reference, trainer.scorer.rewards):
        model.to(META)
    trainer.precision = Precision(META, False)
    trainer.optimizer.step = lambda lr: None  # PyTorch has no fused one there
    return trainer


def queries_of(goldens) -> torch.Tensor:
    queries = tensor(goldens("ppo_cycle")["step0/queries"])
    assert (queries == 99).any() and not (queries == 99).all(1).any()
    return queries


def test_a_minibatch_waits_for_nothing(goldens, trainer):
    queries = queries_of(goldens)
    B, R = len(queries), 6
    float_columns = {name: torch.empty(B, R, device=META) for name in ("logprobs", "values", "sampled", "reference")}
    scores, valid = torch.empty(B, device=META), torch.empty(B, dtype=torch.bool, device=META)
    responses = torch.empty(B, R, dtype=torch.int64, device=META)
    rollout = Rollout(queries.to(META), responses, *float_columns.values(), scores, valid, responses, queries != 99)
    stats = trainer.train_minibatch(rollout, torch.empty(B, R, device=META), torch.arange(B).flip(0), 1e-3)
    assert all(value.device == META and value.ndim == 0 for value in stats.values()) and "ratio/std" in stats


def test_a_rollout_waits_for_nothing_but_the_truncated_responses_padding(goldens, trainer):
    queries = queries_of(goldens)
    trainer.queries.batch = lambda size: queries
    trainer.recompute = True

    def scorer(queries, responses):
        score = torch.empty(len(responses), device=META)
        return score, score > 0, responses, score

    asked = trainer.scorer
    trainer.scorer = SimpleNamespace(measure=scorer, scale=asked.scale, scores=asked.scores)
    rollout = trainer.sample(0)
    assert rollout.responses.device == META and torch.equal(rollout.real, queries != 99)
    with pytest.raises(NotImplementedError, match="no data"):
        asked(rollout.queries, rollout.responses)


def test_a_mask_that_is_given_stands_for_the_tokens(goldens):
    """The same numbers, in a pass, in sampling, and beside prefix and suffix."""
    policy, queries = make_policy(goldens("weights")), queries_of(goldens)
    responses, uniforms = tensor(goldens("ppo_cycle")["step0/responses"]), torch.rand(len(queries), 6)
    real = queries != 99
    assert torch.equal(policy.formatter.real(real), policy.formatter(queries) != 99)
    for one, other in (
        (policy.analyze(queries, responses), policy.analyze(queries, responses, real=real)),
        (policy.respond(queries, uniforms)[:3], policy.respond(queries, uniforms, real=real)[:3]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
