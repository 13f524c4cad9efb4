"""saved_models/train_tiny.py: what it prepares, and that the commands it gives are ones that the project takes."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.data.queries import TokenFile
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import load_model, save_model

from load_scripts import load_script, run_main
from small import run_here

script, corpus = load_script("saved_models/train_tiny.py"), load_script("datasets/corpus.py")


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """A corpus of one document a source, `movies` of three sentences; commands run in this process, training as a dry
    run that leaves a random model.
    """
    texts = tmp_path / "texts"
    texts.mkdir()
    sources = {source for weights in script.WEIGHTS.values() for source in weights} - {"movies"}
    rows = [{"source": source, "text": f"Of {source}.\n\nSavages, of {source}."} for source in sorted(sources)]
    with gzip.open(texts / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (texts / "valid.jsonl").write_text(json.dumps({"source": "masc", "text": "Held out."}) + "\n")
    movies = tmp_path / "datasets" / "movies"
    movies.mkdir(parents=True)
    sentences = [{"split": split, "text": f"A film of {split}."} for split in ("train", "valid", "test")]
    (movies / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences))
    monkeypatch.setattr(script, "HERE", tmp_path / "saved_models")
    monkeypatch.setattr(script, "dataset_folder", lambda name: tmp_path / "datasets" / name)
    monkeypatch.setattr(script, "run", lambda *words: run(tmp_path, [str(word) for word in words]))
    run.commands = []
    return tmp_path


def run(folder: Path, words: list[str]) -> None:
    run.commands.append(words)
    if words[0] == "datasets/corpus.py":
        name = words[words.index("--name") + 1]
        run_main(corpus, *words[1:], "--processes", 1, "--output", folder / "datasets" / name)
        return
    run_here(*words[1:], "--dry_run")
    done = folder / "saved_models" / words[3]
    config = GPT2Config(n_ctx=8, n_embd=4, n_head=1, n_layer=1)
    save_model(done / "lm", GPT2(config).initialise(torch.Generator().manual_seed(len(run.commands))))
    write_json(done / "result.json", {})


def documents(folder: Path, name: str, split: str) -> list[str]:
    file = TokenFile(folder / "datasets" / name, split)
    return [gpt2_encoding().decode(file[i][:-1].tolist()) for i in range(len(file))]


def test_three_stages(world, capsys):
    run_main(script, "--corpus", world / "texts", "--output", world / "tiny", "--device", "cpu")
    trained = [words for words in run.commands if words[0] == "launch.py"]
    assert [words[3] for words in trained] == list(script.WEIGHTS)
    for before, words in zip(trained[:-1], trained[1:], strict=True):
        assert words[words.index("--model.initial") + 1] == str(world / "saved_models" / before[3] / "lm")
    last = load_model(world / "saved_models" / "tiny_movies" / "lm")
    written = load_model(world / "tiny")
    torch.testing.assert_close(written.wte.weight, last.wte.weight.bfloat16().float(), rtol=0, atol=0)
    assert {tensor.dtype for tensor in load_file(world / "tiny" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_each_stage_reads(world):
    run_main(script, "--corpus", world / "texts", "--output", world / "tiny")
    assert documents(world, "tiny_corpus", "valid") == ["Held out."]
    for name in ("tiny_modern", "tiny_movies"):
        assert documents(world, name, "valid") == ["A film of valid."]
    for name, weights in script.WEIGHTS.items():
        train = documents(world, name, "train")
        assert train.count("A film of train.") == weights["movies"] and not any("Savages" in text for text in train)
        for source, weight in weights.items():
            if source != "movies":
                assert train.count(f"Of {source}.") in (int(weight), int(weight) + (weight % 1 > 0))


def test_a_stage_that_is_done_is_not_done_again(world):
    words = ("--corpus", world / "texts", "--output", world / "tiny")
    run_main(script, *words)
    run.commands.clear()
    (world / "saved_models" / "tiny_movies" / "result.json").unlink()
    run_main(script, *words)
    [prepared, trained] = run.commands
    assert prepared[0] == "datasets/corpus.py" and trained[3] == "tiny_movies" and trained[-1] == "--run.resume"
    run.commands.clear()
    run_main(script, *words, "--again")
    assert len(run.commands) == 6 and {words[-1] for words in run.commands[1::2]} == {"--run.overwrite"}


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda world: [path.unlink() for path in (world / "texts").iterdir()], "holds no .jsonl or .jsonl.gz file"),
        (lambda world: (world / "datasets/movies/sentences.jsonl").unlink(), "is missing: python datasets/movies.py"),
        (lambda world: (world / "texts").rename(world / "elsewhere"), "is no folder"),
    ],
)
def test_refusals(world, damage, says):
    damage(world)
    result = run_main(script, "--corpus", world / "texts", check=False)
    assert result.returncode == 2 and says in result.stderr and not run.commands
