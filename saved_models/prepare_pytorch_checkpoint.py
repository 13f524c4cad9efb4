"""A pretrained GPT-2, or a run of the original, as a model folder in saved_models/.

OpenAI's TensorFlow release (124M, 355M, 774M, 1558M), the same weights from Hugging Face (gpt2, gpt2-medium, ...), a
TensorFlow checkpoint on disk, Hugging Face's folder on disk, a reward model of the original:

    python saved_models/prepare_pytorch_checkpoint.py 124M
    python saved_models/prepare_pytorch_checkpoint.py 124M --from hf
    python saved_models/prepare_pytorch_checkpoint.py NAME --input FOLDER
    python saved_models/prepare_pytorch_checkpoint.py NAME --from hf --input FOLDER
    python saved_models/prepare_pytorch_checkpoint.py NAME --input FOLDER --scope reward_model

The result, saved_models/NAME, opens in `transformers` unchanged. TensorFlow checkpoints need the package tensorflow. A
run that the original trained has several models in one checkpoint; --scope chooses: policy (default), ref_policy or
reward_model. Their heads, and the reward's gain and bias, come along; Adam's state does not. Of Hugging Face's folders
model.safetensors is read, its shards, or where there is nothing else pytorch_model.bin, by a reader that makes tensors
and executes nothing. A second run does nothing where the model is there already.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lm_human_preferences.foundation.downloads import download
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.language.gpt2 import GPT2Config, count_parameters
from lm_human_preferences.language.model_folders import convert_hugging_face, convert_model
from lm_human_preferences.language.tensorflow_checkpoints import ADDRESS, RELEASE, OriginalCheckpoint

HERE = Path(__file__).resolve().parent
HUGGING_FACE = "https://huggingface.co/openai-community"
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


def fetch(addresses: dict[str, str], folder: Path) -> Path:
    """Each file name's address into `folder`; what is there already is not fetched again."""
    for name, address in addresses.items():
        download(address, folder / name)
    return folder


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"{', '.join(NAMES_THERE)}; with --input any name for the new model folder")
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
    arguments = parser.parse_args()

    name = next((ours for ours, theirs in NAMES_THERE.items() if arguments.name == theirs), arguments.name)
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"{name!r} cannot be a model's name: it becomes a folder's name")
    if arguments.input is None and name not in NAMES_THERE:
        raise UserError(
            f"there is no GPT-2 {name!r} to download; choose {', '.join(NAMES_THERE)}, or give --input FOLDER"
        )
    if arguments.source == "hf" and (arguments.scope or arguments.hparams):
        raise UserError("--scope and --hparams are for TensorFlow checkpoints; leave them out with --from hf")
    output = arguments.output or HERE / name
    if (output / "config.json").exists() and not arguments.overwrite:
        print(f"{output} is there already; --overwrite replaces it")
        return
    if output.exists() and not (output / "config.json").exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no model; delete it yourself or give another --output")

    downloads = output.with_name(f".{output.name}.download")
    source = arguments.input
    if source is None and arguments.source == "openai":
        address = arguments.url or ADDRESS
        source = fetch({file: f"{address}/{name}/{file}" for file in RELEASE}, downloads)
    elif source is None:
        address = f"{arguments.url}/{name}" if arguments.url else f"{HUGGING_FACE}/{NAMES_THERE[name]}/resolve/main"
        source = fetch({file: f"{address}/{file}" for file in ("config.json", "model.safetensors")}, downloads)
    note = {"converted_from": str(arguments.input.name) if arguments.input else address}
    if arguments.source == "hf":
        config = convert_hugging_face(source, output, note)
    else:
        config = from_tensorflow(source, output, arguments.scope, arguments.hparams, note)
    if not arguments.keep_download:
        shutil.rmtree(downloads, ignore_errors=True)
    print(
        f"{output}: {count_parameters(config)['total']:,} parameters, {config.n_layer} blocks of width "
        f"{config.n_embd}, context {config.n_ctx}"
    )


if __name__ == "__main__":
    main()
