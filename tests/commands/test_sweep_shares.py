"""`launch.py sweep --shares --gold` on a very small world: reward models of more and fewer labels, a gold one of all;
what is done is skipped; figures, page and refusals.
"""

import contextlib
import html
import json
import re

import pytest

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.reports.report import write_report

from small import flags, make_world, policy_flags, reward_flags, run_here

JUDGES = "varied=lm_human_preferences.judging.text_metrics:unrepeated"


def words_of(world, **changes) -> list[str]:
    """A sweep whose reward models are trained, on the labels of reward_flags with a quarter made wrong."""
    own = dict(zip(*[iter(reward_flags(world))] * 2, strict=True))
    new = {
        f"rewards__train_new_model__{name.removeprefix('--').replace('.', '__')}": value
        for name, value in own.items()
        if not name.startswith(("--task", "--run"))
    }
    values = new | dict(
        rewards__kl_coef="0.3,0.02",
        rewards__train_new_model__labels__noise=0.25,
        shares="0.25,1",
        gold="new",
        judges=JUDGES,
        samples=20,
        split="valid",
        responses=8,
        min_effective=2,
        ppo__total_episodes=32,
    )
    base = policy_flags(world)
    at = base.index("--evaluation.samples")
    return [*base[:at], *base[at + 4 :], *flags(**{k: v for k, v in (values | changes).items() if v is not None})]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("shares"))
    run_here("sweep", "movies", "both", *words_of(folder))
    return folder


def test_a_sweep_for_each_share(world):
    """The proxies learn the first labels with noise, the gold model all of them without, from another seed."""
    run = world / "runs/both"
    result = json.loads((run / "result.json").read_text())
    assert [(found["share"], found["labels"]) for found in result["shares"]] == [(0.25, 8), (1.0, 32)]

    def labels(path: str) -> tuple:
        parameters = json.loads((run / path / "config.json").read_text())["parameters"]
        return parameters["labels"]["num_train"], parameters["labels"]["noise"], parameters["run"]["seed"]

    assert labels("gold") == (32, 0.0, 1001)
    assert labels("share_0.25/share_0.25_reward") == (8, 0.25, 1)
    assert labels("share_1/share_1_reward") == (32, 0.25, 1)
    for found in result["shares"]:
        assert found["judges"] == ["varied", "gold"] and set(found["policies"]) == {"kl_0.3_seed_1", "kl_0.02_seed_1"}
        assert 0 <= found["accuracy"] <= 1 and found["fits"].keys() == {"varied", "gold"}
        name = f"share_{found['share']:g}"
        assert json.loads((run / name / "result.json").read_text())["proxy"].endswith(f"{name}_reward/reward_model")
    one, other = (found["reference_policy"] for found in result["shares"])
    assert one["gold"] == other["gold"] and one["proxy"] != other["proxy"]  # the same responses, other proxies


def test_what_is_done_is_skipped(world, capsys):
    """A further share trains its own, and the gold model stays."""
    before = {path: path.stat().st_mtime_ns for path in (world / "runs/both").rglob("model.safetensors")}
    run_here("sweep", "movies", "both", *words_of(world, shares="0.5,1"))
    said = capsys.readouterr().out
    assert "the gold reward model: training" not in said and "share 0.5: 16 labels" in said
    assert said.count("finished already, skipped") == 2 and "gold: varied" in said and "0.5 of the labels" in said
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()) and len(before) == 7
    with pytest.raises(UserError, match="ppo.lr"):
        run_here("sweep", "movies", "both", *words_of(world, ppo__lr=0.5))


def test_what_torchrun_starts_again_goes_on(world, monkeypatch, capsys):
    """Also a sweep that was to replace another one: what it has trained stays."""
    config = world / "runs/both/config.json"
    stored = json.loads(config.read_text())
    models = {path: path.stat().st_mtime_ns for path in (world / "runs/both").rglob("model.safetensors")}
    launched = contextlib.nullcontext(World(launch=("this launch",)))
    monkeypatch.setattr("lm_human_preferences.compute.distributed.world", lambda *arguments: launched)
    config.write_text(json.dumps(stored | {"launch": ["this launch"]}))
    run_here("sweep", "movies", "both", *words_of(world, run__overwrite="on"))
    assert "restarted by torchrun" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in models.items())


def test_pages(world):
    """Of all shares, and of each: gold against proxy beside gold against distance."""
    page = write_report(world / "runs/both")
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "shares.png", "shares.svg"]
    text = html.unescape(page.read_text())
    assert re.findall(r"<h2[^>]*>([^<]+)", text) == ["Figure", "Shares of the labels", "Configuration"]
    own = write_report(world / "runs/both/share_1")
    assert {"gold_against_proxy.svg", "sweep.svg"} <= {path.name for path in own.parent.iterdir()}
    assert "Gold against proxy" in own.read_text()


def test_an_ensemble_on_wrong_labels(world):
    """Its members as the proxy, whose accuracy is the members' mean."""
    words = words_of(world, shares="0.5", gold=None, rewards__kl_coef="0.3", rewards__train_new_model__members=2)
    run_here("sweep", "movies", "ensemble", *words)
    [found] = json.loads((world / "runs/ensemble/result.json").read_text())["shares"]
    folder = world / "runs/ensemble/share_0.5/share_0.5_reward"
    members = json.loads((folder / "result.json").read_text())["members"]
    assert found["accuracy"] == pytest.approx(sum(member["accuracy"] for member in members) / 2) and len(members) == 2


def test_a_gold_model_that_is_there(world, capsys):
    """By its run's name or path, beside the judges or alone."""
    words = words_of(world, shares=None, gold="both/gold", judges=None, rewards__kl_coef="0.3")
    run_here("sweep", "movies", "given", *words)
    result = json.loads((world / "runs/given/result.json").read_text())
    assert result["judges"] == ["gold"] and "gold: gold" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(shares="0,1"), "--shares 0,1: '0' is not a share above 0 and at most 1"),
        (dict(shares="1,x"), "'x' is not a share"),
        (dict(shares="0.5,0.5"), "has a share twice"),
        (dict(shares="0.01,0.02"), "two of them are the same number of batches"),
        (dict(gold="nowhere"), "--gold nowhere: there is no such reward model"),
        (
            dict(judges="gold=lm_human_preferences.judging.text_metrics:unrepeated", shares=None, gold="new"),
            "called gold",
        ),
        (dict(rewards__function="lm_human_preferences.judging.text_metrics:unrepeated"), "--gold new trains reward"),
    ],
)
def test_what_cannot_work_is_refused(world, changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        run_here("sweep", "movies", "refused", *words_of(world, **changes))
    assert not (world / "runs/refused").exists()
