"""What ends or breaks a rank: the others end with one clear line that names the newest step on disk, torchrun brings a
run back by itself, and what is wrong for all is said once.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.compute import distributed
from lm_human_preferences.foundation.errors import RanksLost

import survive
from faults import copy_of_stopped, saved, words_of
from small import ROOT, metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def world(stopped_world):
    return stopped_world


def run_ranks(
    name: str,
    words: list[str],
    *options: str,
    when: Callable[[], bool] = lambda: False,
    then: Callable[[list[int], int], None] | None = None,
    stage: str = "train_policy",
) -> tuple[int, str, str]:
    """A run on two ranks, to which `then(ranks' process numbers, torchrun's)` happens once `when` holds: exit status,
    output, errors.
    """
    process = subprocess.Popen(
        [*TORCHRUN, *options, "launch.py", stage, "movies", name, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if then is not None:
            assert survive.wait_for(process, when), process.communicate()
            then(survive.children(process.pid), process.pid)
        out, err = process.communicate(timeout=180)
    finally:
        for pid in [*survive.children(process.pid), process.pid] if process.poll() is None else ():
            survive.kill(pid)
    return process.returncode, out, err


def errors_in(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_with_a_line(world, victim):
    """Which rank, that others were lost, which step is saved and how to go on; status 3; no traceback but torchrun's
    own.
    """
    run, words = world / f"runs/killed_{victim}", words_of(world, "train_policy", ppo__total_episodes=16 * 400)
    status, _, err = run_ranks(
        run.name, words, when=lambda: len(saved(run)) >= 2, then=lambda ranks, _: os.kill(ranks[victim], signal.SIGKILL)
    )
    [line] = errors_in(err)
    assert status == 1 and re.search(
        rf"rank {1 - victim} of 2 lost the others: Connection (closed|reset) by peer", line
    )
    assert (
        f"the newest checkpoint of {run} is that of step {saved(run)[-1]:,}: the same command with --run.resume goes "
        "on from it" in line
    )
    assert "exitcode  : 3 " in err and "[rank" not in err


def test_torchrun_brings_a_run_back_by_itself(world):
    """Rank 0 is killed after its second checkpoint; the ranks that torchrun starts again go on, although the command
    line says --run.overwrite.
    """
    run = world / "runs/restarted"
    status, out, err = run_ranks("restarted_whole", words_of(world, "train_policy", ppo__total_episodes=16 * 12))
    assert status == 0, err
    words = words_of(world, "train_policy", ppo__total_episodes=16 * 12, run__overwrite="on")
    shutil.copytree(world / "runs/stopped_train_policy", run)  # what is to be replaced

    def count() -> int:
        with contextlib.suppress(FileNotFoundError):  # the folder is being replaced
            return (run / "metrics.jsonl").read_text().count("\n")
        return 0

    status, out, err = run_ranks(
        "restarted",
        words,
        "--max_restarts",
        "2",
        when=lambda: count() >= 5 and 4 in saved(run),
        then=lambda ranks, _: os.kill(ranks[0], signal.SIGKILL),
    )
    assert status == 0, err
    assert out.count(f"restarted by torchrun: {run} goes on from its newest whole checkpoint") == 1
    assert metrics(run) == metrics(world / "runs/restarted_whole")
    ours, theirs = (load_file(folder / "policy/model.safetensors") for folder in (run, world / "runs/restarted_whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_restart_does_not_touch_a_run_that_was_there_before(world):
    """The user's mistake (the name is taken) makes torchrun start the ranks again; they must not go on with that
    run.
    """
    run = copy_of_stopped(world, "train_policy", "taken")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    status, _, err = run_ranks("taken", words_of(world, "train_policy"), "--max_restarts", "1")
    assert status == 1 and {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert len(errors_in(err)) == 2 and all(
        "exists already" in line for line in errors_in(err)
    )  # once for each attempt, not for each rank


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(ppo__lr=0.1, ppo__bacth_size=3), "unknown parameter --ppo.bacth_size"),
        (dict(ppo__batch_size=15), "does not divide by the 2 ranks"),
    ],
)
def test_what_all_ranks_find_wrong_is_said_once(world, changes, says):
    """Before the ranks have met, and after."""
    status, _, err = run_ranks("wrong", words_of(world, "train_policy", **changes))
    [line] = errors_in(err)
    assert status == 1 and says in line and "exitcode  : 2 " in err


def test_what_one_rank_finds_wrong_is_not_hidden(tmp_path):
    """Each of two ranks has an error of its own, and one that both have is said once."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys, time\nfrom functools import partial\nfrom lm_human_preferences.compute import torchrun\n"
        "from lm_human_preferences.foundation.errors import UserError, exit_on_user_error\n"
        "@partial(exit_on_user_error, is_first=torchrun.is_first_to_say)\n"
        "def main():\n    raise UserError('the same' if sys.argv[1] == 'same' else 'this is rank ' + "
        "os.environ['RANK'])\n"
        "try:\n    main()\nfinally:\n    time.sleep(3)  # torchrun ends the other rank as soon as one has ended\n"
    )
    for which, expected in (("same", ["error: the same"]), ("own", ["error: this is rank 0", "error: this is rank 1"])):
        done = subprocess.run(
            [*TORCHRUN, str(script), which],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert sorted(errors_in(done.stderr)) == expected


def test_errors_of_the_program_keep_their_traceback_on_ranks(tmp_path):
    """Also when they come from the message-passing library: ranks that send tensors of different sizes."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import torch\nimport torch.distributed as dist\nfrom lm_human_preferences.compute import distributed\n"
        "with distributed.world('cpu', 30) as world:\n    dist.all_reduce(torch.ones(4 + 4 * world.rank))\n    "
        "world.barrier()\n    {}['genuine']\n"
    )
    done = subprocess.run(
        [*TORCHRUN, str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "[rank" in done.stderr and "Traceback" in done.stderr


@pytest.mark.parametrize(
    "message, gone",
    [
        ("[pair.cc:553] gloo Connection closed by peer [127.0.0.1]:1", "Connection closed by peer"),
        (
            "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation to complete",
            "Timed out waiting",
        ),
        ("[gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 64 vs 32", None),
        ("mat1 and mat2 shapes cannot be multiplied: Connection closed by peer", None),
    ],
)
def test_which_errors_say_that_ranks_are_lost(message, gone):
    assert distributed.lost(RuntimeError(message)) == gone


def test_waiting_in_vain_for_other_ranks_is_a_line():
    """One of two machines never comes: the first gives up after --run.timeout."""
    code = (
        "from lm_human_preferences.compute import distributed\n"
        "from lm_human_preferences.foundation.errors import exit_on_user_error\n"
        "@exit_on_user_error\ndef main():\n    with distributed.world('cpu', 3): pass\nmain()"
    )
    alone = dict(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | alone
    )
    [line] = errors_in(done.stderr)
    assert (
        done.returncode == 3
        and "rank 0 of 2 does not reach the others: no answer within 3 seconds (--run.timeout); between machines GLOO"
        in line
    )


def test_ranks_lost_carries_what_is_saved():
    """The note that a run gives an error on its way out reaches the line."""
    with pytest.raises(RanksLost) as lost, pytest.MonkeyPatch.context() as patch:
        for name, value in dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1").items():
            patch.setenv(name, value)
        with distributed.world("cpu"):
            error = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
            error.add_note("step 7 is saved")
            raise error
    assert str(lost.value) == "rank 0 of 1 lost the others: Connection reset by peer" and lost.value.__notes__ == [
        "step 7 is saved"
    ]


@pytest.mark.parametrize("ranks, code, status", [(2, 0, 0), (2, 2, 2), (1, 0, -signal.SIGABRT)])
def test_a_rank_that_is_done_does_not_die_while_python_is_torn_down(ranks, code, status):
    """Gloo's threads can end it there with SIGABRT, which is rare; here an object does so always. What was printed and
    registered is done.
    """
    program = f"""
import atexit, os
from lm_human_preferences.compute.torchrun import run_then_exit

class Last:
    def __del__(self, abort=os.abort):
        abort()

def main():
    global last
    last = Last()
    atexit.register(print, "registered")
    print("done", end=" ")
    if {code}:
        raise SystemExit({code})

run_then_exit(main)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"WORLD_SIZE": str(ranks)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status, ended.stderr
    assert ranks == 1 or ended.stdout.split() == ["done", "registered"]
