"""What a run says of itself and what it notices: what it computed with, what it read, who else works on it, what an
earlier version began; and numbers that cannot work.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from lm_human_preferences.before_policy import begin_online, check_besides_rewards
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.expert_iteration import ExpertIterationParams
from lm_human_preferences.foundation.errors import Interrupted, UserError
from lm_human_preferences.judging.judges import load_judge
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.learning.ppo import AdaptiveKLController, AdaptiveKLParams, PPOParams
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.people.schedule import OnlineParams
from lm_human_preferences.policy_params import PolicyTrainingParams, RewardsParams
from lm_human_preferences.runs.from_labels import choice_error
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.train_policy import PPOTrainer
from lm_human_preferences.train_reward import RewardTrainingParams

from conftest import Goldens
from recorded import ppo_trainer
from small import CONFIG, dpo_flags, flags, ilql_flags, make_world, policy_flags, reward_flags, run_here, sft_flags

STAGES = ("train_reward", "train_policy", "train_sft", "train_dpo", "train_ilql")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a reward model, and a run of each stage that was stopped after its second step."""
    folder = make_world(tmp_path_factory.mktemp("runs"))
    run_here("train_reward", "movies", "reward", *reward_flags(folder))
    for stage in STAGES:
        count = itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopRequest, "agreed", lambda request, count=count: next(count) == 2)
            with pytest.raises(Interrupted):
                run_here(stage, "movies", f"stopped_{stage}", *words_of(folder, stage))
    return folder


def words_of(world: Path, stage: str, **changes) -> list[str]:
    words = {
        "train_reward": reward_flags(world),
        "train_policy": policy_flags(world, world / "runs/reward"),  # a run for its reward model
        "train_sft": sft_flags(world),
        "train_dpo": dpo_flags(world),
        "train_ilql": ilql_flags(world),
    }[stage]
    return [*words, *flags(**changes)]


