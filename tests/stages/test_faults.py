"""What stops a run, and what comes after: damaged files, full disks, losses that are no numbers, signals, kills.

Whatever happens, a clear line names the newest step on disk, nothing half-written is left or loaded, and the resumed
run ends bitwise like one that was never stopped. Invariant 5 of the design; hazards 24, 25.
"""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.foundation.errors import Interrupted, UserError
from lm_human_preferences.foundation.files import atomic_file, atomic_folder, disk_errors
from lm_human_preferences.language.model_folders import load_heads, load_model
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import JsonLines

from faults import STAGES, assert_same_end, copy_of_stopped, saved, train, words_of
from small import LAUNCH, ROOT, launch, metrics, reward_flags


@pytest.fixture(scope="module")
def world(stopped_world):
    return stopped_world


def flipped(share: float) -> Callable[[Path], None]:
    """Flips one bit at that share of a file's length."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(share * (len(data) - 1))] ^= 1 << int(share * 100) % 7
        path.write_bytes(data)

    return damage


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "cut by one byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
    **{f"a bit at {share:.0%}": flipped(share) for share in (0.0, 0.03, 0.1, 0.5, 0.9, 1.0)},
}


# --- checkpoints ---


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_named_and_passed_over(world, stage, damage, capfd):
    """Each file of the newest checkpoint in turn."""
    for number, file in enumerate(sorted((world / f"runs/stopped_{stage}/checkpoints/00000003").iterdir())):
        run = copy_of_stopped(world, stage, f"{stage}_{damage}_{number}")
        DAMAGES[damage](run / "checkpoints/00000003" / file.name)
        train(stage, run.name, words_of(world, stage, run__resume="on"))
        said = re.findall(r"skipping checkpoint (\d+): (.*)", capfd.readouterr().err)
        assert [step for step, _ in said] == ["00000003"] and said[0][1]
        assert_same_end(world, stage, run)


def test_without_any_whole_checkpoint_a_run_begins_again(world, capfd):
    run = copy_of_stopped(world, "train_policy", "none_whole")
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    train("train_policy", run.name, words_of(world, "train_policy", run__resume="on"))
    assert capfd.readouterr().err.count("skipping checkpoint") == 3
    assert_same_end(world, "train_policy", run)


def test_what_a_kill_leaves_half_written_is_tidied_away(world):
    run = copy_of_stopped(world, "train_policy", "tidied")
    for path in (run / ".policy.x1.partial/model.safetensors", run / "checkpoints/.00000004.partial/state.json"):
        path.parent.mkdir()
        path.write_text("half")
    (run / ".result.json.x2.partial").write_text("half")
    train("train_policy", run.name, words_of(world, "train_policy", run__resume="on"))
    assert_same_end(world, "train_policy", run)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_configuration_is_one_line_and_costs_nothing(world, damage):
    """It is refused, or what is damaged in it does not matter; once deleted, it is written anew."""
    run = copy_of_stopped(world, "train_policy", f"config_{damage}")
    DAMAGES[damage](run / "config.json")
    if damage != "missing":
        try:
            train("train_policy", run.name, words_of(world, "train_policy", run__resume="on"))
            return assert_same_end(world, "train_policy", run)
        except UserError as error:
            assert str(run) in str(error) or "--run.resume" in str(error)
        (run / "config.json").unlink()
    train("train_policy", run.name, words_of(world, "train_policy", run__resume="on"))
    assert json.loads((run / "config.json").read_text())["parameters"] is not None
    assert_same_end(world, "train_policy", run)


@pytest.mark.parametrize(
    "stage, folder", [("train_policy", "policy"), ("train_reward", "reward_model"), ("train_sft", "lm")]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_folders_are_refused(world, tmp_path, stage, folder, damage):
    """Each file in turn: an error that names the folder, or the very same weights (where a digest alone is gone)."""
    whole = world / "runs" / stage / folder
    expected = load_model(whole).state_dict() | load_heads(whole)
    for file in sorted(path.name for path in whole.iterdir()):
        broken = shutil.copytree(whole, tmp_path / file)
        DAMAGES[damage](broken / file)
        try:
            found = load_model(broken).state_dict() | load_heads(broken)
        except UserError as error:
            assert str(broken) in str(error)
            continue
        assert file == "SHA256SUMS" or (file, damage) == ("heads.safetensors", "missing")
        assert all(torch.equal(found[name], expected[name]) for name in found)


# --- losses that are no numbers ---


@pytest.mark.parametrize(
    "stage, rate", [("train_policy", "ppo.lr"), ("train_reward", "lr"), ("train_sft", "optimizer.lr")]
)
def test_a_loss_that_is_no_number_names_the_step_on_disk(world, stage, rate, monkeypatch):
    """The weights become a NaN in the third step, as after a gradient that overflows: no checkpoint and no model holds
    them.
    """
    from lm_human_preferences import train_policy, train_reward, train_sft

    trainer = {
        "train_policy": train_policy.PPOTrainer,
        "train_reward": train_reward.RewardTrainer,
        "train_sft": train_sft.SFTTrainer,
    }[stage]
    name, step = f"nan_{stage}", trainer.step

    def poisoned(self, number, *arguments):
        result = step(self, number, *arguments)
        if number == 2:
            with torch.no_grad():
                next(p for group in self.optimizer.param_groups for p in group["params"]).view(-1)[0] = torch.nan
        return result

    monkeypatch.setattr(trainer, "step", poisoned)
    with pytest.raises(UserError) as stop:
        train(stage, name, words_of(world, stage))
    assert "NaN" in str(stop.value) or "nan" in str(stop.value)
    assert (
        "lower" in str(stop.value)
        and f"the newest checkpoint of {world}/runs/{name} is that of step 2" in stop.value.__notes__[0]
    )
    assert saved(world / "runs" / name) == [1, 2] and not list((world / "runs" / name).rglob(".*"))
    monkeypatch.undo()  # it was a fault of the hardware, say: the same command goes on
    train(stage, name, words_of(world, stage, run__resume="on"))
    assert_same_end(world, stage, world / "runs" / name)


def test_a_diverging_run_says_so_in_one_line(world):
    result = launch("train_policy", "movies", "diverged", *words_of(world, "train_policy", ppo__lr="1e39"), check=False)
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "no checkpoint of" in line and "start anew with a lower --ppo.lr than 1e+39" in line


# --- full disks ---


def test_errors_of_the_disk_are_one_line_and_leave_nothing(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        for opened in (atomic_file, atomic_folder):
            says = f"cannot write {tmp_path}/x: {os.strerror(number)}; make room"
            with pytest.raises(UserError, match=says), opened(tmp_path / "x"):
                raise OSError(number, "as the system says it")
    with (
        pytest.raises(ConnectionResetError),
        disk_errors(tmp_path / "x"),
    ):  # what is read while a file is written is not the disk's fault
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_does_not_fit_is_not_half_written(tmp_path):
    """A limit on the size of files stands for the disk's end."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom lm_human_preferences.foundation.errors import UserError\n"
        "from lm_human_preferences.runs.tracking import JsonLines\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, "
        "1000))\n"
        f"lines = JsonLines(Path({str(tmp_path / 'rows.jsonl')!r}), None)\n"
        "try:\n    [lines.write([{'step': step, 'text': 'x' * 80}]) for step in range(20)]\nexcept UserError as "
        "error:\n    print(error)\nlines.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "make room" in done.stdout, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(9)) and (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    after = JsonLines(tmp_path / "rows.jsonl", 9)
    after.write([{"step": 9}])
    after.close()
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 10


