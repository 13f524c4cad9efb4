"""Several ranks, copied (DDP) or sharded (FSDP), give what one gives; checkpoints of one layout are read by any other.
DESIGN's invariants 2 and 3.

tests/scaling.py compares whole runs at length; here the recorded models do a step of everything, and one run changes
its layout on the way.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.dropout import RowDropout, row_seeds
from lm_human_preferences.runs.checkpoints import Checkpoints

from conftest import Goldens
from recorded import run_both
from scaling import distance, run, words_of
from small import ROOT, make_world, metrics


def _one_rank(rank: int, size: int, sharding: str, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    with distributed.world("cpu") as world:
        torch.save(run_both(Goldens(), world, sharding), Path(folder) / f"{rank}.pt")


def test_sharded_ranks_agree_with_each_other_and_with_one(goldens, tmp_path, size=2, sharding="fsdp"):
    """Rollouts, KL coefficient, normalisation, gain and bias, statistics and all weights after a step; the same with
    DDP is in test_hazards.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_rank, (size, sharding, port, str(tmp_path)), nprocs=size)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(size)]
    alone = run_both(goldens, World())
    for name, value in alone.items():
        assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks[1:]), name
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(ranks[0]["rollout.responses"], alone["rollout.responses"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a reward model and a policy run of ten updates on one rank."""
    folder = make_world(tmp_path_factory.mktemp("scaling"))
    run("train_reward", "reward", folder, 1)
    run("train_policy", "alone", folder, 1)
    return folder


@pytest.mark.parametrize("ranks, sharding", [(2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_ten_updates_equal_those_of_one_rank(world, ranks, sharding):
    found = distance(
        "train_policy",
        run("train_policy", f"{sharding}_{ranks}", world, ranks, "--run.sharding", sharding),
        world / "runs/alone",
    )
    assert found["loss"] < 1e-5 and found["weights"] < 5e-5 and found["same responses"] == 1


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_upper_blocks_alone(world, sharding):
    """Ranks do not wait for gradients of what is frozen."""
    top = ["--model.train_top", "1"]
    if not (world / "runs/top_alone").exists():
        run("train_policy", "top_alone", world, 1, *top)
    both = run("train_policy", f"top_{sharding}", world, 2, "--run.sharding", sharding, *top)
    found = distance("train_policy", both, world / "runs/top_alone")
    assert found["loss"] < 1e-5 and found["weights"] < 5e-5 and found["same responses"] == 1
    assert distance("train_policy", both, world / "runs/alone")["weights"] > 1e-4


def test_dropout_does_not_depend_on_ranks_and_micro_batches(world):
    alone, copied = (
        run("train_sft", "sft_alone", world, 1),
        run("train_sft", "sft_ranks", world, 2, "--run.micro_batch", "3", "--run.recompute_activations", "on"),
    )
    found = distance("train_sft", copied, alone)
    assert found["loss"] < 1e-5 and found["weights"] < 5e-5
    without = run("train_sft", "sft_without", world, 1, "--optimizer.dropout", "0")
    assert abs(metrics(without)[0]["train/loss"] - metrics(alone)[0]["train/loss"]) > 1e-4  # it did drop


def test_sharded_muon(world):
    """It orthogonalises whole matrices although each rank holds rows of them. It works in bfloat16, hence the
    distance.
    """
    words = ["--optimizer.method", "muon", "--optimizer.schedule", "wsd"]
    found = distance(
        "train_sft",
        run("train_sft", "muon_ranks", world, 2, "--run.sharding", "fsdp", *words),
        run("train_sft", "muon_alone", world, 1, *words),
    )
    assert found["loss"] < 2e-4 and found["weights"] < 5e-3
    adam = run("train_sft", "adam_alone", world, 1)
    assert distance("train_sft", world / "runs/muon_alone", adam)["weights"] > 2e-2  # it is another method


def test_row_dropout():
    seeds, ones = row_seeds(6, generator_for(1, "test")), torch.ones(6, 40, 500)
    dropped = RowDropout(0.25, seeds, 40)(ones, site=3)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75]) and (dropped == 0).float().mean() == pytest.approx(
        0.25, abs=0.01
    )
    part = RowDropout(0.25, seeds[2:4], 40)(ones[2:4, :17], site=3)  # as in another micro-batch, whose rows are shorter
    assert torch.equal(part, dropped[2:4, :17])
    for other in (
        RowDropout(0.25, seeds, 40)(ones, site=4),
        RowDropout(0.25, row_seeds(6, generator_for(1, "other")), 40)(ones, site=3),
        dropped.roll(1, 0),
    ):
        assert ((other == 0) == (dropped == 0)).float().mean() < 0.65  # independent masks agree on 0.625 of the places
    half = torch.full((1, 3, 4), 0.5, requires_grad=True)
    RowDropout(0.5, [7], 3)(half, 0).sum().backward()
    assert set(half.grad.unique().tolist()) <= {0.0, 2.0}


# --- checkpoints of any layout ---


def stop_after(world: Path, name: str, steps: int, ranks: int, *more: str) -> Path:
    """Start the ten updates on so many ranks and end them, as SIGTERM would, after `steps`; the checkpoints folder."""
    words = ["train_policy", "movies", name, *words_of("train_policy", world), "--run.save_interval", "0", *more]
    # the run asks itself to stop: the same step every time
    code = (
        "import os, runpy, signal, sys\nfrom lm_human_preferences.runs.tracking import JsonLines\nwrite = "
        "JsonLines.write\n"
        "def write_and_stop(self, rows):\n    rows = list(rows)\n    write(self, rows)\n"
        f"    if self.path.name == 'metrics.jsonl' and rows[0]['step'] == {steps - 1}: os.kill(os.getpid(), "
        "signal.SIGTERM)\n"
        f"JsonLines.write = write_and_stop\nsys.argv = {['launch.py', *map(str, words)]!r}\nsys.path.insert(0, "
        f"{str(ROOT)!r})\n"
        "runpy.run_path('launch.py', run_name='__main__')"
    )
    script = world / f"{name}.py"
    script.write_text(code)
    start = (
        [sys.executable]
        if ranks == 1
        else [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    )
    done = subprocess.run(
        [*start, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and f"stopped after step {steps} of 10" in done.stdout, (
        done.stdout + done.stderr[-3000:]
    )
    return world / "runs" / name / "checkpoints"


@pytest.mark.parametrize(
    "before, after",
    [((2, "fsdp"), (1, "ddp")), ((1, "ddp"), (2, "fsdp")), ((3, "fsdp"), (2, "fsdp")), ((2, "fsdp"), (2, "ddp"))],
)
def test_a_run_goes_on_with_other_ranks_and_sharding(world, before, after):
    name, batch = f"layout_{before[0]}{before[1]}_{after[0]}{after[1]}", []
    if 3 in (before[0], after[0]):
        batch = ["--ppo.batch_size", "18", "--ppo.total_episodes", "180"]
        if not (world / "runs/alone_18").exists():
            run("train_policy", "alone_18", world, 1, *batch)
    saved = stop_after(world, name, 4, before[0], "--run.sharding", before[1], *batch)
    assert len(list((saved / "00000004").glob("*.safetensors"))) == (before[0] if before[1] == "fsdp" else 1)
    again = run(
        "train_policy",
        name,
        world,
        after[0],
        "--run.sharding",
        after[1],
        "--run.save_interval",
        "0",
        "--run.resume",
        *batch,
    )
    found = distance("train_policy", again, world / "runs" / ("alone_18" if batch else "alone"))
    assert found["loss"] < 1e-5 and found["weights"] < 5e-5 and found["same responses"] == 1
    assert [row["step"] for row in metrics(again)] == list(range(10))


def test_sharded_runs_resume_bitwise(world):
    whole = run("train_policy", "fsdp_whole", world, 2, "--run.sharding", "fsdp")
    stop_after(world, "fsdp_parts", 3, 2, "--run.sharding", "fsdp")
    parts = run(
        "train_policy", "fsdp_parts", world, 2, "--run.sharding", "fsdp", "--run.save_interval", "0", "--run.resume"
    )
    assert metrics(parts) == metrics(whole)
    one, other = (load_file(folder / "policy/model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- the files ---


def save_some(folder: Path, steps: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, 2, World())
    for step in range(1, steps + 1):
        checkpoints.save(
            step, {"w": torch.full((4, 3), float(step)), "scalar": torch.tensor(float(step))}, {"note": step * 10}
        )
    return checkpoints


def test_checkpoints_keep_the_newest_and_read_back(tmp_path):
    checkpoints = save_some(tmp_path / "c")
    assert [path.name for path in checkpoints.all()] == ["00000002", "00000003"]
    target = {"w": torch.zeros(4, 3), "scalar": torch.tensor(0.0)}
    state = checkpoints.load(target)
    assert state["step"] == 3 and state["note"] == 30 and (target["w"] == 3).all() and target["scalar"] == 3
    assert Checkpoints(tmp_path / "none", 2, World()).load(target) is None


@pytest.mark.parametrize(
    "target, says",
    [
        ({"v": torch.zeros(4, 3)}, "has no v"),
        ({"w": torch.zeros(4, 2)}, r"w is \[4, 3\], the model's \[4, 2\]"),
        ({"w": torch.zeros(5, 3)}, "does not have the rows"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, target, says):
    with pytest.raises(UserError, match=says):
        save_some(tmp_path / "c").load(target)


def test_a_checkpoint_is_named_as_the_step_it_holds(tmp_path, capsys):
    checkpoints = save_some(tmp_path / "c")
    (tmp_path / "c/00000003").rename(tmp_path / "c/00000009")
    assert checkpoints.load({"w": torch.zeros(4, 3), "scalar": torch.tensor(0.0)})["step"] == 2
    assert "skipping checkpoint 00000009: it says that it is step 3" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(tmp_path, monkeypatch):
    checkpoints = save_some(tmp_path / "c")

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lm_human_preferences.runs.checkpoints.save_file", full)
    with pytest.raises(UserError, match="cannot write .*00000004: No space left on device; make room"):
        checkpoints.save(4, {"w": torch.zeros(4, 3)}, {})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["00000002", "00000003"]