def refused(*words) -> str:
    with pytest.raises(UserError) as caught:
        run_here(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copy_of_stopped(world: Path, stage: str, name: str) -> Path:
    return Path(shutil.copytree(world / f"runs/stopped_{stage}", world / "runs" / name))


def rewrite(path: Path, change) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


# --- what a run says of itself ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_says_what_it_computed_with(world, stage):
    config = json.loads((world / f"runs/stopped_{stage}/config.json").read_text())
    computed = config["computed"]
    assert computed["device"] == "cpu" and computed["precision"] == "float32" and computed["processor"]
    assert computed["threads"] == torch.get_num_threads() and computed["recompute_activations"] is False
    assert computed["micro_batches"]["training"] >= 1 and computed["micro_batches"]["scoring"] >= 1
    assert config["parameters"]["run"]["threads"] == 0 and config["parameters"]["run"]["precision"] == "float32"
    assert all(len(digest) == 64 for digest in config["inputs"].values()) and len(config["inputs"]) >= 1


def test_a_resumed_run_on_another_machine_says_both(world):
    run = copy_of_stopped(world, "train_policy", "moved")
    rewrite(run / "config.json", lambda config: config["computed"].update(processor="another"))
    run_here("train_policy", "movies", "moved", *words_of(world, "train_policy"), "--run.resume", "on")
    config = json.loads((run / "config.json").read_text())
    assert config["computed"]["processor"] != "another"
    assert [before["processor"] for before in config["computed_before"]] == ["another"]


def test_a_runs_name_stands_for_its_model(world):
    """For the reward and for the start, by path or by name; what is stored is the model's folder."""
    config = json.loads((world / "runs/stopped_train_policy/config.json").read_text())
    assert config["parameters"]["rewards"]["trained_model"] == str(world / "runs/reward/reward_model")
    by_name = policy_flags(world, "reward") + flags(ppo__total_episodes=16)
    run_here("train_policy", "movies", "by_name", *by_name)
    words = by_name + flags(task__policy__initial_model="by_name")
    run_here("train_policy", "movies", "onward", *words)
    config = json.loads((world / "runs/onward/config.json").read_text())
    assert config["parameters"]["task"]["policy"]["initial_model"] == str(world / "runs/by_name/policy")


# --- what a run notices ---


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_do_not_work_on_one_run(world, stage):
    run = copy_of_stopped(world, stage, f"shared_{stage}")
    before = sorted((path.name, path.read_bytes()) for path in run.glob("*.json*"))
    with FileLock(run / ".lock"):
        for more in ("--run.resume", "--run.overwrite"):
            said = refused(stage, "movies", run.name, *words_of(world, stage), more, "on")
            assert "another process is working on" in said
    assert before == sorted((path.name, path.read_bytes()) for path in run.glob("*.json*"))
    run_here(stage, "movies", run.name, *words_of(world, stage), "--run.resume", "on")
    assert not (run / ".lock").exists()
    steps = [row["step"] for row in read_jsonl(run / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_a_parameter_that_an_earlier_version_lacked_takes_its_value_now(world, capsys):
    run = copy_of_stopped(world, "train_policy", "earlier")
    rewrite(run / "config.json", lambda config: config["parameters"]["ppo"].pop("gamma"))
    rewrite(run / "config.json", lambda config: config["parameters"]["ppo"].update(forgotten=3))
    run_here("train_policy", "movies", "earlier", *words_of(world, "train_policy"), "--run.resume", "on")
    said = capsys.readouterr().err
    assert "the run was begun before ppo.gamma existed; it goes on with 1.0" in said
    assert "the run was begun with ppo.forgotten 3, which exists no more" in said


def test_a_group_that_is_switched_on_is_a_change(world):
    copy_of_stopped(world, "train_policy", "switched")
    words = words_of(world, "train_policy", rewards__adaptive_kl="on")
    assert "adaptive_kl" in refused("train_policy", "movies", "switched", *words, "--run.resume", "on")


@pytest.mark.parametrize(
    "stage, flag, change",
    [
        ("train_policy", "task.policy.initial_model", "model"),
        ("train_sft", "data.dataset", "data"),
        ("train_reward", "labels.source", "labels.json"),
        ("train_policy", "rewards.trained_model", "runs/reward/reward_model"),
    ],
)
def test_what_a_run_read_must_not_change_under_it(tmp_path, world, stage, flag, change):
    """The model, the data and the labels are taken away and others put in their place between stop and resume."""
    run = copy_of_stopped(world, stage, f"changed_{flag}")
    path, kept = world / change, tmp_path / "kept"
    shutil.copytree(path, kept) if path.is_dir() else shutil.copy(path, kept)
    if change == "data":
        rewrite(path / "meta.json", lambda meta: meta.update(source="another"))
    elif path.is_dir():
        other = RewardModel(GPT2(CONFIG).initialise(torch.Generator().manual_seed(99)))
        other.head.initialise(torch.Generator().manual_seed(99))
        other.save(tmp_path / "other")
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "other", path)
    else:
        path.write_text(path.read_text().replace('"best": 1', '"best": 2'))
    try:
        said = refused(stage, "movies", run.name, *words_of(world, stage), "--run.resume", "on")
        assert f"what --{flag}" in said and "no longer what the run was started with" in said
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(kept, path) if kept.is_dir() else shutil.copy(kept, path)
    run_here(stage, "movies", run.name, *words_of(world, stage), "--run.resume", "on")


def test_another_reward_training_under_a_resumed_policy_is_noticed(world):
    """Its parameters are not in the policy's config.json, which names the trained model."""
    nested = [
        f"--rewards.train_new_model.{word[2:]}" if word.startswith("--") else word for word in reward_flags(world)
    ]
    skip = {i + offset for i, word in enumerate(nested) if ".run." in word or ".task." in word for offset in (0, 1)}
    words = [*policy_flags(world), *(word for i, word in enumerate(nested) if i not in skip)]
    count = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda request: next(count) == 5)  # the policy's second step
        with pytest.raises(Interrupted):
            run_here("train_policy", "movies", "whole", *words)
    said = refused("train_policy", "movies", "whole", *words, "--run.resume", "on", "--rewards.train_new_model.lr", "1")
    assert "lr" in said and "whole_reward" in said
    (world / "runs/whole_reward/result.json").rename(world / "result.json")  # as if killed before it was written
    with pytest.MonkeyPatch.context() as patch:
        begun = []
        patch.setattr("lm_human_preferences.train_reward.RewardTrainer.run", lambda *arguments: begun.append(arguments))
        patch.setattr(PPOTrainer, "run", lambda *arguments: world)
        run_here("train_policy", "movies", "whole", *words, "--run.resume", "on")
    assert len(begun) == 1, "without its result a reward training is not finished"


def test_a_split_that_is_missing_is_said_before_training(world):
    words = words_of(world, "train_policy", evaluation__split="test")
    assert "it has train, valid" in refused("train_policy", "movies", "no_split", *words)
    assert not (world / "runs/no_split").exists()


# --- numbers that cannot work ---


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(task__truncate_after=99), "--task.truncate_after 99"),
        (dict(task__truncate_after=-1), "--task.truncate_after -1"),
        (dict(task__policy__temperature="nan"), "--task.policy.temperature"),
        (dict(ppo__cliprange=-0.2), "--ppo.cliprange -0.2: must be positive"),
        (dict(ppo__cliprange_value=0), "--ppo.cliprange_value 0.0: must be positive"),
        (dict(ppo__gamma=5), "--ppo.gamma 5.0: must lie between 0 and 1"),
        (dict(ppo__lam=-3), "--ppo.lam -3.0: must lie between 0 and 1"),
        (dict(ppo__vf_coef=-1), "--ppo.vf_coef -1.0: must not be negative"),
        (dict(ppo__lr="inf"), "--ppo.lr"),
        (dict(rewards__kl_coef="nan"), "--rewards.kl_coef"),
        (dict(rewards__adaptive_kl="on", rewards__adaptive_kl__horizon=1), "too short for --ppo.batch_size 16"),
        (dict(rewards__adaptive_kl="on", rewards__adaptive_kl__horizon=3), "above 3"),
        (dict(rewards__adaptive_kl="on", rewards__kl_coef=0), "0 stays 0"),
    ],
)
def test_numbers_that_cannot_work(world, changes, says):
    for more in ([], ["--dry_run"]):
        said = refused("train_policy", "movies", "numbers", *words_of(world, "train_policy", **changes), *more)
        assert says in said
    assert not (world / "runs/numbers").exists()


