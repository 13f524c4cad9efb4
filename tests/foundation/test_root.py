"""Where the project lies, and what of it is found from another folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm_human_preferences.commands.inputs import missing
from lm_human_preferences.foundation.configuration import find_paths, flatten
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path, project_root

from params import EXPERIMENTS
from small import ROOT


def test_the_root_is_the_checkout_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LMHP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_root() == ROOT


def test_the_environment_decides_first(tmp_path, monkeypatch):
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    assert project_root() == tmp_path.resolve()
    monkeypatch.setenv("LMHP_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"LMHP_HOME=.*nowhere is not a folder"):
        project_root()
    monkeypatch.setenv("LMHP_HOME", "")
    assert project_root() == ROOT


def test_an_installed_package_takes_the_current_directory(tmp_path):
    """Not site-packages, where datasets/ is the folder of Hugging Face's package."""
    shutil.copytree(ROOT / "lm_human_preferences", tmp_path / "site/lm_human_preferences")
    (tmp_path / "here").mkdir()
    code = "from lm_human_preferences.foundation.root import project_root; print(project_root())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "here",
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(done.stdout.strip()) == (tmp_path / "here").resolve()


def test_a_path_is_found_where_the_user_stands_then_below_the_root(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    (project / "saved_models/tiny").mkdir(parents=True)
    here.mkdir()
    monkeypatch.setenv("LMHP_HOME", str(project))
    monkeypatch.chdir(here)
    assert find_path("saved_models/tiny") == project.resolve() / "saved_models/tiny"
    assert find_path("saved_models/new") == Path("saved_models/new")  # exists nowhere: as it was given
    assert find_path(here / "x") == here / "x"
    (here / "saved_models/tiny").mkdir(parents=True)
    assert find_path("saved_models/tiny") == Path("saved_models/tiny")


def test_a_web_address_stays_what_it_is():
    """The paper's labels are at one; as a path it would lose a slash, and the task its labels."""
    addresses = 0
    for stage, entries in EXPERIMENTS.items():
        for task, entry in entries.items():
            given, found = flatten(entry()), flatten(find_paths(entry()))
            for name, (value, _) in given.items():
                if isinstance(value, str) and "://" in value:
                    assert found[name][0] == value, (stage, task, name)
                    addresses += 1
    assert addresses > 4


def test_a_task_whose_labels_are_on_the_web_lacks_no_labels():
    lacks = missing(find_paths(EXPERIMENTS["train_reward"]["sentiment"]()))
    assert [lack for lack in lacks if "labels" in lack] == []
