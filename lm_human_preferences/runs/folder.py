"""A run's folder: resolved configuration, metrics, samples, atomic checkpoints, resume.

saved_models/<experiment>/
    config.json        everything resolved, command, versions, commit
    metrics.jsonl      one line a step        samples.jsonl   what the policy wrote
    warnings.jsonl     what the doctor's checks found while it went on, if anything
    checkpoints/<step> model, optimizer and loop state; the newest whole one is resumed from (checkpoints.py)
    policy/ | reward_model/ | lm/             the result, a model folder
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lm_human_preferences.compute.distributed import WAIT, World, check_wait
from lm_human_preferences.compute.parallel import SHARDINGS
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import from_dict, param
from lm_human_preferences.foundation.errors import Interrupted, Terminated, UserError
from lm_human_preferences.foundation.files import make_folder, read_json, remove_folder, remove_leftovers, write_json
from lm_human_preferences.runs.checkpoints import Checkpoints

_PACKAGES = ("torch", "numpy", "tiktoken", "safetensors", "lm-human-preferences")


@dataclass
class RunParams:
    """How a run computes and what it keeps."""

    seed: int = param(1, "seed of every random draw")
    save_dir: str = param("saved_models", "folder that holds the run folders")
    overwrite: bool = param(False, "delete a run of the same name first")
    resume: bool = param(False, "continue a run of the same name from its newest whole checkpoint")
    save_interval: int = param(50, "steps between checkpoints; 0 keeps only the result")
    keep_checkpoints: int = param(2, "how many checkpoints to keep")
    log_interval: int = param(1, "steps between printed lines")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto (bfloat16 where the hardware multiplies it fast), float32 or bfloat16")
    micro_batch: int | None = param(
        None,
        "rows in memory at once in a training pass, on each rank; none: as many as fit. Changes nothing but "
        "memory and rounding",
    )
    micro_batch_rollout: int | None = param(None, "the same while responses are sampled")
    micro_batch_scoring: int | None = param(None, "the same in passes without gradient: reference, reward, validation")
    captured_decoding: bool = param(
        False,
        "in policy training on a GPU: hand all of a rollout's decoding over at once, as a CUDA graph for each length "
        "of query (16 at most); its cache then stays in memory",
    )
    recompute_activations: str = param(
        "auto",
        "on: each block's activations are computed again in the backward pass, a third more work for far less "
        "memory; off; auto: when memory would else not hold eight rows",
    )
    sharding: str = param(
        "ddp",
        "with torchrun: ddp, each rank has the whole model; fsdp, parameters, gradients and optimizer are split over the ranks",
    )
    threads: int = param(0, "CPU threads; 0 leaves the choice to PyTorch")
    deterministic: bool = param(
        False,
        "on a GPU: only operations that give the same bits every time, so that the same command gives the same result; slower. "
        "On a CPU it does anyway",
    )
    timeout: float = param(
        WAIT,
        "seconds that a rank waits for the others before it takes them for lost; longer than the longest checkpoint",
    )


def check_run_params(params: RunParams, rollouts: bool = False) -> None:
    """Raises UserError for numbers that no run can have; rollouts: whether it makes some at each step."""
    if params.captured_decoding and not rollouts:
        raise UserError("--run.captured_decoding on: only policy training samples at each step; leave it off")
    if params.overwrite and params.resume:
        raise UserError("--run.overwrite and --run.resume exclude each other; give one of them")
    for name in ("save_interval", "keep_checkpoints", "threads"):
        if getattr(params, name) < 0:
            raise UserError(f"--run.{name} {getattr(params, name)}: must not be negative")
    for name in ("micro_batch", "micro_batch_rollout", "micro_batch_scoring", "log_interval"):
        if getattr(params, name) is not None and getattr(params, name) < 1:
            raise UserError(f"--run.{name} {getattr(params, name)}: must be at least 1")
    check_wait(params.timeout, "--run.timeout")
    if params.recompute_activations not in ("auto", "on", "off"):
        raise UserError(f"--run.recompute_activations {params.recompute_activations}: must be auto, on or off")
    if params.sharding not in SHARDINGS:
        raise UserError(f"--run.sharding {params.sharding}: must be {' or '.join(SHARDINGS)}")


def start_computing(params: RunParams) -> Precision:
    """The device and precision of a run; sets its number of threads, and what PyTorch may compute with. UserError for a
    device that is not there.
    """
    precision = choose_precision(params.device, params.precision)
    if params.threads:
        torch.set_num_threads(params.threads)
    if params.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it; read when CUDA is first used
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    return precision


def check_name(experiment: str) -> None:
    """UserError for a name that is no folder's."""
    if Path(experiment).name != experiment or experiment in ("", ".", ".."):
        raise UserError(f"{experiment!r} cannot be a run's name: it becomes a folder's name")


def free_result_folder(save_dir: str, name: str, stage: str, overwrite: bool) -> Path:
    """Where the results called `name` of a command go. UserError if that cannot be written or holds what may not be
    replaced: a run never may.
    """
    check_name(name)
    folder = make_folder(Path(save_dir)) / name
    if folder.exists():
        config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        if config.get("stage") != stage:
            raise UserError(f"{folder} exists and holds no results of {stage}; give another name with --experiment")
        if not overwrite:
            raise UserError(
                f"{folder} exists already; give another name with --experiment, or --overwrite to replace it"
            )
    return folder


