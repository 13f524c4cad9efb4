"""A GPT-2 with added tokens through the stages: supervised, reward and policy training; what does not fit."""

import json
from pathlib import Path

import pytest
import transformers

from lm_human_preferences.commands.collect import CollectParams, writer_of
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.language.encoding import get_encoding, gpt2_encoding
from lm_human_preferences.language.model_folders import load_config
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.people.questions import Author, write_questions
from lm_human_preferences.people.records import StudyParams

from gpt2_folders import DLITE, make_dlite, make_folder, make_padded
from load_scripts import load_script, run_main
from small import flags, run_here

TOPICS = ["film", "book", "song", "cat"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """dlite/, padded/ and plain/ models, data of instructions with DLite's tokens and without, labels as texts."""
    folder = tmp_path_factory.mktemp("world")
    make_dlite(folder / "dlite"), make_padded(folder / "padded"), make_folder(folder / "plain")
    (folder / "texts").mkdir()
    for split in ("train", "valid"):
        with open(folder / f"texts/{split}.jsonl", "w") as file:
            for n in range(40):
                print(
                    json.dumps({"text": f"### Instruction:\nName {TOPICS[n % 4]} {n}.\n\n### Response:\n"}), file=file
                )
    script = load_script("datasets/corpus.py")
    for name, more in (("data", ["--encoding", folder / "dlite"]), ("plain_data", [])):
        run_main(script, "--input", folder / "texts", "--output", folder / name, "--processes", 1, *more)
    with open(folder / "labels.jsonl", "w") as file:
        for n in range(16):
            query = f"### Instruction:\nName {TOPICS[n % 4]}.\n\n### Response:\n"
            responses = [f"{n} yes.\n\n### End", f"{n} no", "### Response:\n", "[PAD]"]
            print(json.dumps({"query": query, "responses": responses, "best": n % 2}), file=file)
    return folder


def run_flags(world: Path) -> list[str]:
    return flags(run__save_dir=world / "runs", run__device="cpu", run__precision="float32")


def task_flags(world: Path, model: str = "dlite", data: str = "data") -> list[str]:
    return [
        *flags(task__query_dataset=world / data, task__query_length=20, task__response_length=8),
        *flags(task__truncate_token=50256 if model == "padded" else 50257, task__truncate_after=1),
        *flags(task__policy__initial_model=world / model),
    ]


def reward_flags(world: Path) -> list[str]:
    files = dict(labels__source=world / "labels.jsonl", labels__valid_source="none", labels__num_train=16, batch_size=8)
    return flags(**files, rollout_batch_size=8, normalize_samples=8) + run_flags(world)


def policy_flags(world: Path, reward: Path) -> list[str]:
    words = dict(ppo__total_episodes=16, ppo__batch_size=8, evaluation__samples=4, evaluation__split="valid")
    return flags(**words, rewards__trained_model=reward) + run_flags(world)


def untrained_reward(world: Path, model: str) -> Path:
    folder = world / f"{model}_as_reward"
    RewardModel.from_language_model(world / model, generator_for(0, "head")).save(folder)
    return folder


def same_tokens(folder: Path, model: Path) -> None:
    config = load_config(folder)
    assert config == load_config(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for token in config.added_tokens:
        assert tokenizer.encode(f"a{token.text}") == [64, token.id]


def test_reward_and_policy_training(world):
    runs = world / "runs"
    run_here("train_reward", "movies", "reward", *task_flags(world), *reward_flags(world))
    same_tokens(runs / "reward/reward_model", world / "dlite")
    run_here("train_policy", "movies", "policy", *task_flags(world), *policy_flags(world, runs / "reward/reward_model"))
    same_tokens(runs / "policy/policy", world / "dlite")
    shown = [row for _, row in read_records(runs / "policy/samples.jsonl", "row")]
    assert shown and all(row["query"].startswith("### Instruction:\nName ") for row in shown)
    assert all(DLITE[2] in row["query"] for row in shown), "50259 is a token here and not padding"
    run_here("evaluate", "movies", *evaluate_flags(world, "a={0}/dlite,b={0}/runs/policy/policy"))


def evaluate_flags(world: Path, policies: str, name: str = "evaluation") -> list[str]:
    words = dict(policies=policies.format(world), samples=8, save_dir=world / "runs", experiment=name)
    task = task_flags(world)[:-2]  # without the initial model: --policies names them
    return [*task, *flags(**words, device="cpu", precision="float32", split="valid")]


def test_a_token_for_padding_alone(world):
    """Plain data serve it, and its [PAD] is a token like any other."""
    words = task_flags(world, "padded", "plain_data")
    run_here("train_reward", "movies", "padded_reward", *words, *reward_flags(world))
    reward = world / "runs/padded_reward/reward_model"
    same_tokens(reward, world / "padded")
    run_here("train_policy", "movies", "padded_policy", *words, *policy_flags(world, reward))
    same_tokens(world / "runs/padded_policy/policy", world / "padded")


def test_supervised_training(world):
    words = dict(data__dataset=world / "data", data__block=20, model__initial=world / "dlite", optimizer__batch_size=8)
    run_here("train_sft", "movies", "lm", *flags(**words, validation__interval=5), *run_flags(world))
    same_tokens(world / "runs/lm/lm", world / "dlite")
    run_here("sample", str(world / "runs/lm/lm"), "--prompt", "### Instruction:\nName a film.\n\n### Response:\n")


@pytest.mark.parametrize("model, reward", [("dlite", "plain"), ("dlite", "padded"), ("padded", "dlite")])
def test_a_reward_of_another_encoding(world, model, reward):
    other = untrained_reward(world, reward)
    says = (
        r"the reward model's encoding \(gpt2, \d+ tokens.*\) is not the policy's \(gpt2, \d+ tokens with '.*'\); train"
    )
    with pytest.raises(UserError, match=says) as caught:
        run_here("train_policy", "movies", "no", *task_flags(world, model, "plain_data"), *policy_flags(world, other))
    assert "\n" not in str(caught.value) and not (world / "runs/no").exists()


def test_policies_and_data_of_another_encoding(world):
    with pytest.raises(UserError, match=r"has the encoding gpt2, 50257 tokens, the reference a has gpt2, 50260 tokens"):
        run_here("evaluate", "movies", *evaluate_flags(world, "a={0}/dlite,b={0}/plain", "no"))
    with pytest.raises(UserError, match=r"is encoded with the added tokens '### End' as 50257"):
        run_here(
            "train_policy",
            "movies",
            "no",
            *task_flags(world, "padded"),
            *policy_flags(world, untrained_reward(world, "padded")),
        )


def test_questions_for_people(world):
    """Token lists are GPT-2's own, so questions of this model are texts, from which the same tokens come again."""
    config = load_config(world / "dlite")
    encoding, task = (
        get_encoding(config),
        TaskParams(query_dataset=str(world / "data"), query_length=20, response_length=8),
    )
    policy = Policy.load(world / "dlite", QueryFormatter([], []), 1.0)
    queries, precision = query_stream(task, encoding, 0, "test").batch(2), choose_precision("cpu", "float32")
    asked = write_questions(
        [Author("reference", policy)], queries, range(2), StudyParams(responses=2), task, encoding, precision, 0, "test"
    )
    for question, tokens in zip(asked, queries.tolist(), strict=True):
        assert question.query_tokens is None and not any(response.tokens for response in question.responses)
        assert encoding.encode(question.query) == [t for t in tokens if t not in (encoding.padding_token, 50256)]


def test_policies_that_people_cannot_compare(world):
    task = TaskParams(query_dataset=str(world / "plain_data"), query_length=20, response_length=8)
    params = CollectParams(task=task, policies=f"a={world}/dlite,b={world}/plain", count=2, device="cpu")
    with pytest.raises(UserError, match=r"--policies: b has the encoding gpt2, 50257 tokens, a has gpt2, 50260 tokens"):
        writer_of(params, 0)


def test_labels_have_the_models_tokens(world):
    encoding = get_encoding(load_config(world / "dlite"))
    assert encoding.encode("no### End") == [3919, 50257]
    assert len(gpt2_encoding().encode("no### End")) == 3
