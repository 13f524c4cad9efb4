"""The labelling page in headless Chromium: a whole session by keyboard, mouse, phone, light and dark; how fast it is;
accessibility.
"""

import json
import os
import statistics
from pathlib import Path

import pytest

from lm_human_preferences.people.records import Question, Response

from browser import BROWSER, Page, browser
from studies import ROOT, make_study, question, served, served_here

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
PICTURES = os.environ.get("PEOPLE_PICTURES")  # a folder for pictures to look at
AXE = ROOT / ".venv/axe.min.js"  # where .ci/run puts it
QUERY = "document.getElementById('query').textContent"
SHOWN = "!document.getElementById('question').hidden && !busy"


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


def press_and_wait(page: Page, key: str) -> None:
    """Press a key that shows another question, and wait until it is there."""
    before = page.look(QUERY)
    page.press(key)
    page.until(f"{SHOWN} && {QUERY} !== {json.dumps(before)}")


def test_a_whole_session_by_keyboard(tmp_path):
    """40 questions, two undone, one flagged, one skipped, one all alike: the store holds exactly that."""
    store = make_study(tmp_path / "study", [question(number) for number in range(41)], read=False)
    said = {}
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.size(1200, 900)
        page.open(server.address + server.path("anna"))
        page.until("!document.getElementById('read').hidden")
        picture(page, "instructions_1200")
        page.press("Tab")
        page.look("document.getElementById('understood').focus()")
        page.press("Enter")
        page.until(SHOWN)
        picture(page, "question_1200")
        for number in range(40):
            query = page.look(QUERY)
            assert query == f"Query {number}"
            key = {7: "s", 9: "0"}.get(number, str(number % 4 + 1))
            if number == 5:
                page.press("f")
                page.until("document.getElementById('flagging').open")
                page.write("rude, 1 2 3")
                picture(page, "flag_1200")
                page.look("document.getElementById('flag-save').focus()")
                page.press("Enter")
                page.until("!document.getElementById('flagging').open")
            said[query] = key
            if number in (20, 30):  # undo the one before, change it, and go on
                before = page.look(QUERY)
                page.press("u")  # once to look alone
                page.until(f"{SHOWN} && {QUERY} === 'Query {number - 1}'")
                page.press("Escape")
                page.until(f"{SHOWN} && {QUERY} === {json.dumps(before)}")
                page.press("u")
                page.until(f"{SHOWN} && {QUERY} === 'Query {number - 1}'")
                picture(page, "undo_1200")
                said[f"Query {number - 1}"] = "4"
                page.press("4")
                page.until(f"{SHOWN} && {QUERY} === {json.dumps(before)}")
            press_and_wait(page, key)
        assert page.look("document.getElementById('answered').textContent") == "40"
        assert page.messages == []
    held = store.judgements()
    assert len(held) == 40 and len(store.judgements(replaced=True)) == 42
    found = {}
    for one in held:
        key = {"skip": "s", "alike": "0"}.get(one.answer.kind) or str(one.place + 1)
        found[store.question(one.showing.question).query] = key
    assert found == said
    assert [(one.showing.question, one.note) for one in held if one.note is not None] == [(6, "rude, 1 2 3")]
    assert all(one.answered >= one.showing.shown for one in held)


def test_ranking_and_sureness(tmp_path):
    store = make_study(tmp_path / "study", [question(number) for number in range(3)], mode="rank", sureness=True)
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.size(1200, 900)
        page.open(server.address + server.path("anna"))
        page.until(SHOWN)
        for key in ("c", "3", "2", "1", "Backspace", "4", "1"):
            page.press(key)
        picture(page, "ranking_1200")
        press_and_wait(page, "3")
        page.press("2")
        page.press("Enter")
        page.until(f"{SHOWN} && {QUERY} === 'Query 2'")
        assert page.messages == []
    first, second = store.judgements()
    places = first.showing.places
    assert first.answer.value == [places[1], places[3], places[0], places[2]] and first.answer.sureness == 3
    assert second.answer.kind == "ranking" and second.answer.value == [second.showing.places[1]]


