"""GPT-2's tokenizer as Hugging Face stores it: the tokens that a model folder adds are read from it, and it is written
so that `transformers.AutoTokenizer.from_pretrained` of a model folder encodes as `encoding.py` does.

One difference is meant: there the text `<|endoftext|>` becomes token 50256, here it is ordinary characters.

Added tokens stand in up to four files, which releases of `transformers` wrote at different times: tokenizer.json (a
list `added_tokens`), tokenizer_config.json (`added_tokens_decoder`, by id), added_tokens.json (text -> id) and
special_tokens_map.json (which of them are the padding, the end and so on). All that are there are read.
"""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.language.added_tokens import AddedToken
from lm_human_preferences.language.digests import check_digest
from lm_human_preferences.language.encoding import (
    ENCODINGS,
    END_OF_TEXT,
    END_OF_TEXT_SYMBOL,
    gpt2_encoding,
    vocabulary_folder,
)

_FILES = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}  # Hugging Face's names for OpenAI's files
_WHOLE, _SETTINGS, _ADDED, _SPECIAL = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
TOKENIZER_FILES = (_WHOLE, _SETTINGS, _ADDED, _SPECIAL, *_FILES)  # by which a folder says what its tokens are
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FURTHER = ("additional_special_tokens", "extra_special_tokens")  # lists of special tokens without a role
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_PLAIN = ENCODINGS["gpt2"].n_vocab


# --- reading ---


def has_tokenizer(folder: Path) -> bool:
    """Whether a file in `folder` says what the model's tokens are."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_added_tokens(folder: Path, n_vocab: int, ours: bool) -> tuple[AddedToken, ...]:
    """The tokens that the model in `folder` has beside GPT-2's, in order of id; those beyond `n_vocab` are left out,
    for the model has no row for them.

    ours: config.json says already that the encoding is GPT-2's; else the tokenizer's vocabulary is compared with it.
    UserError, naming the file, for files that are damaged, contradict each other, or are another tokenizer's.
    """
    paths = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    stamps = [path.stat() for path in paths]
    return _read(folder, n_vocab, ours, tuple((stamp.st_mtime_ns, stamp.st_size) for stamp in stamps))


@functools.lru_cache(maxsize=16)
def _read(folder: Path, n_vocab: int, ours: bool, stamps: object) -> tuple[AddedToken, ...]:
    """stamps: when the files were written, so that files that have changed are read again."""
    contents = {name: _content(folder / name) for name in (_WHOLE, _SETTINGS, _ADDED, _SPECIAL)}
    if not ours:
        _check_vocabulary(folder, contents[_WHOLE])
    tokens: dict[int, AddedToken] = {}
    try:
        for token in _listed(contents):
            _add(tokens, token, folder)
        for token in _named_only(contents, tokens):
            _add(tokens, token, folder)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise UserError(
            f"{folder}: its tokenizer files do not list added tokens as transformers does: save the tokenizer again "
            "with save_pretrained"
        ) from None
    return _checked([tokens[number] for number in sorted(tokens) if number < n_vocab], folder)


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json_object(path)
    check_digest(path)
    return content


@functools.cache
def _gpt2_vocabulary() -> dict[str, int]:
    """Token as printable characters -> id, as vocab.json has it."""
    vocabulary: dict[str, int] = json.loads((vocabulary_folder() / _FILES["vocab.json"]).read_text(encoding="utf-8"))
    return vocabulary


def _check_vocabulary(folder: Path, whole: dict[str, Any]) -> None:
    """UserError if tokenizer.json, or without it vocab.json, has other tokens than GPT-2's."""
    path, model = folder / (_WHOLE if whole else "vocab.json"), whole.get("model", {})
    vocabulary = model.get("vocab") if whole and isinstance(model, dict) else None if whole else _content(path)
    if vocabulary and not (isinstance(vocabulary, dict) and _gpt2_vocabulary().items() <= vocabulary.items()):
        raise UserError(
            f"{path} is not GPT-2's tokenizer: the model's numbers stand for other texts than here, and it cannot be "
            "used"
        )


