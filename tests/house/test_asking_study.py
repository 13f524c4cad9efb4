"""The study of asking: its commands can be run, offline asks at once, and what is read off finished members."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import asking
from benchmarks.asking import (
    Member,
    Point,
    Setting,
    beyond_kl,
    commands_of,
    differences,
    labels_needed,
    members_of,
    needed_table,
    points_of,
)
from lm_human_preferences.commands import command_line
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json

from params import EXPERIMENTS

SETTING = Setting(Path("F"), 0.3, 5, 6.0, 5, None, 1000, "cpu", "float32", 1)


def test_its_commands_resolve(capsys):
    for way, first in (("offline", 2048), ("random", 512), ("information", 512)):
        train, evaluate = commands_of(Member(way, 2048, 3), SETTING)
        command_line.run([*train.words, "--dry_run"], EXPERIMENTS)
        resolved = json.loads(capsys.readouterr().out)
        assert (resolved["online"]["labels"], resolved["online"]["initial_labels"]) == (2048, first)
        assert resolved["online"]["ask"] == (way if way != "offline" else "random") and resolved["run"]["seed"] == 3
        assert resolved["online"]["labellers"].startswith(f"simulated:{asking.JUDGE}?noise=0.3")
        assert resolved["rewards"]["adaptive_kl"]["target"] == 6.0
        assert train.result == Path(f"F/policy_{way}_2048_3/policy/model.safetensors"), (
            "evaluation.samples 0: no result"
        )
        assert evaluate.words[:2] == ["evaluate", "movies"] and str(train.result.parent.parent) in " ".join(
            evaluate.words
        )


def test_members():
    assert members_of("offline,random", "64,128", "2,1")[:3] == [
        Member("offline", 128, 2),
        Member("random", 128, 2),
        Member("offline", 64, 2),
    ]
    for wrong in (("cleverly", "64", "1"), ("random", "50", "1"), ("random", "64", "one")):
        with pytest.raises(UserError):
            members_of(*wrong)


def test_a_shorter_run():
    train, _ = commands_of(Member("random", 64, 1), SETTING._replace(episodes=2048))
    assert train.words[train.words.index("--ppo.total_episodes") + 1] == "2048"
    assert "--ppo.total_episodes" not in commands_of(Member("random", 64, 1), SETTING)[0].words


def finished(folder, member, gold, kl=6.0):
    """An evaluation as `evaluate` writes it."""

    def number(value):
        return {"mean": value, "low": value - 0.1, "high": value + 0.1}

    figures = {"scores": {"sentences": number(gold), "words": number(0.5)}, "kl": number(kl)}
    figures |= {"no_valid_end": number(0.1), "distinct_2": number(0.4)}
    policies = {"before": figures | {"scores": {"sentences": number(0.2), "words": number(0.1)}}, "after": figures}
    win = {"judge": "sentences", "policy": "after", "against": "before", "share": number(0.8)}
    write_json(folder / member.name("evaluation") / "result.json", {"policies": policies, "wins": [win]})


def test_what_is_read_off(tmp_path):
    """Offline 1.0 at 512 labels and 2.0 at 2048, asking 2.0 half-way (on the logarithm) from 1.5 to 2.5."""
    members = members_of("offline,random,thompson", "512,2048", "1,2")
    for member in members:
        if member.way != "thompson" and (member.way, member.labels, member.seed) != ("random", 512, 2):
            gold = {"offline": {512: 1.0, 2048: 2.0}, "random": {512: 1.5, 2048: 2.5}}[member.way][member.labels]
            finished(tmp_path, member, gold, 4.0 if member.labels == 512 else 6.0)
    points = points_of(members, tmp_path)
    assert set(points) == {"offline", "random"} and [len(point.gold) for point in points["random"]] == [1, 2]
    golds = [(512, 1.5), (2048, 2.5)]
    assert labels_needed(golds, 2.0) == pytest.approx(1024)
    assert labels_needed(golds, 1.4) == 512 and labels_needed(golds, 3.0) == math.inf
    text = "\n".join(needed_table(points))
    assert "+2.00 that 2,048 gave offline" in text and "  random: 1,024, 0.50 of them" in text
    assert "offline: 2,048, 1.00 of them (single seeds: 2,048; 2,048)" in text
    assert any("| offline | 512 | 2 | +1.00 |" in line for line in asking.table(points))
    asking.draw(points, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert needed_table({"random": [Point(512, [1], [1.0], [1.0], [6.0], [0.5], [0.2])]}) == []


def test_differences_are_of_the_same_seeds():
    """Pairs 0.1, 0.2 and 0.3: mean 0.2, and 4.303 times 0.1 / sqrt(3) on either side."""

    def point(labels, golds):
        return Point(labels, list(golds), list(golds.values()), [], [], [], [])

    points = {
        "offline": [point(512, {1: 1.0, 2: 2.0, 3: 3.0}), point(1024, {1: 1.0})],
        "random": [point(512, {3: 3.3, 1: 1.1, 2: 2.2, 4: 9.0}), point(1024, {1: 2.0})],
        "thompson": [point(256, {1: 1.0, 2: 1.0})],
    }
    heading, *lines = differences(points)
    assert "95%" in heading and lines == ["  random, 512: +0.20 (-0.05 to +0.45)"]
    single = {"offline": [point(512, {1: 1.0, 2: 2.0})], "random": [point(512, {1: 2.0, 2: 2.1})]}
    assert needed_table(single)[-1] == "  random: at most 512, 1.00 of them (single seeds: at most 512; at most 512)"
    assert differences({"random": points["random"]}) == []


def test_policies_are_compared_at_their_own_kl():
    """All lie on 0.2 + d - 0.1 d^3 but for one way, which is 0.3 above and below it."""

    def point(labels, kls, *beyond):
        golds = [0.2 + math.sqrt(kl) * (1 - 0.1 * kl) + x for kl, x in zip(kls, beyond, strict=True)]
        return Point(labels, [1, 2], golds, [0.0] * 2, list(kls), [0.5] * 2, [0.2] * 2)

    points = {"offline": [point(512, (1.0, 4.0), 0.0, 0.0)], "random": [point(512, (2.0, 9.0), 0.0, 0.0)]}
    assert asking.curve_of(points) == pytest.approx([1.0, 0.0, -0.1])
    exact = [line.replace("-", "+") for line in beyond_kl(points)[1:]]
    assert exact == [f"  {way}, 512: +0.00 (+0.00 to +0.00)" for way in points]
    apart = points | {"thompson": [point(512, (3.0, 3.0), 0.3, -0.3)]}
    assert beyond_kl(apart)[-1][1:].endswith("0.00 (-3.81 to +3.81)")
    lone = {"offline": [Point(512, [1], [1.0], [0.0], [6.0], [0.5], [0.2])]}
    for few in (lone, {}):
        assert beyond_kl(few) == [] and asking.curve_of(few) is None


def test_a_study_of_which_nothing_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["asking", "--only_report", "--folder", str(tmp_path)])
    asking.main()
    assert "| asked | labels |" in capsys.readouterr().out
