"""Model folders: `config.json` + `model.safetensors` in Hugging Face's GPT-2 layout, and heads beside them.

`transformers.GPT2LMHeadModel.from_pretrained(folder)` works on a model folder as it is. Scalar heads (and the reward's
gain and bias) lie in `heads.safetensors`, which `transformers` does not look at. `SHA256SUMS` (`sha256sum -c` reads it)
tells damaged files from whole ones; a folder without it, from elsewhere, loads too.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lm_human_preferences.compute.distributed import World, whole
from lm_human_preferences.compute.torchrun import is_first_to_say
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_folder, read_json
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.language.added_tokens import AddedToken
from lm_human_preferences.language.digests import check_digest, listed, write_digests
from lm_human_preferences.language.encoding import (
    ENCODINGS,
    END_OF_TEXT,
    Encoding,
    encoding_for,
    get_encoding,
    padding_for,
)
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.tokenizer_files import has_tokenizer, read_added_tokens, write_tokenizer
from lm_human_preferences.language.weight_files import check_finite, has_weights, open_weights

_PREFIX = "transformer."  # Hugging Face's name for the trunk inside GPT2LMHeadModel
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_AS_GPT2 = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
}


def save_model(
    folder: Path,
    model: GPT2,
    heads: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    note: dict[str, Any] | None = None,
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
    note: dict[str, Any] | None = None,
) -> None:
    """Write a model folder atomically from weights that are read one at a time, so that no more than one of them is in
    memory.

    shapes: of each parameter of `GPT2`, by its name; read(name): that parameter, of this shape and `dtype`.
    """
    with _new_folder(folder, config, dtype, heads, note) as temporary:
        _write_safetensors(temporary / "model.safetensors", shapes, read, dtype)


@contextmanager
def _new_folder(
    folder: Path,
    config: GPT2Config,
    dtype: torch.dtype,
    heads: dict[str, torch.Tensor] | None,
    note: dict[str, Any] | None,
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
        if config.encoding == "gpt2" and config.n_vocab >= ENCODINGS["gpt2"].n_vocab:
            write_tokenizer(temporary, config.n_ctx, config.added_tokens)
        write_digests(temporary)


def _write_safetensors(
    path: Path, shapes: dict[str, torch.Size], read: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> None:
    """The safetensors format (8 bytes: length of a JSON header; the header; the tensors' bytes), written tensor by
    tensor.

    The package's own writer wants all tensors in memory and copies them.
    """
    from tqdm import tqdm

    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
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
            file.write(tensor.view(torch.uint8).numpy().data)
            bar.update(tensor.nbytes)


def load_config(folder: Path) -> GPT2Config:
    """The architecture of a model folder. UserError if it is not that of a GPT-2 that can be used here, or damaged."""
    path = Path(folder) / "config.json"
    config = _from_hugging_face(path)
    check_digest(path)
    return config


def unnamed_tokens(config: GPT2Config) -> str:
    """What to say of ids that no token has, in a vocabulary that was filled up to a round number; nothing where there
    are none.
    """
    known = [ENCODINGS[config.encoding].n_vocab, *(token.id + 1 for token in config.added_tokens)]
    first, last = max(known), config.n_vocab - 1
    if first > last:
        return ""
    return (
        f"the ids {first} to {last} stand for no text: no text has them, and should one be sampled it reads as nothing"
    )


@functools.cache
def _say_once(line: str) -> None:
    if is_first_to_say(line):
        print(line, file=sys.stderr)


def encoding_named(named: str) -> Encoding:
    """The encoding of that name, or of the model in that folder. UserError, naming --encoding, if it is neither."""
    if named in ENCODINGS:
        return get_encoding(named)
    folder = find_path(named)
    if not (folder / "config.json").is_file():
        raise UserError(f"--encoding {named}: must be {', '.join(ENCODINGS)} or a model folder")
    return get_encoding(load_config(folder))


def load_model(folder: Path) -> GPT2:
    """The transformer in a model folder, float32 on the CPU.

    Raises UserError, naming the file, if the folder is missing, truncated, damaged or not a GPT-2's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}")
    config = load_config(folder)
    if unnamed := unnamed_tokens(config):
        _say_once(f"{folder}: {unnamed}")
    with torch.device("meta"):
        model = GPT2(config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    with open_weights(folder, expected) as weights:
        model.load_state_dict({name: weights.read(name, torch.float32) for name in expected}, assign=True)
    return model.requires_grad_(True)


def convert_hugging_face(source: Path, folder: Path, note: dict[str, Any] | None = None) -> GPT2Config:
    """A GPT-2 as people publish it (config.json; model.safetensors, shards of it, or pytorch_model.bin) as one of our
    model folders.

    float16 and bfloat16 stay what they are, anything wider and mixtures become float32. Raises UserError for all that
    `load_model` would refuse, before anything is written.
    """
    source = Path(source)
    config = load_config(source)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GPT2(config).state_dict().items()}
    with open_weights(source, shapes, pickled=True) as weights:
        dtype = weights.dtype
        convert_model(folder, config, shapes, lambda name: weights.read(name, dtype), dtype, note=note)
    return config


def load_heads(folder: Path) -> dict[str, torch.Tensor]:
    """The heads beside a model, empty if it has none. Raises UserError if they are damaged or hold a NaN."""
    path = Path(folder) / "heads.safetensors"
    if not path.exists() and path.name not in listed(path.parent):
        return {}
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        heads = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    check_digest(path)
    for name, value in heads.items():
        if not value.is_floating_point() or not value.numel():
            raise UserError(f"{path}: {name} holds no floating-point numbers")
        check_finite(path, name, value)
    return heads


def _to_hugging_face(config: GPT2Config, dtype: torch.dtype) -> dict[str, Any]:
    end = min(END_OF_TEXT, config.n_vocab - 1)  # the last token of GPT-2's own, and of `letters`
    roles = {role: token.id for token in config.added_tokens for role in token.roles}
    padding = {"pad_token_id": roles["pad_token"]} if "pad_token" in roles else {}  # theirs; ours is no token
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
        "bos_token_id": roles.get("bos_token", end),
        "eos_token_id": roles.get("eos_token", end),
        **padding,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "padding_token": config.padding_token,
        "encoding": config.encoding,
    }


