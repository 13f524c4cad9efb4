"""How long a stage takes: hand-made counts, what was measured, messages between devices, and `plan`'s line."""

import dataclasses

import pytest
import torch

from lm_human_preferences.compute.peaks import Peaks, measure_peaks
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.flops import TRAINING, choice_flops, forward_flops, response_flops
from lm_human_preferences.language.gpt2 import SHAPES, GPT2Config, count_parameters
from lm_human_preferences.runs.micro_batches import MicroBatches
from lm_human_preferences.runs.stage_hours import Device, messages, stage_work, step_times

from params import EXPERIMENTS
from small import run_here

SMALL = GPT2Config(**SHAPES["124M"])
CPU = Peaks(0.25e12, 0.142e12, 16.6e9)  # docs/performance.md: two cores without AMX
H200 = Peaks(421e12, 799e12, 4.1e12)  # docs/log.md, 2026-11-26: float32 in TF32


def update(task, rows, device):
    """Predicted times of a policy step of so many rows, all at once; both of the tasks' contexts have 8 more tokens
    than their queries at most.
    """
    entry = EXPERIMENTS["train_policy"][task]()
    entry.ppo = dataclasses.replace(entry.ppo, batch_size=rows, nminibatches=1)
    work = stage_work("train_policy", entry, SMALL, 8 * (task == "cnndm"), MicroBatches(rows, rows, rows), device)
    return step_times(work, device, 1e9)


@pytest.mark.parametrize(
    "task, rows, device, seconds, sampling",
    [
        ("sentiment", 16, Device(CPU, False, "cpu"), 23.2, 2.74),
        ("cnndm", 4, Device(CPU, False, "cpu"), 48.3, 7.44),
        ("sentiment", 512, Device(H200, True, "cuda"), 0.589, 0.072),
    ],
)
def test_predictions_are_near_what_was_measured(task, rows, device, seconds, sampling):
    """Within a sixth for updates. Sampling on a GPU is the furthest off: it waits for kernels to start."""
    times = update(task, rows, device)
    assert times.step == pytest.approx(seconds, rel=1 / 6)
    assert times.sampling == pytest.approx(sampling, rel=0.1 if device.kind == "cpu" else 0.4)


def test_a_steps_work_is_that_of_its_passes():
    sizes, device = MicroBatches(64, 64, 64), Device(CPU, False, "cpu")
    entry = EXPERIMENTS["train_policy"]["sentiment"]()
    work = stage_work("train_policy", entry, SMALL, 0, sizes, device)
    assert work.training == 4 * 512 * TRAINING * response_flops(SMALL, 64, 24)
    assert work.scoring == 512 * (response_flops(SMALL, 64, 24) + forward_flops(SMALL, 88, outputs=1))
    assert work.steps == -(-1_000_000 // 512) and work.messages == 0
    halved = stage_work("train_policy", entry, SMALL, 0, sizes, dataclasses.replace(device, ranks=2))
    assert halved.training == work.training / 2 and halved.sampling < 0.6 * work.sampling
    reward = stage_work("train_reward", EXPERIMENTS["train_reward"]["sentiment"](), SMALL, 0, sizes, device)
    assert reward.training == 32 * TRAINING * choice_flops(SMALL, 64, [24] * 4) and reward.steps == 156
    for stage in ("train_reward", "train_dpo"):
        entry = EXPERIMENTS[stage]["sentiment"]()
        once, thrice = (
            stage_work(stage, dataclasses.replace(entry, epochs=epochs), SMALL, 0, sizes, device) for epochs in (1, 3)
        )
        assert thrice.steps == 3 * once.steps and thrice.training == once.training
    best = EXPERIMENTS["expert_iteration"]["sentiment"]()
    kept = stage_work("expert_iteration", best, SMALL, 0, sizes, device)
    assert kept.training == work.training * best.ppo.noptepochs / 4 / best.ppo.responses_per_query


def test_every_stage_of_every_task_has_its_work():
    for stage, tasks in EXPERIMENTS.items():
        for task, entry in tasks.items():
            work = stage_work(stage, entry(), SMALL, 0, MicroBatches(4, 4, 4), Device(CPU, False, "cpu"))
            assert work.training > 0, (stage, task)


def test_messages():
    """Copied: a ring sends each gradient twice, less the part that stays. Sharded: weights twice, gradients once."""
    weights = 4 * count_parameters(SMALL)["total"]
    device = Device(H200, True, "cuda", ranks=8)
    assert messages(SMALL, Device(H200, True, "cuda"), 4, 3) == 0
    assert messages(SMALL, device, 4, 3) == pytest.approx(4 * 2 * weights * 7 / 8)
    assert messages(SMALL, dataclasses.replace(device, sharded=True), 4, 3) == pytest.approx(15 * weights * 7 / 8)


def test_peaks_are_rates_of_this_machine(monkeypatch):
    from lm_human_preferences.compute import peaks

    monkeypatch.setattr(peaks, "SIDES", {"cpu": 128})
    monkeypatch.setattr(peaks, "COPY_BYTES", 2**16)
    found = measure_peaks(torch.device("cpu"), repeats=2)
    assert all(rate > 1e6 for rate in found)


PLAN = ("plan", "sentiment", "--model", "124M", "--device", "cuda", "--memory", 141)


def test_plan_says_hours(capsys):
    told = ("--tflops", 799, "--bandwidth", 4100)
    run_here(*map(str, (*PLAN, *told)))
    text = capsys.readouterr().out
    assert "told: 799 TFLOP/s, 4,100 GB/s" in text
    assert "17.3 minutes: 1,954 steps, a step 0.53 s (sampling 0.0456, scoring 0.0739, training 0.411)" in text
    run_here(*map(str, (*PLAN, *told, "--devices", 64, "--link", 50)))
    assert "sending" in capsys.readouterr().out
    run_here(*map(str, PLAN))
    assert "a step" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (("--tflops", 100), "--tflops and --bandwidth belong together"),
        (("--tflops", 100, "--bandwidth", 100, "--measure", "on"), "exclude each other"),
        (("--measure", "on"), "give its rates with --tflops and --bandwidth"),
        (("--link", 0), "must be positive"),
    ],
)
def test_rates_that_cannot_be(words, said):
    with pytest.raises(UserError, match=said):
        run_here(*map(str, (*PLAN, *words)))
