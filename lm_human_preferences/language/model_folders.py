"""Model folders: `config.json` + `model.safetensors` in Hugging Face's GPT-2 layout, and heads beside them.

`transformers.GPT2LMHeadModel.from_pretrained(folder)` works on a model folder as it is. Scalar heads (and the reward's
gain and bias) lie in `heads.safetensors`, which `transformers` does not look at. `SHA256SUMS` (`sha256sum -c` reads it)
tells damaged files from whole ones; a folder without it, from elsewhere, loads too.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lm_human_preferences.compute.distributed import World, whole
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_folder, read_json, sha256
from lm_human_preferences.language.encoding import ENCODINGS
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config

_DIGESTS = "SHA256SUMS"
_PREFIX = "transformer."  # Hugging Face's name for the trunk inside GPT2LMHeadModel
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_AS_GPT2 = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def save_model(
    folder: Path,
    model: GPT2,
    heads: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    note: dict | None = None,
    world: World = World(),
) -> None:
    """Write a model folder atomically. `dtype` is that of the stored trunk; heads stay float32. `note` goes into
    config.json.

    On several ranks all call it, for a sharded model gives its parts; rank 0 writes.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        value = whole(value.detach())
        if world.is_main:
            tensors[_PREFIX + name] = value.to("cpu", dtype).contiguous()
    if not world.is_main:
        return
    with _new_folder(folder, model.config, dtype, heads, note) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})


def convert_model(
    folder: Path,
    config: GPT2Config,
    shapes: dict[str, torch.Size],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    heads: dict[str, torch.Tensor] | None = None,
    note: dict | None = None,
) -> None:
    """Write a model folder atomically from weights that are read one at a time, so that no more than one of them is in
    memory.

    shapes: of each parameter of `GPT2`, by its name; read(name): that parameter, of this shape and `dtype`.
    """
    with _new_folder(folder, config, dtype, heads, note) as temporary:
        _write_safetensors(temporary / "model.safetensors", shapes, read, dtype)


