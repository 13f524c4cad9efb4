"""The page on which models write as one types: what it is told, what is dropped, and itself in headless Chromium."""

import asyncio
import http.client
import json
import math
import os
import threading
from pathlib import Path

import pytest
from players import play_path, small_players, small_stage, wish

from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.judging.judges import FunctionJudge
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.serving import play_page
from lm_human_preferences.serving.play_page import Column, Wish, lines, playing, wish_of, written
from lm_human_preferences.serving.refused import Refused

from browser import BROWSER, Page, browser
from small import ROOT
from web import running

PICTURES = os.environ.get("PLAY_PICTURES")  # a folder for pictures to look at
AXE = ROOT / ".venv/axe.min.js"  # where .ci/run puts it


def events_of(players, **more):
    return list(written(players, wish_of(wish(**more), players.longest)))


def test_what_the_page_is_told():
    players = small_players()
    start, *tokens, scores = events_of(players, seed=3)
    assert start == {"kind": "start", "cut": 0}
    for column, (name, _) in enumerate(players.models.items()):
        mine = [event for event in tokens if event["column"] == column]
        text = "".join(event["text"] for event in mine)
        assert len(mine) == 10 or mine[-1]["ended"], name
        assert scores["scores"][column] == {"a's": float(text.count("a"))}
        assert all(len(event["logprobs"]) == 2 and max(event["logprobs"]) <= 0 for event in mine)
    assert events_of(players, seed=3) == [start, *tokens, scores]  # a function of the wish
    assert events_of(players, seed=4)[1:] != [*tokens, scores]


def test_the_same_draws_whatever_the_length():
    short, long = (events_of(small_players(), length=length)[1:-1] for length in (4, 9))
    assert short == [event for event in long if event in short] and len(short) > 2


def test_a_column_ends_where_the_task_says():
    players = small_players(1, ends=Ends((2,), 2), task=TaskParams(truncate_token=2, truncate_after=2))
    column = Column(players)
    texts = [column.take(token) for token in (2, 0, 1)]
    assert texts == ["c", "a", "b"] and not column.ended and not column.is_valid()
    assert column.take(2) == "c" and column.ended and column.is_valid()


def test_a_character_of_several_tokens_comes_with_its_last():
    from lm_human_preferences.language.encoding import gpt2_encoding

    players = small_players(1)
    players.encoding = gpt2_encoding()
    tokens, column = players.encoding.encode(" a \U00013000!"), Column(players)
    texts = [column.take(token) for token in tokens]
    assert "".join(texts) == " a \U00013000!" and "\ufffd" not in "".join(texts) and "" in texts


def test_a_long_text_is_read_from_its_end_and_an_empty_one_not_at_all():
    start, *rest = events_of(small_players(), text="x" * 100)
    assert start["cut"] == 100 - (64 - 10) and rest[-1]["kind"] == "scores"
    assert events_of(small_players(), text="  ") == [{"kind": "start", "cut": 0}]


def test_one_model_alone():
    start, *tokens, scores = events_of(small_players(1))
    assert {event["column"] for event in tokens} == {0} and len(scores["scores"]) == 1


@pytest.mark.parametrize(
    "changed",
    [
        dict(text=3),
        dict(text=None),
        dict(temperature="1"),
        dict(temperature=True),
        dict(temperature=0),
        dict(temperature=math.nan),
        dict(temperature=math.inf),
        dict(temperature=10**400),
        dict(temperature=3),
        dict(seed=-1),
        dict(seed=2**31),
        dict(seed=1.5),
        dict(length=0),
        dict(length=64),
        dict(number=True),
        dict(page="short"),
        dict(page=None),
    ],
)
def test_wishes_that_are_none(changed):
    with pytest.raises(Refused) as refused:
        wish_of(wish(**changed), 63)
    assert refused.value.status == 400 and next(iter(changed)) in str(refused.value)


def collect(stage, wished):
    async def gather():
        return [json.loads(line) async for line in lines(stage, wished)]

    return asyncio.run(gather())


