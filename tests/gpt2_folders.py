"""Small GPT-2s with added tokens as people publish them: made, saved and read back by `transformers`, offline."""

from pathlib import Path

import torch
import transformers

from lm_human_preferences.language.tokenizer_files import write_tokenizer

DLITE = ["### End", "### Instruction:", "### Response:\n"]  # of aisquared/dlite-v1-355m: 50257, 50258, 50259
SIZES = dict(n_positions=64, n_embd=16, n_head=2, n_layer=2)


def plain_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """GPT-2's tokenizer; `folder` is made and holds its files."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, SIZES["n_positions"])
    return transformers.AutoTokenizer.from_pretrained(folder)


def make_model(vocabulary: int) -> transformers.GPT2LMHeadModel:
    """Random weights, large enough for logits to differ, the layer norms' among them."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocabulary, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def make_folder(folder: Path, special: dict | None = None, tokens: list | None = None, unused: int = 0) -> Path:
    """`folder` with a GPT-2 whose tokenizer has these special tokens (as `add_special_tokens` takes them) and tokens.

    unused: rows of the vocabulary beyond the tokens.
    """
    tokenizer = plain_tokenizer(folder.with_name(f"{folder.name}_plain"))
    tokenizer.add_tokens(tokens or [])
    tokenizer.add_special_tokens(special or {})
    make_model(len(tokenizer) + unused).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dlite(folder: Path) -> Path:
    """The shape of DLite: vocabulary 50,260."""
    return make_folder(folder, {"additional_special_tokens": DLITE})


def make_padded(folder: Path) -> Path:
    """One token added, for padding: vocabulary 50,258."""
    return make_folder(folder, {"pad_token": "[PAD]"})
