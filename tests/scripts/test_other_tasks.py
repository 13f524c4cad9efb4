"""Other people's tasks from the files of their data sets to a report, at a small shape; their settings."""

import json

import numpy as np
import pytest
from task_files import write_dialogues, write_reviews, write_stories_csv

import launch
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import load_config, save_model

from classifiers import save_folder
from gpt2_folders import make_dlite
from load_scripts import load_script, run_main
from params import EXPERIMENTS
from small import flags

CONFIG = GPT2Config(n_ctx=160, n_embd=16, n_head=2, n_layer=2)
SOURCES = {
    "imdb": ("imdb", lambda folder: write_reviews(folder / "in", 40), []),
    "writing_prompts": ("writing_prompts", lambda folder: write_stories_csv(folder / "a.csv"), ["--split", "20,20"]),
    "helpful": ("hh", lambda folder: write_dialogues(folder / "in", 120), []),
}
LABELS = {"imdb": "ratings", "writing_prompts": "pairs", "helpful": "labels"}


def command(capsys, monkeypatch, *words) -> str:
    """A line for launch.py; returns what it prints."""
    monkeypatch.setattr("sys.argv", ["launch.py", *map(str, words)])
    launch.main()
    return capsys.readouterr().out


def prepare(folder, task):
    """The task's data set, and in `folder`/gpt2 a small model with the tokens of the task's own."""
    script, write, words = SOURCES[task]
    module = load_script(f"datasets/{script}.py")
    run_main(module, "--input", write(folder), "--output", folder / script, "--processes", 1, *words)
    if task == "helpful":
        make_dlite(folder / "gpt2")
    else:
        save_model(folder / "gpt2", GPT2(CONFIG).initialise(generator_for(0, "test")))
    return folder / script


def reward_of(task, folder, trained):
    """What a task's policy is trained for, of the kind that its entry names, and the judges that evaluate it."""
    if task == "writing_prompts":
        return trained, trained
    architecture, names = ("DistilBert", ["NEGATIVE", "POSITIVE"]) if task == "imdb" else ("DebertaV2", None)
    save_folder(folder / "classifier", architecture, len(names or ["score"]), names)
    _, _, options = EXPERIMENTS["train_policy"][task]().rewards.trained_model.partition("?")
    judge = f"hf:{folder / 'classifier'}?{options}"
    return judge, f"{judge},{trained}"


