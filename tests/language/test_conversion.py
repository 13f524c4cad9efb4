"""Checkpoints of OpenAI's GPT-2 and of the original's runs, written by TensorFlow; Hugging Face's folders; downloads of
both.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import ENCODINGS, KnownEncoding, LetterEncoding
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.model_folders import convert_hugging_face, load_heads, load_model, save_model
from lm_human_preferences.language.tensorflow_checkpoints import RELEASE, OriginalCheckpoint
from lm_human_preferences.learning.reward_model import RewardModel

from conftest import TINY_CONFIG, tensor
from load_scripts import load_script, run_main
from web import serve

tensorflow_gpt2 = pytest.importorskip("tensorflow_gpt2")
SIZES, TOLERANCE = tensorflow_gpt2.SIZES, 3e-5
script = load_script("saved_models/prepare_pytorch_checkpoint.py")


@pytest.fixture(scope="module", autouse=True)
def encoding_of_the_recorded_weights():
    """The recorded model has 97 tokens, which are those of no encoding: one that knows their number and no words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODINGS, "recorded", KnownEncoding(LetterEncoding, 97, 99))
        yield


RECORDED_CONFIG = replace(TINY_CONFIG, encoding="recorded")


def prepare(*words, check: bool = True) -> subprocess.CompletedProcess:
    return run_main(script, *words, check=check)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A GPT-2 as OpenAI released it, small."""
    folder = tmp_path_factory.mktemp("release")
    variables = tensorflow_gpt2.random_variables(SIZES)
    tensorflow_gpt2.write_checkpoint(folder, variables, SIZES)
    return folder, variables


@pytest.fixture(scope="module")
def run_of_the_original(tmp_path_factory, goldens):
    """The recorded weights as a checkpoint of a run: three scopes, heads, gain and bias, Adam's slots beside each
    variable.
    """
    folder = tmp_path_factory.mktemp("run")
    tensorflow_gpt2.write_checkpoint(folder / "checkpoints", goldens("weights"), name="model.ckpt-9", adam_slots=True)
    (folder / "hparams.json").write_text(json.dumps(SIZES))
    return folder


def test_logits_equal_those_of_tensorflow(release, tmp_path):
    folder, variables = release
    assert {path.name for path in folder.iterdir()} == set(RELEASE)
    said = prepare("mine", "--input", folder, "--output", tmp_path / "mine").stdout
    tokens = np.random.default_rng(1).integers(0, 97, (4, 64))
    hidden, logits = tensorflow_gpt2.forward(variables, SIZES, tokens)
    model = load_model(tmp_path / "mine")
    with torch.no_grad():
        ours = model(torch.from_numpy(tokens))
    assert (ours - tensor(hidden)).abs().max() < TOLERANCE
    assert (ours @ model.wte.weight.t() - tensor(logits)).abs().max() < TOLERANCE
    assert "3 blocks of width 32, context 64" in said and not list(tmp_path.glob(".*"))


def test_a_converted_folder_opens_in_transformers(release, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, variables = release
    prepare("mine", "--input", folder, "--output", tmp_path / "mine")
    model, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "mine", output_loading_info=True)
    assert not report["unexpected_keys"] and not [key for key in report["missing_keys"] if key != "lm_head.weight"]
    tokens = np.random.default_rng(2).integers(0, 97, (2, 20))
    with torch.no_grad():
        assert (
            model(torch.from_numpy(tokens)).logits - tensor(tensorflow_gpt2.forward(variables, SIZES, tokens)[1])
        ).abs().max() < TOLERANCE


@pytest.mark.parametrize("scope", ["policy", "ref_policy"])
def test_a_policy_of_the_original(run_of_the_original, tmp_path, goldens, scope):
    said = prepare(
        "mine",
        "--input",
        run_of_the_original,
        "--output",
        tmp_path / "mine",
        "--scope",
        scope,
        "--hparams",
        run_of_the_original / "hparams.json",
    )
    assert "the checkpoint also has" in said.stdout
    model, weights = load_model(tmp_path / "mine"), goldens("weights")
    assert model.config == RECORDED_CONFIG
    forward = goldens("forward")
    if scope == "policy":
        with torch.no_grad():
            hidden = model(tensor(forward["a/tokens"]))
        assert (hidden - tensor(forward["a/h"])).abs().max() < TOLERANCE
        assert (hidden @ model.wte.weight.t() - tensor(forward["a/lm_logits"])).abs().max() < TOLERANCE
    heads = load_heads(tmp_path / "mine")
    assert torch.equal(heads["value.weight"], tensor(weights[f"{scope}/model/heads/value/w"]))
    assert float(heads["value.bias"]) == float(weights[f"{scope}/model/heads/value/b"])


def test_a_reward_model_of_the_original(run_of_the_original, tmp_path, goldens):
    prepare(
        "rm",
        "--input",
        run_of_the_original / "checkpoints",
        "--output",
        tmp_path / "rm",
        "--scope",
        "reward_model",
        "--hparams",
        run_of_the_original / "hparams.json",
    )
    recorded = goldens("reward")
    with torch.no_grad():
        rewards = RewardModel.load(tmp_path / "rm")(tensor(recorded["queries"]), tensor(recorded["responses"]))
    assert (rewards - tensor(recorded["rewards"])).abs().max() < 5e-5


def test_a_run_of_the_original_is_sampled_and_scored(tmp_path, capsys, monkeypatch):
    """Both scopes of a checkpoint with GPT-2's vocabulary, converted, through launch.py sample."""
    import launch

    sizes = dict(n_vocab=50257, n_ctx=40, n_embd=16, n_head=2, n_layer=1)
    variables = tensorflow_gpt2.random_variables(sizes, 1, "policy", heads=True) | tensorflow_gpt2.random_variables(
        sizes, 2, "reward_model", heads=True
    )
    tensorflow_gpt2.write_checkpoint(tmp_path / "run", variables, sizes, adam_slots=True)
    for scope in ("policy", "reward_model"):
        prepare(scope, "--input", tmp_path / "run", "--output", tmp_path / scope, "--scope", scope)
    base = [
        "launch.py",
        "sample",
        str(tmp_path / "policy"),
        "--prompt",
        "The film",
        "--count",
        "2",
        "--length",
        "5",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", [*base, "--judge", str(tmp_path / "reward_model")])
    launch.main()
    said = capsys.readouterr().out
    assert said.count("The film|") == 2 and said.count("] The film|") == 2
    monkeypatch.setattr("sys.argv", [*base[:3], "--task", "sentiment"])
    with pytest.raises(SystemExit):
        launch.main()
    assert "the model's context is 40" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", base[:3])
    with pytest.raises(SystemExit):
        launch.main()
    assert "name one with --task" in capsys.readouterr().err


def test_without_heads_written_down_only_known_sizes_are_taken(run_of_the_original, tmp_path):
    said = prepare("mine", "--input", run_of_the_original, "--output", tmp_path / "mine", check=False)
    assert said.returncode == 2 and "give --hparams" in said.stderr and said.stderr.count("\n") == 1


def test_a_released_size_is_recognised_without_hparams(tmp_path):
    sizes = dict(n_vocab=27, n_ctx=3, n_embd=768, n_head=12, n_layer=12)
    variables = {
        name: np.zeros(1, np.float32) if "/h" in name and not name.endswith("ln_1/g") else value
        for name, value in tensorflow_gpt2.random_variables(sizes).items()
    }
    tensorflow_gpt2.write_checkpoint(tmp_path, variables)
    assert OriginalCheckpoint(tmp_path).config("").n_head == 12


@pytest.mark.parametrize(
    "damage, says",
    [
        (
            lambda folder: (folder / "model.ckpt.index").unlink(),
            "holds no TensorFlow checkpoint: expected checkpoint, hparams.json",
        ),
        (lambda folder: (folder / "model.ckpt.data-00000-of-00001").unlink(), "damaged or incomplete"),
        (lambda folder: _cut(folder / "model.ckpt.data-00000-of-00001"), "damaged or incomplete"),
        (lambda folder: _flip(folder / "model.ckpt.data-00000-of-00001"), "damaged or incomplete"),
        (lambda folder: _cut(folder / "model.ckpt.index"), "damaged or incomplete"),
        (lambda folder: (folder / "model.ckpt.index").write_text("<html>not found</html>"), "damaged or incomplete"),
        (lambda folder: (folder / "hparams.json").write_text("{"), "hparams.json is not readable as JSON"),
        (lambda folder: (folder / "hparams.json").write_text("[1]"), "expected an object with n_vocab"),
        (
            lambda folder: (folder / "hparams.json").write_text(json.dumps(SIZES | {"n_layer": 4})),
            "says n_layer 4, but the checkpoint's variables say 3",
        ),
        (
            lambda folder: (folder / "hparams.json").write_text(json.dumps(SIZES | {"n_head": 5})),
            "n_embd 32 is not a multiple of n_head 5",
        ),
        (lambda folder: (folder / "hparams.json").write_text(json.dumps(SIZES | {"n_head": 0})), "hparams.json"),
    ],
)
def test_a_damaged_release_is_one_line_and_nothing_is_written(release, tmp_path, damage, says):
    shutil.copytree(release[0], tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=says) as caught:
        script.from_tensorflow(tmp_path / "in", tmp_path / "out", None, None, {})
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["in"]


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda variables: variables.pop("model/h2/mlp/c_fc/w"), "has no variable model/h2/mlp/c_fc/w"),
        (
            lambda variables: variables.update({"model/h1/ln_1/g": np.ones(31, np.float32)}),
            r"h1/ln_1/g has shape \[31\], expected \[32\]",
        ),
        (lambda variables: variables.update({"model/ln_f/b": np.full(32, np.nan, np.float32)}), "ln_f/b holds a NaN"),
        (lambda variables: variables.pop("model/wte"), "holds no GPT-2"),
        (lambda variables: variables.pop("model/wpe"), "model/wpe is missing"),
    ],
)
def test_checkpoints_that_are_no_gpt2(tmp_path, change, says):
    variables = tensorflow_gpt2.random_variables(SIZES)
    change(variables)
    tensorflow_gpt2.write_checkpoint(tmp_path, variables, SIZES)
    with pytest.raises(UserError, match=says):
        checkpoint = OriginalCheckpoint(tmp_path)
        for _, _, variable in list(checkpoint.weights("", checkpoint.config(""))):
            checkpoint.read(variable)


