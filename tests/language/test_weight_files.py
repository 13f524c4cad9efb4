"""Weights as people's folders have them: prefixes, shards, shared and own output weights, number formats, pickles.

Each layout goes through the loader and the converter, which must agree.
"""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.digests import check_digest, listed
from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import (
    convert_hugging_face,
    is_model_folder,
    load_heads,
    load_model,
    save_model,
)

from small import ROOT

CONFIG = GPT2Config(n_vocab=27, n_ctx=16, n_embd=24, n_head=3, n_layer=2, padding_token=27, encoding="letters")


@pytest.fixture
def model() -> GPT2:
    return GPT2(CONFIG).initialise(generator_for(0, "test"))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A model folder as one from elsewhere: without digests and without our keys in config.json."""
    save_model(tmp_path / "in", model)
    (tmp_path / "in/SHA256SUMS").unlink()
    change_config(tmp_path / "in", encoding=None, padding_token=27)
    return tmp_path / "in"


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(model: GPT2, prefix: str = "transformer.") -> dict[str, torch.Tensor]:
    return {prefix + name: value.detach().clone() for name, value in model.state_dict().items()}


def store(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same_in_both(folder: Path, model: GPT2, tmp_path: Path) -> None:
    """Loaded as it is, and converted and loaded: the same weights."""
    convert_hugging_face(folder, tmp_path / "out")
    for loaded in (load_model(folder), load_model(tmp_path / "out")):
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def refused_by_both(folder: Path, says: str) -> None:
    for attempt in (load_model, lambda folder: convert_hugging_face(folder, folder.parent / "out")):
        with pytest.raises(UserError, match=says) as caught:
            attempt(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not (folder.parent / "out").exists()


# --- layouts that are read ---


@pytest.mark.parametrize(
    "prefix",
    ["", "transformer.", "model.transformer.", "pretrained_model.transformer.", "base_model.model.transformer."],
)
def test_prefixes(folder, model, tmp_path, prefix):
    """With another model's head beside the trunk, as TRL and classifiers have."""
    store(folder, weights(model, prefix) | {"v_head.summary.weight": torch.ones(1, 24), "score.weight": torch.ones(2)})
    same_in_both(folder, model, tmp_path)


def test_masks_of_old_releases(folder, model, tmp_path):
    masks = {
        f"transformer.h.{n}.attn.bias": torch.ones(16, 16, dtype=torch.uint8).tril()[None, None] for n in range(2)
    } | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    store(folder, weights(model) | masks)
    same_in_both(folder, model, tmp_path)


@pytest.mark.parametrize("kept", ["wte", "lm_head", "both"])
def test_the_shared_matrix_under_either_name(folder, model, tmp_path, kept):
    tensors = weights(model)
    if kept != "wte":
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    if kept == "lm_head":
        del tensors["transformer.wte.weight"]
    store(folder, tensors)
    same_in_both(folder, model, tmp_path)