@pytest.mark.parametrize(
    "stage, changes, says",
    [
        ("train_policy", dict(evaluation__samples=-1), "--evaluation.samples"),
        ("train_reward", dict(labels__noise=1.5), "--labels.noise 1.5: must lie between 0 and 1"),
        ("train_reward", dict(labels__num_valid=-1), "--labels.num_valid -1: must not be negative"),
        ("train_reward", dict(task__truncate_after=99), "--task.truncate_after 99"),
        ("train_sft", dict(optimizer__beta2=2), "--optimizer.beta2 2.0: must lie in [0, 1)"),
        ("train_sft", dict(optimizer__clip_norm=-1), "--optimizer.clip_norm -1.0: must not be negative"),
        ("train_sft", dict(optimizer__warmup=-5), "--optimizer.warmup -5: must not be negative"),
        ("train_sft", dict(optimizer__weight_decay=-3), "--optimizer.weight_decay -3.0: must not be negative"),
        ("train_sft", dict(validation__rows=-1), "--validation.rows -1: must not be negative"),
        ("train_dpo", dict(loss="kto"), "--loss kto: must be dpo, ipo, ipo_mean, cdpo or robust"),
        ("train_dpo", dict(beta=0), "--beta 0.0: must be positive"),
        ("train_dpo", dict(epochs=0), "--epochs 0: must be at least 1"),
        ("train_dpo", dict(labels__num_train=33), "--labels.num_train 33 does not divide by --batch_size 8"),
        ("train_dpo", dict(labels__type="scalar_rating"), "train_dpo learns from choices, best_of_N"),
        ("train_dpo", dict(loss="robust", label_smoothing=0.75), "--label_smoothing 0.75: must lie in [0, 0.75)"),
        ("train_dpo", dict(task__response_length=60), "context is 64"),
        ("train_ilql", dict(labels__type="best_of_4"), "train_ilql learns from texts with scores, scalar_rating"),
        ("train_ilql", dict(ilql__tau=1), "--ilql.tau 1.0: must be between 0 and 1"),
        ("train_ilql", dict(ilql__alpha=0), "--ilql.alpha 0.0: must be above 0 and at most 1"),
        ("train_ilql", dict(ilql__gamma=1.5), "--ilql.gamma 1.5: must lie between 0 and 1"),
        ("train_ilql", dict(ilql__cql_scale=-1), "--ilql.cql_scale -1.0: must not be negative"),
        ("train_ilql", dict(ilql__sync_interval=0), "--ilql.sync_interval 0: must be at least 1"),
        ("train_ilql", dict(beta=-1), "--beta -1.0: must not be negative"),
        ("train_ilql", dict(epochs=0), "--epochs 0: must be at least 1"),
        ("train_ilql", dict(task__response_length=60), "context is 64"),
        ("train_sft", dict(validation__patience=-1), "--validation.patience -1: must not be negative"),
        ("train_sft", dict(model__n_head=0), "--model.n_head 0: must be at least 1"),
        ("train_sft", dict(model__n_layer=0), "--model.n_layer 0: must be at least 1"),
        ("train_sft", dict(model__n_embd=-4), "--model.n_embd -4: must be at least 1"),
        ("train_sft", dict(model__n_ctx=0), "--model.n_ctx 0: must be at least 1"),
        ("train_sft", dict(model__encoding="foo"), "--model.encoding foo: must be gpt2 or letters"),
    ],
)
def test_numbers_that_cannot_work_in_other_places(world, stage, changes, says):
    assert says in refused(stage, "movies", "numbers", *words_of(world, stage, **changes))
    assert not (world / "runs/numbers").exists()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(model__train_top=99), "--model.train_top 99: the model has 2 blocks"),
        (dict(run__captured_decoding="on"), "--run.captured_decoding on: a CUDA graph needs a CUDA device"),
        (
            dict(value__model="reward", rewards__train_new_model__members=2),
            "--rewards.train_new_model.members 2: --val",
        ),
    ],
)
def test_what_policy_training_needs_is_known_before_a_reward_model_is_trained(world, changes, says):
    new = {
        f"rewards__train_new_model__{name}": value
        for name, value in dict(
            labels__source=world / "labels.json", labels__valid_source="none", labels__num_train=32, batch_size=8
        ).items()
    }
    said = refused("train_policy", "movies", "early", *policy_flags(world), *flags(**new | changes))
    assert says in said and not (world / "runs/early").exists() and not (world / "runs/early_reward").exists()


