"""A pretrained GPT-2, or a run of the original, as a model folder in saved_models/.

OpenAI's TensorFlow release (124M, 355M, 774M, 1558M), the same weights from Hugging Face (gpt2, gpt2-medium, ...), any
GPT-2 of the Hugging Face hub, a TensorFlow checkpoint on disk, Hugging Face's folder on disk, a reward model of the
original:

    python saved_models/prepare_pytorch_checkpoint.py 124M
    python saved_models/prepare_pytorch_checkpoint.py 124M --from hf
    python saved_models/prepare_pytorch_checkpoint.py distilgpt2 --from hf
    python saved_models/prepare_pytorch_checkpoint.py lvwerra/gpt2-imdb --from hf
    python saved_models/prepare_pytorch_checkpoint.py NAME --input FOLDER
    python saved_models/prepare_pytorch_checkpoint.py NAME --from hf --input FOLDER
    python saved_models/prepare_pytorch_checkpoint.py NAME --input FOLDER --scope reward_model

The result, saved_models/NAME (of OWNER/NAME too), opens in `transformers` unchanged. TensorFlow checkpoints need the
package tensorflow. A run that the original trained has several models in one checkpoint; --scope chooses: policy
(default), ref_policy or reward_model. Their heads, and the reward's gain and bias, come along; Adam's state does not.
Of Hugging Face's folders model.safetensors is read, its shards, or where there is nothing else pytorch_model.bin, by a
reader that makes tensors and executes nothing. Half precision stays what it is.

Tokens that were added to GPT-2's (`[PAD]`, `### End`) are kept: they are read from the tokenizer's files beside
config.json, which have to be there where the vocabulary is larger than GPT-2's 50,257. A tokenizer with another
vocabulary is refused. A second run does nothing where the model is there already.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lm_human_preferences.foundation.downloads import download
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.language.gpt2 import GPT2Config, count_parameters
from lm_human_preferences.language.hugging_face_hub import HUB, fetch_model
from lm_human_preferences.language.model_folders import convert_hugging_face, convert_model, unnamed_tokens
from lm_human_preferences.language.tensorflow_checkpoints import ADDRESS, RELEASE, OriginalCheckpoint

HERE = Path(__file__).resolve().parent
OPENAI_THERE = "openai-community"  # whose models on the hub the next are
NAMES_THERE = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}


def from_tensorflow(source: Path, output: Path, scope: str | None, hparams: Path | None, note: dict) -> GPT2Config:
    """Convert one scope of a TensorFlow checkpoint, one variable at a time. Raises UserError before anything is
    written.
    """
    checkpoint = OriginalCheckpoint(source)
    scope = checkpoint.choose_scope(scope)
    config = checkpoint.config(scope, hparams)
    variables = {name: (shape, variable) for name, shape, variable in checkpoint.weights(scope, config)}
    convert_model(
        output,
        config,
        {name: shape for name, (shape, _) in variables.items()},
        lambda name: checkpoint.read(variables[name][1]),
        torch.float32,
        checkpoint.heads(scope),
        note | {"scope": scope},
    )
    others = [other for other in checkpoint.scopes if other != scope]
    if others:
        print(f"converted scope {scope!r}; the checkpoint also has {', '.join(others)} (--scope)")
    return config


def own_name(name: str) -> str:
    """Our name for a model that may be given by its name on the hub."""
    return next((ours for ours, there in NAMES_THERE.items() if name in (there, f"{OPENAI_THERE}/{there}")), name)


def hub_name(name: str) -> str:
    """A model's name on the hub, from one of ours or as it is. UserError for what cannot be one."""
    if name in NAMES_THERE:
        return f"{OPENAI_THERE}/{NAMES_THERE[name]}"
    parts = name.split("/")
    if len(parts) > 2 or not all(re.fullmatch(r"\w[\w.-]*", part, re.ASCII) for part in parts):
        raise UserError(f"{name!r} is not a model's name on the hub: expected NAME or OWNER/NAME, as lvwerra/gpt2-imdb")
    return name


def what_is_there(output: Path) -> str:
    """What a model folder says of its own origin, in brackets."""
    note = read_json_object(output / "config.json").get("lm_human_preferences")
    origin = note.get("converted_from") if isinstance(note, dict) else None
    return f" (from {origin})" if origin else ""