def test_shards(folder, model, tmp_path):
    """As transformers writes them."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    shutil.rmtree(folder)
    theirs.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1 and not (folder / "model.safetensors").exists()
    same_in_both(folder, model, tmp_path)


def shard(folder: Path, model: GPT2, index: object) -> None:
    store(folder, weights(model))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "index, says",
    [
        ([1], "does not list shards"),
        ({"weight_map": {}}, "does not list shards"),
        ({"weight_map": {"a": 1}}, "does not list shards"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names the shard 'gone.safetensors', which is not in the folder"),
        ({"weight_map": {"a": "../in/part.safetensors"}}, "names the shard '../in/part.safetensors', which is not in"),
    ],
)
def test_shards_that_do_not_fit(folder, model, index, says):
    shard(folder, model, index)
    refused_by_both(folder, says)


# --- numbers ---


@pytest.mark.parametrize(
    "kinds, stored_as",
    [
        ({torch.float16}, torch.float16),
        ({torch.bfloat16}, torch.bfloat16),
        ({torch.float32}, torch.float32),
        ({torch.float64}, torch.float32),
        ({torch.float16, torch.float32}, torch.float32),
        ({torch.float16, torch.bfloat16}, torch.float32),
    ],
)
def test_what_the_converter_stores(folder, model, tmp_path, kinds, stored_as):
    """One narrow format stays, all else becomes float32: no weight loses anything."""
    first, second = sorted(kinds, key=str)[0], sorted(kinds, key=str)[-1]
    tensors = {name: value.to(first if "wpe" in name else second) for name, value in weights(model).items()}
    store(folder, tensors)
    convert_hugging_face(folder, tmp_path / "out")
    for name, value in load_file(tmp_path / "out/model.safetensors").items():
        assert value.dtype == stored_as and torch.equal(value.double(), tensors[name].double()), name
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in load_model(tmp_path / "out").state_dict().items())


def test_large_numbers_beside_half_precision_ones(folder, model, tmp_path):
    """In the format of the first weight, float16, these would be infinite."""
    with torch.no_grad():
        model.wte.weight[5, 3] = 1e6
        model.wpe.weight.copy_(model.wpe.weight.half())
    tensors = weights(model)
    store(folder, tensors | {"transformer.wpe.weight": tensors["transformer.wpe.weight"].half()})
    same_in_both(folder, model, tmp_path)


@pytest.mark.parametrize("dtype, says", [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_quantised_weights(folder, model, dtype, says):
    """Whether config.json says so or not."""
    name = "transformer.h.1.mlp.c_fc.weight"
    tensors = weights(model)
    scaled = tensors[name] / tensors[name].abs().max() * 100
    store(folder, tensors | {name: scaled.abs().to(dtype), name.replace("weight", "SCB"): torch.ones(96)})
    refused_by_both(folder, f"h.1.mlp.c_fc.weight is stored as {says}, as quantised models are")
    change_config(folder, quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"})
    refused_by_both(folder, r"config.json: the weights are quantised \(bitsandbytes\)")


def test_numbers_too_large_for_float32(folder, model):
    tensors = {name: value.double() for name, value in weights(model).items()}
    tensors["transformer.ln_f.bias"][2] = 1e200
    store(folder, tensors)
    refused_by_both(folder, "ln_f.bias holds a NaN or an infinity")


def test_heads_that_are_not_numbers(tmp_path, model):
    save_model(tmp_path / "model", model, {"value.weight": torch.zeros(24)})
    save_file({"value.weight": torch.zeros(24, dtype=torch.int8)}, tmp_path / "model/heads.safetensors")
    (tmp_path / "model/SHA256SUMS").unlink()
    with pytest.raises(UserError, match="value.weight holds no floating-point numbers"):
        load_heads(tmp_path / "model")


# --- weights that have no place here ---


def test_output_weights_of_their_own(folder, model):
    store(folder, weights(model) | {"lm_head.weight": torch.randn(27, 24)})
    refused_by_both(folder, "lm_head.weight differs from the token embedding")
    change_config(folder, tie_word_embeddings=False)
    refused_by_both(folder, "tie_word_embeddings is False")


@pytest.mark.parametrize(
    "name", ["h.0.attn.c_attn.lora_A.weight", "h.1.crossattention.c_attn.weight", "h.2.ln_1.weight", "wte.extra.weight"]
)
def test_weights_without_a_place(folder, model, name):
    store(folder, weights(model) | {f"transformer.{name}": torch.ones(3)})
    refused_by_both(folder, f"has weights {name}, which the GPT-2 of its config.json has no place for")


def test_two_models_in_one_file(folder, model):
    store(folder, weights(model) | weights(model, "ref_model.transformer."))
    refused_by_both(folder, r"holds several models \(ref_model.transformer., transformer.\)")


def test_an_incomplete_file(folder, model):
    tensors = weights(model)
    store(folder, {name: value for name, value in tensors.items() if "wpe" not in name})
    refused_by_both(folder, "has no weights for wpe.weight: it is not a complete GPT-2")


@pytest.mark.parametrize("vocabulary", [26, 28, 50257, 50258])
def test_vocabularies_of_no_encoding(tmp_path, vocabulary):
    """Tokens added or taken away; `letters` has 27 and GPT-2's encoding 50,257, the model here says `letters`."""
    config = replace(CONFIG, n_vocab=vocabulary, padding_token=vocabulary + 2)
    save_model(tmp_path / "in", GPT2(config).initialise(generator_for(0, "test")))
    refused_by_both(tmp_path / "in", f"the vocabulary has {vocabulary} tokens, but the encoding letters has 27")


# --- pickles and others ---


@pytest.mark.parametrize("old", [False, True])
def test_pickled_weights_are_for_the_converter(folder, model, tmp_path, old):
    (folder / "model.safetensors").unlink()
    torch.save(weights(model), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    with pytest.raises(
        UserError, match=f"prepare_pytorch_checkpoint.py NAME --from hf --input {folder} reads it safely"
    ):
        load_model(folder)
    convert_hugging_face(folder, tmp_path / "out")
    loaded = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".bin"] == []


