"""GPT-2's tokenizer as Hugging Face stores it, so that `transformers.AutoTokenizer.from_pretrained` of a model folder
encodes as `encoding.py` does.

One difference is meant: there the text `<|endoftext|>` becomes token 50256, here it is ordinary characters.
"""

import json
import shutil
from pathlib import Path

from lm_human_preferences.language.encoding import END_OF_TEXT_SYMBOL, vocabulary_folder

_FILES = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}  # Hugging Face's names for OpenAI's files


def write_tokenizer(folder: Path, n_ctx: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json (1.5 MB together) into `folder`.

    n_ctx: the model's context in tokens.
    """
    for theirs, ours in _FILES.items():
        shutil.copyfile(vocabulary_folder() / ours, folder / theirs)
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": n_ctx,
        "bos_token": END_OF_TEXT_SYMBOL,
        "eos_token": END_OF_TEXT_SYMBOL,
        "unk_token": END_OF_TEXT_SYMBOL,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,  # decoding changes nothing
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
