"""What README.md and docs/ say holds: their commands parse, the files and tests that they name exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from lm_human_preferences.commands import command_line

from load_scripts import load_script
from params import EXPERIMENTS
from small import ROOT

PAGES = [ROOT / "README.md", ROOT / "saved_models/tiny/README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = sorted(
    {
        line.strip().partition("#")[0].strip()
        for page in PAGES
        for line in page.read_text().splitlines()
        if line.startswith("    python ")
    }
)
COMMANDS = [line for line in LINES if line.startswith("python launch.py")]
SCRIPTS = [line for line in LINES if line.startswith(("python datasets/", "python saved_models/"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_one(command, capsys):
    """A stage resolves its parameters; the other commands exist."""
    words = shlex.split(command)[2:]
    if words[0] in command_line.STAGES:
        command_line.run([*words, "--dry_run"], EXPERIMENTS)
        assert '"run"' in capsys.readouterr().out
    else:
        assert words[0] in {command.name for command in command_line.COMMANDS}


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_documented_script_takes_these_words(command, monkeypatch):
    class Parsed(Exception):
        pass

    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse_args(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr("sys.argv", shlex.split(command)[1:])
    with pytest.raises(Parsed):
        load_script(shlex.split(command)[1]).main()


def test_the_readme_shows_a_command_of_each_stage():
    assert all(any(f"launch.py {stage} " in command for command in COMMANDS) for stage in command_line.STAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text())
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


def test_tests_and_functions_named_in_the_details_exist():
    """Each `file.py: name` and `test_file.py::test_name` of docs/implementation_details.md."""
    text = (ROOT / "docs/implementation_details.md").read_text()
    library, missing = ROOT / "lm_human_preferences", []
    for file, names in re.findall(r"`((?:\w+/)?\w+\.py): ([^`]+)`", text):
        path = next(
            (p for p in (library / file, ROOT / file, ROOT / "datasets" / file, ROOT / "tests" / file) if p.exists()),
            None,
        )
        missing += [
            f"{file}: {name}"
            for name in re.findall(r"\w+", names)
            if path is None
            or not re.search(rf"\b(def|class) {name}\b|^\s*{name}\b.*[:=]", path.read_text(), re.MULTILINE)
        ]
    for file, name in re.findall(r"(test_\w+\.py)::(\w+)", text):
        path = next((ROOT / "tests").rglob(file), Path(file))
        missing += [] if path.exists() and f"def {name}(" in path.read_text() else [f"{file}::{name}"]
    assert missing == []
