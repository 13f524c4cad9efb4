"""Each check of the doctor fires on a run that is broken in its way, and none on a healthy one.

Broken runs are real runs of the small world wherever a few hundred milliseconds break one; the rest is the recorded
demo with numbers changed.
"""

import json
import math
import random
import re
from functools import partialmethod

import pytest

from lm_human_preferences.foundation.configuration import to_dict
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.train_policy import PolicyTrainingParams
from lm_human_preferences.train_reward import RewardTrainingParams
from lm_human_preferences.watching.check import FINE, SEVERE, WARNING
from lm_human_preferences.watching.checks import CHECKS
from lm_human_preferences.watching.checks_reward import chance
from lm_human_preferences.watching.doctor import Examination, Watch, describe, diagnose
from lm_human_preferences.watching.history import History

from sick import ONLINE, PARAMS, found, in_world, recorded, run


@pytest.fixture(scope="module")
def world(sick_world):
    return sick_world


# --- healthy runs ---


@pytest.mark.parametrize(
    "stage, changes",
    [
        ("train_reward", dict(labels__type="scalar_rating", labels__source="ratings.json")),
        ("train_reward", dict(labels__type="scalar_compare", labels__source="comparisons.json")),
        ("train_policy", dict(ppo__total_episodes=32 * 48, rewards__kl_coef=0.3, ppo__vf_coef=1)),
        ("train_sft", {}),
        ("train_dpo", {}),
        ("train_ilql", {}),
    ],
)
def test_a_small_healthy_run_has_no_findings(world, capsys, stage, changes):
    words, settings = in_world(world, stage)
    changes = {name: world / value if name == "labels__source" else value for name, value in changes.items()}
    name = f"healthy_{stage}_{changes.get('labels__type', '')}"
    diagnosis = run(world, stage, name, words, **settings | changes)
    assert diagnosis.healthy, describe(diagnosis, name)
    assert (
        len(diagnosis.fine)
        >= {"train_policy": 16, "train_reward": 6, "train_sft": 5, "train_dpo": 8, "train_ilql": 9}[stage]
    )
    assert not (world / "runs" / name / "warnings.jsonl").exists() and "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["policy", "reward"])
def test_the_recorded_demo_has_no_findings(stage):
    rows, config, result = recorded(stage)
    diagnosis = diagnose(History(f"train_{stage}", config), rows, [], result)
    assert diagnosis.healthy, describe(diagnosis, stage)
    assert diagnosis.not_looked_at == (
        ["kl_coef", "samples_repeat", "equal_groups", "disagreement", *ONLINE]
        if stage == "policy"
        else ["query_padding", "response_padding"]
    )


# --- runs that are broken ---