def test_a_superseded_request_is_dropped(monkeypatch):
    """While it is written, and where it comes late; other pages' requests go on."""
    stage = small_stage()
    first, other = Wish(**wish(number=1)), Wish(**wish(number=1, page="another page"))
    stage.supersede(first)
    stage.supersede(other)
    given = play_page._next

    def and_then(events):
        event = given(events)
        if event and event["kind"] == "token" and stage.is_wanted(first):
            stage.supersede(Wish(**wish(number=2)))
        return event

    monkeypatch.setattr(play_page, "_next", and_then)
    told = collect(stage, first)
    assert [event["kind"] for event in told] == ["start", "token", "dropped"]
    assert collect(stage, other)[-1]["kind"] == "scores"
    with pytest.raises(Refused) as refused:
        stage.supersede(first)
    assert refused.value.status == 409
    stage.close()


def test_the_models_are_called_from_one_thread_one_at_a_time(monkeypatch):
    """Two pages at once: their tokens come in turns."""
    stage, threads, order, inside = small_stage(1), set(), [], threading.Lock()
    given = play_page._next

    def noted(events):
        assert inside.acquire(blocking=False)  # nobody else is in here
        threads.add(threading.get_ident())
        order.append(id(events))
        event = given(events)
        inside.release()
        return event

    monkeypatch.setattr(play_page, "_next", noted)

    async def both():
        async def one(page):
            return [line async for line in lines(stage, Wish(**wish(page=page)))]

        return await asyncio.gather(one("the first page"), one("the second page"))

    first, second = asyncio.run(both())
    assert first == second and len(threads) == 1
    assert order[:2] != [order[0], order[0]]
    stage.close()