def chosen(page: Page) -> list[list]:
    """The place and label of each card that is marked."""
    cards = "[...document.getElementById('cards').children]"
    return page.look(
        f"{cards}.map((card, place) => [card.classList.contains('chosen'), place,"
        " card.querySelector('span').textContent.trim()]).filter(([yes]) => yes).map(([, ...rest]) => rest)"
    )


def test_a_ranking_that_is_changed_and_taken_back(tmp_path):
    """The marks are those of the new ranking, and while it is empty those of the earlier answer. What could not be
    saved is saved by pressing again.
    """
    store = make_study(tmp_path / "study", [question(number) for number in range(2)], mode="rank")
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.open(server.address + server.path("anna"))
        page.until(SHOWN)
        for key in ("3", "2"):
            page.press(key)
        press_and_wait(page, "Enter")
        press_and_wait(page, "u")
        earlier = [[1, "Next best"], [2, "Next best"]]
        assert chosen(page) == earlier
        page.press("1")
        assert chosen(page) == [[0, "is number 1"]]
        for _ in range(2):
            page.press("Backspace")
            assert chosen(page) == earlier and page.look("document.getElementById('enough').hidden")
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        for key in ("1", "2", "3", "4"):
            page.press(key)
        page.until("!busy && !document.getElementById('trouble').hidden")
        page.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        press_and_wait(page, "4")
    (held,) = store.judgements()
    assert held.answer.value == held.showing.places


def test_new_questions_appear_after_polls_that_failed(tmp_path):
    """Also where the first of all requests failed, and where one came while another was under way."""
    store = make_study(tmp_path / "study", [])
    none, trouble = "!document.getElementById('none').hidden", "document.getElementById('trouble')"
    faster = "(() => { const given = setTimeout; window.setTimeout = (work, wait) => given(work, wait / 30); })()"
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=faster)
        page.call("Network.setBlockedURLs", urls=["*/next"])
        page.open(server.address + server.path("anna"))
        page.until(f"!{trouble}.hidden")
        page.call("Network.setBlockedURLs", urls=[])
        page.until(none)
        page.call("Network.setBlockedURLs", urls=["*/next"])
        page.until(f"!{trouble}.hidden")
        page.look("busy = true")
        page.look("new Promise((done) => setTimeout(done, 9000))")  # 0.3 seconds
        page.look("busy = false")
        page.call("Network.setBlockedURLs", urls=[])
        store.add_questions([question(0)])
        page.until(f"{SHOWN} && {trouble}.hidden")
        assert page.look(QUERY) == "Query 0"


EVIL = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\"> \u202eright to left\u202c"


def test_what_responses_hold_is_shown_as_text(tmp_path):
    responses = [EVIL, "{{ 7 * 7 }} &amp; </div>", "x" * 100_000, "# heading **bold**"]
    store = make_study(tmp_path / "study", [Question(EVIL, [Response(text, "made up") for text in responses])])
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.size(390, 844)
        page.open(server.address + server.path("anna"))
        page.until(SHOWN)
        shown = page.look("[...document.querySelectorAll('#cards .text')].map((box) => box.textContent)")
        assert sorted(shown) == sorted(responses) and page.look(QUERY) == EVIL
        assert page.look("document.title") == "Which is best?" and page.look("document.images.length") == 0
        assert page.look("document.documentElement.scrollWidth <= innerWidth")
        picture(page, "evil_390")
        blocked = page.look(
            "(() => { const s = document.createElement('script'); s.textContent = 'document.title = \"ran\"';"
            " document.body.append(s); return document.title; })()"
        )
        assert blocked == "Which is best?"  # the policy has no unsafe-inline
    store.close()


