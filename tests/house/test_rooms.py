"""The order of the rooms: each imports only from rooms before it, and nothing in the library imports what lies outside
it.
"""

import ast
from pathlib import Path

import pytest

from small import ROOT

LIBRARY = ROOT / "lm_human_preferences"
ORDER = [
    "foundation",
    "compute",
    "language",
    "data",
    "learning",
    "judging",
    "runs",
    "watching",
    "serving",
    "people",
    "stages",
    "reports",
    "commands",
]
OUTSIDE = ("launch", "params", "tests", "benchmarks")


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module given by the parts of its path below the library; a file that lies in no room is a stage."""
    return parts[0] if parts[0] in ORDER else "stages"


def imported(path: Path) -> list[str]:
    """The dotted names of all modules that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def against_the_order(library: Path) -> list[str]:
    """What imports from a room after its own, or from outside the library, as lines."""
    found = []
    for path in sorted(library.rglob("*.py")):
        here = path.relative_to(library).with_suffix("").parts
        for name in imported(path):
            package, *below = name.split(".")
            if package in OUTSIDE:
                found.append(f"{path.relative_to(library)} imports {name}, which lies outside the library")
            if package != "lm_human_preferences" or here == ("__init__",) or not below:
                continue
            if ORDER.index(room_of(tuple(below))) > ORDER.index(room_of(here)):
                found.append(
                    f"{path.relative_to(library)} imports {name}: {room_of(tuple(below))} comes after {room_of(here)}"
                )
    return found


def test_each_room_imports_only_from_rooms_before_it():
    assert against_the_order(LIBRARY) == []


@pytest.mark.parametrize(
    "room, line",
    [
        ("foundation", "from lm_human_preferences.compute import distributed"),
        ("learning", "import lm_human_preferences.judging.judges"),
        ("runs", "def later():\n    from lm_human_preferences.train_sft import train"),
        ("watching", "from lm_human_preferences import train_policy"),
        ("data", "from params import EXPERIMENTS"),
    ],
)
def test_an_import_against_the_order_is_found(tmp_path, room, line):
    """So that the test above cannot pass for not looking."""
    (tmp_path / room).mkdir()
    (tmp_path / room / "planted.py").write_text(line + "\n")
    assert len(against_the_order(tmp_path)) == 1


def test_every_room_says_what_lives_there():
    for room in ORDER:
        if room != "stages":
            text = ast.get_docstring(ast.parse((LIBRARY / room / "__init__.py").read_text(encoding="utf-8")))
            assert text and "Begin with" in text and "import" in text.lower(), room
            assert len(text.splitlines()) <= 12, room
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ORDER) - {
        "stages"
    }
    assert {path.name for path in LIBRARY.glob("*.py")} == {
        "__init__.py",
        "train_sft.py",
        "train_reward.py",
        "policy_params.py",
        "before_policy.py",
        "train_policy.py",
        "train_online.py",
        "train_dpo.py",
        "train_ilql.py",
        "expert_iteration.py",
    }
