"""Adam in TensorFlow's form against its written-out formula, what decays, and the schedules. Hazards 13, 14."""

import copy
import itertools

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.optim import (
    Muon,
    TensorFlowAdam,
    adamw,
    allocate_state,
    linear_decay,
    muon_and_adamw,
    optimizer_tensors,
    set_rates,
    warmup_cosine,
    warmup_stable_decay,
)
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.runs.checkpoints import Checkpoints

from small import CONFIG


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
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-5)
        np.testing.assert_allclose(w.detach(), expected, rtol=1e-9)
        if t == 1 and scale == 1e-7:
            np.testing.assert_allclose(
                torchs.detach() / w.detach(), 31.6, rtol=0.02
            )  # what torch's place of epsilon would do


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


def test_adam_reads_no_number_back_from_the_device(monkeypatch):
    """On a GPU that would be to wait, at each step, until all work so far is done."""
    w = torch.nn.Parameter(torch.ones(5))
    optimizer, read = TensorFlowAdam([w]), []
    for name in ("__int__", "__float__", "__index__", "item", "tolist"):
        was = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, was=was: read.append(tensor) or was(tensor))
    for _ in range(3):
        w.grad = torch.ones(5)
        optimizer.step(0.01)
    assert read == []
    optimizer_tensors(optimizer, torch.nn.ParameterDict({"w": w}))  # from now on it may have been written to
    for _ in range(3):
        optimizer.step(0.01)
    assert len(read) == 1
    assert optimizer.param_groups[0]["eps"] == 1e-5 / (1 - 0.999**6) ** 0.5


def test_adam_takes_up_a_checkpoint_in_the_middle_of_its_steps(tmp_path):
    """The count of steps is the checkpoint's, not its own; and a group counts only those in which it had gradients."""
    w, still = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(2))
    module = torch.nn.ParameterDict({"w": w, "still": still})
    optimizer = TensorFlowAdam([{"params": [w]}, {"params": [still]}])
    allocate_state(optimizer)

    def steps(count: int) -> None:
        for _ in range(count):
            w.grad = torch.full((5,), 1e-4)
            optimizer.step(0.01)

    checkpoints = Checkpoints(tmp_path, 1, World())
    steps(1)
    checkpoints.save(1, dict(module.named_parameters()) | optimizer_tensors(optimizer, module), {})
    steps(1)
    expected, eps = w.detach().clone(), [group["eps"] for group in optimizer.param_groups]
    steps(5)
    checkpoints.load(dict(module.named_parameters()) | optimizer_tensors(optimizer, module))
    steps(1)
    assert torch.equal(w, expected) and [group["eps"] for group in optimizer.param_groups] == eps
    assert eps == [1e-5 / (1 - 0.999**2) ** 0.5, 1e-5 / (1 - 0.999**1) ** 0.5]


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model.parameters(), 1.0, (0.9, 0.99), weight_decay=0.1)
    set_rates(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name == "0.weight" else 1.0))


def test_muon_takes_the_blocks_matrices_alone():
    model = GPT2(CONFIG).initialise(torch.Generator().manual_seed(0))
    optimizer = muon_and_adamw(model.named_parameters(), 6e-3, 2e-3, (0.9, 0.99), weight_decay=0.1)
    muon, adam = optimizer.optimizers
    names = {p: name for name, p in model.named_parameters()}
    of_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    assert (
        of_muon
        == {name for name in names.values() if name.startswith("h.") and name.endswith("weight") and "ln_" not in name}
        and len(of_muon) == 4 * CONFIG.n_layer
    )
    assert of_muon | {names[p] for group in adam.param_groups for p in group["params"]} == set(names.values())
    assert all(group["weight_decay"] == (0.1 if group in muon.param_groups else 0) for group in optimizer.param_groups)
    set_rates(optimizer, 0.5)
    assert {group["lr"] for group in muon.param_groups} == {3e-3} and {group["lr"] for group in adam.param_groups} == {
        1e-3
    }