def test_minibatches_that_ranks_cannot_share():
    """Before models are read. Those of expert iteration hold what is kept of an episode's responses."""
    precision, two = choose_precision("cpu", "float32"), World(size=2)
    params = PolicyTrainingParams(ppo=PPOParams(batch_size=6, nminibatches=2))
    with pytest.raises(UserError, match="--ppo.batch_size / --ppo.nminibatches 3 does not divide by the 2 ranks"):
        check_besides_rewards(params, precision, two)
    iterating = ExpertIterationParams(ppo=PPOParams(batch_size=4, responses_per_query=4, nminibatches=1))
    with pytest.raises(UserError, match="--ppo.responses_per_query / --ppo.nminibatches 1 does not divide by the 2 r"):
        check_besides_rewards(iterating, precision, two)


def test_questions_are_not_asked_where_ranks_cannot_learn_from_the_answers(tmp_path):
    new = RewardTrainingParams(batch_size=5)
    params = PolicyTrainingParams(rewards=RewardsParams(train_new_model=new), online=OnlineParams())
    params.run.save_dir = str(tmp_path)
    with pytest.raises(UserError, match="--rewards.train_new_model.batch_size 5 does not divide by the 2 ranks"):
        begin_online(params, choose_precision("cpu", "float32"), World(size=2), "movies", "asked")
    assert not list(tmp_path.iterdir())


def test_a_perplexity_that_no_float_holds_ends_the_run_in_a_line(world, monkeypatch):
    monkeypatch.setattr("lm_human_preferences.train_sft.validate", lambda *arguments: 720.0)
    said = refused("train_sft", "movies", "overflow", *words_of(world, "train_sft"))
    assert "valid/perplexity is inf" in said and "--optimizer.lr" in said
    assert not (world / "runs/overflow/result.json").exists()


