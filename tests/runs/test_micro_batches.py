"""Micro-batches: what fits by prediction, what is tried, what is remembered; and `plan`."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.optim import METHODS, adamw, allocate_state, muon_and_adamw
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.memory import Pass, Shape
from lm_human_preferences.runs.micro_batches import (
    MicroBatches,
    captures,
    choose_micro_batches,
    fitting_micro_batches,
    free_memory,
    group_memory,
    micro_batches_of_checkpoint,
    try_micro_batches,
)
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.stage_memory import StageMemory, policy_training_memory, supervised_training_memory
from lm_human_preferences.train_sft import SFTParams

from conftest import Goldens
from params import EXPERIMENTS
from recorded import CPU, loss_labels, make_reward_trainer, ppo_trainer
from small import launch


@pytest.mark.parametrize(
    "free, most, rows, step, expected",
    [
        (1000, 64, 32, 1, 32),  # all at once
        (250, 64, 32, 1, 11),  # 15 fit: three parts, of 11, 11 and 10
        (105, 64, 32, 1, 0),  # not even one
        (10**6, 64, 200, 1, 50),  # no more than 64: four even parts
        (1000, 64, 32, 4, 32),
        (300, 64, 36, 4, 20),
        (130, 64, 32, 4, 0),  # whole labels of four responses; 20 and 16
    ],
)
def test_what_fits_cuts_the_rows_evenly(free, most, rows, step, expected):
    assert Pass(fixed=100, per_row=10, rows=rows, step=step).fitting(free, most) == expected


def test_gradients_add_to_activations_from_the_second_micro_batch_on():
    alone = Pass(fixed=100, per_row=10, rows=32, gradients=200)
    assert (alone.bytes(32), alone.bytes(16), alone.bytes(8)) == (420, 460, 380) and Pass(
        100, 10, 10, gradients=200
    ).bytes(10) == 300
    assert alone.fitting(420, 64) == 32 and alone.fitting(419, 64) == 11 and alone.fitting(419, 16) == 11


def stage(per_row: int = 100, recomputing: int = 10) -> StageMemory:
    return StageMemory(
        {"weights": 1000}, Pass(0, 20, 32), Pass(0, 5, 32), Pass(100, per_row, 32), Pass(100, recomputing, 32)
    )


def test_little_memory_recomputes_and_what_the_user_gives_stays():
    assert fitting_micro_batches(RunParams(), stage(), 10**6, "cpu") == MicroBatches(32, 32, 32, False)
    assert fitting_micro_batches(RunParams(), stage(), 2000, "cpu") == MicroBatches(
        32, 32, 8, False
    )  # 9 fit: four parts of 8
    assert fitting_micro_batches(RunParams(), stage(), 1800, "cpu") == MicroBatches(
        32, 32, 32, True
    )  # 7 would be too few
    assert fitting_micro_batches(RunParams(recompute_activations="off"), stage(), 1500, "cpu") == MicroBatches(
        16, 32, 4, False
    )
    given = RunParams(micro_batch=5, micro_batch_rollout=3, micro_batch_scoring=2)
    assert fitting_micro_batches(given, stage(), 1500, "cpu") == MicroBatches(3, 2, 5, False)
    assert fitting_micro_batches(RunParams(recompute_activations="on"), stage(), 10**6, "cpu").recompute
    assert fitting_micro_batches(RunParams(), stage(), 0, "cpu") == MicroBatches(1, 1, 1, True)  # the smallest there is


def test_too_little_memory_is_said(capsys, monkeypatch):
    monkeypatch.setattr("lm_human_preferences.runs.micro_batches.free_memory", lambda device, world: 500)
    choose_micro_batches(RunParams(), stage(), CPU, World())
    assert "warning: this needs about" in capsys.readouterr().err


def test_free_memory_counts_what_the_process_has_and_its_share_of_the_rest():
    alone, shared = free_memory(torch.device("cpu")), free_memory(torch.device("cpu"), World(local_size=4))
    assert 0.2 * alone < shared < 0.6 * alone and alone > 2**28


@pytest.mark.parametrize(
    "groups, files, left",
    [
        ("0::/\n", {"memory.max": "1000", "memory.current": "400"}, 600),  # a container's own
        ("0::/\n", {"memory.max": "max", "memory.current": "400"}, None),
        # a Slurm job: the limit is above the step that the process is in
        (
            "0::/slurm/job_7/step_0\n",
            {
                "slurm/job_7/memory.max": "900",
                "slurm/job_7/memory.current": "100",
                "slurm/job_7/step_0/memory.max": "max",
                "slurm/job_7/step_0/memory.current": "90",
            },
            800,
        ),
        (
            "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
            {
                "memory/docker/abc/memory.limit_in_bytes": "500",
                "memory/docker/abc/memory.usage_in_bytes": "50",
                "memory/memory.limit_in_bytes": str(2**62),
                "memory/memory.usage_in_bytes": "5",
            },
            450,
        ),
        ("nonsense", {}, None),
    ],
)
def test_limits_of_control_groups_at_any_level(tmp_path, groups, files, left):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert group_memory(groups, tmp_path) == left


def test_a_resumed_run_keeps_its_micro_batches_on_as_many_ranks():
    before, now = MicroBatches(8, 16, 4, True), MicroBatches(32, 32, 32)
    state = {"micro_batches": before.state(World(0, 2))}
    assert micro_batches_of_checkpoint(now, RunParams(), state, World(1, 2)) == before
    assert micro_batches_of_checkpoint(now, RunParams(), state, World()) == now
    assert micro_batches_of_checkpoint(now, RunParams(micro_batch=32), state, World(0, 2)) == MicroBatches(
        8, 16, 32, True
    )


def test_rows_are_halved_until_they_run():
    asked, weight = [], torch.nn.Parameter(torch.zeros(1))

    def attempt(rows: int) -> None:
        asked.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError

    optimizer = torch.optim.Adam([weight])
    run, attempts = RunParams(micro_batch_scoring=7), {"training": attempt, "scoring": attempt}
    assert try_micro_batches(MicroBatches(0, 7, 19), run, attempts, optimizer, World()) == MicroBatches(0, 7, 5)
    assert asked == [19, 10, 5]

    def never(rows: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="single row .--run.micro_batch 1.*fsdp"):
        try_micro_batches(MicroBatches(0, 7, 19), RunParams(), {"training": never}, optimizer, World())


def test_memory_probes_run_and_change_nothing(goldens):
    from lm_human_preferences.data.labels import label_type

    ppo = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"])
    reward = make_reward_trainer(
        goldens, loss_labels(goldens("reward"), label_type("best_of_4")), "best_of_4", batch_size=6
    )
    for trainer, model in ((ppo, ppo.policy), (reward, reward.model)):
        before, position = [p.detach().clone() for p in model.parameters()], trainer.queries.position
        sizes = try_micro_batches(
            MicroBatches(4, 4, 4), RunParams(), trainer.memory_probes(), trainer.optimizer, World()
        )
        assert sizes == MicroBatches(4, 4, 4) and trainer.queries.position == position
        assert all(torch.equal(p, old) and p.grad is None for p, old in zip(model.parameters(), before, strict=True))
        assert all(state["step"] == 0 for state in trainer.optimizer.state.values())


# --- predictions ---


def saved_bytes(config: GPT2Config, rows: int, tokens: int, bfloat16: bool, recompute: bool) -> int:
    """What PyTorch keeps of a pass for the backward pass, parameters left out."""
    model, kept = GPT2(config).initialise(torch.Generator().manual_seed(0)), {}
    model.recompute_activations(recompute)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in parameters:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        hidden = model(torch.zeros(rows, tokens, dtype=torch.int64))  # alive: its graph holds what is kept
        return sum(value.untyped_storage().nbytes() for value in kept.values()) + 0 * hidden.numel()


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_formula_of_activations_is_what_pytorch_keeps(bfloat16, recompute):
    """Differences between two depths and two numbers of rows, so that only a row's activations of a block are left."""
    config = GPT2Config(n_vocab=101, n_ctx=64, n_embd=64, n_head=2, n_layer=2, padding_token=103)
    deeper = replace(config, n_layer=6)
    kept = {
        (c.n_layer, rows): saved_bytes(c, rows, 50, bfloat16, recompute) for c in (config, deeper) for rows in (2, 6)
    }
    a_block = (kept[6, 6] - kept[6, 2] - kept[2, 6] + kept[2, 2]) / 4 / 4
    predicted = [Shape(c, bfloat16, "cpu").training(50, 8, 0, recompute).per_row for c in (config, deeper)]
    assert a_block == pytest.approx((predicted[1] - predicted[0]) / 4, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizers_state_is_what_is_predicted(method):
    config = GPT2Config(n_vocab=101, n_ctx=64, n_embd=64, n_head=2, n_layer=3, padding_token=103)
    model = GPT2(config)
    optimizer = (
        muon_and_adamw(model.named_parameters(), 1.0, 1.0, (0.9, 0.9), 0.0)
        if method == "muon"
        else adamw(model.parameters(), 1.0, (0.9, 0.9), 0.0)
    )
    allocate_state(optimizer)
    params = SFTParams()
    params.optimizer.method = method
    predicted = supervised_training_memory(params, config, 64, Precision(torch.device("cpu"), False), 1).held[
        "optimizer"
    ]
    assert predicted == sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim
    )