def small_disk_works(folder: Path) -> bool:
    mount = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(folder)]
    return subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.parametrize("kilobytes", [60, 130, 250, 376, 400])
def test_a_full_disk_keeps_the_last_step_and_goes_on_when_there_is_room(world, tmp_path, kilobytes):
    """Disks of several sizes, so that now a checkpoint, now a row of metrics or of warnings, now the model does not
    fit.
    """
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    if shutil.which("unshare") is None or not small_disk_works(disk):
        pytest.skip("mounting a small disk in a namespace of one's own is not permitted here")
    words = words_of(world, "train_policy", run__save_dir=disk)
    script = (
        f"mount -t tmpfs -o size={kilobytes}k none {disk}\n"
        '"$@"; echo status $?\n'
        f"cp -a {disk} {kept}; mount -o remount,size=20m {disk}\n"
        f'"$@" $(test -f {disk}/full/config.json && echo --run.resume) ; echo status $?; cp -a {disk}/full '
        f"{tmp_path}/full\n"
    )
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            *LAUNCH,
            "train_policy",
            "movies",
            "full",
            *map(str, words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert re.findall(r"status (\d+)", done.stdout) == ["2", "0"], done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        "cannot write" in line
        and "No space left on device" in line
        and "make room" in line
        and "Traceback" not in done.stderr
    )
    half = [path for path in kept.rglob("*") if path.name.startswith(".")]
    assert half == [] and ("checkpoint of" in line) == (kept / "full/config.json").exists()
    if saved(kept / "full"):
        assert f"is that of step {saved(kept / 'full')[-1]}:" in line and "--run.resume" in line
    assert_same_end(world, "train_policy", tmp_path / "full")


