"""What two ranks do together: `World`'s table, and micro-batches, whose gradients meet on the last.

Processes take long to start, so the same two do all of it and the tests look at what they found.
"""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.parallel import Parallel
from lm_human_preferences.compute.precision import Precision

CPU, RANKS, WIDTH = Precision(torch.device("cpu"), bfloat16=False), 2, 4


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = torch.tanh(block(x))
        return x


class Model(nn.Module):
    """Two blocks, which FSDP shards, and a small head, which it leaves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.head = Trunk(), nn.Linear(WIDTH, 1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.transformer(x))


def examples() -> torch.Tensor:
    return torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(1))


def expected_gradients() -> dict[str, torch.Tensor]:
    model = Model()
    model(examples()).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def take_step(parallel: Parallel, rows: torch.Tensor, leave: str = "") -> list[float]:
    """A step over micro-batches of two rows, without the optimizer; leave: the way out in the middle of the last.

    Returns the head's first gradient, as this rank has it, after each micro-batch but the last.
    """
    seen: list[float] = []
    parts = rows.split(2)
    for number, part in enumerate(parallel.micro_batches(parts), 1):
        loss = parallel(part).square().sum()
        if leave and number == len(parts):
            if leave == "break":
                break
            raise ArithmeticError("in the middle of a step")
        parallel.backward(loss)
        if number < len(parts):
            seen.append(float(parallel.module.head.weight.grad[0, 0]))
    return seen


def test_micro_batches_add_up():
    parallel, rows = Parallel(Model(), World(), CPU), examples()
    assert [part.tolist() for part in parallel.micro_batches(rows.split(5))] == [
        part.tolist() for part in (rows[:5], rows[5:10], rows[10:])
    ]
    take_step(parallel, rows)
    for name, p in parallel.module.named_parameters():
        torch.testing.assert_close(p.grad, expected_gradients()[name])


def what_the_table_says(world: World) -> dict[str, Any]:
    """`World`'s methods in the order of its docstring's table, with a = 1 and b = 10."""
    mine = torch.tensor([10**world.rank])
    whole, fraction = mine.clone(), mine / 4  # of two dtypes
    world.sum_([whole, fraction])
    from_main = mine.clone()
    world.from_main_(from_main)
    share = world.share(8, "rows")
    world.barrier()
    return {
        "share": [share.start, share.stop],
        "share_of": world.share_of(torch.tensor([5, 7, 9])).tolist(),
        "sum_": [whole.item(), fraction.item()],
        "gather": world.gather(mine).tolist(),
        "from_main": world.from_main(int(mine)),
        "from_main_": from_main.item(),
        "min_over_ranks": world.min_over_ranks(int(mine)),
        "any": [world.any(world.rank == 1), world.any(False)],
        "launch": list(world.launch),
    }


def gradients_of(parallel: Parallel) -> dict[str, torch.Tensor]:
    return {name: distributed.whole(p.grad).clone() for name, p in parallel.module.named_parameters()}


def one_rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with distributed.world("cpu", 60) as world:
        found["world"] = what_the_table_says(world)
        mine = examples()[world.share(12, "rows")]
        for sharding in ("ddp", "fsdp"):
            parallel = Parallel(Model(), world, CPU, sharding)
            seen = take_step(parallel, mine)
            found[sharding] = {"before the last": torch.tensor(seen)} | gradients_of(parallel)
            parallel.module.zero_grad(set_to_none=True)
            for leave in ("break", "error"):
                messages, send = [], dist.all_reduce
                dist.all_reduce = lambda *given, messages=messages, **more: messages.append(given)
                try:
                    take_step(parallel, mine, leave)
                except ArithmeticError:
                    pass
                dist.all_reduce = send
                parallel.module.zero_grad(set_to_none=True)
                take_step(parallel, mine)
                messages_sent = {"messages": torch.tensor(len(messages))}
                found[f"{sharding}, after {leave}"] = gradients_of(parallel) | messages_sent
                parallel.module.zero_grad(set_to_none=True)
    torch.save(found, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found, both ways to spread a model one after another."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_rank, (port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_what_ranks_do_together(ranks):
    alike = {
        "sum_": [11, 2.75],
        "gather": [1, 10],
        "from_main": 1,
        "from_main_": 1,
        "min_over_ranks": 1,
        "any": [True, False],
        "launch": [],
    }
    assert ranks[0]["world"] == alike | {"share": [0, 4], "share_of": [5, 7]}
    assert ranks[1]["world"] == alike | {"share": [4, 8], "share_of": [9, 5]}


def test_one_rank_gets_back_what_it_gives():
    alike = {"sum_": [1, 0.25], "gather": [1], "from_main": 1, "from_main_": 1, "min_over_ranks": 1, "launch": []}
    expected = alike | {"share": [0, 8], "share_of": [5, 7, 9], "any": [False, False]}
    assert what_the_table_says(World()) == expected


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_gradients_meet_on_the_last_micro_batch(ranks, sharding):
    for name, gradient in expected_gradients().items():
        for rank in ranks:
            torch.testing.assert_close(rank[sharding][name], gradient)
    one, other = (rank[sharding]["before the last"] for rank in ranks)
    assert len(one) == 2 and not torch.isclose(one, other).any()


@pytest.mark.parametrize("leave", ["break", "error"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_step_that_is_left_early_sends_nothing(ranks, sharding, leave):
    for rank in ranks:
        assert rank[f"{sharding}, after {leave}"]["messages"] == 0


@pytest.mark.parametrize("leave", ["break", "error"])
def test_gradients_meet_again_after_a_step_that_was_left_early(ranks, leave):
    for rank in ranks:
        for name, gradient in expected_gradients().items():
            torch.testing.assert_close(rank[f"ddp, after {leave}"][name], gradient)