def test_mouse_and_phone(tmp_path):
    store = make_study(tmp_path / "study", [question(number) for number in range(3)])
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.size(390, 844, dark=True)
        page.open(server.address + server.path("anna"))
        page.until(SHOWN)
        picture(page, "question_390_dark")
        assert page.look("document.documentElement.scrollWidth <= innerWidth")
        shown = "[...document.querySelectorAll('#question button')].filter((b) => b.checkVisibility())"
        sizes = page.look(f"{shown}.map((b) => b.offsetHeight)")
        assert min(sizes) >= 44  # large enough for a finger
        x, y = page.look(
            "(() => { const b = document.getElementById('choose-2').getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        page.until(f"{SHOWN} && {QUERY} === 'Query 1'")
        assert page.messages == []
    assert [one.place for one in store.judgements()] == [2]


def test_what_goes_wrong_is_said_and_the_question_stays(tmp_path):
    """A full disk, then a server that is gone: a clear line each, and the same key saves once there is room."""
    store = make_study(tmp_path / "study", [question(number) for number in range(3)])
    with served_here(tmp_path / "study") as (server, office), browser(tmp_path) as page:
        page.size(1200, 900)
        page.open(server.address + server.path("anna"))
        page.until(SHOWN)
        limit, trouble = "PRAGMA max_page_count={}".format, "document.getElementById('trouble')"
        pages = store.number("PRAGMA page_count")
        office.desk.submit(lambda inner: inner.connection.execute(limit(pages))).result()
        for _ in range(20):  # until the pages that are there are full
            page.press("f")
            page.until("document.getElementById('flagging').open")
            page.write("x" * 1500)
            page.look("document.getElementById('flag-save').click()")
            page.until("!busy")
            if not page.look(f"{trouble}.hidden"):
                break
        assert page.look(f"{trouble}.textContent").startswith("The disk is full: nothing was saved.")
        picture(page, "full_1200")
        page.press("Escape")
        office.desk.submit(lambda inner: inner.connection.execute(limit(1_000_000))).result()
        press_and_wait(page, "2")
        assert page.look(f"{trouble}.hidden") and [one.place for one in store.judgements()] == [1]
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.press("1")
        page.until(f"!busy && !{trouble}.hidden")
        assert "cannot be reached: nothing was saved" in page.look(f"{trouble}.textContent")
        page.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        press_and_wait(page, "1")
        assert page.look(f"{trouble}.hidden") and len(store.judgements()) == 2


def test_from_key_press_to_the_next_question_painted(tmp_path):
    """The median over 60 questions."""
    make_study(tmp_path / "study", [question(number) for number in range(62)])
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.size(1200, 900)
        page.open(server.address + server.path("anna"))
        page.until(SHOWN)
        page.look(
            "(() => { window.times = []; let pressed = 0;"
            " addEventListener('keydown', () => { pressed = performance.now(); }, true);"
            " new MutationObserver(() => requestAnimationFrame(() => setTimeout(() =>"
            " times.push(performance.now() - pressed))))"
            ".observe(document.getElementById('query'), { childList: true }); })()"
        )
        for number in range(60):
            page.press("1")
            page.until(f"{SHOWN} && {QUERY} === 'Query {number + 1}' && times.length === {number + 1}")
        times = page.look("times")
    print(f"median {statistics.median(times):.1f} ms, longest {max(times):.1f} ms")
    assert statistics.median(times) < 50


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not here: .ci/run fetches it")
@pytest.mark.parametrize("dark", [False, True])
def test_an_accessibility_checker_finds_nothing(tmp_path, dark):
    texts = ["word " * 2000, "short one.", "another.", EVIL]
    questions = [Question("Query", [Response(text, "made up") for text in texts]), question(1)]
    make_study(tmp_path / "study", questions, read=False, sureness=True)
    with served(tmp_path / "study") as server, browser(tmp_path) as page:
        page.size(1200, 900, dark)

        def check() -> None:
            page.look(AXE.read_text() + "; 0")
            found = page.look("axe.run().then((found) => JSON.stringify(found.violations))")
            assert [(one["id"], one["nodes"][0]["html"]) for one in json.loads(found)] == []

        page.open(server.address + server.path("anna"))
        page.until("!document.getElementById('read').hidden")
        check()
        page.look("understood()")
        page.until(SHOWN)
        check()
        for key, dialog in (("?", "help"), ("f", "flagging")):
            page.press(key)
            page.until(f"document.getElementById('{dialog}').open")
            picture(page, f"{dialog}_1200_{'dark' if dark else 'light'}")
            check()
            page.press("Escape")
        press_and_wait(page, "1")
        page.press("1")
        page.until("!document.getElementById('none').hidden && !busy")
        picture(page, f"none_1200_{'dark' if dark else 'light'}")
        check()
        page.open(server.address + server.dashboard_path())
        picture(page, f"dashboard_1200_{'dark' if dark else 'light'}")
        check()
        page.open(server.address + "/label/wrong")
        check()