@pytest.mark.parametrize("gib, expected", [(80, True), (12, False)])
def test_decoding_is_captured_where_its_cache_takes_no_rows(gib, expected, monkeypatch):
    monkeypatch.setattr("lm_human_preferences.runs.micro_batches.free_memory", lambda device, world: gib * 2**30)
    params = EXPERIMENTS["train_policy"]["sentiment"]()
    gpu, run = Precision(torch.device("cuda"), True), params.run

    def decided(precision: Precision = gpu, **changes) -> bool:
        memory = partial(policy_training_memory, params, GPT2Config(), precision, 1)
        return captures(replace(run, **changes), memory, precision, World())

    assert decided() is expected and not decided(sharding="fsdp") and not decided(CPU)
    assert decided(captured_decoding="on") and not decided(captured_decoding="off")
    plain, held = (policy_training_memory(params, GPT2Config(), gpu, 1, captured=c).held for c in (False, True))
    assert held == plain | {"captured decoding": 512 * 2 * 12 * 768 * 88 * 2}  # keys and values, bfloat16


def test_sharding_and_precision_save_what_they_should():
    params, config = EXPERIMENTS["train_policy"]["cnndm"](), GPT2Config()
    low, full = Precision(torch.device("cuda"), True), Precision(torch.device("cuda"), False)
    alone, eight = (policy_training_memory(params, config, low, ranks) for ranks in (1, 8))
    assert eight.held["weights"] == alone.held["weights"] and eight.training.rows == 4 and alone.training.rows == 32
    params.run.sharding = "fsdp"
    sharded = policy_training_memory(params, config, low, 8)
    for name in ("weights", "optimizer", "reference", "reward model"):
        assert sharded.held[name] == alone.held[name] // 8
    assert alone.held["reference"] < 0.7 * policy_training_memory(params, config, full, 1).held["reference"]
    assert alone.recomputing.per_row < 0.3 * alone.training.per_row


