"""Training that asks: the schedule, retraining, waiting, two processes at one store, kills, and what it must equal."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences import train_online
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.foundation.errors import Interrupted, UserError
from lm_human_preferences.people.records import StudyParams
from lm_human_preferences.people.schedule import (
    OnlineParams,
    check_online,
    labels_wanted,
    questions_wanted,
    retraining_counts,
    wanted_before,
)
from lm_human_preferences.people.simulated import answer_open, parse_simulated
from lm_human_preferences.people.store import Store

from small import ROOT, flags, make_world, metrics, policy_flags, run_here

JUDGE = "judges_of_tests:many_a"
PEOPLE = f"simulated:{JUDGE}?noise=0.2&people=3"


# --- the schedule ---


def test_the_schedule_is_the_papers_formula_at_every_episode():
    N0, N, total = 1000, 5000, 20_000
    for n in range(0, total, 7):
        assert labels_wanted(n, total, N0, N) == N0 + (N - N0) * (1 - (1 - n / total) ** 2)
        assert 0 <= wanted_before(n, total, OnlineParams()) - labels_wanted(n, total, N0, N) < 1
    wanted = [wanted_before(n, total, OnlineParams()) for n in range(total + 1)]
    assert wanted[0] == 1000 and wanted[-1] == 5000 and all(a <= b for a, b in pairwise(wanted))
    assert wanted[total // 2] == 4000  # half of the episodes want three quarters of what is to come


def test_the_reward_model_learns_again_19_times_at_even_counts():
    counts = retraining_counts(OnlineParams(labels=60_500, initial_labels=500), 10)
    assert len(counts) == 19 and counts[0] == 3500 and {b - a for a, b in pairwise(counts)} == {3000}
    assert counts[-1] < 60_500
    assert all(count % 32 == 0 for count in retraining_counts(OnlineParams(labels=5000, initial_labels=992), 32))
    assert retraining_counts(OnlineParams(labels=1000), 8) == []
    assert retraining_counts(OnlineParams(retrainings=0), 8) == []


def test_batches_of_labels():
    params = OnlineParams(labels=400, initial_labels=100, rounds=3)
    wanted = [wanted_before(n, 1000, params) for n in range(1000)]
    assert [wanted.index(count) for count in (100, 200, 300, 400)] == [0, 250, 500, 750]
    assert sorted(set(wanted)) == [100, 200, 300, 400] and retraining_counts(params, 10) == [200, 300, 400]


def test_questions_are_asked_ahead():
    params = OnlineParams(labels=100, initial_labels=50, open_questions=10, people=StudyParams(validation_share=0.5))
    assert questions_wanted(50, params, both=False) == 61 and questions_wanted(50, params, both=True) == 121


@pytest.mark.parametrize(
    "changed, said",
    [
        (dict(initial_labels=6000), "--online.initial_labels 6000 must lie between 1 and --online.labels 5000"),
        (dict(initial_labels=1001), "does not divide by"),
        (dict(retrainings=-1), "--online.retrainings -1"),
        (dict(open_questions=0), "--online.open_questions 0"),
        (dict(merge="each"), "majority or dawid_skene"),
        (dict(learning="never"), "--online.learning never: must be afresh or continued"),
        (dict(lr=0.1), "--online.lr 0.1: must be positive, and --online.learning continued"),
        (dict(ask="cleverly"), "random, disagreement, thompson or information"),
        (dict(candidates=3), "--online.candidates 3: must be at least the 4"),
        (dict(heads=1), "--online.heads 1"),
        (dict(random_share=0.0), "--online.random_share 0.0"),
        (dict(people=StudyParams(responses=3)), "is not the 4 of the labels' type best_of_4"),
        (dict(people=StudyParams(mode="rank")), "must be choose"),
        (dict(people=StudyParams(validation_share=0.6)), "--online.people.validation_share 0.6: must be at most 0.5"),
    ],
)
def test_schedules_that_cannot_work(changed, said):
    with pytest.raises(UserError, match=said):
        check_online(OnlineParams(**changed), label_type("best_of_4"), 8)


# --- whole runs ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def judge(tmp_path_factory, monkeypatch):
    """A judge for simulated people: the more a's the better."""
    folder = tmp_path_factory.mktemp("judge")
    (folder / "judges_of_tests.py").write_text(
        "def many_a(queries, texts):\n    return [text.count('a') - 0.01 * len(text) for text in texts]\n"
    )
    monkeypatch.syspath_prepend(str(folder))


