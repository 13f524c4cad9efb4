"""What `config.json` says of a run, and whether another command describes the same run."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path, project_root

FREE = ("run.", "tracking.", "online.wait")  # groups and parameters that change nothing in the result
_PACKAGES = ("torch", "numpy", "tiktoken", "safetensors", "lm-human-preferences")


def check_same_configuration(
    stored: dict[str, Any], now: dict[str, Any], command: str = "--run.resume", free: tuple[str, ...] = FREE
) -> list[str]:
    """UserError that begins with `command` if what a run was started with is not what it would go on with.

    The parameters that are `free` may differ (`is_free`), the seed never. What the two commands read
    (`inputs`, digests by flag) must be the same where both say so. Returns, as lines for people, the parameters that
    only one of the two versions of this program has: those do not count.
    """
    for key in ("stage", "task"):
        if stored.get(key) != now[key]:
            raise UserError(
                f"{command}: that run was a {stored.get('stage')} on {stored.get('task')}, "
                f"not a {now['stage']} on {now['task']}"
            )
    before, after = leaves(stored["parameters"]), leaves(now["parameters"])
    notes = []
    for name in sorted(before.keys() | after.keys()):
        if _same(before.get(name), after.get(name)) or is_free(name, free):
            continue
        if name not in before and not _switched(name, before):
            notes.append(f"the run was begun before {name} existed; it goes on with {after[name]}")
        elif name not in after and not _switched(name, after):
            notes.append(f"the run was begun with {name} {before[name]}, which exists no more")
        else:
            raise UserError(
                f"{command}: the run was started with {name} {before.get(name)}, now it is {after.get(name)}; "
                "give the same"
            )
    read_before = stored.get("inputs") or {}
    for name, digest in (now.get("inputs") or {}).items():
        if read_before.get(name, digest) != digest:
            raise UserError(
                f"{command}: what --{name} {after.get(name)} names is no longer what the run was started with; put it "
                "back, or begin a new run under another name"
            )
    return notes


def is_free(name: str, free: tuple[str, ...]) -> bool:
    """Whether a parameter is one of `free`, or in a group whose name there ends in a dot; the run's seed never is."""
    in_group = any(group.endswith(".") and name.startswith(group) for group in free)
    return name != "run.seed" and (name in free or in_group)


def _switched(name: str, leaves_of_other: dict[str, Any]) -> bool:
    """Whether a parameter is missing there because a group that it belongs to is off (None), or on, there."""
    parts = name.split(".")
    groups = {".".join(parts[:count]) for count in range(1, len(parts))}
    return bool(groups & leaves_of_other.keys()) or any(other.startswith(name + ".") for other in leaves_of_other)


def _same(before: Any, after: Any) -> bool:
    """Whether two values of a parameter are the same, or two ways to write the path of one file or folder."""
    if before == after:
        return True
    if not (isinstance(before, str) and isinstance(after, str) and before and after):
        return False
    before, after = find_path(before), find_path(after)
    return os.path.exists(before) and os.path.exists(after) and os.path.samefile(before, after)


def describe_run(stage: str, task: str, experiment: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What `config.json` holds: everything resolved, the command, the versions and the commit."""
    return {
        "stage": stage,
        "task": task,
        "experiment": experiment,
        "command": sys.argv,
        "parameters": parameters,
        "versions": package_versions(),
        "commit": _commit(),
    }


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of the source tree, with '+' if it has uncommitted changes; None outside a git checkout."""
    root = project_root()
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if dirty.stdout.strip() else "")


def leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            rows.update(leaves(value, f"{prefix}{name}."))
        else:
            rows[prefix + name] = value
    return rows
