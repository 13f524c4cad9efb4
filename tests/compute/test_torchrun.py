"""What the environment says of ranks, in whole, in part and wrongly; who speaks first; how a rank leaves.

tests/stages/test_faults_of_ranks.py has runs that `torchrun` starts and starts again, tests/compute/test_nodes.py two
machines.
"""

import itertools

import pytest

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.torchrun import Place, is_first_to_say, place, run_then_exit
from lm_human_preferences.foundation.errors import UserError

from small import launch, run_here

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"} | ADDRESS
OTHERS = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE", "GROUP_RANK")


@pytest.fixture
def announce(monkeypatch):
    """Sets torchrun's variables to these and unsets all others."""

    def announce(variables: dict[str, str]) -> None:
        for name in (*SECOND, *OTHERS):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return announce


def subsets(variables: dict[str, str]) -> list[dict[str, str]]:
    items = list(variables.items())
    return [dict(part) for n in range(len(items) + 1) for part in itertools.combinations(items, n)]


def test_a_process_alone_needs_no_variables(announce):
    """Whatever part of them is there, `torchrun`'s other variables too; an empty one is as good as none."""
    for variables in [*subsets(ALONE | ADDRESS), *subsets(dict.fromkeys(OTHERS, "x")), dict.fromkeys(SECOND, "")]:
        announce(variables)
        assert place() == Place(0, 1, 0, 1)
        assert is_first_to_say("a line")
        with distributed.world("cpu") as world:
            assert (world.rank, world.size, world.is_main) == (0, 1, True)


def test_one_of_several_ranks_needs_them_all(announce):
    announce(SECOND)
    assert place() == Place(1, 2, 1, 2)
    for variables in subsets(SECOND):
        missing = [name for name in SECOND if name not in variables]
        speaks_of_several = any(name in ALONE and value != ALONE[name] for name, value in variables.items())
        if not (missing and speaks_of_several):
            continue
        announce(variables)
        with pytest.raises(UserError, match=f"but {', '.join(missing)} not set: start ranks with torchrun"):
            place()
        with pytest.raises(UserError), distributed.world("cpu"):
            pytest.fail("there is no world of ranks that do not know each other")
        assert is_first_to_say("a line")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: is not a whole number"),
        ({"RANK": "-1"}, "RANK=-1: is not a whole number"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK=1.0: is not a whole number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: is not a whole number"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: a port is at most 65535"),
        ({"RANK": "2"}, "do not fit together"),
        ({"LOCAL_RANK": "2"}, "do not fit together"),
        ({"LOCAL_WORLD_SIZE": "3"}, "do not fit together"),
        ({"WORLD_SIZE": "0"}, "do not fit together"),
    ],
)
def test_numbers_that_cannot_be_are_a_line(announce, changes, says):
    announce(SECOND | changes)
    with pytest.raises(UserError, match=says):
        place()
    assert is_first_to_say("a line")


@pytest.mark.parametrize("variables, says", [({"WORLD_SIZE": "1"}, "none"), ({"WORLD_SIZE": "4"}, "RANK, LOCAL_RANK")])
def test_a_command_with_variables_in_part(announce, variables, says, tmp_path):
    """It joins the world of one and complains of its own input, or complains of the environment."""
    announce(variables)
    with pytest.raises(UserError, match=says):
        run_here("evaluate", "movies", "--policies", f"one={tmp_path / 'none'}", "--save_dir", tmp_path)


def test_variables_in_part_are_a_line(tmp_path):
    words = ["evaluate", "movies", "--policies", f"one={tmp_path / 'none'}", "--save_dir", tmp_path]
    done = launch(*words, check=False, **dict.fromkeys((*SECOND, *OTHERS), "") | {"WORLD_SIZE": "1", "RANK": "x"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: RANK=x: is not a whole number") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "variables, at_once",
    [
        ({}, False),
        ({"WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": ""}, False),
        (SECOND, True),
        ({"WORLD_SIZE": "x"}, True),
    ],
)
def test_leaving_needs_no_more_than_the_number_of_ranks(announce, monkeypatch, variables, at_once):
    """Only ranks leave at once. tests/stages/test_faults_of_ranks.py does it in a process that would else die."""
    announce(variables)
    left = []

    def leave(status: int) -> None:
        left.append(status)
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: left.append("registered"))
    with pytest.raises(SystemExit) as end:
        run_then_exit(lambda: None)
    assert end.value.code == 0 and left == (["registered", 0] if at_once else [])
