"""The paper's four tasks from the files of their data sets to a report, at a small shape; the rows of supervised
summaries.
"""

import json
import re

import numpy as np
import pytest
import torch

import launch
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.queries import TokenFile, write_token_file
from lm_human_preferences.data.rows import make_rows
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import load_model, save_model

from load_scripts import load_script, run_main
from paper_files import some_stories, write_posts, write_stories
from params import EXPERIMENTS
from small import flags

CONFIG = GPT2Config(n_ctx=96, n_embd=16, n_head=2, n_layer=2)
QUERY, RESPONSE = 24, 8


def command(capsys, monkeypatch, *words) -> str:
    """A line for launch.py; returns what it prints."""
    monkeypatch.setattr("sys.argv", ["launch.py", *map(str, words)])
    launch.main()
    return capsys.readouterr().out


def write_books(folder):
    folder.mkdir()
    sentence = "It was a {} day. The old man went down to the {} and did not look back. Nobody said a word. "
    words = ("cold", "bright", "river", "house", "long")
    (folder / "book.txt").write_text(
        "\n\n".join(sentence.format(words[n % 5], words[n * 3 % 5]) + f"So ended day {n}." for n in range(400))
    )
    return folder


SOURCES = {
    "books": write_books,
    "cnndm": lambda folder: write_stories(folder, some_stories(24)),
    "tldr": lambda folder: write_posts(folder, 24),
}


def write_labels(path, count: int = 20):
    """Choices among four, as the original writes them."""
    random, padding = np.random.default_rng(0), get_encoding().padding_token

    def row(length):
        return random.integers(0, 50257, length).tolist()

    path.write_text(
        json.dumps(
            [
                {
                    "query": row(QUERY - 4) + [padding] * 4,
                    **{f"sample{i}": row(RESPONSE) for i in range(4)},
                    "best": int(random.integers(4)),
                }
                for _ in range(count)
            ]
        )
    )
    return path


@pytest.mark.parametrize(
    "task, dataset", [("sentiment", "books"), ("descriptiveness", "books"), ("cnndm", "cnndm"), ("tldr", "tldr")]
)
def test_from_files_to_a_report(tmp_path, capsys, monkeypatch, task, dataset):
    module = load_script(f"datasets/{dataset}.py")
    words = ["--split", "20,20", "--passage", "150"] if dataset == "books" else []
    run_main(
        module,
        "--input",
        SOURCES[dataset](tmp_path / "source"),
        "--output",
        tmp_path / dataset,
        "--processes",
        1,
        *words,
    )
    save_model(tmp_path / "124M", GPT2(CONFIG).initialise(generator_for(0, "test")))
    runs = flags(run__save_dir=tmp_path / "runs", run__device="cpu", run__precision="float32")
    lengths = flags(task__query_length=QUERY, task__response_length=RESPONSE, task__truncate_after=2)

    extra = [*lengths] if dataset != "books" else flags(data__block=32)
    said = command(
        capsys,
        monkeypatch,
        "train_sft",
        task,
        "sft",
        *runs,
        *extra,
        *flags(
            data__dataset=tmp_path / dataset,
            model__initial=tmp_path / "124M",
            optimizer__batch_size=8,
            optimizer__warmup=2,
        ),
    )
    assert "best validation perplexity" in said
    lm = tmp_path / "runs" / "sft" / "lm"

    tasks = [*lengths, *flags(task__query_dataset=tmp_path / dataset, task__policy__initial_model=lm)]
    said = command(
        capsys,
        monkeypatch,
        "train_reward",
        task,
        "reward",
        *runs,
        *tasks,
        *flags(
            labels__source=write_labels(tmp_path / "labels.json"),
            labels__num_train=16,
            batch_size=8,
            rollout_batch_size=8,
            normalize_samples=8,
        ),
    )
    assert "reward model in" in said
    command(
        capsys,
        monkeypatch,
        "train_policy",
        task,
        "policy",
        *runs,
        *tasks,
        *flags(
            rewards__trained_model=tmp_path / "runs/reward/reward_model",
            ppo__total_episodes=32,
            ppo__batch_size=16,
            evaluation__samples=4,
        ),
    )
    rows = [json.loads(line) for line in (tmp_path / "runs/policy/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(
        np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float)
    )

    said = command(
        capsys,
        monkeypatch,
        "sample",
        "policy",
        *flags(save_dir=tmp_path / "runs", count=2, device="cpu", judge=tmp_path / "runs/reward"),
    )
    assert said.count("|") >= 2 and len(re.findall(r"^\[[+-]\d\.\d{3}\] ", said, re.MULTILINE)) == 2
    command(capsys, monkeypatch, "report", "policy", *flags(save_dir=tmp_path / "runs"))
    page = (tmp_path / "runs/policy/report/index.html").read_text()
    assert task in page and "KL" in page and "<svg" in page or "<img" in page
    assert load_model(tmp_path / "runs/policy/policy").config == CONFIG


