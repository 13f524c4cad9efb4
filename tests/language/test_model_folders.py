"""Model folders: both ways against transformers, damage, crashes; and what importing the library loads. DESIGN's
invariants 4, 5 and 7.
"""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language import model_folders
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import load_heads, load_model, save_model
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel

from small import ROOT

CONFIG = GPT2Config(n_vocab=27, n_ctx=16, n_embd=24, n_head=3, n_layer=2, padding_token=27, encoding="letters")
TOKENS = torch.randint(0, 27, (3, 12), generator=torch.Generator().manual_seed(0))


def test_from_transformers(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=27, n_positions=16, n_embd=24, n_head=3, n_layer=2)
    ).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours = load_model(tmp_path / "model")
    torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs(TOKENS).logits, atol=1e-5, rtol=0)


def test_to_transformers(tmp_path):
    ours = GPT2(CONFIG).initialise(generator_for(0, "test"))
    save_model(tmp_path / "model", ours)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs(TOKENS).logits, atol=1e-5, rtol=0)


def test_the_library_imports_only_what_it_needs():
    ours = ("learning.policy", "learning.reward_model", "learning.ppo", "data.queries", "data.labels", "runs.tracking")
    others = ("transformers", "tensorflow", "wandb", "datasets", "tensorboard", "matplotlib", "sklearn")
    code = (
        f"import sys, lm_human_preferences, {', '.join('lm_human_preferences.' + name for name in ours)}\n"
        f"print([name for name in {others} if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.fixture
def model():
    return GPT2(CONFIG).initialise(generator_for(0, "test"))


def test_stored_in_bfloat16(tmp_path, model):
    save_model(tmp_path / "model", model, {"reward.bias": torch.tensor(1 / 3)}, dtype=torch.bfloat16)
    loaded = load_model(tmp_path / "model").state_dict()
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], value.bfloat16().float())
    assert torch.equal(load_heads(tmp_path / "model")["reward.bias"], torch.tensor(1 / 3))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(
        load_model(tmp_path / "model")(TOKENS), theirs.transformer(TOKENS).last_hidden_state, atol=1e-5, rtol=0
    )


