"""Checkpoints of the original: GPT-2 as OpenAI released it, and policies and reward models that the original's own runs
saved.

A GPT-2 release names its variables `model/...`; a run of the original puts a scope before them (`policy/model/...`,
`ref_policy/model/...`, `reward_model/model/...`), has heads below `<scope>/model/heads/` and the reward's gain and bias
below `reward_model/reward_norm/`, and keeps Adam's slots beside each variable. Original: language/model.py,
utils/core.py, rewards.py.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json
from lm_human_preferences.language.encoding import ENCODINGS, encoding_for
from lm_human_preferences.language.gpt2 import GPT2, SHAPES, GPT2Config
from lm_human_preferences.language.weight_files import check_finite

RELEASE = ("checkpoint", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "model.ckpt.meta")
ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/models"
_HEADS = {
    "model/heads/value/w": "value.weight",
    "model/heads/value/b": "value.bias",
    "model/heads/reward/w": "reward.weight",
    "model/heads/reward/b": "reward.bias",
    "reward_norm/gain": "reward_norm.gain",
    "reward_norm/bias": "reward_norm.bias",
}


def original_name(name: str) -> str:
    """The original's variable, below its scope, for a parameter of `GPT2`: h.0.attn.c_attn.weight ->
    model/h0/attn/c_attn/w.
    """
    parts = name.split(".")
    if parts[0] in ("wte", "wpe"):
        return f"model/{parts[0]}"
    block = [f"h{parts[1]}"] if parts[0] == "h" else []
    *modules, leaf = parts[2:] if block else parts
    letter = {"weight": "g", "bias": "b"} if modules[-1].startswith("ln_") else {"weight": "w", "bias": "b"}
    return "/".join(["model", *block, *modules, letter[leaf]])


class OriginalCheckpoint:
    """A TensorFlow checkpoint, read variable by variable; needs the package tensorflow."""

    def __init__(self, folder: Path):
        """Raises UserError when tensorflow is missing, or `folder` holds no checkpoint or a damaged one."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing is computed; its notice would only alarm
        try:
            import tensorflow
        except ImportError:
            raise UserError(
                "reading TensorFlow checkpoints needs tensorflow: pip install tensorflow (or tensorflow-cpu)"
            ) from None
        self._tensorflow = tensorflow
        self.prefix = _find_prefix(Path(folder))
        self._reader = self._read(lambda: tensorflow.train.load_checkpoint(str(self.prefix)))
        self.shapes: dict[str, list[int]] = self._read(self._reader.get_variable_to_shape_map)
        self.scopes: list[str] = sorted(
            name.removesuffix("model/wte").rstrip("/") for name in self.shapes if f"/{name}".endswith("/model/wte")
        )
        if not self.scopes:
            raise UserError(
                f"{self.prefix} holds no GPT-2: it has no variable model/wte, with or without a scope before it"
            )

    def _read(self, action: Callable[[], Any]) -> Any:
        """TensorFlow's many ways to say that a file is missing or damaged, as one line."""
        try:
            return action()
        except (self._tensorflow.errors.OpError, LookupError, ValueError, RuntimeError, SystemError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{self.prefix} is damaged or incomplete, fetch it again: {reason}") from None

    def choose_scope(self, wanted: str | None) -> str:
        """`wanted`, or the only scope, or `policy` where there are several. UserError for one that is not there."""
        if wanted is None and len(self.scopes) == 1:
            return self.scopes[0]
        if wanted is None and "policy" in self.scopes:
            return "policy"
        if wanted is None or wanted not in self.scopes:
            names = " or ".join(scope or repr("") for scope in self.scopes)
            raise UserError(f"{self.prefix} has no scope {wanted or ''!r}; --scope must be {names}")
        return wanted

    def config(self, scope: str, hparams: Path | None = None) -> GPT2Config:
        """The architecture: from hparams.json (given, or beside the checkpoint), else from the variables' shapes.

        The number of heads is in no shape: without hparams.json the sizes must be those of a released GPT-2.
        """
        where = _join(scope, "model")
        (n_vocab, n_embd), n_ctx = self._shape(f"{where}/wte", 2), self._shape(f"{where}/wpe", 2)[0]
        n_layer = sum(name.startswith(f"{where}/h") and name.endswith("/ln_1/g") for name in self.shapes)
        path = hparams or self.prefix.parent / "hparams.json"
        sizes = read_json(path) if hparams or path.exists() else {}
        if not isinstance(sizes, dict):
            raise UserError(f"{path}: expected an object with n_vocab, n_ctx, n_embd, n_head and n_layer")
        if "n_head" in sizes:
            found = dict(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=n_embd, n_layer=n_layer)
            for name, size in found.items():
                if sizes.get(name, size) != size:
                    raise UserError(f"{path} says {name} {sizes[name]}, but the checkpoint's variables say {size}")
            n_head = sizes["n_head"]
        else:
            known = [
                shape["n_head"] for shape in SHAPES.values() if (shape["n_embd"], shape["n_layer"]) == (n_embd, n_layer)
            ]
            if not known:
                raise UserError(
                    f"{self.prefix}: its number of attention heads is written nowhere; "
                    "give --hparams with GPT-2's hparams.json"
                )
            n_head = known[0]
        encoding = encoding_for(self.prefix, n_vocab)
        padding = ENCODINGS[encoding].padding_token
        try:
            return GPT2Config(n_vocab, n_ctx, n_embd, n_head, n_layer, padding_token=padding, encoding=encoding)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{path}: {error}") from None

    def _shape(self, name: str, dimensions: int) -> list[int]:
        shape = self.shapes.get(name, [])
        if len(shape) != dimensions:
            raise UserError(
                f"{self.prefix}: the variable {name} is missing or has shape {shape}; expected {dimensions} dimensions"
            )
        return shape

    def weights(self, scope: str, config: GPT2Config) -> Iterator[tuple[str, torch.Size, str]]:
        """(name in GPT2, shape, variable) of each weight; all shapes are checked before the first is read. Raises
        UserError.
        """
        with torch.device("meta"):
            expected = {name: value.shape for name, value in GPT2(config).state_dict().items()}
        for name, shape in expected.items():
            variable = _join(scope, original_name(name))
            have = self.shapes.get(variable)
            if have is None:
                raise UserError(
                    f"{self.prefix} has no variable {variable}: it is not a complete GPT-2 of {config.n_layer} blocks"
                )
            if [size for size in have if size != 1] != [size for size in shape if size != 1]:
                raise UserError(
                    f"{self.prefix}: {variable} has shape {have}, expected {list(shape)} (projections with a leading 1)"
                )
        yield from ((name, shape, _join(scope, original_name(name))) for name, shape in expected.items())

    def read(self, variable: str) -> torch.Tensor:
        """One variable as a float32 tensor. Raises UserError if the data are damaged or not finite."""
        tensor = (
            torch.from_numpy(self._read(lambda: self._reader.get_tensor(variable))).float()
            if self.shapes[variable]
            else torch.tensor(float(self._read(lambda: self._reader.get_tensor(variable))))
        )
        check_finite(self.prefix, variable, tensor)
        return tensor

    def heads(self, scope: str) -> dict[str, torch.Tensor]:
        """The heads of a scope, and the reward's gain and bias, under the names that our model folders have; Adam's
        slots are left out.
        """
        return {
            ours: self.read(_join(scope, theirs))
            for theirs, ours in _HEADS.items()
            if _join(scope, theirs) in self.shapes
        }


def _join(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name


def _find_prefix(folder: Path) -> Path:
    """The path before `.index` and `.data-...` of the newest checkpoint in a folder or its `checkpoints/`, or of the
    one that is named.
    """
    for place in (folder, folder.with_suffix("") if folder.suffix in (".index", ".meta") else folder):
        if place.with_name(place.name + ".index").is_file():
            return place
    if not folder.is_dir():
        raise UserError(f"{folder} is neither a folder nor a TensorFlow checkpoint (no {folder.name}.index)")
    for place in (folder, folder / "checkpoints"):
        found = [path.with_suffix("") for path in place.glob("*.index")]
        if found:
            return max(found, key=lambda path: ([int(n) for n in path.name.split("-")[-1:] if n.isdigit()], path.name))
    raise UserError(f"{folder} holds no TensorFlow checkpoint: expected {', '.join(RELEASE)}")