# --- the tasks as data ---


def test_the_papers_settings_where_they_differ():
    for name, episodes, batch, lr in (
        ("sentiment", 2_000_000, 1024, 1.41e-5),
        ("descriptiveness", 2_000_000, 1024, 1.41e-5),
        ("cnndm", 2_000_000, 512, 7.07e-6),
        ("tldr", 2_000_000, 512, 7.07e-6),
    ):
        params, original = EXPERIMENTS["train_policy"][f"{name}_paper"](), EXPERIMENTS["train_policy"][name]()
        assert (params.ppo.total_episodes, params.ppo.batch_size, params.ppo.lr) == (episodes, batch, lr)
        reward = params.rewards.train_new_model
        assert (
            reward.lr == 1.77e-5
            and params.task.policy.initial_model == reward.task.policy.initial_model == "saved_models/774M"
        )
        assert (
            reward == EXPERIMENTS["train_reward"][f"{name}_paper"]()
            and reward.labels.num_train % reward.batch_size == 0
        )
        assert original.task.policy.initial_model == "saved_models/124M"  # making one does not change the other
        assert reward.labels.source == original.rewards.train_new_model.labels.source

    def kl(name):
        return EXPERIMENTS["train_policy"][name]().rewards

    assert [kl(f"{name}_paper").kl_coef for name in ("cnndm", "tldr")] == [0.1, 0.03]
    assert [kl(f"{name}_paper").adaptive_kl.target for name in ("sentiment", "descriptiveness")] == [10.0, 6.0]


def test_supervised_and_rl_starts_from_the_baseline():
    for name in ("cnndm", "tldr"):
        baseline = EXPERIMENTS["train_sft"][f"{name}_paper"]()
        assert (baseline.optimizer.epochs, baseline.optimizer.dropout, baseline.optimizer.final_lr_fraction) == (
            1,
            0.1,
            0,
        )
        assert baseline.data.rows == "references" and baseline.model.initial == "saved_models/774M"
        supervised, plain = (EXPERIMENTS["train_policy"][f"{name}_paper{suffix}"]() for suffix in ("_supervised", ""))
        assert supervised.task.policy.initial_model == f"saved_models/{name}_paper/lm"
        supervised.task.policy.initial_model = supervised.rewards.train_new_model.task.policy.initial_model = (
            "saved_models/774M"
        )
        assert supervised == plain


def test_every_task_can_be_printed(capsys, monkeypatch):
    names = sorted({name for stage in EXPERIMENTS.values() for name in stage})
    table = command(capsys, monkeypatch, "tasks")
    assert [line.split()[0] for line in table.splitlines()[1:]] == names
    for name in names:
        page = command(capsys, monkeypatch, "tasks", name)
        assert "partial" not in page and page.count("run.seed = 1") >= 1
        for stage in EXPERIMENTS:
            assert (f"{stage} {name}: " in page) == (name in EXPERIMENTS[stage])


# --- rows of supervised summaries ---


