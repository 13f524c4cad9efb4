"""A study's folder: `config.json`, the store, and the secret of its links. The page and a training run share it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import make_folder, read_json_object, write_json
from lm_human_preferences.people.records import StudyParams
from lm_human_preferences.people.store import Store
from lm_human_preferences.runs.folder import check_is_folder

STAGE = "collect"  # what a study's config.json calls it
LOCK = ".collecting"  # in the folder while its page is served


def check_study_folder(folder: Path, task: str) -> None:
    """UserError where something other than a study of this task lies there."""
    check_is_folder(folder)
    config = folder / "config.json"
    if not folder.is_dir() or all(path.name == LOCK for path in folder.iterdir()):
        return
    stored = read_json_object(config) if config.exists() else {}
    if stored.get("stage") != STAGE:
        raise UserError(f"{folder} exists and holds no study; give another name")
    if stored.get("task") != task:
        raise UserError(f"{folder} is a study of task {stored.get('task')}, not {task}; give another name")


def open_study(folder: Path, task: str, study: StudyParams, task_params: dict[str, Any], settle: bool = True) -> Store:
    """The study's store, made where there is none. UserError where its questions have other numbers of responses.

    settle: these settings hold from now on; else only where there are none.
    """
    make_folder(folder)
    if not (folder / "config.json").exists():  # first: a folder with a store and without it is refused
        write_json(folder / "config.json", {"stage": STAGE, "task": task, "study": asdict(study)})
    store = Store(folder, make=True)
    before = store.settings()
    if before is not None and store.one("SELECT 1 FROM questions LIMIT 1"):
        for name in ("responses", "mode"):
            now, then = getattr(study, name), before["study"][name]
            if now != then:
                store.close()
                raise UserError(f"--study.{name} {now}: {folder} has questions with {then}; give another name")
    if settle or before is None:
        store.settle({"task": task, "study": asdict(study), "task_params": task_params})
    return store
