"""Two machines: two network namespaces joined by a veth pair, a torchrun in each.

The same result as one process; a link that is cut ends both ranks with a line within --run.timeout, and the run goes on
when it is back. Skipped where namespaces may not be made (it takes root). Two ways in which the two torchrun find each
other: c10d, whose torchrun on the side without the store may wait on for an answer while the link is cut, and the
static one, which asks nothing after the start.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import survive
from small import ROOT, flags, make_world, metrics, policy_flags, reward_flags, run_here

PORT, TIMEOUT = 29500, 15.0


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


class Nodes:
    """Two namespaces with an address and an interface each."""

    def __init__(self, number: int):
        self.names, self.interfaces = [f"lmhp{number}{side}" for side in "ab"], [f"lh{number}{side}" for side in "ab"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]

    def make(self) -> str:
        """Why that does not work, empty if it does."""
        a, b = self.names
        of_a, of_b = self.interfaces
        joined = f"link add {of_a} netns {a} type veth peer name {of_b} netns {b}"
        steps = [("netns", "add", a), ("netns", "add", b), tuple(joined.split())]
        for name, interface, address in zip(self.names, self.interfaces, self.addresses, strict=True):
            steps += [
                ("-n", name, "addr", "add", f"{address}/24", "dev", interface),
                ("-n", name, "link", "set", "lo", "up"),
                ("-n", name, "link", "set", interface, "up"),
            ]
        for step in steps:
            if (done := ip(*step)).returncode:
                return done.stderr.strip()
        return ""

    def link(self, state: str) -> None:
        assert ip("-n", self.names[1], "link", "set", self.interfaces[1], state).returncode == 0

    def remove(self) -> None:
        for name in self.names:
            ip("netns", "del", name)

    def rendezvous(self, kind: str, side: int, identity: str) -> list[str]:
        """torchrun's words; it cannot tell by names which side is which, so it is told addresses."""
        host, here = self.addresses[0], self.addresses[side]
        if kind == "static":
            return ["--node_rank", str(side), "--master_addr", host, "--master_port", str(PORT)]
        words = f"--rdzv_backend c10d --rdzv_endpoint {host}:{PORT} --rdzv_id {identity} --local_addr {here}"
        return [*words.split(), "--rdzv_conf", f"is_host={int(side == 0)}"]

    def start(self, kind: str, side: int, identity: str, words: list, errors: Path) -> subprocess.Popen:
        """torchrun on one side with one rank; its standard error goes to a file. Gloo is told the interface."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        torchrun = ["ip", "netns", "exec", self.names[side], *torchrun, *self.rendezvous(kind, side, identity)]
        command = [*torchrun, "launch.py", *map(str, words)]
        with open(errors, "w") as file:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=os.environ | {"GLOO_SOCKET_IFNAME": self.interfaces[side], "OMP_NUM_THREADS": "1"},
            )


@pytest.fixture(scope="module")
def permitted() -> None:
    """Skips where there can be no two machines, before anything is trained for them."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces takes root")
    pair = Nodes(os.getpid() % 10_000)
    problem = pair.make()
    pair.remove()
    if problem:
        pytest.skip(f"network namespaces are not permitted here: {problem}")


@pytest.fixture
def nodes(permitted) -> Iterator[Nodes]:
    pair = Nodes(os.getpid() % 10_000)
    try:
        assert pair.make() == ""
        yield pair
    finally:
        pair.remove()


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    return [pid, *(below for child in survive.children(pid) for below in tree(child))]


def run_on_both(
    nodes: Nodes,
    kind: str,
    name: str,
    words: list,
    folder: Path,
    cut_when: Callable[[], bool] | None = None,
    resume: bool = False,
) -> tuple[list[int | None], list[str], float]:
    """Policy training `name` on both sides: exit statuses (None: torchrun had to be killed) and errors of both;
    seconds from the cut until both ranks have said their line.
    """
    files, seconds = [folder / f"{name}_{side}.err" for side in (0, 1)], 0.0
    words = ["train_policy", "movies", name, *words, *(["--run.resume"] if resume else [])]
    sides = [nodes.start(kind, side, name, words, files[side]) for side in (0, 1)]
    try:
        if cut_when is not None:
            assert survive.wait_for(sides[0], cut_when), files[0].read_text()
            nodes.link("down")
            begun = time.monotonic()
            both_said = survive.wait_for(sides[1], lambda: all("error: rank" in file.read_text() for file in files))
            assert both_said, files[1].read_text()
            seconds = time.monotonic() - begun
        statuses: list[int | None] = []
        for number, side in enumerate(sides):
            may_wait_on = cut_when is not None and (kind, number) == ("c10d", 1)
            try:
                statuses.append(side.wait(timeout=5 if may_wait_on else 120))
            except subprocess.TimeoutExpired:
                statuses.append(None)
    finally:
        for pid in [pid for side in sides if side.poll() is None for pid in tree(side.pid)]:
            survive.kill(pid)
        for side in sides:
            side.wait()
    return statuses, [file.read_text() for file in files], seconds


def untimed(run: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "memory/peak"} for row in metrics(run)]


@pytest.fixture(scope="module")
def alone(permitted, tmp_path_factory) -> tuple[Path, list]:
    """The small world with a policy run `one` in one process, and the words of that run."""
    world = make_world(tmp_path_factory.mktemp("nodes") / "world")
    run_here("train_reward", "movies", "reward", *reward_flags(world))
    words = policy_flags(world, world / "runs/reward/reward_model") + flags(
        ppo__total_episodes=16 * 10, run__timeout=TIMEOUT, run__save_interval=1
    )
    run_here("train_policy", "movies", "one", *words)
    return world, words


@pytest.mark.parametrize("kind", ["c10d", "static"])
def test_two_nodes_equal_one_process_and_survive_a_cut_link(nodes, alone, tmp_path, kind):
    world, words = alone
    one, two, cut = (world / "runs" / name for name in ("one", f"two_{kind}", f"cut_{kind}"))
    statuses, errors, _ = run_on_both(nodes, kind, two.name, words, tmp_path)
    assert statuses == [0, 0], errors
    for ours, theirs in zip(untimed(two), untimed(one), strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-3, atol=2e-5)

    def saved() -> bool:
        return (cut / "checkpoints/00000002").exists()

    statuses, errors, seconds = run_on_both(nodes, kind, cut.name, words, tmp_path, cut_when=saved)
    assert statuses[0] == 1 and statuses[1] in ((1, None) if kind == "c10d" else (1,)) and seconds < TIMEOUT + 5
    for rank, text in enumerate(errors):
        [line] = [line for line in text.splitlines() if line.startswith("error: ")]
        assert f"rank {rank} of 2 lost the others: no answer within {TIMEOUT:g} seconds (--run.timeout)" in line
        assert re.search(
            rf"the newest checkpoint of {cut} is that of step \d+: the same command with --run.resume goes on from it",
            line,
        )
    nodes.link("up")
    statuses, errors, _ = run_on_both(nodes, kind, cut.name, words, tmp_path, resume=True)
    assert statuses == [0, 0], errors
    assert untimed(cut) == untimed(two)
    ours, theirs = load_file(cut / "policy/model.safetensors"), load_file(two / "policy/model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
