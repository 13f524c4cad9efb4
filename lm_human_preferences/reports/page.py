"""One HTML page that needs no other file and no network.

templates/page.html is the page, templates/parts.html what its sections are made of, page.css its style and page.js its
script; `write_page` puts all into one file. Jinja escapes whatever comes from a run. Besides, the page's policy lets no
script run but ours, which it names by its digest.
"""

import base64
import functools
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

PRINTED = 12  # samples that go to paper; page.css counts with it
TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # has no place in HTML, or cannot be encoded


class Section(NamedTuple):
    """A part of a page with its heading."""

    title: str
    body: Markup


def write_page(path: Path, title: str, facts: list[str], sections: list[Section], script: bool) -> None:
    """The page at `path`. `facts` stand below the title; `script`: whether it has samples to sort."""
    code = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    content = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            facts=facts,
            sections=sections,
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(code) if script else "",
            digest=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        )
    )
    path.write_text(_CONTROL.sub("\ufffd", content), encoding="utf-8")


def part(name: str, *values: Any) -> Markup:
    """The macro `name` of templates/parts.html, given `values`, which it escapes unless they are Markup."""
    return Markup(getattr(_environment().get_template("parts.html").module, name)(*values))


def joined(*parts: Markup) -> Markup:
    """Parts below each other."""
    return Markup("").join(parts)


def origin(config: dict[str, Any]) -> Section:
    """How a run or result came about: command, parameters, versions of its config.json."""
    command = [str(word) for word in config.get("command") or []]
    if command and command[0].endswith(".py"):
        command.insert(0, "python")
    versions = {**(config.get("versions") or {}), "commit": config.get("commit") or "not from a git checkout"}
    parameters = config.get("parameters")
    tables = {"Parameters": _groups(parameters if isinstance(parameters, dict) else {}), "Versions": _groups(versions)}
    return Section("Configuration", part("origin", shlex.join(command), tables))


def _groups(values: dict[str, Any], prefix: str = "") -> dict[str, dict[str, str]]:
    """Nested values as dotted group -> name -> value as text, groups without a value of their own left out."""
    own = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if not isinstance(value, dict)
    }
    groups = {prefix: own} if own else {}
    for name, value in values.items():
        if isinstance(value, dict):
            groups |= _groups(value, f"{prefix}.{name}" if prefix else name)
    return groups


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"data_url": _data_url, "flags_as_code": _flags_as_code}
    return environment


def _data_url(path: Path) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _flags_as_code(sentence: str) -> Markup:
    """The sentence with each --parameter as code, so that no line ends within its name."""
    # str: parts of Markup that are joined are escaped again
    return Markup(re.sub(r"--[\w.]+\w", r"<code>\g<0></code>", str(escape(sentence))))
