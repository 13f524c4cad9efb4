"""What README.md, CONTRIBUTING.md and docs/ say holds: commands parse, links lead somewhere, what is named exists."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from lm_human_preferences.commands import command_line

from load_scripts import load_script
from params import EXPERIMENTS
from small import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "saved_models/tiny/README.md",
    ROOT / "notebooks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINES = sorted(
    {
        line.strip().partition(" #")[0].strip()
        for page in PAGES
        for line in page.read_text().splitlines()
        if line.startswith("    python ")
    }
    | set(re.findall(r"\| `(python [^`]+)`", (ROOT / "README.md").read_text()))
)
COMMANDS = [line for line in LINES if line.startswith("python launch.py")]
SCRIPTS = [line for line in LINES if line.startswith(("python datasets/", "python saved_models/", "python notebooks/"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_one(command, capsys):
    """A stage resolves its parameters; the other commands exist."""
    words = shlex.split(command)[2:]
    if words[0] in command_line.STAGES:
        if words[1].endswith(".json"):  # a task in a file, which commands/test_your_data.py has
            words[1] = "own"
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


def test_the_sentiment_demonstration_is_what_its_page_says():
    """The Makefile's commands, but for what lets them be run again."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (recipe,) = re.findall(r"^demo-sentiment:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    ran = [shlex.split(line.replace("$(RUN)", "").strip()) for line in recipe.splitlines()]
    page = (ROOT / "docs/sentiment.md").read_text().partition("\n## ")[0]
    documented = [shlex.split(line) for line in re.findall(r"^    python (.*)$", page, re.MULTILINE)]
    again = {"--run.overwrite", "--overwrite"}
    assert documented == [[word for word in words if word not in again] for words in ran]


def test_the_pages_show_a_command_of_each_stage():
    assert all(any(f"launch.py {stage} " in command for command in COMMANDS) for stage in command_line.STAGES)


def anchors(page: Path) -> set[str]:
    """Where links into a page may lead: its headings, as the web shows them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text())
    wrong = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not link.startswith("http") and (not target.exists() or anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@each_page
def test_prose_has_lines_of_at_most_120_characters(page):
    """Tables, commands and links that fill a line cannot be wrapped."""
    prose = [
        line
        for line in page.read_text().splitlines()
        if not line.startswith(("|", "    ", "<img")) and not re.fullmatch(r"\W*\[[^]]+\]\([^)]+\)[,.;]?", line)
    ]
    assert [line for line in prose if len(line) > 120] == []


def test_the_log_has_entries_newest_first_and_all_of_them_in_its_index():
    text = (ROOT / "docs/log.md").read_text()
    index, _, _ = text.partition("\n## 20")
    entries = re.split(r"^## (?=20)", text, flags=re.MULTILINE)[1:]
    dates = [re.match(r"(\d{4}-\d\d-\d\d): \S", entry)[1] for entry in entries]
    assert dates == sorted(dates, reverse=True)
    parts = ["Question", "Tried", "Seen", "Concluded"]
    assert [entry for entry in entries if re.findall(r"^\*\*(\w+)\.\*\* ", entry, re.MULTILINE) != parts] == []
    assert sorted(re.findall(r"\]\(#(20[^)]+)\)", index)) == sorted(
        anchor for anchor in anchors(ROOT / "docs/log.md") if anchor.startswith("20")
    )


def missing_names(text: str) -> list[str]:
    """Of each `file.py: name, name` in the text, what is not defined in that file."""
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
            or not re.search(rf"\b(def|class) {name}\b|^\s*(self\.)?{name}\b.*[:=]", path.read_text(), re.MULTILINE)
        ]
    return missing


def test_functions_named_for_readers_of_the_original_exist():
    """In the right column of docs/from_the_original.md; the left one names the original's."""
    rows = [line.split("|") for line in (ROOT / "docs/from_the_original.md").read_text().splitlines()]
    named = "\n".join(cells[2] for cells in rows if len(cells) > 3)
    assert "`" in named and missing_names(named) == []


def test_tests_and_functions_named_in_the_details_exist():
    """Each `file.py: name` and `test_file.py::test_name` of docs/implementation_details.md."""
    text = (ROOT / "docs/implementation_details.md").read_text()
    missing = missing_names(text)
    for file, name in re.findall(r"(test_\w+\.py)::(\w+)", text):
        path = next((ROOT / "tests").rglob(file), Path(file))
        missing += [] if path.exists() and f"def {name}(" in path.read_text() else [f"{file}::{name}"]
    assert missing == []
