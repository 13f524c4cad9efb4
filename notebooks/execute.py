"""Execute the notebooks and store them with their outputs.

    python notebooks/execute.py [NAME ...] [--small] [--output FOLDER]

NAME is the beginning of a notebook's name (`03`); without one all are executed, one after the other. A notebook is
stored where it lies, with outputs and figures, and without what changes from run to run or machine to machine.
Exercises stay unanswered: their checks say so and the rest goes on. `--small` computes everything in seconds, to see
whether it runs; its outputs mean nothing, so they need an `--output` folder.
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import atomic_file

from lesson import SMALL

HERE = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
NOT_EXECUTED = "skip-execution"  # tag of cells that are for the reader alone
SECONDS = 1800  # that a cell may take


def sources_digest(notebook: Any) -> str:
    """What the stored outputs were made from: a SHA-256 of the sources of all code cells."""
    text = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(text.encode()).hexdigest()


def execute(notebook: Any) -> None:
    """Run all cells in a new kernel, in the notebooks' folder. nbclient's CellExecutionError where one fails."""
    from nbclient import NotebookClient

    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(HERE)}},
        skip_cells_with_tag=NOT_EXECUTED,
        record_timing=False,
    ).execute()


def clean(notebook: Any) -> list[str]:
    """Leave in a notebook what a reader wants and nothing of the machine; returns the lines of warnings that go.

    Cells are numbered; standard error (progress bars) goes; outputs written one after the other become one.
    """
    lost: list[str] = []
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type != "code":
            continue
        kept: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                lines = re.split(r"[\r\n]+|\x1b\[\w", output.text)
                lost += [line for line in lines if line.strip() and not re.search(r"\d+%\|", line)]
            elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
            else:
                if "metadata" in output:
                    output.metadata = {}
                kept.append(output)
        cell.outputs = kept
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return lost


def write(notebook: Any, path: Path) -> None:
    """Store a notebook, whole or not at all."""
    import nbformat

    nbformat.validate(notebook)
    with atomic_file(path) as temporary:
        nbformat.write(notebook, temporary)


def find(names: list[str]) -> list[Path]:
    """The notebooks whose names begin so; all of them for none. UserError for one that there is not."""
    there = sorted(HERE.glob("[0-9]*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in there):
            raise UserError(f"there is no notebook {name}: there are {', '.join(path.stem for path in there)}")
    return [path for path in there if not names or path.name.startswith(tuple(names))]


def run(names: list[str], small: bool, output: Path) -> None:
    """Execute and store. UserError where a cell fails."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    if small and output == HERE:
        raise UserError("--small makes outputs that mean nothing: give a folder for them with --output")
    os.environ.pop(SMALL, None)
    if small:
        os.environ[SMALL] = "1"
    output.mkdir(parents=True, exist_ok=True)
    for path in find(names):
        print(f"{path.name} ...", flush=True)
        notebook = nbformat.read(path, as_version=4)
        try:
            execute(notebook)
        except CellExecutionError as error:
            raise UserError(f"{path.name}: {error}") from None
        for line in clean(notebook):
            print(f"  not stored: {line}")
        notebook.metadata["executed"] = sources_digest(notebook)
        write(notebook, output / path.name)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of names; none: all")
    parser.add_argument("--small", action="store_true", help="everything in seconds, to see whether it runs")
    parser.add_argument("--output", type=Path, default=HERE, metavar="FOLDER", help="where to store (the same folder)")
    words = parser.parse_args()
    run(words.names, words.small, words.output)


if __name__ == "__main__":
    main()