def test_plan_on_the_command_line():
    of_cnndm, of_movies = (sum(task in entries for entries in EXPERIMENTS.values()) for task in ("cnndm", "movies"))
    text = launch("plan", "cnndm", "--model", "774M", "--devices", 8, "--device", "cuda", "--memory", 80).stdout
    assert (
        text.count("--run.sharding ddp") == text.count("--run.sharding fsdp") == of_cnndm
        and "does not fit" not in text
        and "774M parameters" in text
    )
    small = launch("plan", "cnndm", "--model", "1558M", "--device", "cuda", "--memory", 24).stdout
    assert small.count("does not fit") == of_cnndm and "activations recomputed" in small
    given = launch(
        "plan", "movies", "--device", "cpu", "--memory", 8, "--run.micro_batch", 12, "--precision", "float32"
    ).stdout
    assert given.count("12 rows at once") == of_movies


@pytest.mark.parametrize(
    "words, says",
    [
        (["moves"], "did you mean movies?"),
        (["movies", "--devices", 0], "--devices must be at least 1"),
        (["movies", "--model", "125M"], "--model 125M: must be tiny"),
        (["movies", "--memory", "lots"], "--memory lots: expected a number"),
        (["movies", "--run.micro_batchh", 3], "did you mean --run.micro_batch?"),
        (["movies", "--device", "cuda"], "say with --memory"),
        (["movies", "--precision", "half"], "--precision"),
        (["movies", "--ppo.nminibatches", 0], "--ppo.nminibatches"),
        (["movies", "--batch_size", 0, "--tflops", 1, "--bandwidth", 10], "--batch_size 0: must be at least 1"),
        (["movies", "--task.query_length", -100], "--task.query_length -100"),
        (["movies", "--run.micro_batch", -3], "--run.micro_batch -3: must be at least 1"),
        (["movies", "--optimizer.batch_size", 0], "--optimizer.batch_size 0: must be at least 1"),
        ([], "plan takes"),
    ],
)
def test_bad_plans_are_one_line(words, says):
    result = launch("plan", *words, check=False)
    assert result.returncode == 2 and says in result.stderr and result.stderr.count("\n") == 1 and not result.stdout