@contextmanager
def _new_folder(
    folder: Path, config: GPT2Config, dtype: torch.dtype, heads: dict[str, torch.Tensor] | None, note: dict | None
) -> Iterator[Path]:
    """A temporary folder to write `model.safetensors` into; then heads, digests and config.json join it and it takes
    its place.
    """
    with atomic_folder(folder) as temporary:
        yield temporary
        if heads:
            save_file(
                {name: value.detach().float().cpu().contiguous() for name, value in heads.items()},
                temporary / "heads.safetensors",
            )
        description = _to_hugging_face(config, dtype) | ({"lm_human_preferences": note} if note else {})
        (temporary / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (temporary / _DIGESTS).write_text(
            "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir())), encoding="utf-8"
        )


def _write_safetensors(
    path: Path, shapes: dict[str, torch.Size], read: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> None:
    """The safetensors format (8 bytes: length of a JSON header; the header; the tensors' bytes), written tensor by
    tensor.

    The package's own writer wants all tensors in memory and copies them.
    """
    from tqdm import tqdm

    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + shape.numel() * dtype.itemsize
        header[_PREFIX + name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file, tqdm(total=end, unit="B", unit_scale=True, desc="converting", disable=None) as bar:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = read(name).reshape(shape).contiguous()
            if tensor.dtype != dtype:
                raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
            file.write(memoryview(tensor.view(torch.uint8).numpy()))
            bar.update(tensor.nbytes)


def load_config(folder: Path) -> GPT2Config:
    """The architecture of a model folder. UserError if it is no GPT-2's or damaged."""
    path = Path(folder) / "config.json"
    config = _from_hugging_face(path)
    _check_digest(path)
    return config


def load_model(folder: Path) -> GPT2:
    """The transformer in a model folder, float32 on the CPU.

    Raises UserError, naming the file, if the folder is missing, truncated, damaged or no GPT-2.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}")
    config = load_config(folder)
    tensors = _load_tensors(folder / "model.safetensors")
    with torch.device("meta"):
        model = GPT2(config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    found = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    _check_shapes(folder / "model.safetensors", expected, {name: value.shape for name, value in found.items()})
    for name in expected:
        _check_finite(folder / "model.safetensors", name, found[name])
    model.load_state_dict({name: found[name].float() for name in expected}, assign=True)
    return model.requires_grad_(True)


def convert_hugging_face(source: Path, folder: Path, note: dict | None = None) -> GPT2Config:
    """A GPT-2 as Hugging Face publishes it (config.json, model.safetensors) as one of our model folders; the stored
    dtype is kept.

    Attention masks that older releases store as weights are left out. Raises UserError if it is no GPT-2, incomplete or
    damaged.
    """
    source, path = Path(source), Path(source) / "model.safetensors"
    config = _from_hugging_face(source / "config.json")
    if not path.is_file():
        others = [other.name for other in source.iterdir() if other.suffix in (".bin", ".h5", ".msgpack")]
        raise UserError(
            f"{path} is missing"
            + (
                f"; {others[0]} could execute code when it is loaded and is not read: save the model with "
                "transformers' save_pretrained(safe_serialization=True)"
                if others
                else ""
            )
        )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GPT2(config).state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name.removeprefix(_PREFIX): name for name in file.keys()}
            _check_shapes(
                path,
                shapes,
                {name: torch.Size(file.get_slice(stored[name]).get_shape()) for name in shapes if name in stored},
            )
            if "lm_head.weight" in stored and not torch.equal(
                file.get_tensor(stored["lm_head.weight"]), file.get_tensor(stored["wte.weight"])
            ):
                raise UserError(
                    f"{path}: lm_head.weight differs from the token embedding; GPT-2 has one matrix for both"
                )

            def read(name: str) -> torch.Tensor:
                tensor = file.get_tensor(stored[name])
                _check_finite(path, name, tensor)
                return tensor.to(dtype)

            dtype = file.get_tensor(stored["wpe.weight"]).dtype
            if dtype not in _DTYPES:
                raise UserError(f"{path}: its weights are {dtype}; expected float32, float16 or bfloat16")
            convert_model(folder, config, shapes, read, dtype, note=note)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return config


def _check_shapes(path: Path, expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{path} has no weights for {name}: it is no complete GPT-2")
        if found[name] != shape:
            raise UserError(f"{path}: {name} has shape {list(found[name])}, config.json says {list(shape)}")


def load_heads(folder: Path) -> dict[str, torch.Tensor]:
    """The heads beside a model, empty if it has none. Raises UserError if they are damaged or hold a NaN."""
    path = Path(folder) / "heads.safetensors"
    heads = _load_tensors(path) if path.exists() or path.name in _digests(path.parent) else {}
    for name, value in heads.items():
        _check_finite(path, name, value)
    return heads


def _check_finite(path: Path, name: str, value: torch.Tensor) -> None:
    if not all_finite(value):
        raise UserError(f"{path}: {name} holds a NaN or an infinity")


def all_finite(value: torch.Tensor) -> bool:
    """Whether a tensor (not empty) holds no NaN and no infinity; without the temporary copies that `torch.isfinite`
    makes.
    """
    low, high = value.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    _check_digest(path)
    return tensors


def _digests(folder: Path) -> dict[str, str]:
    """File -> its SHA-256, of the files that a model folder was written with; empty for a folder without such a list."""
    try:
        lines = (folder / _DIGESTS).read_text(encoding="utf-8").splitlines() if (folder / _DIGESTS).exists() else []
        return dict(reversed(line.split()) for line in lines)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / _DIGESTS} is damaged: {error}; fetch the folder again") from None


def _check_digest(path: Path) -> None:
    if _digests(path.parent).get(path.name, "") not in ("", sha256(path)):
        raise UserError(
            f"{path} is damaged or was changed: its SHA-256 is not the one in {_DIGESTS}; fetch it again, or delete {_DIGESTS} "
            "if you changed it"
        )


def _to_hugging_face(config: GPT2Config, dtype: torch.dtype) -> dict:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.n_vocab,
        "n_positions": config.n_ctx,
        "n_ctx": config.n_ctx,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": config.n_vocab - 1,
        "eos_token_id": config.n_vocab - 1,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "padding_token": config.padding_token,
        "encoding": config.encoding,
    }


def _from_hugging_face(path: Path) -> GPT2Config:
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        raise UserError(f"{path} does not describe a GPT-2 (model_type is not 'gpt2')")
    if values.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise UserError(f"{path}: activation_function {values['activation_function']} is not GPT-2's")
    for name, usual in _AS_GPT2.items():
        if values.get(name, usual) is not usual:
            raise UserError(
                f"{path}: {name} is {values[name]}; a model that differs from GPT-2 in this cannot be loaded"
            )
    if values.get("encoding", "gpt2") not in list(ENCODINGS):
        raise UserError(f"{path}: encoding {values['encoding']!r} is unknown; it must be {' or '.join(ENCODINGS)}")
    try:
        sizes = dict(
            n_vocab=values["vocab_size"],
            n_ctx=values.get("n_positions", values.get("n_ctx")),
            n_embd=values["n_embd"],
            n_head=values["n_head"],
            n_layer=values["n_layer"],
        )
        wrong = {name: size for name, size in sizes.items() if type(size) is not int or size < 1}
        if wrong:
            raise ValueError(f"{wrong} must be whole numbers of at least 1")
        return GPT2Config(
            **sizes,
            layer_norm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
            padding_token=values.get("padding_token", sizes["n_vocab"] + 2),
            encoding=values.get("encoding", "gpt2"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} lacks or garbles a size of the model: {error}") from None
