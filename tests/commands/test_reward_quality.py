"""A reward model's quality: its arithmetic on cases worked out by hand, `launch.py reward_quality` on the small world,
its refusals.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from lm_human_preferences.commands import command_line
from lm_human_preferences.commands.reward_quality import (
    RewardQualityParams,
    RewardTrainer,
    _begun,
    find_subject,
    reward_quality,
)
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.configuration import apply_overrides, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging import calibration
from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import save_model
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.train_reward import RewardTrainingParams

from params import EXPERIMENTS
from small import PAD, flags, launch, make_world, reward_flags, run_here

# --- arithmetic ---


def test_means_and_ratios():
    assert calibration.mean(np.array([True, False, True, True])) == {
        "value": 0.75,
        "standard_error": pytest.approx(np.sqrt(0.75 * 0.25 / 4)),
    }
    assert calibration.mean(np.array([])) == {"value": None, "standard_error": None}
    found = calibration.ratio(np.array([1.0, 0.0, 2.0]), np.array([1, 1, 3]), Bootstrap(3, 1))
    assert found["value"] == pytest.approx(0.6) and 0 < found["standard_error"] < 0.5
    assert calibration.ratio(np.zeros(3), np.zeros(3), Bootstrap(3, 1))["value"] is None
    many = np.random.default_rng(0).random(500)
    resampled, plain = calibration.ratio(many, np.ones(500), Bootstrap(500, 1)), calibration.mean(many)
    assert resampled["value"] == pytest.approx(plain["value"]) and resampled["standard_error"] == pytest.approx(
        plain["standard_error"], rel=0.1
    )


def test_standard_error_of_choices_that_share_responses():
    """Values 1, 1, 0, 0, of which the first two share a member, and the last two two: e is 1/2, 1/2, -1/2, -1/2."""
    values = np.array([1, 1, 0, 0])
    assert calibration.mean_of_overlapping(values, ["a", "b", "c", ""]) == calibration.mean(values)
    assert calibration.mean_of_overlapping(values, ["ab", "bc", "de", "ed"])["standard_error"] == pytest.approx(
        np.sqrt(4 * 0.25 + 4 * 0.25) / 4
    )
    assert calibration.mean_of_overlapping(values, ["a", "a", "a", "a"])["standard_error"] == 0  # e sums to 0
    assert calibration.mean_of_overlapping(values, ["a", "b", "ab", "ab"])["standard_error"] is None
    assert calibration.mean_of_overlapping(np.array([]), [])["value"] is None


def test_reliability_and_calibration_error():
    confidence, right = np.array([0.55, 0.58, 0.9, 1.0, 0.95]), np.array([True, False, True, True, False])
    rows = calibration.reliability(confidence, right, 10)
    assert [(row["low"], row["high"], row["choices"]) for row in rows] == [(0.5, 0.6, 2), (0.9, 1.0, 3)]
    assert (
        rows[0]["confidence"] == pytest.approx(0.565)
        and rows[0]["accuracy"] == 0.5
        and rows[1]["accuracy"] == pytest.approx(2 / 3)
    )
    error = calibration.calibration_error(confidence, right, 10, Bootstrap(5, 1))
    assert error["value"] == pytest.approx((2 * 0.065 + 3 * (0.95 - 2 / 3)) / 5) and error["standard_error"] > 0
    perfect = calibration.calibration_error(np.ones(4), np.ones(4, bool), 7, Bootstrap(4, 1))
    assert perfect == {"value": 0, "standard_error": 0}


def test_log_probabilities_bear_large_rewards():
    np.testing.assert_allclose(
        calibration.log_probabilities(np.array([[1000.0, 1000.0], [0.0, np.log(3)]])),
        np.log([[0.5, 0.5], [0.25, 0.75]]),
    )
    np.testing.assert_allclose(calibration.log_probabilities([[0.0, 2 * np.log(3)]], 2.0), np.log([[0.25, 0.75]]))


def test_temperature():
    """Two responses, rewards 0 and 2, right in 3 of 4: calibrated where sigmoid(2 / T) = 3/4, T = 2 / ln 3; its error
    from the variance 4 p (1 - p).
    """
    rewards, best = np.array([[0.0, 2.0]] * 400), np.array([1, 1, 1, 0] * 100)
    found = calibration.best_temperature(rewards, best)
    assert found["value"] == pytest.approx(2 / np.log(3))
    assert found["standard_error"] == pytest.approx(found["value"] ** 2 / np.sqrt(400 * 4 * 0.75 * 0.25))
    random = np.random.default_rng(0)
    rewards = random.normal(size=(4000, 4)) * 2
    chosen = np.array([random.choice(4, p=np.exp(row)) for row in calibration.log_probabilities(rewards, 3.0)])
    found = calibration.best_temperature(rewards, chosen)
    assert abs(found["value"] - 3) < 3 * found["standard_error"] < 0.6
    for best in (np.zeros(400, int), np.ones(400, int)):  # always wrong, always right
        assert calibration.best_temperature(np.array([[0.0, 2.0]] * 400), best)["value"] is None


def test_correlations():
    random, bootstrap = np.random.default_rng(0), Bootstrap(300, 1)
    x = random.normal(size=300)
    y = x + random.normal(size=300)
    found = calibration.correlation(x, y, np.arange(300), bootstrap)
    assert found["value"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["standard_error"] == pytest.approx((1 - found["value"] ** 2) / np.sqrt(299), rel=0.3)
    assert calibration.correlation(x, -5 * x + 1e6, np.arange(300), bootstrap)["value"] == pytest.approx(-1)
    assert calibration.correlation(x, np.ones(300), np.arange(300), bootstrap) == {
        "value": None,
        "standard_error": None,
    }
    # every point thrice: the same r, and because the three are one unit the same error, not one smaller by the root of
    # 3
    thrice = calibration.correlation(np.repeat(x, 3), np.repeat(y, 3), np.repeat(np.arange(300), 3), bootstrap)
    assert thrice == {name: pytest.approx(value) for name, value in found.items()}
    np.testing.assert_array_equal(calibration.ranks(np.array([3.0, 1.0, 3.0, 0.0])), [3.5, 2, 3.5, 1])


def test_agreement_of_people():
    """Three persons, three responses: 0 and 1 choose the first, 2 is torn between the last two."""
    ratings = [[3, 2, 0, 9], [1, 0, 2], [0, 1, 2]]  # a fourth rating of one response alone has no person to go with
    found = calibration.rater_agreement(ratings, picked=0)
    assert found["model"] == pytest.approx(2 / 3)
    assert found["people"] == pytest.approx(1 / 3)  # of the pairs 01, 02, 12 the first agrees
    # the others' means: without 0 (2, 2, 3) -> the last; without 1 (3, 3, 2) -> a tie of the first two; without 2 (5,
    # 1, 1) -> the first
    assert found["rest"] == pytest.approx((0 + 0.5 + 0) / 3)
    assert calibration.rater_agreement([[1], [2]], picked=1) == {"model": 1.0}


def test_reliability_of_ratings():
    assert calibration.rating_reliability([[1, 1], [2, 2], [5, 5]]) == {"single": 1, "mean": 1, "ceiling": 1}
    # mean squares: between 2 * ((1.5 - 3)^2 + (4.5 - 3)^2) / 1 = 9, within (0.5 + 0.5) / 2 = 0.5
    found = calibration.rating_reliability([[1, 2], [4, 5]])
    assert (
        found["single"] == pytest.approx(8.5 / 9.5)
        and found["mean"] == pytest.approx(8.5 / 9)
        and found["ceiling"] == pytest.approx(np.sqrt(8.5 / 9))
    )
    assert (
        calibration.rating_reliability([[1, 5], [5, 1]])["ceiling"] is None
        and calibration.rating_reliability([[1], [2]])["single"] is None
    )


# --- the command ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with 32 + 28 choices, a reward run of it, and every person's ratings of its responses."""
    folder = make_world(tmp_path_factory.mktemp("quality"), n_labels=60)
    run_here("train_reward", "movies", "reward", *reward_flags(folder))
    choices, sentences, lines = json.loads((folder / "labels.json").read_text()), [], []
    for choice in choices:
        ids = []
        for i in range(4):
            ids.append(len(sentences))
            rating = choice[f"sample{i}"].count(0) - choice[f"sample{i}"].count(1)
            sentences.append(
                {
                    "id": ids[-1],
                    "ratings": [rating, rating + 1, rating - 1, (7 * ids[-1]) % 3][: 3 + ids[-1] % 2],
                    "text": "x",
                    "rating": rating,
                }
            )
        lines.append({"best": choice["best"], "ids": ids})
    for place, name, rows in (
        (folder / "rated", "labels.jsonl", lines),
        (folder / "rated", "sentences.jsonl", sentences),
    ):
        place.mkdir(exist_ok=True)
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def words_for(world, **changes) -> list[str]:
    return ["reward", *flags(**dict(save_dir=world / "runs", device="cpu", precision="float32") | changes)]


