"""Policies that several processes train: each once, whoever takes it, and one process measures."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lm_human_preferences.commands import members
from lm_human_preferences.commands.members import Work, measuring_alone, train_members
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs import locks
from lm_human_preferences.runs.folder import Run
from lm_human_preferences.runs.locks import LOCK, Busy, is_busy, locked, one_at_a_time, patiently
from lm_human_preferences.runs.params import RunParams

from small import CONFIG, ROOT, flags, make_world, policy_flags


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(members, "PATIENCE", 0.01)
    monkeypatch.setattr(locks, "PATIENCE", 0.01)


def begin(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text("{}")
    return run


def finish(run: Path) -> None:
    (begin(run) / "policy").mkdir()
    (run / "policy/model.safetensors").touch()


def test_what_another_process_works_on_is_left_to_it(tmp_path, capsys):
    """`a` is somebody else's, who ends well while we train `b`; `c` they give up, and it is ours then."""
    others = {name: FileLock(begin(tmp_path / name) / LOCK) for name in "ac"}
    for lock in others.values():
        lock.acquire()
    trained = []

    def work(name):
        def train(begun):
            trained.append((name, begun))
            finish(tmp_path / name)
            if name == "b":
                finish(tmp_path / "a")
                others["a"].release()
                others["c"].release()

        return Work(name, tmp_path / name, train)

    assert train_members([work(name) for name in "abc"], World()) == {}
    assert trained == [("b", False), ("c", True)]
    said = capsys.readouterr().out
    assert said.count("policy 1 of 3, a: another process is working on it") == 1
    assert "a: finished already, skipped" in said and "c: was cut short, goes on" in said


def test_one_that_was_taken_just_before_is_waited_for(tmp_path):
    """Between the look and the lock another process takes it, and finishes it."""
    calls = []

    def train(begun):
        calls.append(begun)
        finish(tmp_path / "a")
        raise Busy(tmp_path / "a")

    assert train_members([Work("a", tmp_path / "a", train)], World()) == {} and calls == [False]


def test_a_run_that_began_after_the_look_is_busy_not_in_the_way(tmp_path):
    """Somebody looked, saw no run, and began one that another process had begun meanwhile."""
    run = Run.__new__(Run)
    run.folder, run.params, run._lock = begin(tmp_path / "a"), RunParams(), None
    lock = FileLock(run.folder / LOCK)
    lock.acquire()
    with pytest.raises(Busy):
        run.check_free()
    lock.release()
    with pytest.raises(UserError, match="exists already; give another name"):
        run.check_free()


def test_what_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    def fails(begun):
        raise UserError("no such model\nat all")

    works = [Work("a", tmp_path / "a", fails), Work("b", tmp_path / "b", lambda begun: finish(tmp_path / "b"))]
    assert train_members(works, World()) == {"a": "no such model"}
    assert "policy 1 of 2, a: FAILED: no such model" in capsys.readouterr().err and (tmp_path / "b/policy").is_dir()


def test_one_measures(tmp_path, capsys):
    with measuring_alone(tmp_path, World()) as alone:
        assert alone
        with measuring_alone(tmp_path, World()) as second:
            assert not second
        assert "another process is measuring" in capsys.readouterr().out
    with measuring_alone(tmp_path, World()) as again:
        assert again


def test_locks(tmp_path):
    assert not is_busy(tmp_path) and locked(tmp_path / "nowhere") is None
    lock = locked(tmp_path)
    assert is_busy(tmp_path)
    with pytest.raises(Busy, match="another process is working on .*: wait until it has ended") as caught:
        locked(tmp_path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it goes to other ranks"
    answers = iter([Busy(tmp_path), "done"])

    def work():
        answer = next(answers)
        if isinstance(answer, Busy):
            lock.release()
            raise answer
        return answer

    assert patiently(work, World()) == "done" and not is_busy(tmp_path)
    with one_at_a_time(tmp_path / "file"):
        other = FileLock(tmp_path / "file")
        with pytest.raises(TimeoutError):
            other.acquire(blocking=False)


def test_two_processes_share_a_sweep(tmp_path):
    """Each policy and the reward model are trained once, whichever process does it, and the result has them all."""
    world = make_world(tmp_path)
    reward = RewardModel(GPT2(CONFIG).initialise(generator_for(0, "test/reward")))
    reward.head.initialise(generator_for(0, "test/head"))
    reward.save(world / "reward")
    base = policy_flags(world, world / "reward")
    at = base.index("--evaluation.samples")
    judge = "varied=lm_human_preferences.judging.text_metrics:unrepeated"
    measured = flags(judges=judge, samples=8, split="valid", responses=4, min_effective=1)
    words = ["sweep", "movies", "both", *base[:at], *base[at + 4 :], "--rewards.kl_coef", "0.1,0.2,0.3", *measured]
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    processes = [
        subprocess.Popen(command, cwd=world, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for coefficient in ("0.1", "0.2", "0.3"):
        assert sum(text.count(f"kl_{coefficient}_seed_1: 4 steps of 16 episodes") for text in said) == 1, said
    result = read_json_object(world / "runs/both/result.json")
    assert len(result["policies"]) == 3 and not result["failed"]
    assert not list((world / "runs").glob(".both*"))