def test_heads_gain_and_bias(tmp_path, model):
    reward_model, policy = RewardModel(model), Policy(model, QueryFormatter([], []), 0.7)
    with torch.no_grad():
        for parameter in (
            *reward_model.head.parameters(),
            reward_model.gain,
            reward_model.bias,
            *policy.value_head.parameters(),
        ):
            parameter.normal_()
    reward_model.save(tmp_path / "reward")
    policy.save(tmp_path / "policy")
    for saved, loaded in (
        (reward_model, RewardModel.load(tmp_path / "reward")),
        (policy, Policy.load(tmp_path / "policy", policy.formatter, 0.7)),
    ):
        for (name, one), other in zip(saved.named_parameters(), loaded.parameters(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors"])
def test_one_flipped_bit_is_noticed(tmp_path, model, name):
    RewardModel(model).save(tmp_path / "model")
    path = tmp_path / "model" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        RewardModel.load(tmp_path / "model")


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(n_layer=3), "no weights for h.2"),
        (dict(n_positions=20), r"wpe.weight has shape \[16, 24\], config.json says \[20, 24\]"),
        (dict(n_layer=1), "has weights h.1.*, which the GPT-2 of its config.json has no place for"),
        (dict(n_head=5), "not a multiple of n_head"),
        (dict(vocab_size="many"), "vocab_size is 'many'; expected a whole number"),
        (dict(n_layer="2"), "n_layer is '2'; expected a whole number"),
        (dict(n_layer=True), "n_layer is True; expected a whole number"),
        (dict(n_head=0), "n_head is 0; expected a whole number of at least 1"),
        (dict(n_positions=None), "n_positions is None; expected a whole number"),
        (dict(n_embd=24.0), "n_embd is 24.0; expected a whole number"),
        (dict(n_inner=64), "n_inner is 64; GPT-2's is four times n_embd"),
        (dict(layer_norm_epsilon="small"), "layer_norm_epsilon is 'small'; expected a number"),
        (dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon is nan; expected a number"),
        (dict(padding_token=49), "padding_token is 49, but that of letters is 27"),
        (dict(padding_token=[27]), "padding_token is .27., but that of letters is 27"),
        (dict(vocab_size=28), "the vocabulary has 28 tokens, but the encoding letters has 27"),
        (dict(vocab_size=28, encoding=None), "the vocabulary has 28 tokens, but the encoding gpt2 has 50257"),
        (dict(quantization_config={"quant_method": "bitsandbytes"}), r"weights are quantised \(bitsandbytes\)"),
        (dict(quantization_config=[8]), "weights are quantised"),
        (dict(model_type="gpt_neo"), "does not describe a GPT-2"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (dict(tie_word_embeddings=False), "tie_word_embeddings is False"),
        (dict(encoding=["gpt2"]), "must be gpt2 or letters"),
        (dict(activation_function="relu"), "not GPT-2's"),
        (dict(encoding="morse"), "must be gpt2 or letters"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, model, change, says):
    save_model(tmp_path / "model", model)
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (tmp_path / "model/SHA256SUMS").unlink()  # as a folder from elsewhere; with it any change is told
    with pytest.raises(UserError, match=says):
        load_model(tmp_path / "model")


def test_weights_that_are_no_number(tmp_path, model):
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    save_model(tmp_path / "model", model)
    with pytest.raises(UserError, match=r"h.1.mlp.c_fc.weight holds a NaN"):
        load_model(tmp_path / "model")
    save_model(tmp_path / "heads", model, {"reward.weight": torch.full((24,), torch.inf)})
    with pytest.raises(UserError, match=r"reward.weight holds a NaN or an infinity"):
        load_heads(tmp_path / "heads")


@pytest.mark.parametrize(
    "name, change",
    [
        ("missing", lambda heads: heads.pop("reward_norm.gain")),
        ("short", lambda heads: heads.update({"reward.weight": torch.zeros(23)})),
    ],
)
def test_heads_that_do_not_fit(tmp_path, model, name, change):
    heads = {"reward.weight": torch.zeros(24)} | {
        name: torch.ones(()) for name in ("reward.bias", "reward_norm.gain", "reward_norm.bias")
    }
    save_model(tmp_path / "whole", model, heads)
    RewardModel.load(tmp_path / "whole")
    change(heads)
    save_model(tmp_path / name, model, heads)
    with pytest.raises(UserError, match="holds no reward model"):
        RewardModel.load(tmp_path / name)


def test_weights_from_elsewhere_have_no_prefix_and_no_digests(tmp_path, model):
    """The published GPT-2 folders name their tensors `h.0...` and hold the attention's mask too."""
    save_model(tmp_path / "model", model)
    tensors = {
        name.removeprefix("transformer."): value
        for name, value in load_file(tmp_path / "model/model.safetensors").items()
    }
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril()}, tmp_path / "model/model.safetensors")
    with pytest.raises(UserError, match="SHA-256"):
        load_model(tmp_path / "model")
    (tmp_path / "model/SHA256SUMS").unlink()
    assert torch.equal(load_model(tmp_path / "model")(TOKENS), model(TOKENS))


def test_a_crash_while_saving_leaves_the_old_model(tmp_path, model, monkeypatch):
    save_model(tmp_path / "model", model)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    monkeypatch.setattr(model_folders, "write_digests", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with torch.no_grad():
        model.wte.weight.add_(1)
    with pytest.raises(OSError):
        save_model(tmp_path / "model", model)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saved_files_follow_the_umask(tmp_path, model):
    save_model(tmp_path / "model", model)
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in (tmp_path / "model").iterdir()} == {(tmp_path / "other").stat().st_mode}
