"""The weights of a GPT-2 in the files that people have, under the names of `GPT2`'s parameters.

Read are `model.safetensors`, its shards (`model.safetensors.index.json`) and, for the converter alone, the pickled
`pytorch_model.bin`. Names may have any prefix (`transformer.`, none, TRL's `pretrained_model.transformer.`). Whatever
would change what the model computes and has no place in `GPT2` is refused, never dropped: output weights of their own,
quantised numbers, adapters, more blocks than config.json says. Nothing that is read can execute code.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.language.digests import check_digest

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
CONVERTER = "python saved_models/prepare_pytorch_checkpoint.py NAME --from hf --input"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TRUNK = ("wte.", "wpe.", "h.", "ln_f.")  # how the names inside GPT-2's trunk begin
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # attention's masks, which older releases store as weights
_OTHER_FORMATS = (".bin", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".pt", ".pth", ".ckpt", ".safetensors")


class Stored(NamedTuple):
    """A tensor in a file."""

    path: Path
    dtype: str  # as safetensors writes it: F32, BF16, I8, ...
    shape: torch.Size
    read: Callable[[], torch.Tensor]


class Weights:
    """A GPT-2's stored parameters: all are there, of the right shapes, and floating-point numbers."""

    def __init__(self, parameters: Mapping[str, Stored]):
        self._parameters = parameters

    @property
    def dtype(self) -> torch.dtype:
        """float16 or bfloat16 if all are stored in it, else float32."""
        kinds = {_FLOATS[stored.dtype] for stored in self._parameters.values()}
        return kinds.pop() if kinds in ({torch.float16}, {torch.bfloat16}) else torch.float32

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """One parameter on the CPU. UserError if it holds a NaN or an infinity, or is too large for `dtype`."""
        stored = self._parameters[name]
        tensor = stored.read().to(dtype)
        check_finite(stored.path, name, tensor)
        return tensor


@contextmanager
def open_weights(folder: Path, expected: Mapping[str, torch.Size], pickled: bool = False) -> Iterator[Weights]:
    """The weights of a GPT-2 in `folder`, to be read inside the block.

    expected: the shape of each parameter; pickled: take `pytorch_model.bin` where there is nothing else, with PyTorch's
    reader of tensors alone. UserError, naming the file, if they are missing, damaged or not those of such a GPT-2.
    """
    with ExitStack() as stack:
        files = _shards(folder, WEIGHTS)
        try:
            if files:
                stored = {name: entry for path in files for name, entry in _open_safetensors(path, stack).items()}
            elif pickled and (files := _shards(folder, PICKLED)):
                stored = {name: entry for path in files for name, entry in _open_pickled(path).items()}
            else:
                raise UserError(_no_weights(folder))
            where = files[0] if len(files) == 1 else folder
            yield Weights(_parameters(where, stored, expected))
        except SafetensorError as error:
            raise UserError(f"{folder / WEIGHTS} is damaged: {_line(error)}") from None


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds a model's weights in any form, also in one that cannot be read."""
    return folder.is_dir() and any(_is_weights(path) for path in folder.iterdir())


def _is_weights(path: Path) -> bool:
    return path.name != "heads.safetensors" and path.suffix in _OTHER_FORMATS


def _shards(folder: Path, name: str) -> list[Path]:
    """The file `name` in `folder`, or the shards that `name`.index.json lists; none if there is neither."""
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    files = shard_names(index)
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{index} names the shard {file!r}, which is not in the folder; fetch it too")
    return [folder / file for file in files]


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names. UserError if it is damaged, or a name is not that of a file beside
    it.
    """
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index} does not list shards: expected a weight_map from each weight's name to its file")
    files = sorted(set(places.values()))
    for file in files:
        if Path(file).name != file:
            raise UserError(f"{index} names the shard {file!r}, which is not in the folder; fetch it too")
    return files


def _open_safetensors(path: Path, stack: ExitStack) -> dict[str, Stored]:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
        names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {_line(error)}") from None
    check_digest(path)
    result = {}
    for name in names:
        part = file.get_slice(name)
        result[name] = Stored(path, part.get_dtype(), torch.Size(part.get_shape()), partial(file.get_tensor, name))
    return result


def _open_pickled(path: Path) -> dict[str, Stored]:
    """A file of `torch.save`, by the reader that makes tensors and nothing else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # what the reader of a pickle raises depends on the bytes that it stumbles over
        content = None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(
            f"{path} is damaged or holds more than named tensors: it is not read, for reading the rest could "
            "execute code"
        )
    check_digest(path)
    kinds = {dtype: kind for kind, dtype in _FLOATS.items()}
    return {
        str(name): Stored(path, kinds.get(value.dtype, str(value.dtype)), value.shape, value.detach)
        for name, value in content.items()
    }


