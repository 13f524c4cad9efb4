"""Model folders both ways against transformers, and what importing the library loads (DESIGN's invariants 4 and 7)."""

import subprocess
import sys

import torch
import transformers

from lm_human_preferences.distributed import generator_for
from lm_human_preferences.language.checkpoints import load_model, save_model
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from small import ROOT

TOKENS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))


def test_from_transformers(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_head=3, n_layer=2)).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours = load_model(tmp_path / "model")
    torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs(TOKENS).logits, atol=1e-5, rtol=0)


def test_to_transformers(tmp_path):
    ours = GPT2(GPT2Config(n_vocab=50, n_ctx=16, n_embd=24, n_head=3, n_layer=2, padding_token=52)).initialise(generator_for(0, "test"))
    save_model(tmp_path / "model", ours)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs(TOKENS).logits, atol=1e-5, rtol=0)


def test_the_library_imports_only_what_it_needs():
    code = ("import sys, lm_human_preferences, lm_human_preferences.policy, lm_human_preferences.reward_model, lm_human_preferences.ppo\n"
            "import lm_human_preferences.queries, lm_human_preferences.labels, lm_human_preferences.tracking\n"
            "print([m for m in ('transformers', 'tensorflow', 'wandb', 'datasets', 'tensorboard', 'matplotlib', 'sklearn') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"