BROKEN = [
    ("shuffled labels", "train_reward", dict(labels__source="shuffled.json"), {"chance"}, {"chance"}),
    (
        "shuffled labels, none held out",
        "train_reward",
        dict(labels__source="shuffled.json", labels__num_valid=0),
        {"chance"},
        set(),
    ),
    ("shuffled choices", "train_dpo", dict(labels__source="shuffled.json"), {"chance"}, {"chance"}),
    ("far too high a rate", "train_dpo", dict(lr=0.3), {"best_lost"}, set()),
    ("texts rated by chance", "train_ilql", dict(labels__source="noise.json"), {"chance"}, {"chance"}),
    (
        "better texts at the end",
        "train_ilql",
        dict(labels__source="liked_last.json"),
        {"other_scores"},
        {"other_scores"},
    ),
    ("copies that stand still", "train_ilql", dict(ilql__alpha=1e-4), {"stale_targets"}, {"stale_targets"}),
    (
        "a few tokens by heart",
        "train_ilql",
        dict(ilql__awac_beta=20, ilql__awac_scale=0.001),
        {"heavy_tokens"},
        {"heavy_tokens"},
    ),
    (
        "values by a far too high rate",
        "train_ilql",
        dict(lr=0.5, ilql__tau=0.99, ilql__awac_beta=0),
        {"values_away"},
        set(),
    ),
    (
        "ratings are noise",
        "train_reward",
        dict(labels__source="noise.json", labels__type="scalar_rating"),
        {"chance"},
        {"chance"},
    ),
    (
        "ratings are all equal",
        "train_reward",
        dict(labels__source="constant.json", labels__type="scalar_rating", normalize_before="off", lr=0.01),
        {"reward_scale", "not_finite"},
        set(),
    ),
    (
        "eight labels a hundred times",
        "train_reward",
        dict(labels__source="repeated.json", lr=0.01),
        {"memorising"},
        set(),
    ),
    (
        "labels of one token",
        "train_reward",
        dict(labels__source="padded.json", task__query_length=40, task__response_length=12, batch_size=32),
        {"query_padding", "response_padding"},
        set(),
    ),
    ("reward rate out of bounds", "train_reward", dict(lr=1e30), {"not_finite"}, {"not_finite"}),
    (
        "no penalty",
        "train_policy",
        dict(rewards__kl_coef=0, ppo__lr=0.01),
        {"kl_exploding", "entropy", "distinct", "samples_repeat", "pairs"},
        {"kl_exploding", "pairs"},
    ),
    (
        "large steps",
        "train_policy",
        dict(ppo__lr=0.1, ppo__total_episodes=32 * 8),
        {"update_size", "kl_exploding"},
        set(),
    ),
    ("tiny steps", "train_policy", dict(ppo__lr=1e-9, ppo__total_episodes=32 * 12), {"update_size"}, set()),
    ("values not trained", "train_policy", dict(ppo__vf_coef=0), {"value_function"}, {"value_function"}),
    (
        "an end at the last place alone",
        "train_policy",
        dict(task__truncate_token=26, task__truncate_after=4, ppo__total_episodes=32 * 6),
        {"penalised"},
        set(),
    ),
    (
        "another scale",
        "train_policy",
        dict(rewards__trained_model="loud_reward_model", ppo__total_episodes=64),
        {"score_scale"},
        set(),
    ),
    (
        "a controller that rushes",
        "train_policy",
        dict(rewards__adaptive_kl="on", rewards__adaptive_kl__horizon=32, ppo__lr=1e-6),
        {"kl_coef"},
        {"kl_coef"},
    ),
    ("policy rate out of bounds", "train_policy", dict(ppo__lr=1e30), {"not_finite"}, {"not_finite"}),
    (
        "six documents by heart",
        "train_sft",
        dict(data__dataset="few", optimizer__epochs=200, model__n_embd=64),
        {"loss_rising", "memorising"},
        {"loss_rising", "memorising"},
    ),
    ("only warm-up", "train_sft", dict(optimizer__warmup=100), {"warmup"}, set()),
    (
        "supervised rate out of bounds",
        "train_sft",
        dict(optimizer__lr=1e30, optimizer__clip_norm=0),
        {"not_finite"},
        {"not_finite"},
    ),
]
FILES = ("labels__source", "data__dataset", "rewards__trained_model")


@pytest.mark.parametrize("name, stage, changes, expected, severe", BROKEN, ids=[case[0] for case in BROKEN])
def test_a_run_broken_like_this_is_found(world, capsys, name, stage, changes, expected, severe):
    """What was said while the run went on is in warnings.jsonl and on standard error, each kind once and when it
    becomes severe.
    """
    words, settings = in_world(world, stage)
    name = name.replace(" ", "_").replace(",", "")
    diagnosis = run(
        world,
        stage,
        name,
        words,
        **settings | {key: world / value if key in FILES else value for key, value in changes.items()},
    )
    printed = capsys.readouterr().err
    assert expected <= found(diagnosis) and severe <= {
        finding.check for finding in diagnosis.findings if finding.severe
    }, describe(diagnosis, name)
    at_end = {check.name for check in CHECKS if check.afterwards}
    path = world / "runs" / name / "warnings.jsonl"
    warnings = read_jsonl(path) if path.exists() else []
    assert warnings == [finding._asdict() for finding in diagnosis.findings if finding.check not in at_end]
    assert (
        len({(row["check"], row["severe"]) for row in warnings})
        == len(warnings)
        == len(re.findall(r"(?:WARNING|SEVERE) \w+, step \d+", printed))
    )


def cold(self, queries, uniforms, respond, **more):
    """A bug: sampling at half the temperature of training."""
    temperature, self.temperature = self.temperature, self.temperature / 2
    try:
        return respond(self, queries, uniforms, **more)
    finally:
        self.temperature = temperature


def uniform(self, queries, uniforms, respond, **more):
    """A bug: tokens that the policy did not draw."""
    return respond(self, queries, uniforms, **more)._replace(tokens=(uniforms * 26).long())


BUGS = [
    (cold, {}, "ratio"),
    (uniform, dict(ppo__old_logprobs="recomputed", ppo__lr=0.01, ppo__total_episodes=32 * 12), "kl_negative"),
]


@pytest.mark.parametrize("bug, changes, expected", BUGS, ids=lambda value: getattr(value, "__name__", None))
def test_a_bug_in_sampling_is_found(world, monkeypatch, bug, changes, expected):
    monkeypatch.setattr(Policy, "respond", partialmethod(bug, respond=Policy.respond))
    words, settings = in_world(world, "train_policy")
    diagnosis = run(world, "train_policy", expected, words, **settings | changes | dict(evaluation__samples=0))
    assert expected in {finding.check for finding in diagnosis.findings if finding.severe}, describe(
        diagnosis, expected
    )


