"""A GPT-2 of the Hugging Face hub, fetched into a folder file by file: what it is, what its tokens are, its weights."""

import shutil
from pathlib import Path

from lm_human_preferences.foundation.downloads import NotThere, download
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.model_folders import load_config
from lm_human_preferences.language.tokenizer_files import TOKENIZER_FILES
from lm_human_preferences.language.weight_files import PICKLED, WEIGHTS, shard_names

HUB = "https://huggingface.co"


def fetch_model(address: str, folder: Path) -> Path:
    """Fetch the model's files below `address` into `folder`; returns it. What is there already is not fetched again.

    Of the weights one form is taken: model.safetensors, its shards, or where there is neither pytorch_model.bin or its
    shards. UserError if there is no such model, or before the weights are fetched if it is not a GPT-2 that can be
    used.
    """
    try:
        download(f"{address}/config.json", folder / "config.json")
    except NotThere as error:
        raise UserError(f"{error} A model of the hub is called OWNER/NAME and is public") from None
    for name in TOKENIZER_FILES:
        _fetched(address, folder, name)
    try:
        load_config(folder)
    except UserError:
        shutil.rmtree(folder)
        raise
    for name in (WEIGHTS, PICKLED):
        if _fetched(address, folder, name):
            return folder
        if _fetched(address, folder, index := f"{name}.index.json"):
            for shard in shard_names(folder / index):
                download(f"{address}/{shard}", folder / shard)
            return folder
    shutil.rmtree(folder)
    raise UserError(f"{address} has neither {WEIGHTS} nor {PICKLED}, whole or in shards: its weights cannot be read")


def _fetched(address: str, folder: Path, name: str) -> bool:
    """Whether the file is there; if so, it now lies in `folder`."""
    try:
        download(f"{address}/{name}", folder / name)
    except NotThere:
        return False
    return True
