"""Adam in TensorFlow's form against its written-out formula, what decays, and the schedules. Hazards 13, 14."""

import copy

import numpy as np
import pytest
import torch

from lm_human_preferences.distributed import World
from lm_human_preferences.optim import TensorFlowAdam, adamw, allocate_state, linear_decay, optimizer_tensors, warmup_cosine
from lm_human_preferences.training_checkpoints import Checkpoints


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7])
def test_adam_is_tensorflows(scale):
    """w -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), written out in numpy, for gradients of several sizes."""
    random, w = np.random.default_rng(0), torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
    optimizer, expected, m, v = TensorFlowAdam([w]), np.zeros(7), np.zeros(7), np.zeros(7)
    torchs = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
    other = torch.optim.Adam([torchs], eps=1e-5)
    for t, lr in enumerate([0.1, 0.1, 0.05, 0.01], 1):
        gradient = random.normal(size=7) * scale
        w.grad, torchs.grad, other.param_groups[0]["lr"] = torch.from_numpy(gradient), torch.from_numpy(gradient), lr
        optimizer.step(lr)
        other.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient ** 2
        expected -= lr * np.sqrt(1 - 0.999 ** t) / (1 - 0.9 ** t) * m / (np.sqrt(v) + 1e-5)
        np.testing.assert_allclose(w.detach(), expected, rtol=1e-9)
        if t == 1 and scale == 1e-7:
            np.testing.assert_allclose(torchs.detach() / w.detach(), 31.6, rtol=0.02)  # what torch's place of epsilon would do


@pytest.mark.parametrize("way", ["state_dict", "tensors"])
def test_adam_goes_on_bitwise_after_its_state_is_restored(tmp_path, way):
    generator, w = torch.Generator().manual_seed(0), torch.nn.Parameter(torch.ones(5))
    gradients = torch.randn(6, 5, generator=generator) * 1e-4
    optimizer = TensorFlowAdam([w])
    for gradient in gradients[:3]:
        w.grad = gradient
        optimizer.step(0.01)
    resumed = torch.nn.Parameter(w.detach().clone())
    restored = TensorFlowAdam([resumed])
    if way == "state_dict":
        restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:  # as checkpoints keep it
        old, new = (torch.nn.ParameterDict({"w": parameter}) for parameter in (w, resumed))
        Checkpoints(tmp_path, 1, World()).save(3, optimizer_tensors(optimizer, old), {})
        allocate_state(restored)
        assert Checkpoints(tmp_path, 1, World()).load(optimizer_tensors(restored, new))["step"] == 3
    for gradient in gradients[3:]:
        w.grad = resumed.grad = gradient
        optimizer.step(0.01)
        restored.step(0.01)
    assert torch.equal(w, resumed) and optimizer.param_groups[0]["eps"] == restored.param_groups[0]["eps"]


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model.parameters(), (0.9, 0.99), weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name == "0.weight" else 1.0))


def test_schedules():
    assert [linear_decay(8.0, step, 4) for step in range(4)] == [8.0, 6.0, 4.0, 2.0]
    rates = [warmup_cosine(1.0, step, total=13, warmup=4, final_fraction=0.1) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose([rates[4], rates[8], rates[12]], [1.0, 0.55, 0.1])
    assert all(a > b for a, b in zip(rates[4:], rates[5:]))
    np.testing.assert_allclose([warmup_cosine(2.0, step, 3, 0, 0.0) for step in range(3)], [2.0, 1.0, 0.0], atol=1e-15)
    assert [warmup_cosine(2.0, step, 2, 4, 0.1) for step in range(2)] == [0.5, 1.0]  # it may end before the warm-up does
    assert warmup_cosine(2.0, 0, 1, 0, 0.1) == 2.0