class Run:
    """One run's folder, which rank 0 alone writes; only sharded checkpoints have parts from every rank."""

    def __init__(self, folder: Path, params: RunParams, world: World = World()):
        self.folder, self.params, self.world = Path(folder), params, world
        self.checkpoints = Checkpoints(self.folder / "checkpoints", params.keep_checkpoints, world)

    def open(self, description: dict[str, Any]) -> None:
        """Make the folder and write `config.json`, or check that an existing run may be continued or replaced; rank 0
        finds out for all.

        Raises UserError if a run of that name exists and neither overwrite nor resume was asked for, if its
        configuration differs from the one to resume, or if the folder cannot be written.
        """
        if problem := self.world.from_main(self._problem_in_opening(description) if self.world.is_main else None):
            raise UserError(problem)

    def _problem_in_opening(self, description: dict[str, Any]) -> str | None:
        existing, description = self.folder / "config.json", {**description, "launch": list(self.world.launch)}
        try:
            if self.params.resume:
                self._reopen(existing, description)
            else:
                self.check_free()
                if self.folder.exists():
                    remove_folder(self.folder)
                make_folder(self.folder)
                write_json(existing, description)
        except UserError as error:
            return str(error)
        return None

    def _reopen(self, existing: Path, description: dict[str, Any]) -> None:
        if existing.exists():
            check_same_configuration(_stored(existing), description)
        elif self.checkpoints.all():
            print(f"{existing} is gone; written anew from this command", file=sys.stderr)
            write_json(existing, description)
        else:
            raise UserError(f"--run.resume: there is no run {self.folder}; leave it out to start one")
        remove_leftovers(self.folder)
        remove_leftovers(self.checkpoints.folder)

    def check_free(self) -> None:
        """UserError if something stands where a new run is to be made and it may not be replaced."""
        if self.params.resume or not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if not self.params.overwrite:
            raise UserError(
                f"{self.folder} exists already; give another name, --run.resume to continue it or --run.overwrite to replace it"
            )
        if not (self.folder / "config.json").exists():
            raise UserError(f"{self.folder} is not empty and holds no run; delete it yourself or give another name")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever ends an open run inside the block is noted what of it is on disk and how to go on."""
        try:
            yield
        except Interrupted:  # says so itself
            raise
        except (Exception, KeyboardInterrupt, Terminated) as error:
            error.add_note(self._how_to_go_on())
            raise

    def _how_to_go_on(self) -> str:
        saved = self.checkpoints.all()
        if not saved:
            return f"no checkpoint of {self.folder} was saved yet: the same command with --run.resume begins again"
        return f"the newest checkpoint of {self.folder} is that of step {int(saved[-1].name):,}: the same command with --run.resume goes on from it"


def go_on_after_restart(params: RunParams, folder: Path, world: World) -> None:
    """Where `torchrun` restarts a launch that had opened the run in `folder`, it goes on as with --run.resume, whatever
    the command line says.
    """
    if params.resume or not world.from_main(bool(set(world.launch) & set(_launch_of(folder)))):
        return
    params.resume, params.overwrite = True, False
    if world.is_main:
        print(
            f"restarted by torchrun: {folder} goes on from its newest whole checkpoint, from its beginning if there is none",
            flush=True,
        )


def _launch_of(folder: Path) -> list[str]:
    """Which `torchrun` processes opened the run in `folder`; none if nobody can tell."""
    try:
        return read_json(folder / "config.json")["launch"]
    except (UserError, KeyError, TypeError):
        return []


def _stored(config: Path) -> dict[str, Any]:
    """A run's `config.json`. UserError if it is damaged."""
    try:
        stored = read_json(config)
        _leaves(stored["parameters"])
        return stored
    except (UserError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{config} is damaged; delete it, and --run.resume writes it anew from the command that you give"
        ) from None


def model_and_task(experiment: str, save_dir: str) -> tuple[Path, TaskParams | None]:
    """The language model and task of a run given by name or path, or a model folder itself (which has no task).
    UserError if there is none.
    """
    for folder in (Path(save_dir) / experiment, Path(experiment)):
        if (folder / "model.safetensors").exists():
            return folder, None
        if (folder / "config.json").exists():
            task = read_json(folder / "config.json").get("parameters", {}).get("task")
            for name in ("policy", "lm"):
                if (folder / name).is_dir():
                    return folder / name, from_dict(TaskParams, task) if task else None
            raise UserError(
                f"{folder} has no policy/ or lm/ folder yet; its training has not finished, or it made a reward model"
            )
    raise UserError(f"there is no run or model folder {experiment!r} in {save_dir}")


def check_same_configuration(
    stored: dict, now: dict, command: str = "--run.resume", free: tuple[str, ...] = ("run.", "tracking.")
) -> None:
    """UserError that begins with `command` if what a run was started with is not what it would go on with.

    The parameters whose names begin with one of `free` may differ, the seed never.
    """
    for key in ("stage", "task"):
        if stored.get(key) != now[key]:
            raise UserError(
                f"{command}: that run was a {stored.get('stage')} on {stored.get('task')}, not a {now['stage']} on {now['task']}"
            )
    before, after = _leaves(stored["parameters"]), _leaves(now["parameters"])
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and (name == "run.seed" or not name.startswith(free)):
            raise UserError(
                f"{command}: the run was started with {name} {before.get(name)}, now it is {after.get(name)}; give the same"
            )


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
    root = Path(__file__).resolve().parent.parent.parent
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


def _leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            rows.update(_leaves(value, f"{prefix}{name}."))
        else:
            rows[prefix + name] = value
    return rows
