"""The notebooks run, each check accepts its solution and refuses wrong answers, and what is stored is clean and true.

They are executed with small settings on a made-up data set, so that nothing is downloaded and each takes seconds.
"""

import copy
import re
import sys
from pathlib import Path

import nbformat
import pytest

from lm_human_preferences.foundation.errors import UserError

from load_scripts import load_script, run_main
from small import ROOT
from wrong_answers import WRONG_ANSWERS

sys.path.insert(0, str(ROOT / "notebooks"))
sys.path.insert(0, str(ROOT / "tests/scripts"))
sys.path.insert(0, str(ROOT / "tests/house"))

import execute
from lesson import SMALL, WrongAnswer, check
from test_docs import missing_names
from test_movies import write_source

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SENTENCES = 900  # of the made-up film reviews
LARGEST = 600_000  # bytes of a stored notebook
EXERCISE, CHECK, SOLUTION = "exercise:", "check:", "solution:"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def tagged(notebook, prefix: str) -> dict[str, int]:
    """Name -> place of the cells with a tag prefix:name."""
    return {
        tag.removeprefix(prefix): place
        for place, cell in enumerate(notebook.cells)
        for tag in cell.metadata.get("tags", [])
        if tag.startswith(prefix)
    }


def solution_of(notebook, name: str) -> str:
    """The code of a solution, which lies folded in a text cell."""
    text = notebook.cells[tagged(notebook, SOLUTION)[name]].source
    assert text.startswith("<details><summary>Solution</summary>\n\n") and text.endswith("\n\n</details>")
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def copy_of(cell, *, source: str | None = None, **marks):
    """A cell anew, with marks for this test in its metadata; one that may fail does not end the notebook."""
    fresh = nbformat.v4.new_code_cell(cell.source if source is None else source)
    fresh.metadata = {"marks": marks} | ({"tags": ["raises-exception"]} if "wrong" in marks else {})
    return fresh


def with_answers(notebook, wrong_answers):
    """The notebook with wrong answers, then the solution, behind each exercise that is left open, and its check behind
    each of them.
    """
    notebook = copy.deepcopy(notebook)
    name_of = {place: name for name, place in tagged(notebook, CHECK).items()}
    exercises, cells = tagged(notebook, EXERCISE), []
    for place, cell in enumerate(notebook.cells):
        cells.append(cell)
        if (name := name_of.get(place)) is None:
            continue
        cell.metadata["marks"] = {"open": name}
        exercise = notebook.cells[exercises[name]]
        for source, said in wrong_answers[name]:
            cells += [copy_of(exercise, source=source), copy_of(cell, wrong=name, said=said)]
        cells += [copy_of(exercise, source=solution_of(notebook, name)), copy_of(cell, solved=name)]
    notebook.cells = cells
    return notebook


def said_by(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A project folder of made-up film reviews, and the shipped model."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "saved_models").mkdir()
    (folder / "saved_models/tiny").symlink_to(ROOT / "saved_models/tiny")
    source = write_source(folder / "source", SENTENCES)
    run_main(load_script("datasets/movies.py"), "--input", source, "--output", folder / "datasets/movies")
    return folder


# --- what they compute ---


@each
def test_a_notebook_runs_and_its_checks_tell_right_from_wrong(path, home, monkeypatch):
    """In one kernel: each exercise as it stands, with wrong answers, and with its solution."""
    monkeypatch.setenv("LMHP_HOME", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv(SMALL, "1")
    notebook = with_answers(nbformat.read(path, as_version=4), WRONG_ANSWERS[path.stem])
    execute.execute(notebook)
    marked = [(cell.metadata["marks"], cell) for cell in notebook.cells if cell.metadata.get("marks")]
    for marks, cell in marked:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if "wrong" in marks:
            assert [error.ename for error in errors] == ["WrongAnswer"], (marks, cell.source, cell.outputs)
            assert marks["said"] in errors[0].evalue, marks
            assert errors[0].traceback == [f"Not yet: {errors[0].evalue}"]
        else:
            wanted = "Not answered yet" if "open" in marks else "Right."
            assert said_by(cell).startswith(wanted), (marks, cell.outputs)
    assert len([1 for marks, _ in marked if "solved" in marks]) == len(tagged(notebook, EXERCISE)) > 0


def test_an_answer_is_right_wrong_or_open(capsys):
    def needs_two(answer):
        assert answer() == 2, "it is two"

    check(lambda: 2)(needs_two)
    check(lambda: ...)(needs_two)
    check(...)(needs_two)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Right.",
        "Not answered yet",
        "Not answered yet",
    ]
    with pytest.raises(WrongAnswer, match="^it is two"):
        check(lambda: 3)(needs_two)
    with pytest.raises(WrongAnswer, match="^ZeroDivisionError: "):
        check(lambda: 1 / 0)(needs_two)


# --- how they are made ---


def test_there_are_eight_and_each_has_wrong_answers_to_its_exercises():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 9)]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        exercises, checks, solutions = (tagged(notebook, prefix) for prefix in (EXERCISE, CHECK, SOLUTION))
        assert exercises.keys() == checks.keys() == solutions.keys() == WRONG_ANSWERS[path.stem].keys(), path.stem
        assert 3 <= len(exercises) <= 4
        assert all(WRONG_ANSWERS[path.stem].values())
        for name in exercises:
            assert exercises[name] + 1 == checks[name] == solutions[name] - 1
            assert "..." in notebook.cells[exercises[name]].source


