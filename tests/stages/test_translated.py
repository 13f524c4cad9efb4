"""The scripts that docs/from_trl.md and docs/from_trlx.md translate: their commands, word for word but for files and
sizes, on a very small world.
"""

import json
import re
import shlex

import pytest

from classifiers import save_classifier
from small import QUERY, RESPONSE, ROOT, launch, make_world

SMALL = {
    "task.query_length": QUERY,
    "task.response_length": RESPONSE,
    "ppo.total_episodes": 16,
    "ppo.batch_size": 8,
    "labels.num_train": 16,
    "batch_size": 8,
    "rollout_batch_size": 16,
    "normalize_samples": 16,
    "evaluation.samples": 4,
    "evaluation.split": "valid",
    "run.device": "cpu",
}
END_OF_TEXT = {"task.stop_tokens": 26}  # the small world's, where the pages have 50256
STAGE = {  # which of them a stage knows
    "train_policy": ("task", "ppo", "evaluation", "run"),
    "train_ilql": ("task", "labels", "batch_size", "run"),
    "train_reward": ("task", "labels", "batch_size", "rollout_batch_size", "normalize_samples", "run"),
}


def command_of(page: str, experiment: str) -> tuple[list[str], dict[str, str]]:
    """Stage, task and experiment, and the flags of the page's command that makes this experiment."""
    (line,) = re.findall(rf"^    python launch\.py (\w+ \w+ {experiment} .*)$", (ROOT / page).read_text(), re.MULTILINE)
    words = shlex.split(line)
    return words[:3], dict(zip((word.removeprefix("--") for word in words[3::2]), words[4::2], strict=True))


def run(world, page: str, experiment: str, **files) -> dict:
    """Run a page's command with small shapes and the world's files; its configuration, as the run has resolved it."""
    words, given = command_of(page, experiment)
    sizes = {name: value for name, value in SMALL.items() if name.split(".")[0] in STAGE[words[0]]}
    mine = {"task.query_dataset": world / "data", "task.policy.initial_model": world / "model"}
    flags = given | sizes | mine | files | {"run.save_dir": world / "runs"}
    launch(*words, *(str(part) for name, value in flags.items() for part in (f"--{name}", value)), cwd=world)
    return json.loads((world / "runs" / experiment / "config.json").read_text())["parameters"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_trls_script(world):
    save_classifier(world / "classifier", ["NEGATIVE", "POSITIVE"])
    assert command_of("docs/from_trl.md", "trl_sentiment")[1]["rewards.trained_model"].endswith("#POSITIVE:logit")
    source = {"rewards.trained_model": f"hf:{world / 'classifier'}#POSITIVE:logit"}
    params = run(world, "docs/from_trl.md", "trl_sentiment", **source, **END_OF_TEXT)
    assert params["rewards"]["adaptive_kl"] == {"target": 6.0, "horizon": 10_000}
    assert (params["ppo"]["lr"], params["ppo"]["whiten_rewards"]) == (1.41e-5, False)
    assert (world / "runs/trl_sentiment/policy/model.safetensors").is_file()


def test_trlx_ppo_sentiments(world):
    save_classifier(world / "prob", ["NEGATIVE", "POSITIVE"])
    given = command_of("docs/from_trlx.md", "trlx_sentiments")[1]["rewards.trained_model"]
    source = {"rewards.trained_model": given.replace("lvwerra/distilbert-imdb", str(world / "prob"))}
    params = run(world, "docs/from_trlx.md", "trlx_sentiments", **source, **END_OF_TEXT)
    assert (params["ppo"]["nminibatches"], params["rewards"]["kl_coef"], params["rewards"]["clip"]) == (4, 0.001, 10)
    rows = [json.loads(line) for line in (world / "runs/trlx_sentiments/samples.jsonl").read_text().splitlines()]
    assert all(0 < row["score"] < 1 for row in rows)


def test_trlx_ilql_sentiments(world):
    ratings = json.loads((world / "ratings.json").read_text())
    (world / "rated.json").write_text(json.dumps([row | {"score": float(i % 2)} for i, row in enumerate(ratings)]))
    params = run(world, "docs/from_trlx.md", "ilql_sentiments", **{"labels.source": world / "rated.json"})
    assert (params["ilql"]["alpha"], params["ilql"]["sync_interval"], params["beta"]) == (0.001, 5, 1.0)
    assert (world / "runs/ilql_sentiments/policy/heads.safetensors").is_file()