def refused(*words) -> str:
    with pytest.raises(UserError) as caught:
        run_here("reward_quality", *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_quality_of_a_run(world, capsys):
    """Against plain computations; the same files twice, in a process of its own too; shown by `report`, the run's page
    too.
    """
    run_here("reward_quality", *words_for(world, ratings=world / "rated"))
    printed, folder = capsys.readouterr().out, world / "runs/quality_reward"
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "choices.jsonl").read_text().splitlines()]
    own = json.loads((world / "runs/reward/result.json").read_text())
    assert result["choices"] == len(rows) == own["choices"] == 28
    assert result["accuracy"] == {
        "value": pytest.approx(own["accuracy"]),
        "standard_error": pytest.approx((own["accuracy"] * (1 - own["accuracy"]) / 28) ** 0.5),
    }
    assert result["log_likelihood"]["value"] == pytest.approx(-own["loss"], abs=1e-5)
    model = RewardModel.load(world / "runs/reward/reward_model")
    label = json.loads((world / "labels.json").read_text())[32 + 5]
    for i in range(4):
        with torch.no_grad():
            assert rows[5]["rewards"][i] == pytest.approx(
                model(torch.tensor([label["query"]]), torch.tensor([label[f"sample{i}"]])).item(), abs=1e-5
            )
        assert rows[5]["lengths"][i] == sum(token != PAD for token in label[f"sample{i}"])
    rewards, lengths = (np.array([row[name] for row in rows], float) for name in ("rewards", "lengths"))
    best = np.array([row["best"] for row in rows])
    assert result["length"]["correlation"]["value"] == pytest.approx(
        np.corrcoef(rewards.ravel(), lengths.ravel())[0, 1], abs=1e-5
    )
    wins = [rewards[i, best[i]] > rewards[i, j] for i in range(28) for j in range(4) if j != best[i]]
    assert (
        result["length"]["pairs_accuracy"]["value"] == pytest.approx(np.mean(wins)) and result["length"]["pairs"] == 84
    )
    equal = [max(row) <= 1.25 * min(row) for row in lengths]
    assert result["length"]["equal_choices"] == sum(equal) and result["length"]["equal_pairs"] < 84
    ratings = np.array(
        [json.loads(line)["ratings"][:3] for line in (world / "rated/sentences.jsonl").read_text().splitlines()][
            4 * 32 :
        ],
        float,
    )
    full = [
        np.mean(json.loads(line)["ratings"]) for line in (world / "rated/sentences.jsonl").read_text().splitlines()
    ][4 * 32 :]
    people = result["people"]
    assert (
        people["mean_correlation"]["value"] == pytest.approx(np.corrcoef(rewards.ravel(), full)[0, 1], abs=1e-5)
        and people["sentences"] == 112
    )
    tops = [
        calibration.top_shares(four.T)[:, row.argmax()].mean()
        for four, row in zip(ratings.reshape(28, 4, 3), rewards, strict=True)
    ]
    assert people["agreement_model"]["value"] == pytest.approx(np.mean(tops))
    assert {path.name for path in folder.iterdir()} == {"config.json", "result.json", "choices.jsonl"} | {
        f"{name}.{kind}" for name in ("reliability", "length", "people") for kind in ("png", "svg")
    }
    for words in (
        "28 held-out choices",
        "expected calibration error",
        "people choose the longest",
        "two persons agree",
        "reliability",
    ):
        assert words in printed
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}
    assert "exists already" in refused(*words_for(world))
    launch("reward_quality", *words_for(world, ratings=world / "rated", overwrite="on"))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"} == before
    for name, title in (("quality_reward", '<h2 id="part1">Calibration'), ("reward", "Quality on held-out choices")):
        run_here("report", name, "--save_dir", world / "runs")
        page = (world / "runs" / name / "report/index.html").read_text()
        assert (
            title in page
            and "Where it is most mistaken" in page
            and "<script>" not in page
            and page.count("<figure>") >= 3
        )


