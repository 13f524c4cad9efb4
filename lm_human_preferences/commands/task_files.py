"""Tasks that a user describes in a file: `python launch.py train_reward my_task.json EXPERIMENT`.

    {
        "like": "own",
        "task.query_length": 32,
        "labels.source": "my_labels.jsonl",
        "train_reward": {"lr": 5e-5}
    }

`like` is the task whose values it takes; every other name is a parameter's, as it is on the command line, and holds in
each stage that has this parameter and has the group that it is in switched on. Below a stage's name stand parameters
for that stage alone. Flags come on top.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lm_human_preferences.commands.command import FLAG, Command, Experiments, nearest, words_and_flags
from lm_human_preferences.foundation.configuration import apply_overrides, flatten, hint_of
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.foundation.root import find_path

LIKE = "own"  # the task that one is like which does not say so
_NEW_REWARD = "rewards.train_new_model."  # where policy training has the parameters of the reward training before it


def with_task_files(command: Command, arguments: Sequence[str], experiments: Experiments) -> Experiments:
    """The experiments, and those of each task file that the command's words name as their task, under the file's name.
    UserError for a file that is not there, or whose names no stage has.
    """
    found = words_and_flags(command, arguments)
    if found is None:  # help is wanted: the task is what comes first
        found = list(arguments[:1])
    words = [word for word in found if not FLAG.fullmatch(word)]
    named = words[: "task" in command.takes]
    named += [word.partition("=")[2] for word in found if word.startswith("--task=")]
    for name in dict.fromkeys(name for name in named if name.endswith(".json")):
        experiments = _with_entries(experiments, name, read_json_object(find_path(name)))
    return experiments


def _with_entries(experiments: Experiments, name: str, settings: Mapping[str, Any]) -> Experiments:
    like = settings.get("like", LIKE)
    every = sorted({task for entries in experiments.values() for task in entries})
    if like not in every:
        raise UserError(f"{name}: there is no task {like!r} to be like{nearest(str(like), every)}")
    stages = {stage: entries[like]() for stage, entries in experiments.items() if like in entries}
    shared = {key: value for key, value in settings.items() if key != "like" and key not in experiments}
    for key in shared:
        if not any(_names(key, params) for params in stages.values()):
            known = sorted({known for params in stages.values() for known in flatten(params)})
            raise UserError(f"{name}: no stage of {like} has the parameter {key!r}{nearest(key, known)}")
    sections = {stage: settings[stage] for stage in experiments if stage in settings}
    for stage, section in sections.items():
        if stage not in stages:
            raise UserError(f"{name}: {like} has no {stage}, only {', '.join(stages)}; leave {stage!r} out")
        if not isinstance(section, dict):
            raise UserError(f"{name}: {stage!r} must hold an object of parameters")
    result = {stage: dict(entries) for stage, entries in experiments.items()}
    for stage in stages:
        entry = partial(_entry, experiments[stage][like], name, stage, shared, sections)
        stages[stage] = entry()  # its mistakes are said before a command begins
        result[stage][name] = entry
    for key in shared:
        if not any(_group_off(found, params) is None for params in stages.values() for found in _names(key, params)):
            off = next(_group_off(found, params) for params in stages.values() for found in _names(key, params))
            raise UserError(f'{name}: {key!r}: the group {off} is off; switch it on with "{off}": true')
    return result


def _names(key: str, params: Any) -> list[str]:
    """What a parameter of a task file is called in a stage: itself, and in the reward training before a policy's."""
    return [name for name in (key, _NEW_REWARD + key) if hint_of(type(params), name) is not None]


def _group_off(name: str, params: Any) -> str | None:
    """The outermost group that a parameter belongs to and that is off; None if there is none."""
    parts = name.split(".")
    for depth, group in enumerate(parts[:-1], 1):
        params = getattr(params, group)
        if params is None:
            return ".".join(parts[:depth])
    return None


def _entry(
    like: Callable[[], Any], file: str, stage: str, shared: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]
) -> Any:
    """The parameters of a stage. A section on reward training holds for the one before a policy's, too. What is not in
    the stage's own section is left out where its group is off.
    """
    params, own = like(), sections.get(stage, {})
    values = {name: value for key, value in shared.items() for name in _names(key, params)}
    if stage != "train_reward":
        values |= {
            _NEW_REWARD + key: value
            for key, value in sections.get("train_reward", {}).items()
            if hint_of(type(params), _NEW_REWARD + key) is not None
        }
    values |= own
    try:
        for name in sorted(values, key=lambda name: name.count(".")):  # groups are switched before what is in them
            if name in own or _group_off(name, params) is None:
                apply_overrides(params, {name: _text(values[name])})
    except UserError as error:
        raise UserError(f"{file}, {stage}: {error}") from None
    return params


def _text(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)