def test_a_row_is_what_the_policy_sees_and_only_the_reference_is_learnt(tmp_path):
    letters = get_encoding("letters")
    write_token_file(
        tmp_path,
        "train",
        [letters.encode("abcde.fgh"), letters.encode("xyz"), letters.encode("k."), letters.encode("m.n")],
    )
    write_token_file(
        tmp_path, "references_train", [letters.encode("qr"), letters.encode("s"), [], letters.encode("tuvwx")]
    )
    task = TaskParams(
        query_length=7, response_length=4, query_prefix="p", query_suffix="z", end_text=".", truncate_token=26
    )
    rows = make_rows(
        tmp_path,
        "train",
        "references",
        0,
        GPT2Config(n_vocab=27, n_ctx=32, n_embd=4, n_head=1, padding_token=27, encoding="letters"),
        task,
    )
    assert rows.documents.tolist() == [0, 3]  # the second has no end, the third no reference
    inputs, labels = rows.batch(np.arange(2))

    def text(row):
        return "".join("_" if token == 27 else letters.decode([token]) for token in row.tolist())

    assert [text(row) for row in inputs] == [
        "pabcde._zqr.",
        "pm._____ztuv",
    ]  # the reference closed, or cut at the response's length
    assert [text(row) for row in labels] == ["________qr._", "________tuvw"]
    assert rows.block == inputs.shape[1] == 12


@pytest.mark.parametrize(
    "break_it, says",
    [
        (
            lambda folder, task: write_token_file(folder, "references_train", [[1]]),
            "train has 2 documents, references_train 1",
        ),
        (lambda folder, task: write_token_file(folder, "references_train", [[], []]), "both a query and a reference"),
        (
            lambda folder, task: write_token_file(folder, "references_train", [[1], [99]]),
            "holds token 99, but the model's vocabulary has 27",
        ),
        (lambda folder, task: (folder / "references_train.bin").unlink(), "references_train.bin does not exist"),
        (lambda folder, task: setattr(task, "end_text", "x"), "both a query and a reference"),
        (lambda folder, task: setattr(task, "query_length", 40), "the model's context is 32"),
    ],
)
def test_references_that_cannot_be_learnt(tmp_path, break_it, says):
    write_token_file(tmp_path, "train", [[1, 2], [3, 26]])
    write_token_file(tmp_path, "references_train", [[1], [2]])
    task = TaskParams(query_length=7, response_length=4, truncate_token=26)
    break_it(tmp_path, task)
    with pytest.raises(UserError, match=says):
        make_rows(
            tmp_path,
            "train",
            "references",
            0,
            GPT2Config(n_vocab=27, n_ctx=32, n_embd=4, n_head=1, padding_token=27, encoding="letters"),
            task,
        )


def test_rows_and_task_must_fit(capsys, monkeypatch, tmp_path):
    for words, says in (
        (["--data.rows", "documents"], "has no use for a task"),
        (["--task", "off"], "--task on gives it one"),
    ):
        monkeypatch.setattr(
            "sys.argv",
            [
                "launch.py",
                "train_sft",
                "cnndm",
                "x",
                "--model.initial",
                str(tmp_path),
                "--data.dataset",
                str(tmp_path),
                *words,
            ],
        )
        with pytest.raises(SystemExit) as stop:
            launch.main()
        assert stop.value.code == 2 and says in capsys.readouterr().err


def test_learning_references_makes_them_likelier(tmp_path):
    """The loss is that of the reference alone: a model that learns one summary for all comes near zero."""
    from lm_human_preferences.compute.precision import choose_precision
    from lm_human_preferences.learning.next_token import NextTokenLoss, validate

    write_token_file(tmp_path, "train", [[n % 20, 5, 26] for n in range(20)])
    write_token_file(tmp_path, "references_train", [[3, 1, 4]] * 20)
    config = GPT2Config(n_vocab=27, n_ctx=32, n_embd=16, n_head=1, n_layer=1, padding_token=27, encoding="letters")
    rows = make_rows(
        tmp_path, "train", "references", 0, config, TaskParams(query_length=3, response_length=5, truncate_token=26)
    )
    model, precision = (
        NextTokenLoss(GPT2(config).initialise(generator_for(0, "test"))),
        choose_precision("cpu", "float32"),
    )
    assert abs(validate(model, rows, 0, precision, 7) - np.log(27)) < 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(*rows.batch(np.arange(20))).mean().backward()
        optimizer.step()
    assert validate(model, rows, 0, precision, 7) < 0.1


def test_the_split_files_of_all_tasks_agree_in_number(tmp_path):
    run_main(
        load_script("datasets/tldr.py"),
        "--input",
        write_posts(tmp_path / "in", 7),
        "--output",
        tmp_path / "out",
        "--processes",
        1,
    )
    for split in ("train", "valid", "test"):
        assert len(TokenFile(tmp_path / "out", split)) == len(TokenFile(tmp_path / "out", f"references_{split}")) == 7