def test_the_newest_checkpoint_of_several(tmp_path):
    for step in (9, 10):
        tensorflow_gpt2.write_checkpoint(tmp_path, tensorflow_gpt2.random_variables(SIZES), name=f"model.ckpt-{step}")
    assert OriginalCheckpoint(tmp_path).prefix.name == "model.ckpt-10"
    assert OriginalCheckpoint(tmp_path / "model.ckpt-9").prefix.name == "model.ckpt-9"
    assert OriginalCheckpoint(tmp_path / "model.ckpt-9.index").prefix.name == "model.ckpt-9"


# --- downloads ---


def test_a_release_from_the_web_broken_off_and_resumed(release, tmp_path):
    folder, _ = release
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "124M").symlink_to(folder)
    with serve(tmp_path / "served") as server:
        broken = ["checkpoint", "hparams.json", "model.ckpt.data-00000-of-00001"]
        server.break_after = [10**9, 10**9, 50_000]
        said = prepare("124M", "--url", server.url, "--output", tmp_path / "124M")
        asked = [(path.rpartition("/")[2], wanted) for path, wanted in server.requests]
    assert asked[:4] == [(name, None) for name in broken] + [(broken[2], "bytes=50000-")] and len(asked) == 6
    assert load_model(tmp_path / "124M").config.n_layer == 3 and "blocks of width 32" in said.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["124M", "served"]
    assert "is there already" in prepare("124M", "--url", "http://127.0.0.1:9", "--output", tmp_path / "124M").stdout


