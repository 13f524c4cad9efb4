"""Where the project lies: datasets/ and saved_models/ are looked for there when they are not where the user stands."""

import os
from pathlib import Path

from lm_human_preferences.foundation.errors import UserError

HOME = "LMHP_HOME"


def project_root() -> Path:
    """The folder that holds datasets/ and saved_models/, an absolute path, found out anew at each call.

    The environment variable LMHP_HOME if it is set; else the source checkout that the library lies in, known by its
    launch.py; else, where the library is an installed package, the current directory. UserError if LMHP_HOME is not
    a folder.
    """
    if home := os.environ.get(HOME):
        if not Path(home).is_dir():
            raise UserError(f"{HOME}={home} is not a folder; set it to the one that holds datasets/ and saved_models/")
        return Path(home).resolve()
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "launch.py").is_file() else Path.cwd()


def find_path(path: str | Path) -> Path:
    """Where a file or folder lies that a parameter names.

    `path` itself if it is absolute, or exists seen from the current directory, or exists nowhere (so that what a
    command makes anew is made where its user stands, and messages show what was typed); else below the project's root.
    So `saved_models/tiny` is found from any folder.
    """
    path = Path(path)
    if path.is_absolute() or os.path.lexists(path):
        return path
    below = project_root() / path
    return below if os.path.lexists(below) else path
