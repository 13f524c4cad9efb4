"""Samples, policies side by side: on the console, and on a page with scores, KL and each token's KL as colour under it,
to be sorted and filtered.
"""

import json
import math
from typing import Any, NamedTuple

from markupsafe import Markup

from lm_human_preferences.reports.page import PRINTED, part

LEVELS = (0.1, 0.3, 1.0, 2.5)  # nats from which a token's KL takes the next colour


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


# --- from the files ---


def samples_of_run(pairs: list[dict[str, Any]]) -> list[Sample]:
    """Rows of a training run's evaluation.jsonl, or the `samples` of its result.json."""

    def side(pair: dict[str, Any], name: str) -> Side:
        token_kl, token_ends = (pair.get(f"{key}_{name}") or [] for key in ("token_kl", "token_ends"))
        scores = {"score": pair.get(f"score_{name}")}
        return Side(name, str(pair.get(name, "")), scores, pair.get(f"kl_{name}"), token_kl, token_ends)

    return [
        Sample(str(pair.get("query", "")), None, [side(pair, name) for name in ("before", "after")]) for pair in pairs
    ]


def samples_of_evaluation(rows: list[dict[str, Any]]) -> list[Sample]:
    """Rows of the evaluation.jsonl of `evaluate`."""

    def side(name: str, found: dict[str, Any]) -> Side:
        token_kl, token_ends = (found.get(key) or [] for key in ("token_kl", "token_ends"))
        return Side(name, found["response"], found["scores"], found["kl"], token_kl, token_ends)

    return [
        Sample(row["query"], row.get("reference"), [side(name, found) for name, found in row["policies"].items()])
        for row in rows
    ]


def samples_of_sweep(rows: list[dict[str, Any]]) -> list[Sample]:
    """Rows of the evaluation.jsonl of `sweep`: the reference, then the policies."""

    def side(name: str, found: dict[str, Any]) -> Side:
        return Side(name, found["response"], {"proxy": found["proxy"], **found["gold"]}, found["kl"], [], [])

    return [Sample(row["query"], None, [side(name, found) for name, found in row["policies"].items()]) for row in rows]


# --- the console ---


def samples_text(samples: list[Sample]) -> str:
    """Queries with every policy's response and scores; a long query from where it comes close to its end."""
    lines = []
    for query, _, sides in samples:
        width = max(len(side.name) for side in sides)
        lines.append(f"\n  {query if len(query) <= 300 else '... ' + query[-300:]} ...")
        for side in sides:
            scores = " ".join(f"{score:+.2f}" for score in side.scores.values() if score is not None)
            lines.append(f"    {side.name:{width}} [{scores}] {' '.join(side.response.split())}")
    return "\n".join(lines)


# --- the page ---


def sample_cards(samples: list[Sample], total: int) -> Markup:
    """A card for each sample, with what sorts and filters them; `total`: how many there are in all."""
    count = f"The first {len(samples):,} of {total:,} queries" if len(samples) < total else f"All {total:,} queries"
    shown = f"{count}, in the order of the list: not chosen by their responses." if total > 1 else ""
    keys = _keys(samples)
    cards = [
        {
            "query": sample.query,
            "reference": None if sample.reference is None else sample.reference.strip(),
            "values": _values(list(keys.values()), number),
            "sides": [
                {
                    "name": side.name,
                    "scores": side.scores,
                    "kl": side.kl,
                    "pieces": pieces(side.response, side.token_kl, side.token_ends),
                }
                for side in sample.sides
            ],
        }
        for number, sample in enumerate(samples)
    ]
    coloured = any(side.token_kl for sample in samples for side in sample.sides)
    return part("samples", cards, list(keys), shown, LEVELS if coloured else (), PRINTED)


def _values(keys: list[list[float | None]], number: int) -> str:
    """The numbers that sample `number` is sorted by, as JSON for the script."""
    own = [values[number] for values in keys]
    return json.dumps([None if value is None else round(value, 4) for value in own], separators=(",", ":"))


def _keys(samples: list[Sample]) -> dict[str, list[float | None]]:
    """What to sort by: name -> a number for each sample, None where it has none; names of which no sample has a number
    are left out.
    """
    sides = list(zip(*(sample.sides for sample in samples), strict=True))
    keys: dict[str, list[float | None]] = {}
    for number in (*range(1, len(sides)), 0):  # the first policy is usually the reference
        name, first = sides[number][0].name, sides[0][0].name
        for judge in sides[number][0].scores:
            own = [_number(side.scores.get(judge)) for side in sides[number]]
            keys[f"{judge}, {name}"] = own
            if number:
                others = [_number(side.scores.get(judge)) for side in sides[0]]
                keys[f"{judge}, {name} less {first}"] = [
                    None if x is None or y is None else x - y for x, y in zip(own, others, strict=True)
                ]
        keys[f"KL, {name}"] = [_number(side.kl) for side in sides[number]]
    return {name: values for name, values in keys.items() if any(value is not None for value in values)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


# --- colour ---


class Piece(NamedTuple):
    """A part of a response that has one colour."""

    text: str
    kl: float = 0.0  # nats
    level: str = ""  # of page.css: p1 to p4 above the reference, n1 to n4 below; empty for next to nothing


def pieces(response: str, token_kl: list[float], token_ends: list[int]) -> list[Piece]:
    """The response without blanks around it, cut at the ends of its tokens; one plain piece where the two lists do not
    fit it.

    token_kl: nats; token_ends: how many characters are complete with each token. A token that adds no character passes
    its KL on to the next one that does (a character's bytes may be spread over several), the last one is shown as ∎.
    """
    ends = [0, *token_ends, len(response)]
    if not token_kl or len(token_kl) != len(token_ends) or ends != sorted(ends):
        return [Piece(response.strip())]
    found: list[Piece] = []
    begin, waiting = 0, 0.0
    for place, (kl, end) in enumerate(zip(token_kl, token_ends, strict=True), 1):
        text, waiting, begin = response[begin:end], waiting + kl, end
        if text or place == len(token_kl):
            found.append(Piece((text if found else text.lstrip()) if text else "∎", waiting, _level(waiting)))
            waiting = 0.0
    return [*found, Piece(response[begin:].rstrip())]


def _level(kl: float) -> str:
    level = sum(abs(kl) >= limit for limit in LEVELS)
    return f"{'p' if kl > 0 else 'n'}{level}" if level else ""
