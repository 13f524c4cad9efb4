"""Parameter dataclasses from the command line: dotted overrides with their types checked, and nested dictionaries out.

A parameter's dataclass lives beside the code it parameterises and declares each field with `param(default, help)`.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from typing import Any, Literal, TypeVar

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path

Params = TypeVar("Params")  # a dataclass of parameters

_TRUE, _FALSE, _NONE = ("true", "on", "yes", "1"), ("false", "off", "no", "0"), ("none", "null", "off")


def param(default: Any, help: str, kind: Literal["path", "text"] | None = None) -> Any:
    """A dataclass field with its one-sentence description; a class as `default` is called for a fresh value.

    kind: `path`, a file or folder, which `find_paths` looks for below the project's root too; `text`, any text of the
    user's, which is taken as it is, even where it is a word of ours such as `none`.
    """
    metadata = {"help": help, "kind": kind}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def apply_overrides(params: Params, overrides: dict[str, str]) -> Params:
    """Set each dotted name in `overrides` on the nested dataclass `params` (in place) and return it.

    Groups are switched on and off first (`--rewards.adaptive_kl off`), then single parameters are set, so the order
    does not matter. Raises UserError for an unknown name (with the nearest valid one) or a value of the wrong type.
    """
    as_groups = {name: value for name, value in overrides.items() if _group_type(params, name)}
    for name, value in as_groups.items():
        _set(params, name, value)
    for name, value in overrides.items():
        if name not in as_groups:
            _set(params, name, value)
    return params


def find_paths(params: Params) -> Params:
    """A copy of the nested dataclass `params` in which each path is where it is found, see `find_path`. Web addresses
    stay as they are.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(params):  # type: ignore[arg-type]  # a dataclass, which a TypeVar cannot say
        value = getattr(params, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = find_paths(value)
        elif value and field.metadata.get("kind") == "path" and "://" not in value:  # a path has one slash in a row
            changes[field.name] = str(find_path(value))
    return dataclasses.replace(params, **changes)  # type: ignore[type-var]  # as above


def _group_type(params: Any, name: str) -> type | None:
    """The dataclass of a nested group that `name` means, None for a single parameter or an unknown name."""
    return _dataclass_in(hint_of(type(params), name))


def _set(params: Any, name: str, value: str) -> None:
    *groups, leaf = name.split(".")
    target = params
    for depth, group in enumerate(groups):
        if group not in _types(type(target)) or _dataclass_in(_types(type(target))[group]) is None:
            raise UserError(_unknown(params, name))
        if getattr(target, group) is None:
            kind = _dataclass_in(_types(type(target))[group])
            if kind is None or leaf not in _all_leaf_names(kind):
                raise UserError(_unknown(params, name))
            prefix = ".".join(groups[: depth + 1])
            raise UserError(f"--{name}: the group {prefix} is off; switch it on with --{prefix} on")
        target = getattr(target, group)
    if leaf not in _types(type(target)):
        raise UserError(_unknown(params, name))
    if _kind(type(target), leaf) == "text":
        setattr(target, leaf, os.fsencode(value).decode("utf-8", "replace"))  # whatever the locale took its bytes for
    else:
        setattr(target, leaf, parse(value, _types(type(target))[leaf], name))


def _kind(params: type, leaf: str) -> str | None:
    return next((field.metadata.get("kind") for field in dataclasses.fields(params) if field.name == leaf), None)


def hint_of(params: type, name: str) -> Any:
    """The type that the parameter `name`, dotted, is declared with in a nested dataclass; None if there is none."""
    hint: Any = params
    for part in name.split("."):
        group = _dataclass_in(hint)
        if group is None or part not in _types(group):
            return None
        hint = _types(group)[part]
    return hint


def takes_any_text(hint: Any) -> bool:
    """Whether a parameter of this type is a text."""
    return hint is str or (isinstance(hint, types.UnionType) and str in typing.get_args(hint))


def needs_value(hint: Any) -> bool:
    """Whether the flag of a parameter of this type means nothing by itself: it is not switched on and off."""
    return hint is not None and hint is not bool and _dataclass_in(hint) is None


def parse(value: Any, kind: Any, name: str) -> Any:
    """The text `value` as `kind` (int, float, str, bool, a dataclass, or one of them | None); UserError otherwise."""
    text = str(value)
    options = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    group = _dataclass_in(kind)
    if type(None) in options and text.lower() in _NONE and (group or text.lower() != "off"):
        return None
    if group:
        if text.lower() in _TRUE:
            return group()
        raise UserError(
            f"--{name} {text}: this is a group of parameters; set it on{' or off' if type(None) in options else ''}"
        )
    kind = next(option for option in options if option is not type(None))
    try:
        if kind is bool:
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        if kind is int:
            number = float(text)
            if not number.is_integer():
                raise ValueError
            return int(text) if text.lstrip("+-").isdigit() else int(number)
        if kind is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        return text
    except (ValueError, OverflowError):
        expected = {bool: "on or off", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--{name} {text}: expected {expected}{' or none' if type(None) in options else ''}") from None


def named_paths(text: str, flag: str) -> dict[str, str]:
    """Name -> path of NAME=PATH,NAME=PATH; empty for an empty text. UserError, naming the flag, for anything else."""
    paths: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, _, path = part.partition("=")
        if not re.fullmatch(r"\w[\w. -]*", name) or not path:
            raise UserError(f"{flag} {part}: expected NAME=PATH, with commas between several")
        if name in paths:
            raise UserError(f"{flag} has the name {name} twice; give each a name of its own")
        paths[name] = path
    return paths


def to_dict(params: Any) -> dict[str, Any]:
    """The nested dataclass as a nested dictionary, ready for JSON."""
    return dataclasses.asdict(params)


def from_dict(kind: type, values: Any) -> Any:
    """The inverse of `to_dict`. Missing keys take their defaults. UserError for unknown ones, and for values of another
    type.
    """
    if not isinstance(values, dict):
        raise UserError(f"stored configuration: {values!r} is not a group of {kind.__name__}")
    hints = _types(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise UserError(
            f"stored configuration has a parameter that {kind.__name__} does not know: {sorted(unknown)[0]}"
        )
    arguments = {}
    for name, value in values.items():
        group = _dataclass_in(hints[name])
        if group and (value is not None or hints[name] is group):
            arguments[name] = from_dict(group, value)
        elif not _is_of(value, hints[name]):
            raise UserError(f"stored configuration: {name} is {value!r}, which {kind.__name__} does not take")
        else:
            arguments[name] = value
    return kind(**arguments)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a declared type; a whole number is a float too, true and false are not."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return type(value) in options or (type(value) is int and float in options)


def flatten(params: Any, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Dotted name -> (value, help) of every parameter; a group that is off appears with the value None."""
    rows: dict[str, tuple[Any, str]] = {}
    for item in dataclasses.fields(params):
        value, name = getattr(params, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            rows.update(flatten(value, f"{name}."))
        else:
            rows[name] = (value, item.metadata.get("help", ""))
    return rows


def _unknown(params: Any, name: str) -> str:
    known = sorted(_all_names(type(params)))
    group, _, last = name.rpartition(".")
    initials = "".join(word[:1] for word in last.split("_"))  # learning_rate for lr
    near = (
        [f"{group}.{initials}".lstrip(".")]
        if f"{group}.{initials}".lstrip(".") in known
        else [full for full in known if full.split(".")[-1] == last][
            :1
        ]  # only the last part was given, or in another group
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"unknown parameter --{name}" + (f"; did you mean --{near[0]}?" if near else "; see --help for the list")


def _all_names(kind: type, prefix: str = "") -> list[str]:
    names = []
    for name, hint in _types(kind).items():
        names.append(prefix + name)
        group = _dataclass_in(hint)
        if group:
            names += _all_names(group, f"{prefix}{name}.")
    return names


def _all_leaf_names(kind: type) -> set[str]:
    return {name.split(".")[-1] for name in _all_names(kind)}


def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that an annotation `X` or `X | None` holds, else None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)
