"""A run's folder: resolved configuration, metrics, samples, atomic checkpoints, resume.

saved_models/<experiment>/
    config.json        everything resolved, command, versions, commit
    metrics.jsonl      one line a step        samples.jsonl   what the policy wrote
    warnings.jsonl     what the doctor's checks found while it went on, if anything
    checkpoints/<step> model, optimizer and loop state; the newest whole one is resumed from (checkpoints.py)
    policy/ | reward_model/ | lm/             the result, a model folder
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.configuration import from_dict, to_dict
from lm_human_preferences.foundation.errors import Interrupted, Terminated, UserError
from lm_human_preferences.foundation.files import (
    disk_errors,
    make_folder,
    read_json,
    read_json_object,
    remove_folder,
    remove_leftovers,
    write_json,
)
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.language.model_folders import is_model_folder
from lm_human_preferences.runs.checkpoints import Checkpoints
from lm_human_preferences.runs.description import check_same_configuration, describe_run, leaves
from lm_human_preferences.runs.input_digests import input_digests
from lm_human_preferences.runs.locks import LOCK, Busy, is_busy, locked
from lm_human_preferences.runs.params import RunParams, computing

_LONGEST_NAME = 200  # bytes; file systems take 255, and `.NAME.replaced.partial` and `NAME_reward` must be names too


def check_name(experiment: str) -> None:
    """UserError for a name that a folder cannot have."""
    if Path(experiment).name != experiment or experiment in ("", ".", "..") or "\0" in experiment:
        raise UserError(f"{experiment!r} cannot be a run's name: it becomes a folder's name")
    if len(os.fsencode(experiment)) > _LONGEST_NAME:
        raise UserError(f"{experiment[:20]!r}... cannot be a run's name: more than {_LONGEST_NAME} bytes are too long")


def check_is_folder(path: Path) -> None:
    """UserError where a file stands in a folder's place."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give another name, or move it away")


