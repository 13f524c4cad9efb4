"""Checkpoints of a run in training: whole or absent, sharded when the run is, readable by any number of ranks.

    checkpoints/00000040/
        state.json                           loop state, and the SHA-256 of each file beside it and of all this
        state-00000-of-00002.safetensors     rank 0's tensors: whole ones, and its rows of the sharded ones
        state-00001-of-00002.safetensors     the other rank's rows

A run that is not sharded has one file of tensors. A folder is written beside its place and gets its name when it is
whole (foundation/files.py: publish_folder); by hand here, because several ranks write into one.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lm_human_preferences.compute.distributed import World, is_sharded, local_part
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import (
    PARTIAL,
    disk_errors,
    make_folder,
    publish_folder,
    read_json,
    remove_folder,
    sha256,
)
from lm_human_preferences.language.weight_files import all_finite

_FIRST_ROWS = "first_rows"  # a file's metadata: tensor -> number of its first row there, as JSON


class Checkpoints:
    """The checkpoints of one run's folder."""

    def __init__(self, folder: Path, keep: int, world: World):
        """keep: how many to keep, at least one."""
        self.folder, self.keep, self.world = Path(folder), max(1, keep), world

    def all(self) -> list[Path]:
        """Finished ones, the oldest first."""
        return (
            sorted(folder for folder in self.folder.iterdir() if folder.name.isdigit()) if self.folder.is_dir() else []
        )

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write `<step>` whole or not at all and drop the oldest beyond `keep`, and those of later steps, which were
        damaged when the run went on before them. All ranks call it together with the same names.

        Raises UserError when a tensor holds a NaN, when it cannot be written, or if sharded ranks do not write to the
        same disk; earlier checkpoints stay.
        """
        check_finite(tensors, f"checkpoint of step {step}", self.world)
        sharded = any(is_sharded(value) for value in tensors.values())
        path, temporary = self.folder / f"{step:08d}", self.folder / f".{step:08d}{PARTIAL}"
        try:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                make_folder(temporary)
            if sharded:
                self.world.barrier()
            elif not self.world.is_main:
                return
            with disk_errors(path):
                files = self._write(temporary, tensors, sharded)
            if self.world.is_main:
                missing = [name for name in files if not (temporary / name).is_file()]
                if missing:
                    raise UserError(
                        f"{temporary} lacks {missing[0]}: with --run.sharding fsdp all machines must write to one "
                        "shared --run.save_dir"
                    )
                with disk_errors(path):
                    description = {"step": step, "files": files, **state}
                    (temporary / "state.json").write_text(
                        json.dumps({"sha256": _digest(description), **description}, indent=2), encoding="utf-8"
                    )
                    publish_folder(temporary, path)
                kept = [folder for folder in self.all() if int(folder.name) <= step][-self.keep :]
                for folder in self.all():
                    if folder not in kept:
                        remove_folder(folder)
            if sharded:
                self.world.barrier()
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write(self, folder: Path, tensors: dict[str, torch.Tensor], sharded: bool) -> dict[str, str]:
        """Write this rank's file; the names and digests of all files, on every rank."""
        world, parts, first_rows = self.world, {}, {}
        for name, value in tensors.items():
            part, first = local_part(value.detach(), world)
            if (is_sharded(value) and part.numel()) or (not is_sharded(value) and world.is_main):
                parts[name], first_rows[name] = part.cpu().contiguous(), first
        count = world.size if sharded else 1
        path = folder / f"state-{world.rank:05d}-of-{count:05d}.safetensors"
        save_file(parts, path, metadata={_FIRST_ROWS: json.dumps(first_rows)})
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        digests = torch.tensor([list(bytes.fromhex(sha256(path)))], dtype=torch.uint8)
        digests = world.gather(digests) if sharded else digests
        return {
            f"state-{rank:05d}-of-{count:05d}.safetensors": bytes(row).hex()
            for rank, row in enumerate(digests.tolist())
        }

    def load(self, targets: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        """Copy the newest whole checkpoint into `targets` (in place, whatever their sharding) and return its loop
        state; None if there is none.

        Damaged ones are named on standard error and passed over. Rank 0 chooses for all, and reads
        for all unless the tensors are sharded. Raises UserError for a whole checkpoint that does not fit the tensors.
        """
        found = self.world.from_main(self._newest_whole() if self.world.is_main else None)
        if found is None:
            return None
        step: int = found[0]
        state: dict[str, Any] = found[1]
        folder = self.folder / f"{step:08d}"
        if any(is_sharded(value) for value in targets.values()):
            if self.world.min_over_ranks(int((folder / "state.json").is_file())) == 0:
                raise UserError(
                    f"not every machine sees {folder}: with --run.sharding fsdp they need one shared --run.save_dir"
                )
            _Reader(folder, state["files"]).fill(targets, self.world)
            return state
        if self.world.is_main:
            _Reader(folder, state["files"]).fill(targets, self.world)
        with torch.no_grad():
            for value in targets.values():
                self.world.from_main_(value)
        return state

    def _newest_whole(self) -> tuple[int, dict[str, Any]] | None:
        for folder in reversed(self.all()):
            try:
                state = read_json(folder / "state.json")
                if state.pop("sha256") != _digest(state):
                    raise ValueError("the digest of state.json does not match")
                for name, digest in state["files"].items():
                    if not (folder / name).is_file():
                        raise ValueError(f"{name} is missing")
                    if sha256(folder / name) != digest:
                        raise ValueError(f"the digest of {name} does not match")
                if state["step"] != int(folder.name):
                    raise ValueError(f"it says that it is step {state['step']}")
                return int(folder.name), state
            except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"state.json lacks {error}" if isinstance(error, KeyError) else error
                print(f"skipping checkpoint {folder.name}: {reason}", file=sys.stderr)
        return None

    def drop(self) -> None:
        """After the result is written the checkpoints are of no more use."""
        if self.world.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)


