"""The benchmarks: their arithmetic, each kind of work on a very small model, the tables, and what they refuse."""

import json
import re
import shlex
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import clock, figure, tables, worker
from benchmarks.cases import KINDS, RIVALS, Case, cases_of, check_case
from benchmarks.measure import Worker, measure, summarise
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.flops import choice_flops, forward_flops, response_flops
from lm_human_preferences.language.gpt2 import GPT2, SHAPES, GPT2Config

from small import ROOT

MINI = GPT2Config(n_embd=8, n_head=2, n_layer=2)
SMALL = dict(model="mini", task="style", batch=2, response_length=3, device="cpu", precision="float32", threads=1)


@pytest.fixture
def mini(monkeypatch):
    monkeypatch.setitem(SHAPES, "mini", dict(n_embd=8, n_head=2, n_layer=2))


def test_flops_are_those_that_pytorch_counts():
    """All products of a pass but attention's, which PyTorch counts without the causal mask."""
    model, T = GPT2(MINI).initialise(torch.Generator().manual_seed(0)), 7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.logits(model(torch.arange(T)[None]))
    products = sum(
        count
        for name, count in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(name) and "bmm" not in str(name)
    )
    attention = MINI.n_layer * sum(4 * MINI.n_embd * seen for seen in range(1, T + 1))
    assert forward_flops(MINI, T, outputs=T, logits=T) == products + attention


def test_flops_of_parts_add_up():
    """A pass in two pieces costs what it costs in one; only the outputs that are read go through the last block; shared
    queries count once.
    """
    assert forward_flops(MINI, 5, outputs=5) + forward_flops(MINI, 4, outputs=4, past=5) == forward_flops(
        MINI, 9, outputs=9
    )
    C = MINI.n_embd
    assert forward_flops(MINI, 9, outputs=9) - forward_flops(MINI, 9, outputs=8) == 2 * (10 * C * C + 2 * C * 1)
    assert response_flops(MINI, 5, 3) == forward_flops(MINI, 7, outputs=3, logits=3)
    apart = sum(forward_flops(MINI, 5 + r, outputs=1) for r in (2, 3))
    assert choice_flops(MINI, 5, [2, 3]) == apart - forward_flops(MINI, 5, outputs=0)
    assert choice_flops(MINI, 5, [2, 0]) == forward_flops(MINI, 5, outputs=1) + forward_flops(
        MINI, 2, outputs=1, past=5
    )


def test_inner_phases_count_for_themselves(monkeypatch):
    moments = iter(range(100))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(next(moments)))

    class Work:
        def inner(self):
            return 5

        def outer(self):
            return self.inner() + self.inner()

    work, watch = Work(), clock.PhaseClock(torch.device("cpu"))
    watch.watch(work, "inner", "inside")
    watch.watch(work, "outer", "outside")
    seconds, phases, result = watch.measure(work.outer)
    assert (seconds, phases, result) == (7.0, {"other": 2.0, "outside": 3.0, "inside": 2.0}, 10)
    assert watch.measure(work.inner)[1] == {"other": 2.0, "inside": 1.0}  # nothing is left of the time before


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_work_is_done_and_described(kind, mini):
    rows = 4 if kind == "rloo" else 2
    repeat = worker.prepare(Case(kind, **SMALL | {"batch": rows}))
    repeat()
    answer = repeat()
    assert answer["rows"] == rows and answer["flops"] > 0 and answer["memory"] > 2**20
    assert answer["seconds"] == pytest.approx(sum(answer["phases"].values()))
    assert answer["cpu_seconds"] > 0
    drawn, read, chosen = rows * 3, rows * (64 + 3), rows * (64 + 4 * 3)
    tokens = {"rollout": drawn, "update": drawn, "rloo": drawn, "scoring": read, "reward": chosen, "dpo": chosen}
    assert answer["tokens"] == (tokens | {"supervised": read})[kind]
    if kind in ("update", "rloo"):
        assert set(answer["phases"]) == {"other", "rollout", "reference", "reward", "forward", "backward", "optimizer"}
        assert all(seconds > 0 for seconds in answer["phases"].values())


