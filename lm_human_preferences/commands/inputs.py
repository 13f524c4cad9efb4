"""What a command needs before it can begin: runs found by name, and the models, data and labels that may be missing."""

from pathlib import Path
from typing import Any

from lm_human_preferences.commands.command import nearest
from lm_human_preferences.data.queries import dataset_folder, preparation_command
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.language.gpt2 import SHAPES
from lm_human_preferences.runs.folder import who_makes
from lm_human_preferences.train_dpo import DPOParams
from lm_human_preferences.train_ilql import ILQLParams

MODELS_OF_THE_HUB = {  # that tasks start from, by their folder's name
    "gpt2-imdb": "lvwerra/gpt2-imdb",
    "distilgpt2": "distilgpt2",
    "dlite-v1-355m": "aisquared/dlite-v1-355m",
}


def find_run(experiment: str, save_dir: str) -> Path:
    """The folder of a run given by name or path. UserError if there is none."""
    for folder in (Path(save_dir) / experiment, find_path(experiment)):
        if (folder / "config.json").is_file():
            return folder
    runs = [folder.name for folder in Path(save_dir).glob("*") if folder.is_dir()]
    raise UserError(
        f"there is no run {experiment!r} in {save_dir}{who_makes(experiment) or nearest(experiment, runs, 0.5)}"
    )


def check_present(params: Any, task: str) -> None:
    """UserError in one line that lists all that `missing` finds."""
    if lacks := missing(params):
        raise UserError(f"task {task} needs {'; '.join(lacks)}")


def missing(params: Any) -> list[str]:
    """Which model, queries and labels a stage with these parameters needs and lacks, and the command that brings each.

    params: of a stage or of a sweep, its paths as `find_paths` leaves them.
    """
    lacks = []
    task = None if hasattr(params, "data") else params.task  # supervised training names model and data set itself
    model = task.policy.initial_model if task else params.model.initial
    if model is not None and not Path(model).is_dir():
        lacks.append(f"the model {model}{how_to_get_model(Path(model))}")
    dataset = (task.query_dataset if task else params.data.dataset).partition(":")[0]
    samples = not isinstance(params, DPOParams | ILQLParams)  # these have the queries of their labels
    if samples and not dataset_folder(dataset).is_dir():
        lacks.append(f"the data set {_shown(dataset)} ({preparation_command(Path(dataset).name)})")
    for source in _label_files(params):
        if source and "://" not in source and not Path(source).exists():
            how = " (python launch.py labels convert FILE OUTPUT makes such a file)" if "/own/" in source else ""
            lacks.append(f"the labels {source}{how}")
    return lacks


def _label_files(params: Any) -> list[str | None]:
    """The label files of this stage, of reward training where it comes first, and of a comparison's methods."""
    methods = [name.strip() for name in getattr(params, "methods", "").split(",")]
    learners = [params, *(getattr(params, name) for name in ("dpo", "ilql") if name in methods)]
    rewards, files = getattr(params, "rewards", None), list[str | None]()
    if rewards is not None and rewards.trained_model is None and rewards.function is None:
        if params.online is None:
            learners.append(rewards.train_new_model)
        elif rewards.train_new_model is not None:  # its labels are what people will answer
            files.append(rewards.train_new_model.labels.valid_source)
    for learner in learners:
        if hasattr(learner, "labels"):
            files += [learner.labels.source, learner.labels.valid_source]
    return list(dict.fromkeys(files))


def how_to_get_model(folder: Path) -> str:
    """What brings a model folder that is missing, in brackets; empty if nothing does."""
    if folder == Path("saved_models/tiny"):
        return " (it comes with the repository: git checkout saved_models/tiny)"
    if folder.name == "lm" and folder.parent.parent == Path("saved_models"):
        return f" (python launch.py train_sft TASK {folder.parent.name}, TASK being the one it is named after)"
    if folder.name in MODELS_OF_THE_HUB:
        return f" (python saved_models/prepare_pytorch_checkpoint.py {MODELS_OF_THE_HUB[folder.name]} --from hf)"
    return f" (python saved_models/prepare_pytorch_checkpoint.py {folder.name})" if folder.name in SHAPES else ""


def _shown(dataset: str) -> str:
    """A data set as its user knows it: a path as it was given, a name below datasets/."""
    return dataset if "/" in dataset else f"datasets/{dataset}"