def check_finite(tensors: dict[str, torch.Tensor], what: str, world: World) -> None:
    """UserError, on every rank, if a tensor holds a NaN or an infinity on any: before it takes the place of anything
    good.
    """
    parts = ((name, local_part(value.detach(), world)[0]) for name, value in tensors.items())
    bad = next(
        (name for name, part in parts if part.is_floating_point() and part.numel() and not all_finite(part)), None
    )
    if world.any(bad is not None):
        raise UserError(
            f"{bad or 'a weight on another rank'} holds a NaN or an infinity, so no {what} is written; if it happens "
            "again, start anew with a lower learning rate"
        )


def _digest(description: dict[str, Any]) -> str:
    """SHA-256 of plain values, whatever their order and layout in a file."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


class _Reader:
    """The tensors of a checkpoint's files, put together from whatever parts they were written in."""

    def __init__(self, folder: Path, names: dict[str, str]):
        self.files = [safe_open(folder / name, framework="pt") for name in names]
        self.parts: dict[str, list[tuple[int, Any]]] = {}  # tensor -> number of its first row and file, of each part
        for file in self.files:
            for name, first in json.loads(file.metadata()[_FIRST_ROWS]).items():
                self.parts.setdefault(name, []).append((first, file))

    @torch.no_grad()
    def fill(self, targets: dict[str, torch.Tensor], world: World) -> None:
        for name, target in targets.items():
            mine, first = local_part(target, world)
            if name not in self.parts:
                raise UserError(f"the checkpoint has no {name}: it is of another kind of model or run")
            filled = 0
            for start, file in self.parts[name]:
                part = file.get_slice(name)
                shape = part.get_shape()
                if not target.ndim:
                    mine.copy_(file.get_tensor(name))
                    filled = 1
                    continue
                low, high = max(start, first), min(start + shape[0], first + mine.shape[0])
                if shape[1:] != list(target.shape[1:]):
                    raise UserError(f"the checkpoint's {name} is {shape}, the model's {list(target.shape)}")
                if low < high:
                    mine[low - first : high - first].copy_(part[low - start : high - start])
                    filled += high - low
            if filled != (mine.shape[0] if target.ndim else 1):
                raise UserError(f"the checkpoint's {name} does not have the rows of the model's {list(target.shape)}")