RISING = [0.8 + 0.1 * step for step in range(32)]
CHANGED = [
    ("policy", "ppo/loss/value", RISING, "loss_rising"),
    ("policy", "lr", [3e-4] * 32, "learning_rate"),
    ("policy", "objective/query_padding", [0.97] * 32, "query_padding"),
    ("policy", "objective/response_padding", [0.4] * 20 + [0.98] * 12, "response_padding"),
    ("policy", "objective/distinct", [1.0] * 20 + [0.3] * 12, "distinct"),
    ("policy", "objective/kl", [0.0, 0.3] + [-3.0] * 30, "kl_negative"),
    ("policy", "objective/score_std", [9.0] * 32, "score_scale"),
    ("policy", "ppo/val/var_explained", [-0.1] * 32, "value_function"),
    ("policy", "ppo/policy/clipfrac", [0.1] * 20 + [0.5] * 12, "update_size"),
    ("policy", "objective/disagreement", [0.2] * 16 + [0.7] * 16, "disagreement"),
    ("policy", "objective/equal_groups", [0.7] * 32, "equal_groups"),
    ("policy", "ppo/val/vpred", [0.1] * 20 + [None] * 12, "not_finite"),
    ("policy", "online/win_rate_high", [None] * 20 + [0.45], "win_rate"),
    ("policy", "online/accuracy_over_chance", [None] * 20 + [1.0], "reward_blind"),
    ("policy", "online/largest_share", [None] * 20 + [0.6], "one_labeller"),
    ("policy", "online/blind_labellers", [None] * 20 + [1], "blind_labeller"),
    ("reward", "train/loss", [1.4 + step / 100 for step in range(300)], "loss_rising"),
    ("reward", "train/lr", [1e-3] * 300, "learning_rate"),
    ("reward", "normalize_after/gain", [None] * 300 + [50.0], "reward_scale"),
    ("reward", "validation/accuracy", [None] * 300 + [0.26], "chance"),
    ("reward", "validation/accuracy", [None] * 300 + [0.35], "memorising"),
]


