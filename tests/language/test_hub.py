"""GPT-2s of the Hugging Face hub by name, in the layouts in which they lie there, served from this machine."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.language.model_folders import load_config, load_model

from gpt2_folders import make_dlite, make_folder, make_padded
from load_scripts import load_script, run_main
from web import serve

script = load_script("saved_models/prepare_pytorch_checkpoint.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the models `gpt2` and `padded`, whole, as `transformers` writes them."""
    root = tmp_path_factory.mktemp("made")
    make_folder(root / "gpt2")
    make_padded(root / "padded")
    return root


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def as_pickle(folder: Path) -> None:
    """As lvwerra/gpt2-imdb: one .bin, with the masks of old releases and the tied matrix twice."""
    tensors = stored(folder)
    tensors |= {
        f"transformer.h.{n}.attn.bias": torch.ones(64, 64, dtype=torch.uint8).tril()[None, None] for n in (0, 1)
    }
    tensors |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in (0, 1)}
    torch.save(tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path, save, name: str) -> None:
    tensors, places = stored(folder), {}
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((list(tensors)[:9], list(tensors)[9:]), 1):
        file = name.replace(".", f"-0000{number}-of-00002.")
        save({key: tensors[key] for key in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def without_prefix(folder: Path) -> None:
    """As openai-community/gpt2."""
    tensors = {name.removeprefix("transformer."): value for name, value in stored(folder).items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, folder / "model.safetensors")


def in_half_precision(folder: Path, dtype: torch.dtype) -> None:
    save_file({name: value.to(dtype) for name, value in stored(folder).items()}, folder / "model.safetensors")


LAYOUTS = {
    "whole": lambda folder: None,
    "pickle": as_pickle,
    "shards": lambda folder: in_shards(folder, save_file, "model.safetensors"),
    "pickled shards": lambda folder: in_shards(folder, torch.save, "pytorch_model.bin"),
    "no prefix": without_prefix,
    "float16": lambda folder: in_half_precision(folder, torch.float16),
    "bfloat16": lambda folder: in_half_precision(folder, torch.bfloat16),
}


def prepare(*words, **options):
    return run_main(script, *words, **options)


@pytest.mark.parametrize("name", ["gpt2", "padded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(made, tmp_path, name, layout):
    """Fetched by OWNER/NAME, converted, and its logits beside those of transformers."""
    served = tmp_path / "served/owner/model"
    shutil.copytree(made / name, served)
    LAYOUTS[layout](served)
    with serve(tmp_path / "served") as server:
        said = prepare("owner/model", "--from", "hf", "--url", server.url, "--output", tmp_path / "out").stdout
    theirs = transformers.GPT2LMHeadModel.from_pretrained(made / name).eval()
    dtype = getattr(torch, layout) if layout.endswith("float16") else torch.float32
    theirs = theirs.to(dtype).float()
    ours = load_model(tmp_path / "out")
    tokens = torch.randint(0, ours.config.n_vocab, (2, 30), generator=generator_for(0, "test"))
    with torch.no_grad():
        assert (ours.logits(ours(tokens)) - theirs(tokens).logits).abs().max() < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "served"], "downloads are gone"
    assert {value.dtype for value in stored(tmp_path / "out").values()} == {dtype}
    assert ("added tokens '[PAD]' 50257" in said) == (name == "padded")
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")


def test_a_local_folder_with_added_tokens(tmp_path):
    make_dlite(tmp_path / "dlite")
    as_pickle(tmp_path / "dlite")
    said = prepare("mine", "--from", "hf", "--input", tmp_path / "dlite", "--output", tmp_path / "mine").stdout
    assert "'### Response:\\n' 50259" in said and load_config(tmp_path / "mine").padding_token == 50262
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "mine")
    assert tokenizer.encode("x### End") == [87, 50257]


def test_names():
    assert script.hub_name("124M") == "openai-community/gpt2" and script.hub_name("distilgpt2") == "distilgpt2"
    assert script.own_name("openai-community/gpt2-xl") == script.own_name("gpt2-xl") == "1558M"
    assert script.own_name("lvwerra/gpt2-imdb") == script.hub_name("lvwerra/gpt2-imdb") == "lvwerra/gpt2-imdb"


def refused(*words, says: str) -> None:
    said = prepare(*words, check=False)
    assert said.returncode == 2 and says in said.stderr and said.stderr.count("\n") == 1, said.stderr


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a//b", "", "a b", "/x"])
def test_what_is_no_name_on_the_hub(tmp_path, name):
    refused(name, "--from", "hf", "--output", tmp_path / "out", says="is not a model's name on the hub")
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_there_or_no_gpt2(tmp_path):
    """In one line, before the weights are fetched, and nothing is left."""
    for name, content in (("llama", {"model_type": "llama"}), ("empty", json.loads(GPT2))):
        (tmp_path / f"served/owner/{name}").mkdir(parents=True)
        (tmp_path / f"served/owner/{name}/config.json").write_text(json.dumps(content))
    with serve(tmp_path / "served") as server:
        for name, says in (
            ("gone", "answers 404"),
            ("llama", "does not describe a GPT-2"),
            ("empty", "has neither model.safetensors nor pytorch_model.bin"),
        ):
            words = (f"owner/{name}", "--from", "hf", "--url", server.url, "--output", tmp_path / "out")
            refused(*words, says=says)
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


GPT2 = '{"model_type": "gpt2", "vocab_size": 50257, "n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 2}'


def test_a_second_model_of_the_same_name(made, tmp_path):
    shutil.copytree(made / "padded", tmp_path / "served/one/model")
    with serve(tmp_path / "served") as server:
        words = ("one/model", "--from", "hf", "--url", server.url, "--output", tmp_path / "out")
        prepare(*words)
        said = prepare("two/model", *words[1:]).stdout
    assert f"is there already (from {server.url}/one/model); --overwrite replaces it" in said
