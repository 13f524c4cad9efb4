"""`SHA256SUMS` in a model folder (`sha256sum -c` reads it): tells damaged files from whole ones.

A folder without it, from elsewhere, is taken as it is.
"""

from pathlib import Path

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import sha256

DIGESTS = "SHA256SUMS"


def write_digests(folder: Path) -> None:
    """Write the list, of all files that lie in `folder` now."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")


def listed(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 in hexadecimal; empty for a folder without a list. UserError if the list is damaged."""
    path = folder / DIGESTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        result = {}
        for line in lines:
            digest, name = line.split()
            result[name] = digest
        return result
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; fetch the folder again") from None


def check_digest(path: Path) -> None:
    """UserError if the list beside `path` has another SHA-256 for it."""
    if listed(path.parent).get(path.name, "") not in ("", sha256(path)):
        raise UserError(
            f"{path} is damaged or was changed: its SHA-256 is not the one in {DIGESTS}; fetch it again, "
            f"or delete {DIGESTS} if you changed it"
        )
