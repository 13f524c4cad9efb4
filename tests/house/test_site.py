"""The documentation's site: it builds without a warning (links and anchors among them), loads nothing from elsewhere,
and its search works on files that no server serves.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs requirements-docs.txt")

from browser import BROWSER, browser
from load_scripts import load_script
from small import ROOT

hook, docstrings = load_script("docs/site/hook.py"), load_script("docs/site/docstrings.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert made.returncode == 0, made.stderr[-3000:]
    return folder


def test_it_has_every_page_and_loads_nothing_from_elsewhere(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "tiny", "changelog", "contributing"}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    assert {path.stem for path in (site / "reference").glob("*.html")} == set(hook.rooms())
    assert {path.stem for path in (site / "notebooks").glob("*.html")} == {Path(one).stem for one in hook.notebooks()}
    links = set(
        re.findall(r'href="(\w+)\.html" class="md-nav__link"', (site / "glossary.html").read_text(encoding="utf-8"))
    )
    assert links >= pages - {"glossary"}  # the navigation has them all
    loaded = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\shref=\"?(?:https?:)?//")
    wrong = [str(path) for path in site.rglob("*.html") if loaded.search(path.read_text(encoding="utf-8"))]
    styles = [
        str(path)
        for path in site.rglob("*.css")
        if re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text())
    ]
    assert wrong == [] and styles == []


def test_links_of_the_built_pages_lead_to_files_and_anchors(site):
    """Of the pages as they are: what MkDocs makes of the links is looked up too, those in raw HTML among them."""
    anchors, wrong = {}, []
    for page in site.rglob("*.html"):
        anchors[page] = set(re.findall(r'\sid="([^"]+)"', page.read_text(encoding="utf-8")))
    for page in anchors:
        text = page.read_text(encoding="utf-8")
        body = text[text.find("<article") : text.find("</article")]
        for link in re.findall(r'(?:href|src)="([^"]+)"', body):
            file, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                wrong.append(f"{page.relative_to(site)}: {link}")
    assert wrong == []


def test_the_reference_has_the_functions_with_their_docstrings(site):
    text = (site / "reference/learning.html").read_text(encoding="utf-8")
    assert "compute_rewards" in text and "AdaptiveKLController" in text
    judging = re.sub(r"<[^>]+>", "", (site / "reference/judging.html").read_text(encoding="utf-8"))
    assert re.search(r"\nlexicon {20,}VADER", judging)  # a column of a docstring


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_search_works_without_a_server_and_the_page_follows_dark_and_light(site, tmp_path):
    with browser(tmp_path) as page:
        for width, dark in ((1300, False), (390, True)):
            page.size(width, 844, dark)
            page.open((site / "glossary.html").as_uri())
            page.until("getComputedStyle(document.body).backgroundColor !== ''")
            scheme = "slate" if dark else "default"
            page.until(f"document.body.getAttribute('data-md-color-scheme') === '{scheme}'")
            assert page.look("document.documentElement.scrollWidth <= innerWidth")
        page.size(1300, 844)
        page.open((site / "index.html").as_uri())
        page.look("document.querySelector('[data-md-component=search-query]').focus()")
        page.write("whitening")
        found = "[...document.querySelectorAll('.md-search-result__link')].map((link) => link.getAttribute('href'))"
        typed = "document.querySelector('[data-md-component=search-query]').dispatchEvent(new KeyboardEvent('keyup'))"
        page.until(f"{typed} && {found}.length > 0")  # the page may have listened too late to the first key
        assert any("glossary.html" in link for link in page.look(found))
        assert page.messages == []


# --- the hook ---


def test_links_lead_to_the_places_in_the_site():
    text = "[a](../README.md#what-it-comes-to) [b](play.md) ![c](../static/play.png) [d](../params.py) [e](https://x.y)"
    moved = (
        "[a](index.md#what-it-comes-to) [b](play.md) ![c](static/play.png) [d](source/params.py.md) [e](https://x.y)"
    )
    assert hook.rewritten(text, "docs/demo.md") == moved
    assert hook.rewritten("[a](docs/play.md) [b](#here)", "README.md") == "[a](play.md) [b](#here)"
    assert hook.rewritten("[a](../../docs/play.md)", "saved_models/tiny/README.md") == "[a](play.md)"
    assert hook.rewritten("[a](nowhere.md)", "docs/demo.md") == "[a](nowhere.md)"  # so that MkDocs complains
    fenced = "```python\nx[0](../params.py)\n```"
    assert hook.rewritten(fenced, "docs/demo.md") == fenced


def test_a_notebook_becomes_a_page(tmp_path, monkeypatch):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "<details>\n\n*hidden*\n</details>"]},
        {"cell_type": "code", "source": ["print(1)\n", "draw()"], "outputs": [
            {"output_type": "stream", "text": ["1\n", "2\n"]},
            {"output_type": "display_data", "data": {"image/png": "aGVsbG8=", "text/plain": ["<Figure>"]}},
            {"output_type": "execute_result", "data": {"text/plain": ["'x'"]}},
            {"output_type": "display_data", "data": {"text/html": ["<b>r</b>\n", "\n<i>b</i>"]}},
            {"output_type": "display_data", "data": {"text/html": ["<script>no()</script>"], "text/plain": ["safe"]}},
        ]},
        {"cell_type": "code", "source": [], "outputs": []},
    ]  # fmt: skip
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_first.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(hook, "ROOT", tmp_path)
    kept = {}
    text = hook.page_of_notebook("notebooks/01_first.ipynb", kept.__setitem__)
    assert kept == {"notebooks/01_first_files/1_1.png": b"hello"} and "<Figure>" not in text
    assert "![what the cell drew](01_first_files/1_1.png)" in text and '<details markdown="1">' in text
    for block in ("~~~~~~~~python\nprint(1)\ndraw()\n~~~~~~~~", "~~~~~~~~text\n1\n2\n~~~~~~~~", "text\n'x'\n"):
        assert block in text
    assert "<div>\n<b>r</b>\n<i>b</i>\n</div>" in text
    assert "<script" not in text and "text\nsafe\n" in text
    assert hook.notebooks() == ["notebooks/01_first.ipynb"] and hook.title_of("notebooks/01_first.ipynb") == "Title"


def test_docstrings_keep_their_columns_and_their_brackets():
    text = "Shapes [B][m].\n\nlexicon      VADER\nratings:X    words"
    assert docstrings.as_markdown(text) == "Shapes [B]\u200b[m].\n\n    lexicon      VADER\n    ratings:X    words"