def test_learning_curve(world, capsys, monkeypatch):
    """Trains what is missing, on the same held-out choices as the run itself; a second call trains nothing; an
    unfinished run is continued.
    """
    save_model(
        world / "wide",
        GPT2(
            GPT2Config(n_vocab=27, n_ctx=64, n_embd=24, n_head=2, n_layer=1, padding_token=27, encoding="letters")
        ).initialise(generator_for(1, "test/wide")),
    )
    words = words_for(world, curve="16,8,32", models=f"wide={world / 'wide'}", overwrite="on")
    run_here("reward_quality", *words)
    result = json.loads((world / "runs/quality_reward/result.json").read_text())
    assert [(row["model"], row["labels"], row["run"]) for row in result["curve"]] == [
        (None, 8, "reward_labels_8"),
        (None, 16, "reward_labels_16"),
        (None, 32, "reward"),
        *(("wide", n, f"reward_wide_labels_{n}") for n in (8, 16, 32)),
    ]
    assert (
        result["curve"][2]["accuracy"] == result["accuracy"]
        and (world / "runs/quality_reward/learning_curve.svg").exists()
    )
    assert "learning curve" in capsys.readouterr().out
    config = json.loads((world / "runs/reward_wide_labels_16/config.json").read_text())["parameters"]
    assert (
        config["labels"]["num_train"] == 16
        and config["task"]["policy"]["initial_model"] == str(world / "wide")
        and config["lr"] == 0.01
    )
    rewards = (world / "runs/reward_labels_16/reward_model/model.safetensors").read_bytes()
    (world / "runs/reward_labels_16/result.json").unlink()  # as if it had been stopped at the very end
    trained = []
    monkeypatch.setattr("lm_human_preferences.commands.reward_quality.RewardTrainer.run", record(trained))
    run_here("reward_quality", *words)
    assert (
        trained == ["reward_labels_16"]
        and json.loads((world / "runs/quality_reward/result.json").read_text()) == result
    )
    assert (world / "runs/reward_labels_16/reward_model/model.safetensors").read_bytes() == rewards
    shutil.rmtree(world / "runs/reward_labels_24", ignore_errors=True)
    (world / "runs/reward_labels_24").mkdir()
    (world / "runs/reward_labels_24/config.json").write_text(
        json.dumps({"stage": "train_reward", "parameters": config})
    )
    assert "reward_labels_24 exists and is not such a run of this curve" in refused(
        *words_for(world, curve="24", overwrite="on")
    )
    shutil.rmtree(world / "runs/reward_labels_24")