# --- signals ---


def test_a_signal_that_torchrun_forwards_counts_once(monkeypatch, request):
    """A signal to all processes reaches a rank twice, from the sender and from torchrun; a second one later stops at
    once.
    """
    clock, before = (
        [100.0],
        signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # a shell starts what it runs in the background without one
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with StopRequest(World(launch=("one",))) as stop:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 1
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        clock[0] += 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_before_the_first_step_is_a_line(tmp_path):
    """While nothing can be saved yet SIGTERM ends a run at once, with status 143, and what is half-written goes."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom lm_human_preferences.foundation.errors import "
        "exit_on_user_error\n"
        "from lm_human_preferences.foundation.files import atomic_folder\n@exit_on_user_error\ndef main():\n"
        f"    with atomic_folder(Path({str(tmp_path / 'x')!r})):\n        os.kill(os.getpid(), signal.SIGTERM)\n     "
        "   while True: pass\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143 and done.stderr == "stopped by SIGTERM\n" and list(tmp_path.iterdir()) == []


def test_sigterm_does_not_silence_an_error_on_its_way(tmp_path):
    """torchrun sends SIGTERM as soon as one rank has ended, while the others are about to say what they saw."""
    code = (
        "import os, signal\nfrom lm_human_preferences.foundation.errors import RanksLost, exit_on_user_error\n"
        "@exit_on_user_error\ndef main():\n"
        "    try:\n        raise RanksLost('rank 1 of 2 lost the others')\n    finally:\n        "
        "os.kill(os.getpid(), signal.SIGTERM)\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stderr.strip() == "error: rank 1 of 2 lost the others"


# --- kills ---


def test_kills_at_random_moments_change_nothing():
    """Two kills of the program that tests many (python tests/survive.py --help)."""
    words = [str(ROOT / "tests/survive.py"), "--stage", "train_policy", "--kills", "2", "--seed", "3"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "2 of 2 survived" in done.stdout, done.stdout + done.stderr


def test_resume_goes_on_where_reward_training_stopped(world):
    """train_policy that trains a reward model first, stopped in reward training and again in its own steps: the same
    end as at one go.
    """
    words = words_of(world, "train_policy")
    words = [
        word
        for flag, value in zip(words[::2], words[1::2], strict=True)
        if flag != "--rewards.trained_model"
        for word in (flag, value)
    ]
    reward = dict(zip(reward_flags(world)[::2], reward_flags(world)[1::2], strict=True))
    words += [
        word
        for flag, value in reward.items()
        if not flag.startswith(("--task.", "--run."))
        for word in (f"--rewards.train_new_model.{flag[2:]}", value)
    ]
    words += ["--rewards.train_new_model.run.save_interval", "1"]
    resume = ["--run.resume", "on"]
    for more, reward_steps, policy_steps in ([], [1, 2], []), (resume, [], [1]):
        count = itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            # the second step that is not a run's last: at first of reward training, then the policy's first
            patch.setattr(StopRequest, "agreed", lambda request, count=count: next(count) == 2)
            with pytest.raises(Interrupted):
                train("train_policy", "first", words + more)
        assert saved(world / "runs/first_reward") == reward_steps and saved(world / "runs/first") == policy_steps
    train("train_policy", "first", words + resume)
    assert_same_end(world, "train_reward", world / "runs/first_reward")
    assert metrics(world / "runs/first") == metrics(world / "runs/train_policy")