def test_a_release_that_is_not_there(tmp_path):
    with serve(tmp_path) as server:
        said = prepare("124M", "--url", server.url, "--output", tmp_path / "124M", check=False)
    assert (
        said.returncode == 2
        and "answers 404" in said.stderr
        and said.stderr.count("\n") == 1
        and not (tmp_path / "124M").exists()
    )


def test_hugging_face_from_the_web(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=27, n_positions=16, n_embd=8, n_head=2, n_layer=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "served" / "124M")
    with serve(tmp_path / "served") as server:
        prepare("gpt2", "--from", "hf", "--url", server.url, "--output", tmp_path / "out")
    tokens = torch.randint(0, 27, (2, 16))
    ours = load_model(tmp_path / "out")
    with torch.no_grad():
        assert (ours(tokens) @ ours.wte.weight.t() - theirs(tokens).logits).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hugging_face_folders_keep_their_dtype_and_lose_their_masks(tmp_path, dtype):
    from safetensors.torch import load_file, save_file

    model = GPT2(RECORDED_CONFIG).initialise(torch.Generator().manual_seed(0))
    save_model(tmp_path / "in", model, dtype=dtype)
    (tmp_path / "in" / "SHA256SUMS").unlink()
    weights = {
        name.removeprefix("transformer."): value
        for name, value in load_file(tmp_path / "in" / "model.safetensors").items()
    }
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, tmp_path / "in" / "model.safetensors")
    convert_hugging_face(tmp_path / "in", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype} and len(stored) == len(weights)
    assert all(torch.equal(stored[f"transformer.{name}"], value) for name, value in weights.items())


@pytest.mark.parametrize(
    "damage, says",
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin is damaged or holds more than named tensors",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (lambda folder: _cut(folder / "model.safetensors"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "does not describe a GPT-2"),
    ],
)
def test_damaged_hugging_face_folders(tmp_path, damage, says):
    save_model(tmp_path / "in", GPT2(RECORDED_CONFIG).initialise(torch.Generator().manual_seed(0)))
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=says):
        convert_hugging_face(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_script_from_a_shell(tmp_path):
    sizes = SIZES | {"n_vocab": 27}  # those of `letters`
    tensorflow_gpt2.write_checkpoint(tmp_path / "in", tensorflow_gpt2.random_variables(sizes), sizes)
    done = subprocess.run(
        [sys.executable, script.__file__, "mine", "--input", tmp_path / "in", "--output", tmp_path / "mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and load_model(tmp_path / "mine").config.n_embd == 32
    assert done.stdout.startswith(str(tmp_path / "mine")) and "oneDNN" not in done.stderr


@pytest.mark.parametrize(
    "words, says",
    [
        (["355"], "there is no GPT-2 '355' to download; choose 124M"),
        (["a/b", "--input", "x"], "cannot be a model's name"),
        (["x", "--input", "nowhere"], "neither a folder nor a TensorFlow checkpoint"),
        (["124M", "--from", "hf", "--scope", "policy"], "--scope and --hparams are for TensorFlow checkpoints"),
    ],
)
def test_bad_words(tmp_path, words, says):
    said = prepare(*words, "--output", tmp_path / "out", check=False)
    assert (
        said.returncode == 2
        and says in said.stderr
        and said.stderr.count("\n") == 1
        and not (tmp_path / "out").exists()
    )