def words_of(world, name, **more):
    """Eight steps; 16 labels at first, 32 in all, three retrainings of the reward model."""
    online = dict(online="on", online__labels=32, online__initial_labels=16, online__retrainings=3)
    online |= dict(online__open_questions=4, online__labellers=PEOPLE, online__people__overlap_people=2)
    online |= dict(online__people__overlap_share=0.2, online__people__validation_share=0.2)
    reward = dict(lr=0.01, batch_size=4, rollout_batch_size=16, normalize_samples=16, labels__valid_source="none")
    reward = {f"rewards__train_new_model__{key}": value for key, value in reward.items()}
    given = reward | online | dict(ppo__total_episodes=128, evaluation__samples=0) | more
    return ["train_policy", "movies", name, *policy_flags(world), *flags(**given)]


def weights(world, name):
    return load_file(world / f"runs/{name}/policy/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    (folder / "judges_of_tests.py").write_text(
        "def many_a(queries, texts):\n    return [text.count('a') - 0.01 * len(text) for text in texts]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        run_here(*words_of(world, "whole"))
    return world


def test_a_run_asks_waits_and_learns_again(undisturbed):
    world = undisturbed
    rows = metrics(world / "runs/whole")
    params = OnlineParams(labels=32, initial_labels=16)
    assert [row["online/labels_wanted"] for row in rows] == [wanted_before(n, 128, params) for n in range(0, 128, 16)]
    used = [row["online/labels_used"] for row in rows]
    assert sorted(set(used)) == [16, 20, 24, 28]
    for row in rows:
        assert row["online/labels_used"] <= row["online/labels_wanted"]
    learnt = [row for row in rows if "online/accuracy_new" in row]
    assert len(learnt) == 3 and all(row["online/labellers"] == 3 for row in learnt)
    assert all(0 <= row["online/accuracy_new"] <= 1 and row["online/new_labels"] >= 4 for row in learnt)
    store = Store(world / "runs/whole_people")
    questions = store.questions()
    assert {response.source for question in questions[:16] for response in question.responses} == {"reference"}
    late = [question for question in questions[24:] if question.kind == "plain"]
    assert late and all({response.source for response in question.responses} == {"policy"} for question in late)
    steps = [question.responses[-1].step for question in questions]
    assert steps == sorted(steps) and steps[-1] > 3
    validation = [question for question in questions if question.kind == "validation"]
    assert validation and [r.source for r in validation[0].responses] == ["reference"] * 2 + ["policy"] * 2
    assert store.count_labelled() >= 31
    first = json.loads((world / "runs/whole_people/training/whole/labels_16.json").read_text())
    second = json.loads((world / "runs/whole_people/training/whole/labels_20.json").read_text())
    assert len(second) == 20 and [label["query"] for label in second[:16]] == [label["query"] for label in first]
    config = json.loads((world / "runs/whole_reward_20/config.json").read_text())
    assert config["parameters"]["labels"]["num_train"] == 20 and (world / "runs/whole_reward/result.json").exists()


def test_with_all_labels_at_first_it_is_the_offline_run(undisturbed):
    """Bit for bit, given the same labels."""
    world = undisturbed
    run_here(*words_of(world, "at_once", online__labels=16))
    labels = world / "offline.json"
    shutil.copy(world / "runs/at_once_people/training/at_once/labels_16.json", labels)
    offline = dict(rewards__train_new_model__labels__source=labels, rewards__train_new_model__labels__num_train=16)
    words, kept = words_of(world, "offline"), []
    for flag, value in zip(words[3::2], words[4::2], strict=True):
        kept += [] if flag.startswith("--online") else [flag, value]
    run_here(*words[:3], *kept, *flags(**offline))
    assert same(weights(world, "at_once"), weights(world, "offline"))
    ours, theirs = metrics(world / "runs/at_once"), metrics(world / "runs/offline")
    assert [{key: value for key, value in row.items() if not key.startswith("online/")} for row in ours] == theirs


CONTINUED = dict(online__learning="continued", online__retrainings=20, online__lr=0.005, run__keep_checkpoints=1)


def test_a_reward_model_that_goes_on(undisturbed):
    """It learns at each whole batch of labels from these alone, beginning as the one before ended; old ones go."""
    world = undisturbed
    run_here(*words_of(world, "on", **CONTINUED))
    used = sorted({row["online/labels_used"] for row in metrics(world / "runs/on")})
    assert used == [16, 20, 24, 28]
    kept = sorted(folder.name for folder in (world / "runs").glob("on_reward*"))
    assert kept == ["on_reward", "on_reward_24", "on_reward_28"]
    config = json.loads((world / "runs/on_reward_28/config.json").read_text())["parameters"]
    assert config["initial_reward"].endswith("on_reward_24/reward_model") and config["lr"] == 0.005
    assert config["labels"]["num_train"] == 4 and len(metrics(world / "runs/on_reward_28")) == 2
    new = json.loads((world / "runs/on_people/training/on/labels_24_28.json").read_text())
    every = Store(world / "runs/on_people").count_labelled()
    assert len(new) == 4 and every >= 28
    before, after = (load_file(world / f"runs/on_reward_{n}/reward_model/model.safetensors") for n in (24, 28))
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 2 * 0.005 * 2  # one step of Adam, not a training from the language model


class Killed(BaseException):
    pass


MOMENTS = [
    ("ask", 4),
    ("fitted_heads", 2),
    ("look", 5),
    ("learn", 2),
    ("use", 3),
    ("reward_params", 2),
    ("accuracy_on_new", 3),
]


@pytest.mark.parametrize("place, times", MOMENTS, ids=[place for place, _ in MOMENTS])
def test_killed_and_resumed_it_ends_as_undisturbed(undisturbed, monkeypatch, place, times):
    """Stopped dead while asking, while answers come, before and after a retraining, and resumed each time."""
    world, name, kills = undisturbed, f"killed_{place}", 0
    others = dict(fitted_heads=dict(online__ask="information", online__candidates=6), drop_old=CONTINUED)
    more, whole_run = others.get(place, {}), f"whole_{place}" if place in others else "whole"
    if more:
        run_here(*words_of(world, whole_run, **more))
    whole, calls = getattr(train_online.OnlineRewards, place), []

    def then_die(self, *arguments):
        calls.append(place)
        if len(calls) == times:
            raise Killed
        found = whole(self, *arguments)
        if len(calls) == times + 2:
            raise Killed
        return found

    monkeypatch.setattr(train_online.OnlineRewards, place, then_die)
    words = words_of(world, name, **more)
    while not (world / f"runs/{name}/policy").exists():
        begun = (world / f"runs/{name}/config.json").exists()
        try:
            run_here(*words, *(["--run.resume"] if begun else []))
        except Killed:
            kills += 1
    assert kills >= 1
    whole_questions, questions = (Store(world / f"runs/{run}_people").questions() for run in (whole_run, name))
    assert [one.responses for one in questions] == [one.responses for one in whole_questions]
    assert same(weights(world, name), weights(world, whole_run))


@pytest.mark.parametrize("how", ["disagreement", "thompson", "information"])
def test_a_run_asks_what_teaches_most(undisturbed, how):
    """More responses are written than shown, a share of the questions is left as it was drawn, the shown ones tell
    more, and accuracy is measured on those left; the same command on the same answers ends the same."""
    world = undisturbed
    given = dict(online__ask=how, online__candidates=8, online__heads=6, online__random_share=0.4)
    for name in (how, f"{how}_again"):
        run_here(*words_of(world, name, **given))
    learnt = [row for row in metrics(world / f"runs/{how}") if "online/information_chosen" in row]
    assert learnt and all(row["online/information_chosen"] >= 0 for row in learnt)
    assert any("online/accuracy_new" in row for row in learnt)
    questions, random = (Store(world / f"runs/{run}_people").questions() for run in (how, "whole"))
    pairs = list(zip(questions, random, strict=False))
    assert all(one.query == other.query for one, other in pairs[:16])
    differ = [n for n, (one, other) in enumerate(pairs) if one.responses != other.responses]
    assert min(differ) >= 16 and all(questions[n].responses[-1].source == "policy" for n in differ)
    for question in questions:
        assert len({response.text for response in question.responses}) == 4
    assert same(weights(world, how), weights(world, f"{how}_again"))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_ranks_ask_and_learn_as_one(world, sharding):
    """The first rank alone reads the study; the same labels, and the same policy up to rounding."""
    people = dict(online__labellers="simulated:lexicon?noise=0.5&people=3", online__ask="information")
    if not (world / "runs/alone/policy").exists():
        run_here(*words_of(world, "alone", **people))
    name = f"ranks_{sharding}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "launch.py"]
    words = [*torchrun, *words_of(world, name, **people, run__sharding=sharding)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for count in (16, 28):
        alone, both = (world / f"runs/{run}_people/training/{run}/labels_{count}.json" for run in ("alone", name))
        assert alone.read_text() == both.read_text()
    for tensor, value in weights(world, "alone").items():
        if not tensor.endswith("c_attn.bias"):  # the keys' part has gradient 0: Adam makes steps of noise there
            torch.testing.assert_close(weights(world, name)[tensor], value, rtol=1e-3, atol=1e-4)


def test_it_can_end_with_what_it_waits_for(world, capsys):
    """The run and whoever answers are two: each run ends with a line, somebody answers, the same command goes on."""
    words = words_of(world, "apart", online__labellers="none", online__wait="off")
    people = parse_simulated(PEOPLE, 1, torch.device("cpu"))
    lines = []
    for _ in range(40):
        begun = (world / "runs/apart/config.json").exists()
        try:
            run_here(*words, *(["--run.resume"] if begun else []))
            break
        except Interrupted as end:
            lines.append(str(end))
        store = Store(world / "runs/apart_people")
        assert store.waited_for().startswith("The training waits for")
        answer_open(store, people, 5)
        store.close()
    assert lines[0].startswith("waiting for 16 labels") and "the same command goes on" in lines[0]
    assert "--run.resume goes on" in lines[-1] and len(lines) > 4
    assert [row["step"] for row in metrics(world / "runs/apart")] == list(range(8))
    assert Store(world / "runs/apart_people").waited_for() == ""


def test_what_cannot_work_is_one_line(world, undisturbed):
    run_here("train_policy", "movies", "dry", *words_of(world, "dry")[3:], "--dry_run")
    for more, said in (
        (dict(online__initial_labels=15), "does not divide by"),
        (dict(online__labellers="nobody"), "expected simulated:JUDGE"),
        (dict(online__study="whole"), "holds no study"),
        (dict(rewards__trained_model=world / "runs/whole_reward"), "trains its own reward models"),
        (dict(rewards__train_new_model__members=2), "one reward model is trained at a time"),
    ):
        with pytest.raises(UserError, match=said):
            run_here(*words_of(world, "wrong", **more))
    assert not (world / "runs/wrong").exists()
    with pytest.raises(UserError, match="exists already"):
        run_here(*words_of(world, "whole"))