def free_result_folder(save_dir: str, name: str, stage: str, overwrite: bool) -> Path:
    """Where the results called `name` of a command go. UserError if that cannot be written or holds what may not be
    replaced: a run never may.
    """
    check_name(name)
    folder = make_folder(Path(save_dir)) / name
    if folder.exists():
        check_is_folder(folder)
        config = read_json_object(folder / "config.json") if (folder / "config.json").exists() else {}
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
        self._lock: FileLock | None = None

    def open(self, description: dict[str, Any], inputs: Mapping[str, str | None] = MappingProxyType({})) -> None:
        """Make the folder and write `config.json`, or check that an existing run may be continued or replaced; rank 0
        finds out for all.

        Raises UserError if a run of that name exists and neither overwrite nor resume was asked for, if its
        configuration differs from the one to resume, or if the folder cannot be written; Busy if another process works
        on it.
        """
        problem = self.world.from_main(self._problem_in_opening(description, inputs) if self.world.is_main else None)
        if problem is not None:
            raise problem

    def _problem_in_opening(self, description: dict[str, Any], inputs: Mapping[str, str | None]) -> UserError | None:
        existing = self.folder / "config.json"
        try:
            self._lock_folder()
            description = {**description, "inputs": input_digests(inputs), "launch": list(self.world.launch)}
            if self.params.resume:
                self._reopen(existing, description)
            else:
                self.check_free()
                if self.folder.exists():
                    with disk_errors(self.folder):
                        remove_folder(self.folder)
                make_folder(self.folder)
                self._lock_folder()
                write_json(existing, description)
        except UserError as error:
            self.release()
            return error
        return None

    def _lock_folder(self) -> None:
        """Keep other processes out of the folder, if there is one, until `release` or the end of this process. Busy if
        another has it.
        """
        self.release()
        self._lock = locked(self.folder)

    def release(self) -> None:
        """Let other processes into the folder."""
        if self._lock is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _reopen(self, existing: Path, description: dict[str, Any]) -> None:
        if existing.exists():
            stored = _stored(existing)
            for note in check_same_configuration(stored, description):
                print(note, file=sys.stderr)
            if "inputs" not in stored:
                write_json(existing, stored | {"inputs": description["inputs"]})
        elif self.checkpoints.all():
            print(f"{existing} is gone; written anew from this command", file=sys.stderr)
            write_json(existing, description)
        else:
            raise UserError(f"--run.resume: there is no run {self.folder}; leave it out to start one")
        remove_leftovers(self.folder)
        remove_leftovers(self.checkpoints.folder)

    def check_free(self) -> None:
        """UserError if something stands where a new run is to be made and it may not be replaced."""
        check_is_folder(self.folder)
        if self.params.resume or not self.folder.exists():
            return
        if all(path.name == LOCK for path in self.folder.iterdir()):  # an empty folder that `_lock_folder` has locked
            return
        if not self.params.overwrite:
            if self._lock is None and is_busy(self.folder):  # it may have begun since somebody looked whether it had
                raise Busy(self.folder)
            raise UserError(
                f"{self.folder} exists already; give another name, --run.resume to continue it or --run.overwrite to "
                "replace it"
            )
        if not (self.folder / "config.json").exists():
            raise UserError(f"{self.folder} is not empty and holds no run; delete it yourself or give another name")

    def finished(self, model: str, evaluated: bool = True) -> Path | None:
        """The folder `model` of a run that was to be resumed and has ended already, which is said; None of another.
        evaluated: whether it has a result.json at its end.
        """
        folder = self.folder / model
        ended = folder.is_dir() and not self.checkpoints.all()
        ended = ended and (not evaluated or (self.folder / "result.json").is_file())
        if not self.params.resume or not self.world.from_main(ended):
            return None
        self.say(f"{self.folder.name} has finished already: {folder}")
        return folder

    def say(self, text: str) -> None:
        """A line for people, from one rank."""
        if self.world.is_main:
            print(text)

    def record_computed(self, computed: dict[str, Any]) -> None:
        """Write into config.json what the run computes with; where a resumed run computes with something else, what was
        there stays under `computed_before`.
        """
        if not self.world.is_main:
            return
        path = self.folder / "config.json"
        config = read_json(path)
        if config.get("computed") not in (None, computed):
            config.setdefault("computed_before", []).append(config["computed"])
        write_json(path, config | {"computed": computed})

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
        return (
            f"the newest checkpoint of {self.folder} is that of step {int(saved[-1].name):,}: the same command with "
            "--run.resume goes on from it"
        )


@contextmanager
def open_run(
    stage: str, task: str, experiment: str, params: Any, inputs: Mapping[str, str | None], world: World
) -> Iterator[Run]:
    """A stage's run, opened and locked; what ends it inside the block is told how to go on.

    params: the stage's parameters, with `run`; inputs: what they name that is read, by flag.
    """
    run = Run(Path(params.run.save_dir) / experiment, params.run, world)
    try:
        run.open(describe_run(stage, task, experiment, to_dict(params)), inputs)
        with run.explained():
            yield run
    finally:
        run.release()


def same_finished_run(folder: Path, stage: str, task: str, parameters: dict[str, Any], world: World) -> None:
    """UserError, on every rank, unless the finished run in `folder` was made with these parameters."""

    def problem() -> str | None:
        try:
            now = {"stage": stage, "task": task, "parameters": parameters}
            check_same_configuration(_stored(folder / "config.json"), now, f"--run.resume ({folder})")
        except UserError as error:
            return str(error)
        return None

    if found := world.from_main(problem() if world.is_main else None):
        raise UserError(found)


def go_on_after_restart(params: RunParams, folder: Path, world: World) -> None:
    """Where `torchrun` restarts a launch that had opened the run in `folder`, it goes on as with --run.resume, whatever
    the command line says.
    """
    if params.resume or not world.from_main(bool(set(world.launch) & set(_launch_of(folder)))):
        return
    params.resume, params.overwrite = True, False
    if world.is_main:
        print(
            f"restarted by torchrun: {folder} goes on from its newest whole checkpoint, from its beginning if there "
            "is none",
            flush=True,
        )


