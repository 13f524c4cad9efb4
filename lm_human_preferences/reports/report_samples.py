"""Samples on a report's page: policies side by side with score and KL, each token's KL as colour under it, to be sorted
and filtered.
"""

import json
import math
from typing import Any, NamedTuple

from lm_human_preferences.reports.page import PRINTED, tag, text

_LEVELS = (0.1, 0.3, 1.0, 2.5)  # nats from which a token's KL takes the next colour


class Side(NamedTuple):
    """One policy's response to a query."""

    name: str
    response: str
    scores: dict[str, float | None]  # judge -> score
    kl: float | None
    token_kl: list[float]  # empty where it is not known, or 0 throughout
    token_ends: list[int]


class Sample(NamedTuple):
    """A query and the policies' responses, all policies in the same order in every sample."""

    query: str
    reference: str | None
    sides: list[Side]


def samples_of_run(pairs: list[dict]) -> list[Sample]:
    """Rows of a training run's evaluation.jsonl, or the `samples` of its result.json."""

    def side(pair: dict, name: str) -> Side:
        token_kl, token_ends = (pair.get(f"{key}_{name}") or [] for key in ("token_kl", "token_ends"))
        return Side(
            name,
            str(pair.get(name, "")),
            {"score": pair.get(f"score_{name}")},
            pair.get(f"kl_{name}"),
            token_kl,
            token_ends,
        )

    return [
        Sample(str(pair.get("query", "")), None, [side(pair, name) for name in ("before", "after")]) for pair in pairs
    ]


def samples_of_evaluation(rows: list[dict]) -> list[Sample]:
    """Rows of the evaluation.jsonl of `evaluate`."""
    return [
        Sample(
            row["query"],
            row.get("reference"),
            [
                Side(
                    name,
                    side["response"],
                    side["scores"],
                    side["kl"],
                    side.get("token_kl") or [],
                    side.get("token_ends") or [],
                )
                for name, side in row["policies"].items()
            ],
        )
        for row in rows
    ]


def sample_cards(samples: list[Sample], total: int) -> list[str]:
    """Tools, legend and a card for each sample; `total`: how many there are in all."""
    keys = _keys(samples)
    options = "".join(f"<option value={number}>{text(name)}</option>" for number, name in enumerate(keys))
    tools = (
        "<div class=tools id=tools hidden><label>find <input type=search id=find placeholder='words in query or response'></label>"
        f"<label>sort by <select id=by><option value=-1>order of the list</option>{options}</select></label>"
        "<label class=short><input type=checkbox id=up> lowest first</label><span id=count role=status></span></div>"
    )
    first = (
        f"The first {len(samples):,} of {total:,} queries of the list, unselected."
        if len(samples) < total
        else f"All {total:,} queries, unselected."
        if total > 1
        else ""
    )
    any_coloured = any(side.token_kl for sample in samples for side in sample.sides)
    cards = "".join(_card(sample, list(keys.values()), number) for number, sample in enumerate(samples))
    return [
        f"<p class=note>{first}</p>" if first else "",
        tools,
        legend() if any_coloured else "",
        f"<p class='note printed'>Of the responses shown the first {PRINTED} are printed.</p>"
        if len(samples) > PRINTED
        else "",
        f"<div id=samples>{cards}</div>",
    ]


def legend() -> str:
    """What the colours mean."""
    shown = "".join(f"<i class=n{level}>−{_LEVELS[level - 1]:g}</i>" for level in (4, 3, 2, 1))
    shown += "".join(f"<i class=p{level}>{_LEVELS[level - 1]:g}</i>" for level in (1, 2, 3, 4))
    return (
        "<p class='note legend'>Colour under a token: its log-probability under the policy less that under the reference, in nats, from "
        f"{shown} outward. The responses' KL is the sum over all tokens, those after the end included; ∎ is the end.</p>"
    )


def _keys(samples: list[Sample]) -> dict[str, list[float | None]]:
    """What to sort by: name -> a number for each sample, None where it has none; names of which no sample has a number
    are left out.
    """
    sides = list(zip(*(sample.sides for sample in samples), strict=True))
    keys: dict[str, list[float | None]] = {}
    for number in (*range(1, len(sides)), 0):  # the first policy is usually the reference
        name = sides[number][0].name
        for judge in sides[number][0].scores:
            keys[f"{judge}, {name}"] = [_number(side.scores.get(judge)) for side in sides[number]]
            if number:
                keys[f"{judge}, {name} less {sides[0][0].name}"] = [
                    None if x is None or y is None else x - y
                    for x, y in (
                        (_number(later.scores.get(judge)), _number(first.scores.get(judge)))
                        for later, first in zip(sides[number], sides[0], strict=True)
                    )
                ]
        keys[f"KL, {name}"] = [_number(side.kl) for side in sides[number]]
    return {name: values for name, values in keys.items() if any(value is not None for value in values)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _card(sample: Sample, keys: list[list[float | None]], number: int) -> str:
    values = json.dumps(
        [None if values[number] is None else round(values[number], 4) for values in keys], separators=(",", ":")
    )
    columns = "".join(
        f"<div><b>{text(side.name)}</b>{''.join(tag(judge, score) for judge, score in side.scores.items())}{tag('KL', side.kl)}"
        f"<p>{coloured(side.response, side.token_kl, side.token_ends)}</p></div>"
        for side in sample.sides
    )
    if sample.reference is not None:
        columns += f"<div><b>reference text</b><p>{text(sample.reference.strip())}</p></div>"
    many = " many" if len(sample.sides) > 2 else ""
    return f"<div class=card data-v='{values}'><p class=query>{text(sample.query)}</p><div class='pair{many}'>{columns}</div></div>"


def coloured(response: str, token_kl: list[float], token_ends: list[int]) -> str:
    """The response with each token's KL as colour under it; plain where the two lists do not fit it."""
    fits = (
        token_kl
        and len(token_kl) == len(token_ends)
        and [0, *token_ends, len(response)] == sorted([0, *token_ends, len(response)])
    )
    if not fits:
        return text(response.strip())
    parts, begin, waiting = [], 0, 0.0
    for place, (kl, end) in enumerate(zip(token_kl, token_ends, strict=True)):
        piece, waiting = response[begin:end], waiting + kl  # a character's bytes may be spread over several tokens
        begin = end
        if piece or place + 1 == len(token_kl):
            shown = text(piece.lstrip() if not parts else piece) or ("∎" if not piece else "")
            parts.append(f"<i{_level(waiting)} title='{waiting:+.2f}'>{shown}</i>" if _level(waiting) else shown)
            waiting = 0.0
    return "".join(parts) + text(response[begin:].rstrip())


def _level(kl: float) -> str:
    level = sum(abs(kl) >= limit for limit in _LEVELS)
    return f" class={'p' if kl > 0 else 'n'}{level}" if level else ""