def test_muons_step_is_orthogonal_and_as_long_as_adams():
    """All singular values of a step are alike, and its entries' root mean square is about 0.2 of the rate, AdamW's in
    training (arXiv 2502.16982).
    """
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(64, 192, bias=False)])})
    weight = model["h"][0].weight
    before, optimizer = weight.detach().clone(), Muon([weight], 0.01)
    weight.grad = torch.randn(192, 64, generator=generator) @ torch.diag(torch.logspace(0, -2, 64))
    optimizer.step()
    step = (before - weight.detach()) / 0.01
    values = torch.linalg.svdvals(step) / (0.2 * 192**0.5)
    assert 0.6 < values.min() and values.max() < 1.3, values
    assert torch.linalg.svdvals(weight.grad).max() > 50 * torch.linalg.svdvals(weight.grad).min()
    assert (step * weight.grad).sum() > 0  # downhill


def test_muon_is_pytorchs():
    """Several steps on matrices of several shapes, some of them alike, against PyTorch's implementation, which iterates
    in bfloat16.
    """
    generator = torch.Generator().manual_seed(0)
    ours = [
        torch.nn.Parameter(0.1 * torch.randn(shape, generator=generator))
        for shape in ((32, 96), (32, 32), (128, 32), (32, 96))
    ]
    theirs, start = [torch.nn.Parameter(p.detach().clone()) for p in ours], [p.detach().clone() for p in ours]
    optimizers = (
        Muon(ours, 0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, before in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.03 * (q - before).norm()


@pytest.mark.parametrize(
    "make",
    [
        lambda m: adamw(m.parameters(), 0.01, (0.9, 0.99), 0.1),
        lambda m: muon_and_adamw(m.named_parameters(), 0.01, 0.01, (0.9, 0.99), 0.1),
    ],
    ids=["adamw", "muon"],
)
def test_training_goes_on_bitwise_after_its_state_is_restored(tmp_path, make):
    tokens = torch.randint(26, (4, 8), generator=torch.Generator().manual_seed(1))

    def steps(model, optimizer, count):
        for _ in range(count):
            model(tokens).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    model = GPT2(CONFIG).initialise(torch.Generator().manual_seed(0))
    optimizer = make(model)
    steps(model, optimizer, 2)
    Checkpoints(tmp_path, 1, World()).save(2, dict(model.named_parameters()) | optimizer_tensors(optimizer, model), {})
    resumed = GPT2(CONFIG).initialise(torch.Generator().manual_seed(5))
    restored = make(resumed)
    allocate_state(restored)
    Checkpoints(tmp_path, 1, World()).load(dict(resumed.named_parameters()) | optimizer_tensors(restored, resumed))
    for pair in ((model, optimizer), (resumed, restored)):
        steps(*pair, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_schedules():
    assert [linear_decay(8.0, step, 4) for step in range(4)] == [8.0, 6.0, 4.0, 2.0]
    rates = [warmup_cosine(step, total=13, warmup=4, final=0.1) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose([rates[4], rates[8], rates[12]], [1.0, 0.55, 0.1])
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    np.testing.assert_allclose([warmup_cosine(step, 3, 0, 0.0) for step in range(3)], [1.0, 0.5, 0.0], atol=1e-15)
    assert [warmup_cosine(step, 2, 4, 0.1) for step in range(2)] == [0.25, 0.5]  # it may end before the warm-up does
    assert warmup_cosine(0, 1, 0, 0.1) == 1.0
    rates = [warmup_stable_decay(step, total=10, warmup=2, final=0.0, decay=0.4) for step in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], atol=1e-15)
    np.testing.assert_allclose(
        [warmup_stable_decay(step, 5, 0, 0.1, 1.0) for step in range(5)], [0.82, 0.64, 0.46, 0.28, 0.1]
    )
    assert [warmup_stable_decay(step, 4, 0, 0.5, 0.0) for step in range(4)] == [1, 1, 1, 0.5]