def _from_hugging_face(path: Path) -> GPT2Config:
    """A GPT-2's config.json, whoever wrote it; UserError for anything that `GPT2` would compute otherwise."""
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        raise UserError(f"{path} does not describe a GPT-2 (model_type is not 'gpt2')")
    if values.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise UserError(f"{path}: activation_function {values['activation_function']} is not GPT-2's")
    quantisation = values.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise UserError(
            f"{path}: the weights are quantised ({method or 'quantization_config'}), which cannot be read; "
            "take the model before quantisation"
        )
    for name, usual in _AS_GPT2.items():
        if values.get(name, usual) is not usual:
            raise UserError(
                f"{path}: {name} is {values[name]}; a model that differs from GPT-2 in this cannot be loaded"
            )
    wanted = dict(
        n_vocab="vocab_size",
        n_ctx="n_positions" if "n_positions" in values else "n_ctx",
        n_embd="n_embd",
        n_head="n_head",
        n_layer="n_layer",
    )
    for theirs in wanted.values():
        size = values.get(theirs)
        if type(size) is not int or size < 1:
            raise UserError(f"{path}: {theirs} is {size!r}; expected a whole number of at least 1")
    sizes: dict[str, int] = {ours: values[theirs] for ours, theirs in wanted.items()}
    if values.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise UserError(f"{path}: n_inner is {values['n_inner']}; GPT-2's is four times n_embd")
    epsilon = values.get("layer_norm_epsilon", 1e-5)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise UserError(f"{path}: layer_norm_epsilon is {epsilon!r}; expected a number between 0 and 1")
    encoding = encoding_for(path, sizes["n_vocab"], values.get("encoding"), more=True)
    padding = padding_for(encoding, sizes["n_vocab"])
    stale = ENCODINGS[encoding].padding_token  # where `transformers` gave a model of ours more tokens
    if values.get("padding_token", padding) not in (padding, stale):
        raise UserError(f"{path}: padding_token is {values['padding_token']}, but that of {encoding} is {padding}")
    added = _added_tokens(path, sizes["n_vocab"], values.get("encoding") is not None) if encoding == "gpt2" else ()
    try:
        return GPT2Config(
            **sizes, layer_norm_epsilon=float(epsilon), padding_token=padding, encoding=encoding, added_tokens=added
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _added_tokens(path: Path, n_vocab: int, ours: bool) -> tuple[AddedToken, ...]:
    """What the files beside config.json say of tokens beside GPT-2's. UserError where there are some and nothing says
    what they are.
    """
    more = n_vocab - ENCODINGS["gpt2"].n_vocab
    if more and not has_tokenizer(path.parent):
        raise UserError(
            f"{path}: the vocabulary has {n_vocab} tokens, {more} more than GPT-2's encoding, and no file beside it "
            "says what they are: save the tokenizer there too (transformers' tokenizer.save_pretrained)"
        )
    return read_added_tokens(path.parent, n_vocab, ours)


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` is meant as a model, readable or not: it holds weights, or a config.json with a model's type."""
    if not (folder / "config.json").is_file():
        return False
    if has_weights(folder):
        return True
    try:
        values = read_json(folder / "config.json")
    except UserError:
        return False
    return isinstance(values, dict) and "model_type" in values