def test_a_stopped_run_of_the_curve_goes_on(world, monkeypatch):
    """From its checkpoint, to the very weights of a run that was not stopped."""
    words = words_for(world, curve="24", experiment="stopped", overwrite="on")
    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "evaluate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_here("reward_quality", *words)
    assert not (world / "runs/stopped").exists() and not (world / "runs/reward_labels_24/result.json").exists()
    steps, original = [], RewardTrainer.step
    with monkeypatch.context() as patch:
        patch.setattr(
            RewardTrainer, "step", lambda self, step, indices: steps.append(step) or original(self, step, indices)
        )
        run_here("reward_quality", *words)
    assert steps == [2]
    weights = (world / "runs/reward_labels_24/reward_model/model.safetensors").read_bytes()
    shutil.rmtree(world / "runs/reward_labels_24")
    run_here("reward_quality", *words)
    assert (world / "runs/reward_labels_24/reward_model/model.safetensors").read_bytes() == weights
    shutil.rmtree(world / "runs/reward_labels_24")


def record(names: list[str]):
    """RewardTrainer.run, with the name of each run noted."""
    original = RewardTrainer.run

    def traced(self, task, experiment):
        names.append(experiment)
        return original(self, task, experiment)

    return traced


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(curve="8,x"), "--curve 8,x: expected numbers of labels"),
        (dict(curve="12"), "must divide by the batch size, 8"),
        (dict(curve="0"), "must divide by the batch size, 8"),
        (dict(curve="40"), "after the first 32 labels those begin that are held out"),
        (dict(models="a=b"), "say with --curve"),
        (dict(curve="8", models="a"), "--models a: expected NAME=PATH"),
        (dict(curve="8", models="a=nowhere"), "needs the language model nowhere"),
        (dict(task="movies"), "leave --task out"),
        (dict(task="moovies"), "did you mean movies?"),
        (dict(labels="nowhere.json"), "nowhere.json does not exist"),
        (dict(ratings="nowhere"), "nowhere/labels.jsonl does not exist"),
        (dict(bins=0), "--bins, --micro_batch and --equal_length must be at least 1"),
        (dict(save_dir="/proc/nowhere"), "there is no run or reward-model folder 'reward' in /proc/nowhere"),
        (dict(experiment="../x"), "cannot be a run's name"),
        (dict(bin=3), "did you mean --bins?"),
    ],
)
def test_refusals(world, changes, says):
    assert says in refused(*words_for(world, **dict(experiment="bad") | changes))
    assert not (world / "runs/bad").exists() and not (world / "runs/reward_labels_12").exists()


