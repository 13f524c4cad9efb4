"""docs/your_data.md: its files are of forms that are read, and its commands run in order, word for word but for sizes,
on small files and a small model.
"""

import json
import re
import shlex

import pytest

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.exchange.forms import LabelFile
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import save_model

from load_scripts import load_script, run_main
from small import ROOT, run_here

PAGE = (ROOT / "docs/your_data.md").read_text(encoding="utf-8")
FILES = ("my_ratings.csv", "my_pairs.csv", "my_choices.csv")  # in the order of the page's tables
COMMANDS = re.findall(r"^    (python .+)$", PAGE, re.MULTILINE)
CPU = {"run.device": "cpu", "run.precision": "float32", "task.query_length": 12, "task.response_length": 8}
SMALL = {
    "train_reward": CPU | {"labels.num_train": 32, "batch_size": 8, "normalize_samples": 16, "rollout_batch_size": 16},
    "train_dpo": CPU | {"labels.num_train": 32, "batch_size": 8},
    "train_policy": CPU | {"ppo.total_episodes": 16, "ppo.batch_size": 8, "evaluation.samples": 4},
    "train_sft": CPU | {"optimizer.batch_size": 8, "optimizer.epochs": 1, "optimizer.warmup": 1},
    "evaluate": {"samples": 4, "device": "cpu"} | {name: CPU[name] for name in list(CPU)[2:]},
    "sample": {"device": "cpu", "length": 6},
    "reward_quality": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the page's files, 40 times over with other prompts, and a small model in the place of `tiny`."""
    folder = tmp_path_factory.mktemp("home")
    tables = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    for name, table in zip(FILES, tables, strict=True):
        head, *rows = table.splitlines()
        lines = [row.replace("?", f" in case {n}?", 1) for n in range(40) for row in rows]
        (folder / name).write_bytes(("\ufeff" + "\r\n".join([head, *lines]) + "\r\n").encode())
    (described,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (folder / "my_task.json").write_text(described)
    posts = [{"title": f"Title {n}", "text": f"Text {n}."} for n in range(40)]
    (folder / "my_posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
    config = GPT2Config(n_ctx=128, n_embd=8, n_head=2, n_layer=1)
    save_model(folder / "saved_models/tiny", GPT2(config).initialise(generator_for(0, "test/model")))
    (folder / "datasets").mkdir()
    return folder


def test_the_page_shows_commands_and_tables():
    assert len(COMMANDS) > 25 and PAGE.count("```csv") == len(FILES)
    assert {name for command in COMMANDS for name in re.findall(r"launch\.py (\w+)", command)} >= set(SMALL)


def test_each_command_runs(home, monkeypatch):
    """In order, as later ones read what earlier ones have written."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("LMHP_HOME", str(home))
    for command in COMMANDS:
        _, script, *words = shlex.split(command)
        if script != "launch.py":
            if script.startswith("datasets/"):
                run_main(load_script(script), *words, "--processes", 1)
            continue
        sizes = SMALL.get(words[0], {})
        run_here(*words, *(str(part) for name, value in sizes.items() for part in (f"--{name}", value)))
    assert (home / "saved_models/my_policy/policy/model.safetensors").is_file()
    assert (home / "saved_models/my_policy/report/index.html").is_file()
    labels = [json.loads(line) for line in (home / "datasets/own/labels.jsonl").read_text().splitlines()]
    assert len(labels) == 120 and {label["score"] for label in labels} == {4.5, 1.0, 4.0}
    assert labels[0]["responses"] == [" Put the stems into water and leave it on the table."]
    config = json.loads((home / "saved_models/file_policy/config.json").read_text())["parameters"]
    assert (config["task"]["query_suffix"], config["rewards"]["kl_coef"]) == ("\n\nAnswer:", 0.15)


@pytest.mark.parametrize("number, types", [(0, {"score"}), (1, {"best"}), (2, {"best", "target"})])
def test_the_pages_tables_are_read(tmp_path, number, types):
    table = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)[number]
    (tmp_path / "a.csv").write_text(table)
    labels = [label for _, label in LabelFile(tmp_path / "a.csv")]
    assert {name for label in labels for name in ("best", "target", "score") if name in label} == types
    assert all(label["worker"] in ("anna", "ben") for label in labels)