def test_a_correlation_without_a_value_is_in_no_file(world, capsys):
    """One held-out rating has none."""
    changes = dict(labels__type="scalar_rating", labels__source=world / "ratings.json", labels__num_valid=1)
    run_here("train_reward", "movies", "one_rating", *words_of(world, "train_reward", **changes))
    assert "the correlation with the 1 held-out labels has no value" in capsys.readouterr().out
    result = json.loads((world / "runs/one_rating/result.json").read_text())
    assert result["labels"] == 1 and "corr" not in result
    assert "NaN" not in (world / "runs/one_rating/reward_model/config.json").read_text()


@pytest.mark.parametrize("accuracy, count", [(0.0, 1), (1.0, 1), (1.0, 50)])
def test_the_error_of_an_accuracy_is_not_0_where_all_or_none_are_right(accuracy, count):
    assert choice_error(accuracy, count) > 0.2 / count
    assert choice_error(0.5, 1600) == pytest.approx(0.5 / 40, rel=2e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_is_not_resumed_from_its_beginning(world, capsys, stage):
    """It stays as it is, and its folder is the answer."""
    run = copy_of_stopped(world, stage, f"finished_{stage}")
    words = [stage, "movies", run.name, *words_of(world, stage, run__resume="on")]
    run_here(*words)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    run_here(*words)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert f"{run.name} has finished already: {run}" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed"):
        run_here(*words, "--run.seed", "77")


def test_a_run_without_a_reward_model_is_no_reward(world):
    words = policy_flags(world, world / "runs/stopped_train_policy")
    assert "is a run of train_policy without reward_model/" in refused("train_policy", "movies", "wrong", *words)


def test_judges_and_labels_are_found_from_another_folder(tmp_path, world, monkeypatch, capsys):
    """As models and data are: below the project's root, where the user stands elsewhere."""
    (world / "launch.py").touch()
    monkeypatch.setenv("LMHP_HOME", str(world))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/sentences.jsonl"):
        load_judge("ratings:data")  # found, and lacks its ratings
    run_here("labels", "inspect", "labels.jsonl", "--encoding", "letters")
    assert "40" in capsys.readouterr().out


def test_no_controller_that_is_accepted_reaches_zero():
    controller = AdaptiveKLController(0.16, AdaptiveKLParams(target=6.0, horizon=4))  # the shortest for 16 episodes
    for _ in range(200):
        controller.update(0.0, 16)
        assert controller.value > 0


def test_rewards_that_are_all_equal_cannot_be_normalised(world, monkeypatch):
    monkeypatch.setattr(
        "lm_human_preferences.train_reward.RewardTrainer.reward_mean_std", lambda trainer, when: (0.5, 0.0)
    )
    said = refused("train_reward", "movies", "flat", *words_of(world, "train_reward"))
    assert "--task.policy.temperature" in said and "--normalize_samples" in said


# --- sampling beside training ---


@pytest.mark.parametrize("recomputed", [True, False])
def test_the_ratio_sees_a_sampling_that_is_not_the_training_pass(goldens, recomputed):
    """With recomputed log-probabilities the ratio before the first update is 1 whatever sampling did."""
    trainer = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"])
    trainer.queries.batch = lambda size: torch.from_numpy(goldens("ppo_cycle")["step0/queries"]).long()
    trainer.recompute = recomputed
    metrics, _ = trainer.step(0)
    assert ("ppo/ratio/std_sampling" in metrics) == recomputed
    if recomputed:
        assert metrics["ppo/ratio/std_sampling"] < 1e-5
        respond = trainer.policy.respond
        trainer.policy.respond = lambda *given, **more: (drawn := respond(*given, **more))._replace(
            logprobs=drawn.logprobs * 1.1
        )
        metrics, _ = trainer.step(1)
        assert metrics["ppo/ratio/std_before"] < 1e-5 < 0.05 < metrics["ppo/ratio/std_sampling"]


def test_memory_probes_never_call_the_users_function(goldens):
    trainer = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"])

    def paid(queries, responses):
        raise AssertionError("called with made-up texts")

    trainer.scorer.rewards = paid
    for probe in trainer.memory_probes().values():
        probe(2)