def test_what_is_no_reward_model(world):
    where = flags(save_dir=world / "runs", experiment="bad")
    assert "there is no run or reward-model folder 'nobody'" in refused("nobody", *where)
    assert "say with --task TASK" in refused(world / "runs/reward/reward_model", *where)
    (world / "runs/training").mkdir()
    (world / "runs/training/config.json").write_text('{"stage": "train_reward", "parameters": {}}')
    assert "its training has not finished" in refused("training", *where)
    (world / "runs/other").mkdir()
    (world / "runs/other/config.json").write_text('{"stage": "train_sft"}')
    assert "neither a run of train_reward nor a reward-model folder" in refused("other", *where)
    assert "holds no results of reward_quality" in refused(
        "reward", *flags(save_dir=world / "runs", experiment="other")
    )
    (world / "rated/labels.json").write_text((world / "labels.json").read_text())
    (world / "unrated").mkdir()
    (world / "unrated/labels.jsonl").write_text((world / "rated/labels.jsonl").read_text())
    (world / "unrated/sentences.jsonl").write_text('{"id": 0, "ratings": [1]}\n')
    assert "do not rate the choices" in refused("reward", *where, "--ratings", world / "unrated")
    run_here(
        "train_reward",
        "movies",
        "scalar",
        *reward_flags(world),
        *flags(labels__type="scalar_rating", labels__source=world / "ratings.json"),
    )
    assert "needs choices, best_of_N; the labels of scalar are scalar_rating" in refused("scalar", *where)
    assert not (world / "runs/bad").exists()


def test_an_ensemble_is_measured_member_by_member(tmp_path):
    (tmp_path / "pair/config.json").parent.mkdir()
    (tmp_path / "pair/config.json").write_text('{"stage": "train_reward", "parameters": {}}')
    for number in (1, 2):
        (tmp_path / f"pair/member_{number}/reward_model").mkdir(parents=True)
    said = refused("pair", *flags(save_dir=tmp_path))
    assert "pair is an ensemble of 2: name a member, pair/member_1" in said


def test_what_a_run_read_is_found_from_another_folder(tmp_path, monkeypatch):
    """Also where a run of the curve was begun elsewhere; with other settings it is another run."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "datasets/made", home / "saved_models/made", home / "runs/reward/reward_model", elsewhere):
        folder.mkdir(parents=True)
    (home / "datasets/made/labels.json").touch()
    settings = RewardTrainingParams()
    settings.labels.source, settings.task.policy.initial_model = "datasets/made/labels.json", "saved_models/made"
    stored = {"stage": "train_reward", "task": "movies", "parameters": to_dict(settings)}
    (home / "runs/reward/config.json").write_text(json.dumps(stored))
    monkeypatch.setenv("LMHP_HOME", str(home))
    monkeypatch.chdir(elsewhere)
    found = find_subject("reward", RewardQualityParams(save_dir=str(home / "runs")), None).settings
    assert found.labels.source == str(home / "datasets/made/labels.json")
    assert found.task.policy.initial_model == str(home / "saved_models/made")
    assert _begun(home / "runs/reward", "movies", found)
    found.lr /= 2
    with pytest.raises(UserError, match="is not such a run of this curve"):
        _begun(home / "runs/reward", "movies", found)


def test_a_model_folder_with_a_task(world):
    """The task's settings; choices of a file, all of them; without ratings no people."""
    folder = world / "runs/reward/reward_model"
    settings = EXPERIMENTS["train_reward"]["movies"]()
    words = reward_flags(world)
    apply_overrides(
        settings, {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    )
    params = RewardQualityParams(
        task="movies", labels=str(world / "labels.json"), save_dir=str(world / "runs"), device="cpu", experiment="alone"
    )
    result = json.loads((reward_quality(str(folder), params, settings) / "result.json").read_text())
    assert result["choices"] == 60 and "people" not in result and "curve" not in result


def test_help_is_true(capsys):
    assert command_line.prepare(["reward_quality", "--help"], EXPERIMENTS) is None
    assert "--curve none" in capsys.readouterr().out