def test_a_judges_trouble_is_told(capsys):
    def broken(queries, responses):
        raise ValueError("no idea")

    told = collect(small_stage(judge=FunctionJudge("mine:broken", broken)), Wish(**wish()))
    assert told[-1]["kind"] == "error" and "mine:broken raised ValueError: no idea" in told[-1]["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_the_programs_own_trouble_is_told_and_printed(capsys, monkeypatch):
    monkeypatch.setattr(play_page, "scores_of", lambda *given: 1 / 0)
    told = collect(small_stage(), Wish(**wish()))
    assert told[-1]["kind"] == "error" and told[-1]["error"].startswith("ZeroDivisionError")
    assert "Traceback" in capsys.readouterr().err


def test_a_page_that_goes_away_is_not_written_to(monkeypatch):
    """The rest of what it wished is never computed."""
    stage, counted = small_stage(length=50), []
    given, gone = play_page._next, threading.Event()

    def slowly(events):
        counted.append(1)
        if len(counted) > 3:
            gone.wait(10)
        return given(events)

    monkeypatch.setattr(play_page, "_next", slowly)
    with running(playing(stage)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps(wish(length=50, temperature=2.0))
        connection.request("POST", f"{play_path()}/write", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert json.loads(response.readline())["kind"] == "start"
        response.close()
        connection.close()
        threading.Timer(0.3, gone.set).start()
        gone.wait(10)
        threading.Event().wait(0.5)
        after = len(counted)
        threading.Event().wait(0.3)
        assert len(counted) == after < 40
    stage.close()


# --- in the browser ---

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
SHOWN = "!busy && document.getElementById('figures-0').children.length > 0"


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png", whole=True)


def text_of(page: Page, column: int) -> str:
    return page.look(f"document.getElementById('writing-{column}').textContent")


@needs_browser
def test_typing_writes_both_columns(tmp_path):
    stage = small_stage()
    with running(playing(stage)) as port, browser(tmp_path) as page:
        page.size(1200, 900)
        page.open(f"http://127.0.0.1:{port}{play_path()}")
        page.look("document.getElementById('text').focus()")
        for letter in "the film":
            page.press(letter)
        page.until(SHOWN)
        start, *tokens, scores = events_of(small_players(), number=page.look("number"))
        for column in range(2):
            mine = [event for event in tokens if event["column"] == column]
            written = "".join("end" if event["ended"] and not event["text"] else event["text"] for event in mine)
            assert text_of(page, column) == "the film" + written
            every = f"[...document.querySelectorAll('#writing-{column} .token')]"
            spans = page.look(f"{every}.map((span) => span.className.trim().split(' ')[1])")
            for span, event in zip(spans, mine, strict=True):
                value = event["logprobs"][0] - event["logprobs"][1]
                level = sum(abs(value) >= limit for limit in (0.1, 0.5, 1.5, 3))
                assert (span or "") == ("ab"[value < 0] + str(level) if level else ""), (value, span)
        assert page.look("number") < 8  # not one request a letter: what is typed on waits a moment
        before = text_of(page, 0)
        page.look("document.getElementById('another').click()")
        page.until(f"{SHOWN} && document.getElementById('seed').value === '1'")
        assert text_of(page, 0) != before
        page.look("document.querySelector('input[value=logprob]').click()")
        kinds = page.look("[...document.querySelectorAll('#writing-1 .token')].map((s) => s.className).join(' ')")
        assert " p" in kinds and " a" not in kinds and " b" not in kinds
        page.look("document.querySelectorAll('#writing-1 .token')[0].click()")
        assert "under before; log(π/ρ)" in page.look("document.getElementById('detail').textContent")
        assert page.look("document.getElementById('said').textContent").startswith("after: ")
        assert page.messages == []
    stage.close()


@needs_browser
def test_what_goes_wrong_is_said_and_goes_when_it_goes_well_again(tmp_path):
    asked = []

    def broken(queries, responses):
        asked.append(1)
        if len(asked) == 1:
            raise ValueError("no idea")
        return [0.0] * len(responses)

    stage, trouble = small_stage(judge=FunctionJudge("mine:broken", broken)), "document.getElementById('trouble')"
    with running(playing(stage)) as port, browser(tmp_path) as page:
        page.size(390, 844)
        page.open(f"http://127.0.0.1:{port}{play_path()}")
        page.look("document.getElementById('text').focus()")
        page.write("the film")
        page.until(f"!{trouble}.hidden && !busy")
        assert "no idea" in page.look(f"{trouble}.textContent")
        picture(page, "trouble_390")
        page.look("document.getElementById('another').click()")
        page.until(SHOWN)
        assert page.look(f"{trouble}.hidden")
        page.look("document.getElementById('length').value = 1000; wish(0)")
        page.until(f"!{trouble}.hidden && !busy")
        assert page.look(f"{trouble}.textContent") == "length must be a whole number from 1 to 63"
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.look("document.getElementById('length').value = 10; wish(0)")
        page.until(f"{trouble}.textContent.startsWith('The server cannot be reached')")
    stage.close()


EVIL = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"


@needs_browser
@pytest.mark.parametrize("width, dark", [(1200, False), (1200, True), (390, False), (390, True)])
def test_a_phone_dark_and_light_and_an_accessibility_checker(tmp_path, width, dark):
    """What is typed is text and nothing else; nothing is wider than the screen; axe finds nothing."""
    stage = small_stage(prompt=EVIL)
    with running(playing(stage)) as port, browser(tmp_path) as page:
        page.size(width, 900, dark)
        page.open(f"http://127.0.0.1:{port}{play_path()}")
        page.until(SHOWN)
        assert text_of(page, 0).startswith(EVIL) and page.look("document.title") == "Play: after beside before"
        assert page.look("document.images.length") == 0
        page.look("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.look("document.documentElement.scrollWidth <= innerWidth")
        picture(page, f"play_{width}_{'dark' if dark else 'light'}")
        if width < 600:
            sizes = page.look(
                "[...document.querySelectorAll('main button, input[type=number]')].map((b) => b.offsetHeight)"
            )
            assert min(sizes) >= 44  # large enough for a finger
        if AXE.exists():
            page.look(AXE.read_text() + "; 0")
            for colour in ("kl", "logprob"):
                page.look(f"document.querySelector('input[value={colour}]').click()")
                found = page.look("axe.run().then((found) => JSON.stringify(found.violations))")
                assert [(one["id"], one["nodes"][0]["html"]) for one in json.loads(found)] == []
        assert page.messages == []
    stage.close()


@needs_browser
def test_one_model_has_one_column_and_one_colour(tmp_path):
    stage = small_stage(1, prompt="the film")
    with running(playing(stage)) as port, browser(tmp_path) as page:
        page.size(1200, 900)
        page.open(f"http://127.0.0.1:{port}{play_path()}")
        page.until(SHOWN)
        assert page.look("document.querySelectorAll('.column').length") == 1
        assert page.look("document.querySelector('.colours').hidden && document.getElementById('legend-kl').hidden")
        assert " p" in page.look(
            "[...document.querySelectorAll('#writing-0 .token')].map((s) => s.className).join(' ')"
        )
        assert page.messages == []
    stage.close()