@contextmanager
def started(params: RunParams, experiment: str) -> Iterator[tuple[Precision, World]]:
    """Around the whole work of a run of that name: its precision and ranks. What torchrun has started again goes on."""
    with computing(params) as (precision, world):
        go_on_after_restart(params, Path(params.save_dir) / experiment, world)
        yield precision, world


def _launch_of(folder: Path) -> list[str]:
    """Which `torchrun` processes opened the run in `folder`; none if nobody can tell."""
    try:
        return [str(identity) for identity in read_json_object(folder / "config.json")["launch"]]
    except (UserError, KeyError, TypeError):
        return []


def _stored(config: Path) -> dict[str, Any]:
    """A run's `config.json`. UserError if it is damaged."""
    try:
        stored = read_json_object(config)
        leaves(stored["parameters"])
        return stored
    except (UserError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{config} is damaged; delete it, and --run.resume writes it anew from the command that you give"
        ) from None


def model_folder(source: str, save_dir: str, results: tuple[str, ...]) -> str:
    """The model folder that a user names by path: itself, or that of a run whose result is one of `results`; a run may
    be named without its `save_dir`. What is neither stays as it is, so that loading it says what is wrong. UserError
    for a run that has no such result.
    """
    for folder in (Path(source), Path(save_dir) / source):
        if is_model_folder(folder):
            return str(folder)
        for result in results:
            if (folder / result / "config.json").is_file():
                return str(folder / result)
        config = folder / "config.json"
        if config.is_file() and (stage := read_json_object(config).get("stage")):
            raise UserError(
                f"{folder} is a run of {stage} without {' or '.join(f'{result}/' for result in results)}; name a run "
                "that "
                "has one, or a model folder"
            )
    return source


def reward_model_folders(names: Sequence[str], save_dir: str) -> list[str]:
    """The model folders of reward models that are named by run or path; a run of several members stands for all of
    them.
    """
    folders: list[str] = []
    for name in names:
        places = (Path(find_path(name)), Path(save_dir) / name)
        members = next((found for place in places if (found := sorted(place.glob("member_*/reward_model")))), [])
        folders += [str(folder) for folder in members] or [model_folder(str(places[0]), save_dir, ("reward_model",))]
    return folders


def model_and_task(experiment: str, save_dir: str) -> tuple[Path, TaskParams | None]:
    """The language model and task of a run given by name or path, or a model folder itself (which has no task).
    UserError if there is none.
    """
    for folder in (Path(save_dir) / experiment, find_path(experiment)):
        if is_model_folder(folder):
            return folder, None
        if (folder / "config.json").exists():
            config = read_json_object(folder / "config.json")
            parameters = config.get("parameters")
            task = parameters.get("task") if isinstance(parameters, dict) else None
            for name in ("policy", "lm"):
                if (folder / name).is_dir():
                    return folder / name, from_dict(TaskParams, task) if task else None
            raise UserError(_why_no_language_model(folder, config.get("stage")))
    raise UserError(f"there is no run or model folder {experiment!r} in {save_dir}{who_makes(experiment)}")


def who_makes(experiment: str) -> str:
    """What trains a run of the demonstration, for the line that says that it is missing; empty for other names."""
    return "; make demo trains it" if experiment in ("demo_reward", "demo_policy", "demo_evaluation") else ""


def _why_no_language_model(folder: Path, stage: Any) -> str:
    """Why the folder of a run or of results holds no language model, and what to name instead."""
    if stage == "train_reward":
        return (
            f"{folder} trains a reward model, which writes no text: name a run of train_policy or train_sft, or "
            "measure "
            "it with reward_quality"
        )
    if stage in ("sweep", "sweep_shares", "compare"):
        policies = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("policy"))
        example = f", such as {folder.name}/{policies[0]}" if policies else " when they are trained"
        return f"{folder} is a {stage} of several policies: name one of them{example}"
    if stage in ("evaluate", "reward_quality"):
        return f"{folder} holds results of {stage}, not a model"
    return f"{folder} has no policy/ or lm/ folder yet: its training has not finished"
