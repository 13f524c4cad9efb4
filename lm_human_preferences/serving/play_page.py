"""The page on which one or two models write as one types: `python launch.py play EXPERIMENT --beside OTHER`.

A text, temperature, seed and length are sent as they change; what the models write comes back token by token, a JSON
object a line. A request that a newer one of the same page supersedes is dropped, and so is one whose page has gone;
the models are called from one thread, one token of one request at a time.
"""

import asyncio
import json
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, response_ends, responses_are_valid
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.judges import Judge
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.serving.guard import json_body
from lm_human_preferences.serving.refused import Refused
from lm_human_preferences.serving.side_by_side import SideBySide
from lm_human_preferences.serving.site import Site, application, route

PLAYER = "/play"  # whom the page's token names
FILES = {"play.js": "text/javascript", "play.css": "text/css"}
TEMPERATURES = (0.1, 2.0)
LARGEST_SEED = 2**31 - 1
_PAGES = 64  # that are remembered; what an older page still waits for is written to its end

Event = dict[str, Any]  # what the page is told, a line


class Wish(NamedTuple):
    """What a page wants to see written."""

    text: str
    temperature: float
    seed: int
    length: int  # tokens at most
    page: str  # which page it is
    number: int  # of its requests; the largest supersedes the others


@dataclass
class Players:
    """The models by name and what they share. `capacity`: tokens of context and continuation at most, as the smallest
    context of models and reward models is; `ends`: what ends a continuation.
    """

    models: dict[str, GPT2]
    judges: Sequence[Judge]
    encoding: Encoding
    precision: Precision
    capacity: int
    length: int  # tokens that the page begins with
    temperature: float  # likewise
    ends: Ends
    task: TaskParams | None = None
    formatter: QueryFormatter = field(default_factory=lambda: QueryFormatter([], []))

    @property
    def longest(self) -> int:
        """Tokens that a continuation may have; one token of a text at least is to be read."""
        return self.capacity - self.formatter.length - 1


def written(players: Players, wish: Wish) -> Iterator[Event]:
    """What the models write, bit by bit: `start`, a line for each token of each column, `scores`. Each line is one
    call of the models or of the judges.
    """
    tokens = players.encoding.encode(wish.text.rstrip(" "))  # the space belongs to the next word's token
    kept = tokens[max(0, len(tokens) - (players.capacity - players.formatter.length - wish.length)) :]
    yield {"kind": "start", "cut": len(tokens) - len(kept)}
    if not kept and not players.formatter.length:
        return
    query = torch.tensor(kept, dtype=torch.int64)
    uniforms = torch.rand(players.capacity, generator=generator_for(wish.seed, "play"))[: wish.length]
    columns = [Column(players) for _ in players.models]
    context = players.formatter(query[None])[0]
    models = list(players.models.values())
    writing = SideBySide(models, context, uniforms, wish.temperature, players.precision)
    while not all(column.ended for column in columns) and (step := writing.step()) is not None:
        for k, column in enumerate(columns):
            if not column.ended:
                text = column.take(int(step.tokens[k]))
                logprobs = [round(value, 4) for value in step.logprobs[:, k].tolist()]
                yield {"kind": "token", "column": k, "text": text, "logprobs": logprobs, "ended": column.ended}
    yield {"kind": "scores", "scores": scores_of(players, query, columns), "valid": [c.is_valid() for c in columns]}


class Column:
    """What one model has written."""

    def __init__(self, players: Players):
        self.players, self.tokens, self.text, self.ended = players, list[int](), "", False

    def take(self, token: int) -> str:
        """The text that this token adds. A character of several tokens is added with the last of them."""
        players = self.players
        self.ended = token in players.ends.tokens and len(self.tokens) >= players.ends.after
        self.tokens.append(token)
        text = players.encoding.decode([t for t in self.tokens if t != players.encoding.end_of_text])
        before, self.text = self.text, text.rstrip("\ufffd")
        return self.text[len(before) :]

    def is_valid(self) -> bool:
        """Whether the task's reward counts it: with a valid end, where the task asks for one."""
        task = self.players.task
        if task is None or task.penalty_reward_value is None:
            return True
        return bool(responses_are_valid(torch.tensor([self.tokens]), response_ends(task, self.players.encoding)))