def describe(config: GPT2Config) -> str:
    """Parameters, shape and tokens in words."""
    added = ", ".join(f"{token.text!r} {token.id}" for token in config.added_tokens)
    words = (
        f"{count_parameters(config)['total']:,} parameters, {config.n_layer} blocks of width {config.n_embd}, "
        f"context {config.n_ctx}" + (f", added tokens {added}" if added else "")
    )
    return f"{words}; {unnamed}" if (unnamed := unnamed_tokens(config)) else words


def fetch(addresses: dict[str, str], folder: Path) -> Path:
    """Each file name's address into `folder`; what is there already is not fetched again."""
    for name, address in addresses.items():
        download(address, folder / name)
    return folder


def arguments_of_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name",
        help=f"{', '.join(NAMES_THERE)}; with --from hf any GPT-2 of the hub, as NAME or OWNER/NAME; with --input any "
        "name for the new model folder",
    )
    parser.add_argument(
        "--from", dest="source", choices=("openai", "hf"), default="openai", help="TensorFlow files, or Hugging Face's"
    )
    parser.add_argument("--input", type=Path, help="read this folder (or TensorFlow checkpoint) instead of downloading")
    parser.add_argument("--output", type=Path, help="model folder to write instead of saved_models/NAME")
    parser.add_argument("--scope", help="which model of a run of the original: policy, ref_policy or reward_model")
    parser.add_argument(
        "--hparams", type=Path, help="GPT-2's hparams.json, where it does not lie beside the checkpoint"
    )
    parser.add_argument(
        "--url", help="download from this address instead (a mirror): the files lie below ADDRESS/NAME/"
    )
    parser.add_argument("--keep_download", action="store_true", help="keep the downloaded files after the conversion")
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder that is there already")
    return parser.parse_args()


def check(arguments: argparse.Namespace, name: str, hub: bool) -> None:
    """UserError for what cannot be, before anything is read or fetched. name: as `own_name` gives it."""
    if hub:
        hub_name(name)
    elif Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"{name!r} cannot be a model's name: it becomes a folder's name")
    elif arguments.input is None and name not in NAMES_THERE:
        raise UserError(
            f"there is no GPT-2 {name!r} to download; choose {', '.join(NAMES_THERE)}, or give --input FOLDER, or "
            "--from hf for a model of the hub"
        )
    if arguments.source == "hf" and (arguments.scope or arguments.hparams):
        raise UserError("--scope and --hparams are for TensorFlow checkpoints; leave them out with --from hf")


def fetched(arguments: argparse.Namespace, name: str, folder: Path) -> tuple[Path, str]:
    """The folder into which the model's files were downloaded, and the address that they are from."""
    if arguments.source == "hf":
        address = f"{arguments.url}/{name}" if arguments.url else f"{HUB}/{hub_name(name)}/resolve/main"
        return fetch_model(address, folder), address
    address = arguments.url or ADDRESS
    return fetch({file: f"{address}/{name}/{file}" for file in RELEASE}, folder), address


@exit_on_user_error
def main() -> None:
    arguments = arguments_of_command_line()
    name, hub = own_name(arguments.name), arguments.source == "hf" and arguments.input is None
    check(arguments, name, hub)
    output = arguments.output or HERE / Path(name).name
    if (output / "config.json").exists() and not arguments.overwrite:
        print(f"{output} is there already{what_is_there(output)}; --overwrite replaces it")
        return
    if output.exists() and not (output / "config.json").exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no model; delete it yourself or give another --output")

    downloads = output.with_name(f".{name.replace('/', '--') if hub else output.name}.download")
    if arguments.input is None:
        source, origin = fetched(arguments, name, downloads)
    else:
        source, origin = arguments.input, str(arguments.input.name)
    note = {"converted_from": origin}
    if arguments.source == "hf":
        config = convert_hugging_face(source, output, note)
    else:
        config = from_tensorflow(source, output, arguments.scope, arguments.hparams, note)
    if not arguments.keep_download:
        shutil.rmtree(downloads, ignore_errors=True)
    print(f"{output}: {describe(config)}")


if __name__ == "__main__":
    main()
