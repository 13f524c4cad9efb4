"""Several labels of one query made one, or pairs: what `labels convert --merge` does."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_human_preferences.data.exchange.pairs import more_of, pairs_of
from lm_human_preferences.data.exchange.reading import Label
from lm_human_preferences.foundation.errors import UserError

MERGES = {
    "pairs": "pairs of one query become a choice among all of its responses, where they agree on the best",
    "raters": "several people's answers to one question become one: a mean rating, or shares",
    "ratings": "ratings of one query's responses become pairs, the higher mean against the lower",
}


def merged(labels: Iterable[Label], how: str, counts: Counter[str]) -> Iterator[Label]:
    """The labels that `how`, one of MERGES, makes. `counts` counts what is left out. UserError for labels that it
    cannot take.
    """
    if how not in MERGES:
        raise UserError(f"--merge {how}: must be {', '.join(MERGES)}")
    return {"pairs": pairs_as_choices, "raters": raters_as_one, "ratings": ratings_as_pairs}[how](labels, counts)


def _by_query(labels: Iterable[Label]) -> dict[str, list[Label]]:
    groups: dict[str, list[Label]] = {}
    for label in labels:
        groups.setdefault(label["query"], []).append(label)
    return groups


def _shared(labels: list[Label]) -> dict[str, Any]:
    """What all of some labels say alike."""
    first = more_of(labels[0])
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in labels)}


def pairs_as_choices(labels: Iterable[Label], counts: Counter[str]) -> Iterator[Label]:
    """A choice among all responses of a query, where its pairs agree that one is better than every other, directly or
    over others. All have the number of responses that most queries have.
    """
    found = []
    for query, group in _by_query(labels).items():
        better: dict[str, set[str]] = defaultdict(set)
        responses = list(dict.fromkeys(text for label in group for text in label["responses"]))
        for label in group:
            for chosen, rejected in pairs_of(label):
                better[chosen].add(rejected)
        below = {text: _reached(text, better) for text in responses}
        best = [text for text in responses if below[text] | {text} == set(responses)]
        if any(text in below[text] for text in responses):
            counts["queries are left out: their pairs contradict each other"] += 1
        elif len(best) != 1 or len(responses) < 2:
            counts["queries are left out: their pairs leave the best open"] += 1
        else:
            found.append({"query": query, "responses": responses, "best": responses.index(best[0]), **_shared(group)})
    sizes = Counter(len(label["responses"]) for label in found)
    size = max(sizes, key=lambda n: (sizes[n], n), default=0)
    if others := len(found) - sizes[size]:
        counts[f"queries are left out: they have another number of responses than {size}"] += others
    return (label for label in found if len(label["responses"]) == size)


def _reached(start: str, better: Mapping[str, set[str]]) -> set[str]:
    """All that `start` is better than, directly or over others."""
    reached: set[str] = set()
    ahead = [start]
    while ahead:
        for text in better.get(ahead.pop(), set()) - reached:
            reached.add(text)
            ahead.append(text)
    return reached


def raters_as_one(labels: Iterable[Label], counts: Counter[str]) -> Iterator[Label]:
    """One label of each question (a query and its responses in any order): the mean of ratings; of choices the shares,
    or `best` where all agree. `raters` says how many answers it is made of. UserError for rankings.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Label]] = {}
    for number, label in enumerate(labels):
        if not {"best", "target", "score"} & set(label):
            raise UserError(f"label {number}: --merge raters takes choices and ratings alone")
        groups.setdefault((label["query"], tuple(sorted(label["responses"]))), []).append(label)
    for group in groups.values():
        first, more = group[0], _shared(group) | {"raters": len(group)}
        if "score" in first:
            score = sum(one["score"] for one in group) / len(group)
            yield {"query": first["query"], "responses": first["responses"], "score": score, **more}
            continue
        shares = dict.fromkeys(first["responses"], 0.0)
        for one in group:
            given = one.get("target") or [float(place == one["best"]) for place in range(len(one["responses"]))]
            for text, share in zip(one["responses"], given, strict=True):
                shares[text] += share / len(group)
        if len(shares) < len(first["responses"]):
            counts["questions are left out: they show the same response twice"] += 1
            continue
        target = list(shares.values())
        answer: Label = {"best": target.index(max(target))} if max(target) > 1 - 1e-9 else {"target": target}
        yield {"query": first["query"], "responses": first["responses"], **answer, **more}


def ratings_as_pairs(labels: Iterable[Label], counts: Counter[str]) -> Iterator[Label]:
    """A pair of each two responses to a query whose mean ratings differ, the higher one first. UserError for labels
    that are no ratings.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for number, label in enumerate(labels):
        if "score" not in label:
            raise UserError(f"label {number}: --merge ratings takes ratings (a score of one response) alone")
        scores.setdefault(label["query"], {}).setdefault(label["responses"][0], []).append(label["score"])
    for query, by_response in scores.items():
        means = {text: sum(given) / len(given) for text, given in by_response.items()}
        if len(means) < 2:
            counts["queries are left out: only one response is rated"] += 1
        for chosen, high in means.items():
            for rejected, low in means.items():
                if high > low:
                    yield {"query": query, "responses": [chosen, rejected], "best": 0}