def scores_of(players: Players, query: torch.Tensor, columns: Sequence[Column]) -> list[dict[str, float]]:
    """Each judge's score of each column, by the judge's name."""
    if not players.judges:
        return [{} for _ in columns]
    device, padding = players.precision.device, players.encoding.padding_token
    longest = max(len(column.tokens) for column in columns)
    rows = [column.tokens + [padding] * (longest - len(column.tokens)) for column in columns]
    queries, responses = query.expand(len(columns), -1).to(device), torch.tensor(rows, device=device)
    with torch.no_grad(), players.precision.autocast():
        found = {judge.name: judge.on_tokens(players.encoding)(queries, responses).tolist() for judge in players.judges}
    return [{name: round(scores[k], 4) for name, scores in found.items()} for k in range(len(columns))]


def wish_of(body: dict[str, Any], longest: int) -> Wish:
    """The wish that a request holds. Refused (400) if it is none."""
    wish = Wish(**{name: body.get(name) for name in Wish._fields})  # type: ignore[arg-type]  # checked below
    low, high = TEMPERATURES
    if not isinstance(wish.text, str):
        raise Refused(400, "text must be a text")
    if isinstance(wish.temperature, bool) or not isinstance(wish.temperature, int | float):
        raise Refused(400, "temperature must be a number")
    if not low <= wish.temperature <= high:
        raise Refused(400, f"temperature must lie between {low:g} and {high:g}")
    for name, most in (("seed", LARGEST_SEED), ("length", longest), ("number", 2**53)):
        value, least = getattr(wish, name), 0 if name == "seed" else 1
        if type(value) is not int or not least <= value <= most:
            raise Refused(400, f"{name} must be a whole number from {least} to {most}")
    if not isinstance(wish.page, str) or not 8 <= len(wish.page) <= 64:
        raise Refused(400, "page must be a text of 8 to 64 characters")
    return wish


# --- the site ---


class Stage(Site):
    """What the page's functions share: the models, their one thread, and the newest wish of each page."""

    def __init__(self, players: Players, prompt: str, secret: bytes, hosts: Sequence[str]):
        super().__init__(Path(__file__).parent, FILES, secret, hosts)
        self.players, self.prompt = players, prompt
        self.newest: OrderedDict[str, int] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")

    async def with_models(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def supersede(self, wish: Wish) -> None:
        """From now on older wishes of its page are dropped. Refused (409) if it is the older one."""
        if wish.number < self.newest.get(wish.page, 0):
            raise Refused(409, "a newer request of this page came first")
        self.newest[wish.page] = wish.number
        self.newest.move_to_end(wish.page)
        while len(self.newest) > _PAGES:
            self.newest.popitem(last=False)

    def is_wanted(self, wish: Wish) -> bool:
        return self.newest.get(wish.page, wish.number) == wish.number

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def playing(stage: Stage) -> Starlette:
    """The application."""
    routes = [route(stage, "/play/{token}", play_page), route(stage, "/play/{token}/write", write, "POST")]
    return application(stage, routes)


async def play_page(stage: Stage, request: Request) -> Response:
    stage.check_holder(PLAYER, request)
    task = stage.players.task
    return stage.page(
        "play.html",
        names=list(stage.players.models),
        players=stage.players,
        affixes=(task.query_prefix, task.query_suffix) if task else ("", ""),
        penalty=task.penalty_reward_value if task else None,
        prompt=stage.prompt,
        temperatures=TEMPERATURES,
        largest_seed=LARGEST_SEED,
    )


async def write(stage: Stage, request: Request) -> Response:
    """What the models write to a text, as lines of JSON."""
    stage.check_holder(PLAYER, request)
    wish = wish_of(await json_body(request), stage.players.longest)
    stage.supersede(wish)
    return StreamingResponse(lines(stage, wish), media_type="application/x-ndjson")


async def lines(stage: Stage, wish: Wish) -> AsyncIterator[str]:
    """The events of a wish while nothing newer is wanted. What goes wrong is one too, the last."""
    events = written(stage.players, wish)
    while True:
        if not stage.is_wanted(wish):
            event: Event | None = {"kind": "dropped"}
        else:
            event = await stage.with_models(partial(_next, events))
        if event is None:
            return
        yield json.dumps(event) + "\n"
        if event["kind"] in ("dropped", "error"):
            return


def _next(events: Iterator[Event]) -> Event | None:
    """The next event, None after the last. Whatever goes wrong is told; what is the program's fault is printed too."""
    try:
        return next(events, None)
    except UserError as error:
        return {"kind": "error", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"kind": "error", "error": f"{type(error).__name__}: {error}; the terminal of play has the rest"}
