"""Counting operations and bytes: of single operators by hand, of a repetition against the formula, the command."""

import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks import counting
from benchmarks.cases import Case
from benchmarks.counter import Counter
from benchmarks.measure import ROOT
from benchmarks.worker import prepare
from lm_human_preferences.compute.precision import with_matmul_precision

CASE = Case("update", "tiny", "style", 1, response_length=2, device="cpu", precision="bfloat16", threads=1)


def counted(work, *tensors):
    with Counter() as counter:
        work(*tensors)
    return {kind: (t["calls"], t["flops"], t["bytes"]) for kind, t in counter.totals.items()}


def test_single_operators():
    """Two for each multiply-add; each tensor once; views are nothing; what is changed in place is read and written."""
    a, b, low = torch.zeros(3, 4), torch.zeros(4, 5), torch.zeros(4, 4, dtype=torch.bfloat16)
    assert counted(torch.mm, a, b) == {"products in float32": (1, 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))}
    with with_matmul_precision("medium"):
        assert set(counted(torch.mm, a, b)) == {"products in float32, may round"}
    assert counted(torch.mm, low, low) == {"products in bfloat16": (1, 2 * 64, 2 * (16 + 16))}, "one tensor, read once"
    assert counted(lambda x: x.add_(1), a) == {"other passes": (1, 0, 4 * 24)}
    assert counted(lambda x: x.zero_(), a) == {"zeros and fills": (1, 0, 4 * 12)}
    assert counted(lambda x: x.t().view(2, 6).flatten(), torch.zeros(4, 3).t()) == {}
    assert counted(lambda x: x.bfloat16(), a) == {"copies and casts": (1, 0, 6 * 12)}
    assert counted(lambda x: x + x, a) == {"other passes": (1, 0, 4 * 24)}, "one tensor, read once"
    assert counted(lambda x: x.expand(9, 4) + 1, a[:1]) == {"other passes": (1, 0, 4 * (4 + 36))}


def test_gathers_read_what_they_give():
    table, rows = torch.zeros(100, 8), torch.tensor([1, 5])
    assert counted(lambda t: F.embedding(rows, t), table) == {"gathers and scatters": (1, 0, 2 * 8 + 2 * 4 * 16)}
    added = counted(lambda t: t.index_add_(0, rows, torch.ones(2, 8)), table)
    assert added["gathers and scatters"] == (1, 0, 2 * 8 + 3 * 4 * 16)


def test_attention_forward_and_back():
    q = torch.zeros(2, 3, 7, 4, requires_grad=True)
    totals = counted(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward())
    square = 2 * 2 * 3 * 7 * 7 * 4  # FLOP of one product
    assert totals["attention in float32"][:2] == (2, (2 + 5) * square)


def test_a_repetition_has_the_products_that_the_formula_says():
    """Rewards' last blocks and so on included, attention apart, which is counted without its mask."""
    found = counting.count(CASE, ROOT)
    products = sum(counts["flops"] for kind, counts in found.items() if kind.startswith("products"))
    assert 0.95 < products / prepare(CASE)()["flops"] < 1.1
    assert {"optimizer", "GELU", "layer norm", "products in bfloat16"} <= set(found)


def test_the_command(tmp_path, capsys, monkeypatch):
    """Two checkouts side by side, and the least time at rates that are told."""
    a = {"products in bfloat16": {"calls": 2, "flops": 4e12, "bytes": 1e9}}
    b = {
        "products in bfloat16": {"calls": 1, "flops": 2e12, "bytes": 1e9},
        "GELU": {"calls": 1, "flops": 0, "bytes": 2e9},
    }
    monkeypatch.setattr(counting, "count", lambda case, checkout: b if checkout == ROOT else a)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "worker.py").touch()
    output = tmp_path / "counts.json"
    counting.main(f"--cases update --rates 1,2,10 --before {tmp_path} --output {output}".split())
    text = [" ".join(line.replace("|", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "Least seconds at 1 TFLOP/s in float32, 2 in bfloat16, 10 GB/s; bfloat16." in text
    assert "products in bfloat16 2 1 4,000 2,000 1.00 1.00 2 1" in text
    assert "GELU 0 1 0 0 0.00 2.00 0 0.2" in text and "together 2 2 4,000 2,000 1.00 3.00 2 1.2" in text
    assert json.loads(output.read_text())["cases"][0]["before"] == a


@pytest.mark.parametrize(
    "words, message",
    [
        ("--rates 1,2", "--rates 1,2: needs three positive numbers"),
        ("--rates 1,2,0", "--rates 1,2,0: needs three positive numbers"),
        ("--precision half", "--precision half: must be float32 or bfloat16"),
        ("--cases sing", "--cases sing: there are rollout"),
        ("--before /nowhere", "--before /nowhere: no checkout of this project"),
    ],
)
def test_bad_words_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        counting.main(words.split())
    assert end.value.code == 2 and message in capsys.readouterr().err
