"""Personal links: who holds one is who it names. A token is made from the study's secret and never stored.

The secret is a file that only its owner can read. Whoever has it, or a copy of the study's folder, can make any link.
"""

import base64
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from lm_human_preferences.foundation.errors import UserError

SECRET = "secret"  # a file in a study's folder
DASHBOARD = "/dashboard"  # whom the dashboard's token names; no labeller's name has a slash
_BYTES = 32
_DIGITS = 16  # of a token's expiry, hexadecimal, at most


def secret_of(folder: Path) -> bytes:
    """The study's secret, made where there is none. UserError for a file that holds something else."""
    path = Path(folder) / SECRET
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
    value = path.read_bytes()
    if len(value) != _BYTES:
        raise UserError(f"{path} is damaged; delete it, and new links are made")
    return value


def token_of(secret: bytes, name: str, expires: int) -> str:
    """The token of a labeller (or DASHBOARD). expires: Unix time in seconds after which it is void; 0 for never."""
    digest = hmac.digest(secret, f"{expires}/{name}".encode(), hashlib.sha256)
    return f"{expires:x}-{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def holder_of(secret: bytes, names: list[str], token: str, now: float | None = None) -> str | None:
    """Whom of `names` a token names; None if nobody, or no longer. Takes as long for a wrong token as for a right one:
    every name is compared, each in constant time.
    """
    number, _, _ = token.partition("-")
    try:
        expires = int(number, 16) if len(number) <= _DIGITS else 1
    except ValueError:
        expires = 1
    given, found = token.encode("utf-8", "replace"), None
    for name in names:
        if hmac.compare_digest(given, token_of(secret, name, expires).encode()):
            found = name
    return None if expires and expires <= (time.time() if now is None else now) else found
