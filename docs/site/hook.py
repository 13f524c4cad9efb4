"""What the site has besides docs/: README as its first page, other files that pages link to, the notebooks, and a
reference made from the docstrings. MkDocs calls the functions that begin with `on_`.

Every page keeps the links that it has in the repository, so that they work there too. Here a link is looked up by the
file that it names: a page of the site, a picture, or else a text file, which then gets a page of its own.
"""

import ast
import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "lm_human_preferences"
# pages that lie elsewhere in the repository -> their place in the site
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "saved_models/tiny/README.md": "tiny.md",
}
LANGUAGES = {".py": "python", ".json": "json", ".jsonl": "json", ".toml": "toml", ".yml": "yaml", ".css": "css"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"
THEIR_WORKER = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))|(?<=src=\")([^\"]+)(?=\")|(?<=href=\")([^\"]+)(?=\")")
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def place_of(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    if PurePosixPath(path).suffix in (".png", ".svg", ".jpg"):
        return path
    return f"source/{path.rstrip('/')}.md"


def path_of(place: str) -> str:
    """The file of the repository that a page of the site is made from."""
    known = {there: path for path, there in ELSEWHERE.items()}
    if place in known:
        return known[place]
    if place.startswith("notebooks/"):
        return place.removesuffix(".md") + ".ipynb"
    if place.startswith("source/"):
        return place.removeprefix("source/").removesuffix(".md")
    return f"docs/{place}"


def is_elsewhere(link: str) -> bool:
    """Whether a link leads out of the repository, or to a place on its own page."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*:|#", link, re.IGNORECASE))


def links_of(markdown: str) -> Iterator[str]:
    """Links to files, those in code left out."""
    for found in _LINK.finditer(_FENCED.sub("", markdown)):
        if not is_elsewhere(found[0]):
            yield found[0]


def target_of(link: str, path: str) -> str:
    """The file of the repository that a link on the page `path` names."""
    file = link.partition("#")[0]
    return os.path.normpath(PurePosixPath(path).parent / file) if file else path


def rewritten(markdown: str, path: str) -> str:
    """The page `path` with links to the places in the site."""
    here = PurePosixPath(place_of(path)).parent

    def link_here(found: re.Match[str]) -> str:
        link = found[0]
        if is_elsewhere(link) or not (ROOT / target_of(link, path)).exists():
            return link
        _, mark, anchor = link.partition("#")
        return os.path.relpath(place_of(target_of(link, path)), here) + mark + anchor

    parts, end = [], 0
    for fenced in _FENCED.finditer(markdown):
        parts += [_LINK.sub(link_here, markdown[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, _LINK.sub(link_here, markdown[end:])])


# --- pages that are made ---


def page_of_source(path: str) -> str:
    """A text file as a page; of a folder, the files in it."""
    file = ROOT / path
    if file.is_dir():
        return f"{NOT_SEARCHED}# {path}/\n\n" + "".join(
            f"- `{one.name}`\n" for one in sorted(file.iterdir()) if one.is_file()
        )
    text, fence = file.read_text(encoding="utf-8"), "~" * 8
    return f"{NOT_SEARCHED}# {path}\n\n{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def page_of_notebook(path: str, add: Callable[[str, bytes], None]) -> str:
    """A notebook as a page: texts as they are, code and what it printed as blocks. `add(place, content)` keeps a
    picture that it has drawn.
    """
    parts = []
    for number, cell in enumerate(json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("<details>", '<details markdown="1">'))
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"~~~~~~~~python\n{source.rstrip()}\n~~~~~~~~")
        for place, output in enumerate(cell.get("outputs", [])):
            parts += shown_output(output, f"{path.removesuffix('.ipynb')}_files/{number}_{place}", add)
    return "\n\n".join(parts) + "\n"


def shown_output(output: dict[str, Any], place: str, add: Callable[[str, bytes], None]) -> list[str]:
    """What a cell printed, drew or returned. Of several forms of one thing the first that a page can show."""
    data = output.get("data", {})
    html = "".join(data.get("text/html", []))
    if "image/png" in data:
        picture, content = f"{place}.png", base64.b64decode("".join(data["image/png"]))
    elif "image/svg+xml" in data:
        picture, content = f"{place}.svg", "".join(data["image/svg+xml"]).encode()
    elif html and "<script" not in html:
        lines = "\n".join(line for line in html.splitlines() if line.strip())  # an empty one would end the block
        return [f"<div>\n{lines}\n</div>"]
    else:
        text = "".join(output.get("text") or data.get("text/plain") or []).rstrip()
        return [f"~~~~~~~~text\n{text}\n~~~~~~~~"] if text else []
    add(picture, content)
    return [f"![what the cell drew]({'/'.join(PurePosixPath(picture).parts[-2:])})"]


def rooms() -> list[str]:
    """The rooms of the library in their order, the stages as an empty name."""
    about = ast.get_docstring(ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = " ".join(line for line in about.splitlines() if line.startswith("    "))
    return listed.replace("(the stages)", "stages").split()


def page_of_room(room: str) -> str:
    """The reference of a room: what it says of itself, then each of its files."""
    folder = LIBRARY if room == "stages" else LIBRARY / room
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    parts = [f"# {room}", "" if room == "stages" else about]
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            parts.append(f"::: {module}")
    return "\n\n".join(parts) + "\n"


# --- what MkDocs calls ---


def notebooks() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*.ipynb"))


def title_of(path: str) -> str:
    """The first heading of a page or notebook."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"][:1])
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else Path(path).stem


def named_in(nav: Any) -> set[str]:
    """The pages that a navigation names, however deep."""
    if isinstance(nav, str):
        return {nav}
    parts = nav.values() if isinstance(nav, dict) else nav
    return set().union(*(named_in(part) for part in parts))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    assert config.nav is not None
    if notebooks():
        config.nav.insert(2, {"Notebooks": [{title_of(path): place_of(path)} for path in notebooks()]})
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    if missing := [{title_of(f"docs/{page}"): page} for page in pages if page not in named_in(config.nav)]:
        config.nav.append({"More": missing})
    config.nav.append({"Reference": [{room: f"reference/{room}.md"} for room in rooms()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/, and what the pages link to, and what is linked from there."""

    def add(place: str, content: str | bytes) -> None:
        files.append(File.generated(config, place, content=content))

    for path in ELSEWHERE:
        add(place_of(path), (ROOT / path).read_text(encoding="utf-8"))
    for path in notebooks():
        add(place_of(path), page_of_notebook(path, add))
    for room in rooms():
        add(f"reference/{room}.md", page_of_room(room))
    wanted = [file.src_uri for file in files.documentation_pages() if not file.src_uri.startswith("reference/")]
    for place in wanted:
        file = files.get_file_from_path(place)
        assert file is not None
        for link in links_of(file.content_string):
            target = target_of(link, path_of(place))
            if files.get_file_from_path(place_of(target)) is None and (ROOT / target).exists():
                if place_of(target).endswith(".md"):
                    add(place_of(target), page_of_source(target))
                else:
                    add(place_of(target), (ROOT / target).read_bytes())
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith(("reference/", "source/")):
        return markdown
    return rewritten(markdown, path_of(page.file.src_uri))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    return with_own_worker(output, page.url)


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    return with_own_worker(output, template_name) if template_name.endswith(".html") else output


def with_own_worker(html: str, url: str) -> str:
    """The page without the one script that the theme takes from elsewhere; ours does the same."""
    return html.replace(THEIR_WORKER, f'<script src="{get_relative_url("site/file_worker.js", url)}"></script>')