def test_pickled_shards(folder, model, tmp_path):
    (folder / "model.safetensors").unlink()
    tensors = weights(model)
    parts = {"one.bin": list(tensors)[:9], "two.bin": list(tensors)[9:]}
    for file, names in parts.items():
        torch.save({name: tensors[name] for name in names}, folder / file)
    places = {name: file for file, names in parts.items() for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    convert_hugging_face(folder, tmp_path / "out")
    loaded = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_execute_code(folder, model, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save(weights(model) | {"surprise": Harmful(tmp_path / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="damaged or holds more than named tensors"):
        convert_hugging_face(folder, tmp_path / "out")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Harmful(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # so it would have


@pytest.mark.parametrize(
    "file, says",
    [
        ("adapter_model.safetensors", "holds an adapter, not a model: merge it"),
        ("tf_model.h5", "model.safetensors is missing; tf_model.h5 cannot be read"),
        ("model.fp16.safetensors", "model.safetensors is missing; model.fp16.safetensors cannot be read"),
        (
            "model.ckpt.index",
            "holds a TensorFlow checkpoint; python saved_models/prepare_pytorch_checkpoint.py NAME --in",
        ),
        ("notes.txt", "model.safetensors is missing$"),
    ],
)
def test_folders_without_weights_that_can_be_read(folder, file, says):
    (folder / "model.safetensors").rename(folder / file)
    refused_by_both(folder, says)


@pytest.mark.parametrize("content", ["[1, 2]", '"gpt2"', "5", "null", "{}", '{"model_type": ["gpt2"]}'])
def test_a_config_of_another_shape(folder, content):
    (folder / "config.json").write_text(content)
    refused_by_both(folder, "config.json does not describe a GPT-2")


@pytest.mark.parametrize("missing", ["vocab_size", "n_embd", "n_head", "n_layer", "n_positions"])
def test_a_config_without_a_size(folder, missing):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values[missing], values["n_ctx"]
    path.write_text(json.dumps(values))
    refused_by_both(folder, f"{'n_ctx' if missing == 'n_positions' else missing} is None; expected a whole number")


def test_what_is_meant_as_a_model_folder(folder, tmp_path):
    """Whatever its weights are called, so that the loader says what is wrong with them."""
    assert is_model_folder(folder)
    (folder / "model.safetensors").unlink()
    assert is_model_folder(folder)  # its config.json has a model's type
    (tmp_path / "run").mkdir()
    assert not is_model_folder(tmp_path / "run") and not is_model_folder(tmp_path / "nowhere")
    for content in ("[]", "{", '{"parameters": {}}'):
        (tmp_path / "run/config.json").write_text(content)
        assert not is_model_folder(tmp_path / "run")


# --- tokenizer files ---

TEXTS = [
    "Hello, world! It's the '90s'S don't DON'T we'll",
    " two  spaces\n\n\tand   a tab \r\n ",
    "é ü a\u0301 日本語 🎉 \u200b\ufeff \x00\x7f",
    "1,000.50 -5 x" * 3,
    "",
]


def test_transformers_encodes_as_we_do(tmp_path):
    """With the tokenizer that lies in the model's folder; of our own encoding there is none."""
    config, encoding = GPT2Config(n_ctx=16, n_embd=4, n_head=1, n_layer=1), gpt2_encoding()
    save_model(tmp_path / "model", GPT2(config).initialise(generator_for(0, "test")))
    load_model(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.model_max_length) == (50257, 50256, 16)
    for text in TEXTS:
        assert tokenizer.encode(text) == encoding.encode(text)
        assert tokenizer.decode(encoding.encode(text)) == text
    files = ("vocab.json", "merges.txt", "tokenizer_config.json")
    assert sum((tmp_path / "model" / name).stat().st_size for name in files) < 2e6
    assert all(name in (tmp_path / "model/SHA256SUMS").read_text() for name in files)


def test_a_pipeline_of_transformers_goes_on_after_the_prompt(tmp_path):
    config = GPT2Config(n_ctx=16, n_embd=4, n_head=1, n_layer=1)
    save_model(tmp_path / "model", GPT2(config).initialise(generator_for(0, "test")))
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "model"))
    [said] = pipeline("The film", max_new_tokens=3, do_sample=False, return_full_text=False)
    assert said["generated_text"]


def test_the_small_model_has_its_tokenizer():
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "saved_models/tiny")
    assert tokenizer.encode(TEXTS[0]) == gpt2_encoding().encode(TEXTS[0]) and tokenizer.model_max_length == 128
    for name in listed(ROOT / "saved_models/tiny"):
        check_digest(ROOT / "saved_models/tiny" / name)


def test_letters_have_no_tokenizer_of_transformers(tmp_path, model):
    save_model(tmp_path / "model", model)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "SHA256SUMS"}
