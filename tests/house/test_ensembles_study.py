"""The study of ensembles: its commands, and what it makes of sweeps' results."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import ensembles
from benchmarks.ensembles import Setting, accuracies, commands_of, curve_of, curves_of, table
from lm_human_preferences.commands import command_line
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json

from params import EXPERIMENTS

SETTING = Setting(Path("F"), 0.25, "0.1,0.2", "cpu", "float32", 1)


def test_its_commands_resolve(capsys):
    train, *sweeps = commands_of(2, SETTING)
    command_line.run([*train.words, "--dry_run"], EXPERIMENTS)
    resolved = json.loads(capsys.readouterr().out)
    assert (resolved["members"], resolved["labels"]["noise"], resolved["labels"]["noise_seed"]) == (4, 0.25, 2)
    assert resolved["run"]["seed"] == 5, "the first seed's members have 1 to 4"
    models = [sweep.words[sweep.words.index("--rewards.trained_model") + 1] for sweep in sweeps]
    assert models == ["F/reward_2/member_1", "F/reward_2", "F/reward_2"]
    for sweep in sweeps:
        assert sweep.words[sweep.words.index("--rewards.kl_coef") + 1] == "0.1,0.2"
        flags = dict(zip(sweep.words[3::2], sweep.words[4::2], strict=True))
        assert all(name.startswith("--") for name in flags) and flags["--run.seed"] == "2"


def result(offset=0.0):
    """A sweep's result: the reference at 0.5, one policy at 1 nat and one at 4, judged 1 and 3 above it."""

    def side(gain, proxy):
        return {"proxy": {"mean": proxy}, "gold": {"embeddings": {"mean": 0.5 + gain}}}

    policies = {
        "kl_0.2_seed_1": {"kl_coef": 0.2, "kl": {"mean": 1.0}, **side(1 + offset, 0.7)},
        "kl_0.1_seed_1": {"kl_coef": 0.1, "kl": {"mean": 4.0}, **side(3 + offset, 0.9)},
    }
    return {"reference_policy": side(0.0, 0.2), "policies": policies}


def test_gains_at_equal_kl(tmp_path):
    curve = curve_of(result())
    assert curve.kl.tolist() == [4.0, 1.0] and curve.gains["embeddings"].tolist() == [3.0, 1.0]
    for seed, offset in ((1, 0.0), (2, 1.0)):
        write_json(tmp_path / f"one_{seed}" / "result.json", result(offset))
        write_json(tmp_path / f"reward_{seed}" / "result.json", {"members": [{"accuracy": 0.5}, {"accuracy": 0.6}]})
    assert accuracies([1, 2, 3], tmp_path) == [0.5, 0.6, 0.5, 0.6]
    curves = curves_of([1, 2, 3], tmp_path)
    assert list(curves) == ["one"] and len(curves["one"]) == 2
    rows = [line for line in table(curves) if line.startswith("| one | embeddings")]
    # half way between the roots 1 and 2 lies 2.25 nats; at 2 nats 1 + 2 * (sqrt(2) - 1)
    assert rows == ["| one | embeddings | +2.33 (+1.83 to +2.83) | +3.50 (+3.00 to +4.00) | - | 2 |"]


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["ensembles", *map(str, words)])
    ensembles.main.__wrapped__()


def test_the_report(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "one_1" / "result.json", result())
    write_json(tmp_path / "mean_1" / "result.json", result(0.5))
    words = ["--only_report", "--folder", tmp_path, "--figure", tmp_path / "figure.png"]
    run(monkeypatch, *words)
    said = capsys.readouterr().out
    assert "| mean | embeddings |" in said and (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "curves.json").read_text())["mean"][0]["embeddings"] == [3.5, 1.5]
    with pytest.raises(UserError, match="--judge words: the sweeps have proxy, embeddings"):
        run(monkeypatch, *words, "--judge", "words")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--seeds", "1,x"], "whole numbers"),
        (["--seeds", "1,1"], "none of them twice"),
        (["--coefficients", "0.1,y"], "'y'"),
    ],
)
def test_refusals(monkeypatch, words, says):
    with pytest.raises(UserError, match=says):
        run(monkeypatch, *words)