@each
def test_a_notebook_says_what_one_will_be_able_to_do_and_where_to_go_on(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith(f"# {path.name[:2]} · ") and "you will be able to**\n\n- " in texts[0]
    assert "## Where to go on" in texts[-1] and "arxiv.org/abs/" in texts[-1]
    assert missing_names("\n".join(texts)) == []
    for link in re.findall(r"\]\(([^)]+)\)", "\n".join(texts)):
        assert link.startswith("http") or (path.parent / link.partition("#")[0]).exists(), link


# --- what is stored ---


@each
def test_a_stored_notebook_has_its_own_outputs_and_nothing_of_the_machine(path):
    notebook, text = nbformat.read(path, as_version=4), path.read_text(encoding="utf-8")
    assert notebook.metadata["executed"] == execute.sources_digest(notebook), f"python notebooks/execute.py {path.stem}"
    code = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and execute.NOT_EXECUTED not in cell.metadata.get("tags", [])
    ]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} <= {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    before = text, copy.deepcopy(notebook)
    assert execute.clean(notebook) == [] and notebook.cells == before[1].cells  # it is as `clean` leaves it
    shown = "\n".join(
        output.get("text", "")
        + "".join(str(data) for kind, data in output.get("data", {}).items() if kind != "image/png")
        for output in outputs
    )
    assert not re.search(r"/(home|root|tmp|work|Users)/|Warning|Traceback|\d\d:\d\d:\d\d", shown)
    assert not re.search(r"at 0x[0-9a-f]{6}", shown)
    assert len(text) < LARGEST


def test_executing_stores_the_outputs_without_the_machine(tmp_path, monkeypatch):
    """And a notebook whose cells were changed afterwards is found."""
    source = tmp_path / "notebooks"
    source.mkdir()
    notebook = nbformat.v4.new_notebook(metadata={"signature": "x"})
    noisy = "import sys\nprint('a')\nsys.stderr.write('\\r 50%|###  | 1/2 [00:01<00:01, 1.0s/it]')\nprint('b')"
    notebook.cells = [nbformat.v4.new_code_cell(noisy), nbformat.v4.new_code_cell("1 / 0")]
    notebook.cells[1].metadata = {"tags": [execute.NOT_EXECUTED], "trusted": True}
    nbformat.write(notebook, source / "01_small.ipynb")
    monkeypatch.setattr(execute, "HERE", source)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    execute.run(["01"], small=False, output=source)
    stored = nbformat.read(source / "01_small.ipynb", as_version=4)
    assert [(output.name, output.text) for output in stored.cells[0].outputs] == [("stdout", "a\nb\n")]
    assert stored.cells[1].outputs == [] and stored.cells[1].metadata == {"tags": [execute.NOT_EXECUTED]}
    assert "signature" not in stored.metadata
    assert stored.metadata["executed"] == execute.sources_digest(stored)
    stored.cells[0].source += " "
    assert stored.metadata["executed"] != execute.sources_digest(stored)
    with pytest.raises(UserError, match="there is no notebook 02: there are 01_small"):
        execute.run(["02"], small=False, output=source)
    with pytest.raises(UserError, match="--output"):
        execute.run([], small=True, output=source)