@pytest.mark.parametrize(
    "stage, metric, values, expected", CHANGED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_changed_number_of_the_demo_is_found(stage, metric, values, expected):
    rows, config, result = recorded(stage)
    for row, value in zip(rows, values, strict=False):  # the last rows stay as they are
        if value is not None or row.get(metric) is not None and expected == "not_finite":
            row[metric] = value
    assert expected in found(diagnose(History(f"train_{stage}", config), rows, [], result))


@pytest.mark.parametrize(
    "rewards",
    [
        {"function": "my_scores:length"},
        {"trained_model": "hf:saved_models/classifier"},
        {"trained_model": "ratings:datasets/movies"},
    ],
)
def test_rewards_that_nobody_normalised_have_no_scale_to_be_off(rewards):
    rows, config, result = recorded("policy")
    rows[0]["objective/score_std"] = 9.0
    assert "score_scale" in found(diagnose(History("train_policy", config), rows, [], result))
    config = config | {"rewards": config["rewards"] | rewards}
    assert "score_scale" not in found(diagnose(History("train_policy", config), rows, [], result))


@pytest.mark.parametrize(
    "numbers, level",
    [
        ({"accuracy": 1.0, "standard_error": 0.0, "choices": 1}, WARNING),  # chance's own error is 0.43
        ({"accuracy": 0.0, "standard_error": 0.0, "choices": 1}, SEVERE),
        ({"accuracy": 1.0, "standard_error": 0.1, "choices": 8}, FINE),
        ({"accuracy": 0.5, "standard_error": 0.05, "choices": None}, FINE),  # of an earlier version
        ({"accuracy": 0.35, "standard_error": 0.05, "choices": None}, WARNING),
    ],
)
def test_accuracy_is_held_against_what_chance_may_come_to(numbers, level):
    h = History("train_reward", to_dict(RewardTrainingParams()))
    h.add({"step": 9, "validation/chance": 0.25} | {f"validation/{name}": value for name, value in numbers.items()})
    assert chance(h).level == level


@pytest.mark.parametrize("rule, exploding", [({}, True), ({"top_k": 50}, False), ({"top_p": 0.9}, False)])
def test_what_drawing_among_few_tokens_costs_is_no_explosion(rule, exploding):
    rows, config, result = recorded("policy")
    price = 1.5 * config["task"]["response_length"]
    rows = [row | {"objective/kl": row["objective/kl"] + price} for row in rows]
    config = config | {"task": config["task"] | rule}
    assert ("kl_exploding" in found(diagnose(History("train_policy", config), rows, [], result))) == exploding


def test_a_response_that_need_not_end_is_not_penalised():
    rows, config, result = recorded("policy")
    rows = [row | {"objective/valid": 0.0} for row in rows]
    assert "penalised" in found(diagnose(History("train_policy", config), rows, [], result))
    config = config | {"task": config["task"] | {"penalty_reward_value": None}}
    assert "penalised" not in found(diagnose(History("train_policy", config), rows, [], result))


def test_every_check_fires_in_a_test_above():
    fired = {(stage, name) for _, stage, _, expected, _ in BROKEN for name in expected}
    fired |= {("train_policy", expected) for *_, expected in BUGS}
    fired |= {(f"train_{stage}", expected) for stage, *_, expected in CHANGED}
    assert [check for check in CHECKS if not any((stage, check.name) in fired for stage in check.stages)] == []


# --- the ratio, in the precision that was resolved ---


def ratio_is_found(numbers: dict[str, float], requested: str, computed: dict) -> bool:
    rows, config, result = recorded("policy")
    rows = [row | numbers for row in rows]
    config = config | {"run": {"precision": requested}}
    return "ratio" in found(diagnose(History("train_policy", config, computed), rows, [], result))


@pytest.mark.parametrize(
    "requested, computed, limit",
    [
        ("auto", {"precision": "float32"}, 0.001),
        ("auto", {"precision": "bfloat16"}, 0.01),
        ("float32", {"precision": "float32"}, 0.001),
        ("float32", {}, 0.001),  # a run of an earlier version
        ("auto", {}, 0.01),
    ],
)
def test_the_ratios_limit_is_that_of_the_precision_that_was_resolved(requested, computed, limit):
    assert not ratio_is_found({"ppo/ratio/std_before": 0.9 * limit}, requested, computed)
    assert ratio_is_found({"ppo/ratio/std_before": 1.1 * limit}, requested, computed)


def test_the_ratio_is_seen_where_old_log_probabilities_are_recomputed():
    """There the deviation before the first update is 0 by construction."""

    def found_at(deviation, precision):
        numbers = {"ppo/ratio/std_before": 0.0, "ppo/ratio/std_sampling": deviation}
        return ratio_is_found(numbers, "auto", {"precision": precision})

    assert found_at(0.06, "bfloat16") and not found_at(0.005, "bfloat16")  # 0.005 is what rounding makes
    assert found_at(0.005, "float32") and not found_at(1e-5, "float32")


def test_while_a_run_goes_on_the_precision_is_read_from_its_config(tmp_path):
    rows, config, _ = recorded("policy")
    row = rows[0] | {"ppo/ratio/std_before": 0.005}
    for computed, expected in (({"computed": {"precision": "float32"}}, ["ratio"]), ({}, [])):
        (tmp_path / "config.json").write_text(json.dumps({"stage": "train_policy", "parameters": config} | computed))
        watch = Watch.open(tmp_path, "train_policy", config, None)
        watch.log(0, {name: value for name, value in row.items() if name != "step"})
        watch.close(failed=False)
        warnings = tmp_path / "warnings.jsonl"
        assert [line["check"] for line in read_jsonl(warnings)] == expected if expected else not warnings.exists()
        warnings.unlink(missing_ok=True)


def test_no_row_breaks_a_check():
    """Missing, infinite, zero and absurd numbers, and a configuration of another time: a diagnosis may be wrong, but it
    must not stop a run.
    """
    rng = random.Random(0)
    names = sorted(
        {name for stage in ("policy", "reward") for row in recorded(stage)[0] for name in row if name != "step"}
        | {"valid/loss", "train/corr", "validation/corr", "validation/labels"}
    )
    values = (None, 0, 0.0, -1.0, 1.0, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf, 0.5, "text", True)
    for stage in PARAMS:
        for parameters in (
            {},
            recorded("policy")[1],
            recorded("reward")[1],
            {"ppo": None, "labels": {"type": "best_of_0"}},
        ):
            rows = [
                {"step": step, **{name: rng.choice(values) for name in names if rng.random() < 0.8}}
                for step in range(60)
            ]
            samples = [{"response": rng.choice("ab")} for _ in range(50)] + [{}]
            for result in (
                {},
                {"before": None, "after": {"distinct_2": 0}},
                {"before": {"distinct_2": 0.5}, "after": {"distinct_2": 0.0}},
            ):
                assert describe(diagnose(History(stage, parameters), rows, samples, result), "run")


@pytest.mark.parametrize(
    "metric, values, check",
    [
        ("objective/entropy", [16.0] * 10 + [0.1] * 20, "entropy"),
        ("objective/valid", [0.0] * 30, "penalised"),
        ("objective/equal_groups", [0.2] * 5 + [1.0] * 5, "equal_groups"),
    ],
)
def test_what_becomes_severe_in_longer_runs(metric, values, check):
    """Rows as a run writes them: a policy that has become one response, and one whose responses never end."""
    examination = Examination(History("train_policy", to_dict(PolicyTrainingParams())))
    found = [finding for step, value in enumerate(values) for finding in examination.see({"step": step, metric: value})]
    assert check in {finding.check for finding in found if finding.severe}
