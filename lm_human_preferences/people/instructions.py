"""Instructions to labellers: Markdown, known by the digest of its text."""

import hashlib
from pathlib import Path

from lm_human_preferences.foundation.errors import UserError

DEFAULT = Path(__file__).parent / "templates" / "instructions.md"


def read_instructions(path: str | None) -> tuple[str, str]:
    """Digest (SHA-256, hexadecimal) and text of a Markdown file; None is the one that comes with the program. UserError
    if it is missing, empty or not UTF-8.
    """
    file = DEFAULT if path is None else Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig").strip() + "\n"
    except FileNotFoundError:
        raise UserError(
            f"--instructions {path} does not exist; write one in Markdown, or leave it out for general ones"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--instructions {path} cannot be read: {error}; save it as UTF-8 text") from None
    if not text.strip():
        raise UserError(f"--instructions {path} is empty; say in it what makes a response good")
    return hashlib.sha256(text.encode()).hexdigest(), text


def as_html(text: str) -> str:
    """Markdown as HTML. What is HTML in it is shown as text, and links can run no script."""
    from markdown_it import MarkdownIt  # only the page needs it

    rendered: str = MarkdownIt("commonmark", {"html": False}).disable("image").render(text)
    return rendered