def _roles(contents: dict[str, dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The roles of each token that has one, by its text."""
    found: dict[str, list[str]] = {}
    for role in _ROLES:
        for name in (_SETTINGS, _SPECIAL):
            if value := contents[name].get(role):
                found.setdefault(_text(value), []).append(role)
                break
    return {text: tuple(roles) for text, roles in found.items()}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else value["content"]
    if not isinstance(text, str):
        raise TypeError
    return text


def _token(number: int, value: Any, roles: dict[str, tuple[str, ...]], special: bool) -> AddedToken:
    """From a text, or an object with `content` and flags."""
    text, flags = _text(value), {} if isinstance(value, str) else value
    if isinstance(value, str):
        flags = {"normalized": not special}
    return AddedToken(
        int(number),
        text,
        **{flag: bool(flags.get(flag, False)) for flag in _FLAGS},
        special=bool(flags.get("special", special)) or text in roles,
        roles=roles.get(text, ()),
    )


def _further(contents: dict[str, dict[str, Any]]) -> list[Any]:
    """Special tokens without a role, as they are written."""
    lists = [contents[name].get(key) or [] for name in (_SPECIAL, _SETTINGS) for key in _FURTHER]
    return [value for values in lists for value in (values.values() if isinstance(values, dict) else values)]


def _listed(contents: dict[str, dict[str, Any]]) -> Iterator[AddedToken]:
    """The tokens that have an id in one of the files; what an earlier file says of a token counts."""
    roles = _roles(contents)
    for value in contents[_WHOLE].get("added_tokens", []):
        yield _token(value["id"], value, roles, special=False)
    for number, value in contents[_SETTINGS].get("added_tokens_decoder", {}).items():
        yield _token(int(number), value, roles, special=False)
    described = {_text(value): value for value in [*_further(contents), *_named(contents)]}
    for text, number in contents[_ADDED].items():
        yield _token(number, text, roles, special=text in described)


def _named(contents: dict[str, dict[str, Any]]) -> list[Any]:
    """What the roles are given to, as it is written."""
    return [value for role in _ROLES for name in (_SPECIAL, _SETTINGS) if (value := contents[name].get(role))]


def _named_only(contents: dict[str, dict[str, Any]], known: dict[int, AddedToken]) -> Iterator[AddedToken]:
    """Special tokens to which no file gives an id: the one they have in GPT-2's vocabulary, else the next free one, as
    `transformers` gives it.
    """
    roles, texts = _roles(contents), {token.text for token in known.values()} | {END_OF_TEXT_SYMBOL}
    following = max([_PLAIN - 1, *known]) + 1
    for value in [*_named(contents), *_further(contents)]:
        text = _text(value)
        if text in texts:
            continue
        texts.add(text)
        number = _gpt2_vocabulary().get(text)
        if number is None:
            number, following = following, following + 1
        yield _token(number, value, roles, special=True)


def _add(tokens: dict[int, AddedToken], token: AddedToken, folder: Path) -> None:
    """Join a token to those that are known. UserError if an id or a text has two meanings."""
    if (token.id, token.text) == (END_OF_TEXT, END_OF_TEXT_SYMBOL):
        return
    if not token.text or token.id < 0:
        raise ValueError
    same = next((other for other in tokens.values() if other.text == token.text), None)
    known = tokens.setdefault(token.id, token)
    if known.text != token.text or (same is not None and same.id != token.id):
        other = known if known.text != token.text else same
        assert other is not None
        raise UserError(
            f"{folder}: its tokenizer files contradict each other: {other.text!r} is token {other.id}, and "
            f"{token.text!r} is token {token.id}; save the tokenizer again with save_pretrained"
        )


def _checked(tokens: list[AddedToken], folder: Path) -> tuple[AddedToken, ...]:
    """The tokens themselves. UserError for ids that they cannot have."""
    beyond = [token.id for token in tokens if token.id >= _PLAIN]
    if beyond != list(range(_PLAIN, _PLAIN + len(beyond))):
        missing = next(number for number in range(_PLAIN, beyond[-1]) if number not in beyond)
        raise UserError(
            f"{folder}: its tokenizer files have added tokens up to {beyond[-1]} but none with the id {missing}; save "
            "the tokenizer again with save_pretrained"
        )
    for token in tokens:
        if token.id < _PLAIN and (there := gpt2_encoding().decode([token.id])) != token.text:
            raise UserError(
                f"{folder}: its tokenizer files call token {token.id} {token.text!r}, but in GPT-2's encoding it is "
                f"{there!r}; a model with tokens replaced cannot be used"
            )
    return tuple(tokens)


# --- writing ---


def write_tokenizer(folder: Path, n_ctx: int, added: tuple[AddedToken, ...] = ()) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json (1.5 MB together) into `folder`.

    n_ctx: the model's context in tokens; added: what it has beside GPT-2's.
    """
    for theirs, ours in _FILES.items():
        shutil.copyfile(vocabulary_folder() / ours, folder / theirs)
    settings: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": n_ctx,
        "bos_token": END_OF_TEXT_SYMBOL,
        "eos_token": END_OF_TEXT_SYMBOL,
        "unk_token": END_OF_TEXT_SYMBOL,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,  # decoding changes nothing
    }
    if added:
        settings |= {role: token.text for token in added for role in token.roles}
        further = [token.text for token in added if token.special and not token.roles]
        settings |= {"additional_special_tokens": further} if further else {}
        everything = (AddedToken(END_OF_TEXT, END_OF_TEXT_SYMBOL), *added)
        settings["added_tokens_decoder"] = {str(token.id): _as_written(token) for token in everything}
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _as_written(token: AddedToken) -> dict[str, Any]:
    return {"content": token.text, **{flag: getattr(token, flag) for flag in _FLAGS}, "special": token.special}