def test_the_flops_of_an_update_are_those_of_its_passes(mini):
    """Sampling, reference, reward, four epochs of forward and backward. No response of 3 tokens is truncated (from
    place 16 on).
    """
    answer = worker.prepare(Case("update", **SMALL))()
    assert answer["flops"] == 2 * (14 * response_flops(MINI, 64, 3) + forward_flops(MINI, 67, outputs=1))


def test_padding_is_spread_and_costs_no_flops(mini):
    small, padded = Case("rollout", **SMALL | {"batch": 5}), Case("rollout", **SMALL | {"batch": 5}, padding=0.25)
    contexts = [32, 40, 48, 56, 64]
    assert worker.prepare(padded)()["flops"] == sum(response_flops(MINI, context, 3) for context in contexts)
    assert worker.prepare(small)()["flops"] == 5 * response_flops(MINI, 64, 3)


@pytest.mark.parametrize("kind, rival", [("rollout", "transformers"), ("reward", "plain")])
def test_what_stands_against_ours_works(kind, rival, mini):
    assert worker.prepare(Case(kind, subject=rival, **SMALL, padding=0.1))()["seconds"] > 0


def test_without_trl_one_line_says_what_to_do(mini, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.experimental.ppo", None)
    with pytest.raises(
        UserError, match="trl is missing: pip install -r requirements-bench.txt, or measure ours alone with --alone"
    ):
        worker.prepare(Case("update", subject="trl", **SMALL))


def test_a_measurement_in_processes_of_their_own(monkeypatch):
    """The whole way, on the smallest real model: warm-up is left out, memory and peaks are there. What stands against
    ours may break.
    """
    monkeypatch.setitem(RIVALS, "scoring", "nothing")
    said = []
    case = Case("scoring", "tiny", "style", 1, response_length=1, device="cpu", precision="float32", threads=1)
    result = measure(case, 2, 1, False, said.append)
    assert result["failed"] == {"nothing": f"{case.name} by nothing ended with status 1:"} and "KeyError" in said[0]
    assert len(said) - 1 == len(result["all_seconds"]) == 2 and result["others"] == {} and result["seconds"] > 0
    assert result["memory"] > 4 * 2 * 15_000_000  # at least two models' weights
    assert set(result["peaks"]) == {"float32", "bfloat16", "copy"} and 0 < result["share_of_peak"] < 2
    machine = {"device": "a machine", "threads": 1, "torch": "2", "peaks": result["peaks"], "repeats": 1, "warmup": 0}
    assert re.search(r"nothing \| +failed \|", tables.tables({"machine": machine, "cases": [result], "scaling": []}))


def test_the_code_of_another_checkout_stands_beside_ours(tmp_path, capsys):
    """Another checkout, here one whose worker only answers, is asked in turn with ours; what is none is one line."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    lines = [
        "import json, sys",
        "assert json.loads(sys.argv[1])['subject'] == 'ours'",
        "print(json.dumps({'ready': True}), flush=True)",
        "for _ in sys.stdin: print(json.dumps({'seconds': 1e6, 'cpu_seconds': 1, 'memory': 1}), flush=True)",
    ]
    (tmp_path / "benchmarks" / "worker.py").write_text("\n".join(lines))
    case = Case("scoring", "tiny", "style", 1, response_length=1, device="cpu", precision="float32", threads=1)
    result = measure(case, 1, 0, True, before=tmp_path)
    assert set(result["others"]) == {"before"} and result["others"]["before"]["ratio"] > 1000
    with pytest.raises(SystemExit):
        command.main(["--before", str(tmp_path / "benchmarks"), "--device", "cpu"])
    assert "no checkout of this project with benchmarks in it; make one with `git worktree add" in (
        capsys.readouterr().err
    )


def test_a_worker_that_breaks_shows_why():
    with (
        Worker(Case("scoring", "no such model", "style", 1)) as broken,
        Worker(Case("scoring", "tiny", "style", 1, device="tpu")) as refused,
    ):
        with pytest.raises(RuntimeError, match="KeyError: 'no such model'"):
            broken.wait_until_ready()
        with pytest.raises(UserError, match="--run.device tpu"):
            refused.wait_until_ready()


def answer(seconds, **more):
    return {
        "seconds": seconds,
        "cpu_seconds": 1.5 * seconds,
        "phases": {"other": seconds},
        "rows": 4,
        "tokens": 8,
        "flops": 100.0,
        "memory": 3 * 2**30,
        "precision": "float32",
    } | more


def results():
    peaks = {"float32": 100.0, "bfloat16": 200.0, "copy": 1e9}
    rounds = {
        "peaks": [peaks, peaks | {"float32": 50.0}, peaks],
        "ours": [answer(2.0), answer(4.0), answer(5.0)],
        "trl": [{"seconds": s, "cpu_seconds": s, "memory": 2**32} for s in (20.0, 60.0, 40.0)],
    }
    return summarise(Case("update", "tiny", "style", 4), rounds) | {"failed": {}}


def test_medians_and_ratios_are_taken_round_by_round():
    result = results()
    assert (result["seconds"], result["rows_per_second"], result["tokens_per_second"], result["flops_per_second"]) == (
        4.0,
        1.0,
        2.0,
        25.0,
    )
    assert (
        result["share_of_peak"] == 0.5 and result["peaks"]["float32"] == 100.0
    )  # 50%, 50% and 20% of their round's peak
    assert (
        result["others"]["trl"]["ratio"] == 10.0
        and result["others"]["trl"]["cpu_ratio"] == 40 / 6
        and result["others"]["trl"]["seconds"] == 40.0
    )


def test_tables_go_between_the_marks_of_a_page(tmp_path):
    machine = {
        "device": "a machine",
        "threads": 2,
        "torch": "2",
        "peaks": results()["peaks"],
        "repeats": 3,
        "warmup": 1,
    }
    text = tables.tables({"machine": machine, "cases": [results()], "scaling": []})
    assert re.search(r"update, tiny, style, 4 rows +\| +4 \| +6 \|.*\| +50% \| +3.00 GiB \|", text)
    assert re.search(r"trl \| +40 \| +4 \| +10.00 \| +6.67 \|", text)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for _ in range(2):
        tables.put_into(page, text)
    assert page.read_text() == f"before\n{tables.BEGIN}\n\n{text}\n\n{tables.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UserError, match="needs the lines"):
        tables.check_page(page)


def test_the_figure_shows_how_far_points_lie_from_a_line(tmp_path):
    assert figure.fit([1, 2, 3], [3, 5, 7]) == pytest.approx((2, 1, 0), abs=1e-9)
    assert figure.fit([1, 2, 3], [3, 8, 7])[2] > 0.1
    rows = [
        {
            "case": {"model": "tiny", "device": "cpu", "batch": case.batch, "response_length": case.response_length},
            "cpu_seconds": case.batch + case.response_length,
        }
        for case in figure.scaling_cases("tiny")
    ]
    figure.draw(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--models gpt5", "--models gpt5: there are tiny, 124M"),
        ("--cases update,sing", "--cases sing: there are rollout"),
        ("--batch 0", "--batch 0: must be at least 1"),
        ("--padding 0.5", "--padding 0.5: must lie"),
        ("--repeats 0", "--repeats 0: must be at least 1"),
        ("--scaling huge", "--scaling huge: there are"),
        ("--page nowhere.md", "--page nowhere.md: there is no such file"),
        ("--device tpu", "tpu"),
        ("--captured --device cpu", "--captured: a CUDA graph needs a CUDA device, this is cpu"),
    ],
)
def test_bad_words_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(words.split())
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_the_full_plan_has_both_tasks_padding_and_the_figure():
    args = command.parser().parse_args(["--full"])
    plan = command.plan(args, "cpu")
    assert {case.model for case in plan.compared} == {"tiny", "124M"} and {case.task for case in plan.compared} == {
        "style",
        "summary",
    }
    assert (
        len(plan.compared) == 4 * len(KINDS)
        and all(case.padding == 0.3 and case.task == "summary" for case in plan.alone)
        and plan.scaling
    )
    assert "774M" in {case.model for case in command.plan(args, "cuda").compared}
    captured = command.plan(command.parser().parse_args(["--captured"]), "cuda")
    assert {case.kind for case in captured.compared if case.captured} == {"rollout", "update", "rloo"}
    alone = command.plan(command.parser().parse_args(["--alone"]), "cpu")
    assert not alone.compared and len(alone.alone) == len(KINDS) and not alone.scaling


@pytest.mark.parametrize(
    "line",
    sorted(
        {
            line.strip()
            for page in (ROOT / "docs").glob("*.md")
            for line in page.read_text().splitlines()
            if line.startswith("    python -m benchmarks ")
        }
    ),
)
def test_a_documented_benchmark_is_one(line):
    command.plan(command.parser().parse_args(shlex.split(line.partition("#")[0])[3:]), "cpu")


def test_cases_name_their_work():
    (case,) = cases_of(["update"], ["tiny"], ["summary"], "cpu", None, 0.0)
    assert case.batch == 4 and case.config().n_ctx == 1024 and case.name == "update tiny summary x4"
    assert json.loads(json.dumps(vars(case.of("trl"))))["subject"] == "trl"
    with pytest.raises(UserError, match="--batch -1"):
        check_case(Case("update", "tiny", "style", -1))


def test_an_interrupted_measurement_is_resumed(mini, monkeypatch, tmp_path, capsys):
    """What the file has by then stays, what it lacks is measured, and the earlier settings are asked for."""
    done = []

    def measured(case, repeats, warmup, alone, say, before):
        if case.kind == "update" and len(done) == 1:
            raise KeyboardInterrupt
        done.append((case.kind, alone))
        return results() | {"case": vars(case), "others": {} if alone else results()["others"]}

    monkeypatch.setattr(command, "measure", measured)
    words = f"--models mini --cases rollout,update --alone --device cpu --output {tmp_path / 'result.json'}".split()
    with pytest.raises(SystemExit) as end:
        command.main(words)
    assert (
        end.value.code == 130
        and "has 1 of 2 cases, and the same command with --resume goes on" in capsys.readouterr().err
    )
    assert [row["case"]["kind"] for row in json.loads((tmp_path / "result.json").read_text())["cases"]] == ["rollout"]
    done.append("so the update goes on")
    command.main([*words, "--resume"])
    assert done[2:] == [("update", True)] and re.search(r"(?s)rollout, mini.*update, mini", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        command.main([*words, "--resume", "--repeats", "9"])
    assert "was measured with repeats 3, this is 9" in capsys.readouterr().err
    words.remove("--alone")
    done.append("with what stands against it")
    command.main([*words, "--resume"])
    assert done[-2:] == [("rollout", False), ("update", False)]  # the earlier call had measured ours alone


def test_what_cannot_be_resumed_is_one_line(tmp_path, capsys):
    (tmp_path / "other.json").write_text("[]")
    for words, message in (
        ("--resume", "--resume: name the earlier call's file with --output"),
        (f"--resume --output {tmp_path / 'other.json'}", "has no earlier call's results"),
    ):
        with pytest.raises(SystemExit) as end:
            command.main(words.split())
        assert end.value.code == 2 and message in capsys.readouterr().err