@pytest.mark.parametrize("task", SOURCES)
def test_from_files_to_a_report(tmp_path, capsys, monkeypatch, task):
    data, runs = prepare(tmp_path, task), tmp_path / "runs"
    run = flags(run__save_dir=runs, run__device="cpu", run__precision="float32")
    queries = f"{data}:queries_" if task == "imdb" else data
    lengths = flags(task__query_length=20, task__response_length=10)

    words = flags(data__block=32) if task == "imdb" else [*lengths, *flags(task__query_dataset=data)]
    model = flags(data__dataset=data, model__initial=tmp_path / "gpt2", optimizer__batch_size=8, optimizer__warmup=2)
    said = command(capsys, monkeypatch, "train_sft", task, "sft", *run, *words, *model)
    assert "best validation perplexity" in said

    asked = [*lengths, *flags(task__query_dataset=queries)]
    tasks = [*asked, *flags(task__policy__initial_model=runs / "sft/lm")]
    source = {split: data / f"{LABELS[task]}_{split}.jsonl" for split in ("train", "test")}
    sizes = flags(labels__num_train=32, batch_size=8, rollout_batch_size=8, normalize_samples=8)
    words = [*sizes, *flags(labels__source=source["train"], labels__valid_source=source["test"])]
    assert "reward model in" in command(capsys, monkeypatch, "train_reward", task, "reward", *run, *tasks, *words)

    reward, judges = reward_of(task, tmp_path, runs / "reward/reward_model")
    words = flags(ppo__total_episodes=32, ppo__batch_size=16, ppo__nminibatches=2, evaluation__samples=4)
    reward_words = flags(rewards__trained_model=reward)
    command(capsys, monkeypatch, "train_policy", task, "policy", *run, *tasks, *words, *reward_words)
    rows = [json.loads(line) for line in (runs / "policy/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))

    words = flags(policies=f"before={runs / 'sft/lm'},after=policy", judges=judges, samples=6, save_dir=runs)
    texts = [] if task == "imdb" else flags(texts=source["test"])
    said = command(capsys, monkeypatch, "evaluate", task, *asked, *words, *texts, "--device", "cpu")
    assert "before" in said and "after" in said
    result = json.loads((runs / f"evaluate_{task}/result.json").read_text())
    assert ("text_perplexity" in result["policies"]["after"]) == bool(texts)

    if task == "helpful":
        words = flags(split="chosen_test", rows="single", against=runs / "sft/lm", save_dir=runs, device="cpu")
        said = command(capsys, monkeypatch, "perplexity", "policy", data, *words).splitlines()
        assert len(said) == 3 and "40 rows of 64 tokens" in said[0] and "times the perplexity of" in said[2]

    command(capsys, monkeypatch, "report", "policy", *flags(save_dir=runs))
    page = (runs / "policy/report/index.html").read_text()
    assert task in page and "KL" in page
    assert load_config(runs / "policy/policy") == load_config(tmp_path / "gpt2")


@pytest.mark.parametrize(
    "stage, task", [("train_dpo", "writing_prompts"), ("train_dpo", "helpful"), ("train_ilql", "imdb")]
)
def test_labels_are_learnt_without_a_reward_model(tmp_path, capsys, monkeypatch, stage, task):
    data, runs = prepare(tmp_path, task), tmp_path / "runs"
    words = flags(
        run__save_dir=runs,
        run__device="cpu",
        run__precision="float32",
        task__query_length=20,
        task__response_length=10,
        task__query_dataset=f"{data}:queries_" if task == "imdb" else data,
        task__policy__initial_model=tmp_path / "gpt2",
        labels__source=data / f"{LABELS[task]}_train.jsonl",
        labels__valid_source=data / f"{LABELS[task]}_test.jsonl",
        labels__num_train=32,
        batch_size=8,
    )
    command(capsys, monkeypatch, stage, task, "direct", *words)
    assert load_config(runs / "direct/policy") == load_config(tmp_path / "gpt2")


# --- the tasks as data ---


def test_the_settings_of_ppo_sentiments():
    """trlX's default_ppo_config and examples/ppo_sentiments.py, in our terms (docs/from_trlx.md)."""
    params = EXPERIMENTS["train_policy"]["imdb"]()
    ppo, rewards = params.ppo, params.rewards
    assert (ppo.total_episodes, ppo.batch_size, ppo.batch_size // ppo.nminibatches) == (100 * 128, 128, 32)
    assert (ppo.noptepochs, ppo.lr, ppo.gamma, ppo.lam) == (4, 3e-5, 1, 0.95)
    assert (ppo.cliprange, ppo.cliprange_value, ppo.vf_coef, ppo.whiten_rewards) == (0.2, 0.2, 1, False)
    assert (rewards.kl_coef, rewards.adaptive_kl, rewards.scale, rewards.clip) == (0.001, None, "none", 10)
    task = params.task
    assert (task.response_length, task.policy.temperature, task.top_k, task.top_p) == (40, 1, 0, 1)
    assert (task.stop_tokens, task.after_stop, task.penalty_reward_value) == ("50256", "ignore", None)


def test_the_settings_of_the_writing_prompts_project():
    params = EXPERIMENTS["train_policy"]["writing_prompts"]()
    assert (params.task.query_length, params.task.response_length, params.value.model) == (100, 200, "separate")
    assert (params.task.query_prefix, params.task.query_suffix) == ("Writing Prompt:", " Response:")
    assert params.rewards.train_new_model == EXPERIMENTS["train_reward"]["writing_prompts"]()


def test_the_settings_of_the_dlite_tutorial():
    params = EXPERIMENTS["train_policy"]["helpful"]()
    assert (params.ppo.total_episodes, params.task.response_length) == (load_script("datasets/hh.py").PROMPTS, 16)
    labels = EXPERIMENTS["train_reward"]["helpful"]()
    assert labels.task.query_prefix == params.task.query_prefix and labels.task.response_length > 16


@pytest.mark.parametrize("task", SOURCES)
def test_every_stage_reads_what_the_script_writes(tmp_path, task):
    """By default, too: files and folders that the entries name are those of the script's output."""
    data = prepare(tmp_path, task)
    names = {path.name for path in data.iterdir()}
    for stage, entries in EXPERIMENTS.items():
        if task in entries:
            params = entries[task]()
            if task_of := getattr(params, "task", None):
                folder, _, prefix = task_of.query_dataset.partition(":")
                assert folder == data.name and {f"{prefix}{split}.bin" for split in ("train", "test")} <= names, stage
            if labels := getattr(params, "labels", None):
                for source in (labels.source, labels.valid_source):
                    assert source.startswith(f"datasets/{data.name}/") and source.rpartition("/")[2] in names