def _no_weights(folder: Path) -> str:
    """What to say where no weights can be read, by what else lies there."""
    others = sorted(path.name for path in folder.iterdir() if _is_weights(path))
    pickled = [name for name in others if name.startswith("pytorch_model") and name.endswith(".bin")]
    if pickled:
        return (
            f"{folder} has its weights in {pickled[0]}, which could execute code when it is loaded; "
            f"{CONVERTER} {folder} reads it safely and writes the model folder saved_models/NAME"
        )
    if any(name.startswith("adapter_model") for name in others):
        return (
            f"{folder} holds an adapter, not a model: merge it into its model (peft's merge_and_unload) and save that"
        )
    if list(folder.glob("*.ckpt.index")):
        return f"{folder} holds a TensorFlow checkpoint; {CONVERTER.replace(' --from hf', '')} {folder} converts it"
    return f"{folder / WEIGHTS} is missing" + (
        f"; {', '.join(others)} cannot be read: save the model with transformers' save_pretrained" if others else ""
    )


def _parameters(where: Path, stored: Mapping[str, Stored], expected: Mapping[str, torch.Size]) -> dict[str, Stored]:
    """Each expected parameter's tensor. UserError where one is missing or unfit, or one is there that has no place."""
    places = [name.removesuffix("wpe.weight") for name in stored if f".{name}".endswith(".wpe.weight")]
    if len(places) > 1:
        raise UserError(f"{where} holds several models ({', '.join(sorted(places))}); save one of them alone")
    if not places:
        raise UserError(f"{where} has no weights for wpe.weight: it is not a complete GPT-2")
    prefix = places[0]
    trunk = {
        name.removeprefix(prefix): entry
        for name, entry in stored.items()
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(_TRUNK)
    }
    outputs = [entry for name, entry in stored.items() if f".{name}".endswith(".lm_head.weight")]
    if outputs:
        trunk.setdefault("wte.weight", outputs[0])  # one matrix under two names, of which a file may keep either
    for name, shape in expected.items():
        if name not in trunk:
            raise UserError(f"{where} has no weights for {name}: it is not a complete GPT-2")
        entry = trunk[name]
        if entry.dtype not in _FLOATS:
            raise UserError(
                f"{entry.path}: {name} is stored as {entry.dtype}, as quantised models are; "
                "take the model before quantisation"
            )
        if entry.shape != shape:
            raise UserError(f"{entry.path}: {name} has shape {list(entry.shape)}, config.json says {list(shape)}")
    for name, entry in trunk.items():
        if name not in expected and not _MASKS.fullmatch(name):
            raise UserError(f"{entry.path} has weights {name}, which the GPT-2 of its config.json has no place for")
    tokens = trunk["wte.weight"]
    for entry in outputs:
        if entry is not tokens and not _same(entry, tokens):
            raise UserError(
                f"{entry.path}: lm_head.weight differs from the token embedding; GPT-2 has one matrix for both, "
                "and models with output weights of their own cannot be used"
            )
    return {name: trunk[name] for name in expected}


def _same(one: Stored, other: Stored) -> bool:
    return one.shape == other.shape and torch.equal(one.read().double(), other.read().double())


def check_finite(path: Path, name: str, value: torch.Tensor) -> None:
    """UserError if a tensor of `path` (not empty, floating-point) holds a NaN or an infinity."""
    if not all_finite(value):
        raise UserError(f"{path}: {name} holds a NaN or an infinity")


def all_finite(value: torch.Tensor) -> bool:
    """Whether a tensor (not empty) holds no NaN and no infinity; without the temporary copies that `torch.isfinite`
    makes.
    """
    low, high = value.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
