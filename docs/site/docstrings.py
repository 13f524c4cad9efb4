"""Docstrings are plain text; the reference shows them as Markdown. What the two read differently is mended here."""

import re
from typing import Any

import griffe


def as_markdown(text: str) -> str:
    """A docstring whose aligned columns stay aligned, and in which neighbouring brackets are no link."""
    blocks = text.split("\n\n")
    for number, block in enumerate(blocks):
        if re.search(r"\S {3,}\S", block) and not block.startswith("    "):
            blocks[number] = "\n".join(f"    {line}" for line in block.split("\n"))
        elif not block.startswith("    "):
            blocks[number] = block.replace("][", "]\u200b[")
    return "\n\n".join(blocks)


class PlainText(griffe.Extension):
    """Called for each object of the library."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
