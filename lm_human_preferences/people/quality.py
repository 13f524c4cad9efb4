"""How far answers can be trusted: each labeller's habits and agreement, the study's, and whom one should talk to.

An answer is known here by a nominal label: the number of the chosen (or first ranked) response, or K for "all alike".
Intervals are 95% intervals: Wilson's for shares, normal ones for means over questions.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lm_human_preferences.people.records import ALIKE, GOLD, VALIDATION, Judgement, Question

Z = 1.959964  # of a 95% interval
# Whom to name. In the simulated studies of tests/people/test_quality.py these find who clicks blindly or always takes
# the first card within 60 answers, and no honest one in 20 studies.
BLIND = 2.0  # standard errors above chance that whoever judges at all reaches
BELOW = 4.0  # standard errors below the others
PLACE_ODDS = 1e-5  # that a place is taken this often by chance
PLACE_EXCESS = 0.15  # and so much more often than its share


class Share(NamedTuple):
    """A share with its interval, of that many cases."""

    value: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        return f"{self.value:.0%} ({self.low:.0%} to {self.high:.0%})"


def wilson(hits: float, count: int) -> Share | None:
    """The share of hits with Wilson's interval; None of nothing."""
    if count == 0:
        return None
    share, z2 = hits / count, Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return Share(share, max(0.0, middle - half), min(1.0, middle + half), count)


def mean_share(values: Sequence[float]) -> Share | None:
    """The mean of values between 0 and 1 with a normal interval, clipped to 0..1; None of nothing."""
    if not values:
        return None
    mean, half = float(np.mean(values)), Z * _standard_error(values)
    return Share(mean, max(0.0, mean - half), min(1.0, mean + half), len(values))


def _standard_error(values: Sequence[float]) -> float:
    """Of a mean; as if each value could be 0 or 1 where there are too few, or all are the same."""
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.5 / math.sqrt(max(1, len(values)))
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


@dataclass
class LabellerQuality:
    """One person's answers."""

    name: str
    answers: int
    usable: int  # all but "cannot tell"
    alike: int
    flagged: int
    median_seconds: float
    places: list[Share] = field(default_factory=list)  # of the choices, first place to last
    longest: Share | None = None  # how often the longest response was chosen; 1 in K by chance
    gold: Share | None = None
    repeats: Share | None = None
    agreement: Share | None = None  # with each other person on the same questions
    agreement_then: Share | None = None  # in the first half of these questions
    agreement_now: Share | None = None  # in the second half
    named: list[str] = field(default_factory=list)  # what is odd, in words; empty where nothing is


@dataclass
class Quality:
    """A study's answers."""

    labellers: list[LabellerQuality]
    answers: int
    questions: int  # with an answer
    shared: int  # questions that several people answered
    alpha: float | None  # Krippendorff's; None where it is not defined
    agreement: Share | None  # of two people on one question
    chance: float  # of two answers drawn from all
    divided: list[tuple[Question, dict[str, int]]]  # the questions that divide people most, with the answers' counts
    win_rate: Share | None  # of the policy over the reference on validation questions, ties split


def label_of(judgement: Judgement, responses: int) -> int:
    """The nominal label of a usable answer."""
    return responses if judgement.answer.kind == ALIKE else judgement.answer.value[0]


def quality(questions: Mapping[int, Question], judgements: Sequence[Judgement]) -> Quality:
    """Everything about a study's answers that hold; questions by number."""
    usable = [one for one in judgements if one.answer.usable]
    first = [one for one in usable if not one.showing.repeat]
    table: dict[int, dict[str, int]] = defaultdict(dict)  # question -> labeller -> label
    for one in first:
        table[one.showing.question][one.showing.labeller] = label_of(one, _responses(questions, one))
    counts = Counter(label for row in table.values() for label in row.values())
    total = sum(counts.values())
    chance = sum(count * count for count in counts.values()) / (total * total) if total else 0.0
    names = sorted({one.showing.labeller for one in judgements})
    evidence: dict[str, list[float]] = {}
    people = []
    for name in names:
        found, evidence[name] = _labeller(name, questions, judgements, table, chance)
        people.append(found)
    for person in people:
        person.named += _oddities(person, evidence)
    shared = {question: row for question, row in table.items() if len(row) > 1}
    return Quality(
        people,
        len(judgements),
        len(table),
        len(shared),
        alpha(table.values()),
        mean_share([_pair_agreement(list(row.values())) for row in shared.values()]),
        chance,
        _divided(questions, shared),
        win_rate(questions, first),
    )


def _responses(questions: Mapping[int, Question], judgement: Judgement) -> int:
    return len(questions[judgement.showing.question].responses)


def _labeller(
    name: str,
    questions: Mapping[int, Question],
    judgements: Sequence[Judgement],
    table: Mapping[int, Mapping[str, int]],
    chance: float,
) -> tuple[LabellerQuality, list[float]]:
    """One person, and what tells whether they judge at all: for each comparison with others, gold or themselves how
    much better than chance they did.
    """
    own = [one for one in judgements if one.showing.labeller == name]
    usable = [one for one in own if one.answer.usable]
    chosen = [one for one in usable if one.place is not None]
    agreed = []
    for row in table.values():
        others = [label for other, label in row.items() if other != name]
        if name in row and others:
            agreed.append(sum(label == row[name] for label in others) / len(others))
    gold = [one.answer.value[:1] == [questions[one.showing.question].gold] for one in usable if one.kind == GOLD]
    repeats = [
        label_of(one, _responses(questions, one)) == table[one.showing.question][name]
        for one in usable
        if one.showing.repeat and name in table[one.showing.question]
    ]
    longest = []
    for one in chosen:
        sizes = [len(response.text) for response in questions[one.showing.question].responses]
        if sizes.count(max(sizes)) == 1:
            longest.append(sizes[one.answer.value[0]] == max(sizes))
    cards = max((_responses(questions, one) for one in chosen), default=0)
    half = len(agreed) // 2
    places = [wilson(sum(one.place == place for one in chosen), len(chosen)) for place in range(cards)]
    found = LabellerQuality(
        name,
        len(own),
        len(usable),
        sum(one.answer.kind == ALIKE for one in own),
        sum(one.note is not None for one in own),
        float(np.median([one.seconds for one in own])),
        [share for share in places if share is not None],
        wilson(sum(longest), len(longest)),
        wilson(sum(gold), len(gold)),
        wilson(sum(repeats), len(repeats)),
        mean_share(agreed),
        mean_share(agreed[:half]),
        mean_share(agreed[half:]) if half else None,
    )
    by_chance = 1 / cards if cards else 0.0
    excess = [share - chance for share in agreed] + [hit - by_chance for hit in (*gold, *repeats)]
    return found, excess


def _oddities(person: LabellerQuality, evidence: Mapping[str, Sequence[float]]) -> list[str]:
    """What is odd about a person, in words."""
    odd = []
    for place, share in enumerate(person.places):
        even = 1 / len(person.places)
        hits = round(share.value * share.cases)
        if share.value > even + PLACE_EXCESS and at_least(hits, share.cases, even) < PLACE_ODDS:
            odd.append(f"takes card {place + 1} in {share.value:.0%} of the choices, where {even:.0%} is its share")
    own = evidence[person.name]
    others = [float(np.mean(values)) for name, values in evidence.items() if name != person.name and len(values) > 1]
    if len(own) > 1 and others:
        error = _standard_error(own)
        mean, usual = float(np.mean(own)), float(np.median(others))
        if mean < BLIND * error and usual - mean > BELOW * error:
            odd.append(
                f"agrees with others, known answers and themselves no better than clicking blindly ({mean:+.0%} above "
                f"chance, others {usual:+.0%})"
            )
    return odd


def at_least(hits: int, count: int, share: float) -> float:
    """The probability of at least that many hits in `count` trials of probability `share` (binomial)."""
    logs = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(share)
        + (count - k) * math.log1p(-share)
        for k in range(hits, count + 1)
    ]
    return sum(map(math.exp, logs))


def alpha(answers: Iterable[Mapping[str, int]]) -> float | None:
    """Krippendorff's alpha for nominal labels, from labeller -> label of each question: 1 - observed / expected
    disagreement of pairs of answers; 1 is perfect, 0 is chance. None where no two people answered one question, or all
    answers are the same.
    """
    shared = [Counter(row.values()) for row in answers if len(row) > 1]
    totals = sum(shared, Counter[int]())
    n = totals.total()
    if len(totals) < 2:
        return None
    agreeing = sum(count * (count - 1) / (row.total() - 1) for row in shared for count in row.values())
    expected = sum(count * (count - 1) for count in totals.values()) / (n * (n - 1))
    return 1 - (1 - agreeing / n) / (1 - expected)


def _pair_agreement(labels: Sequence[int]) -> float:
    """The share of pairs of answers that are the same."""
    n = len(labels)
    return sum(count * (count - 1) for count in Counter(labels).values()) / (n * (n - 1))


def _divided(
    questions: Mapping[int, Question], shared: Mapping[int, Mapping[str, int]], count: int = 5
) -> list[tuple[Question, dict[str, int]]]:
    """The questions on which people agree least, those with most answers first."""
    order = sorted(
        shared, key=lambda question: (_pair_agreement(list(shared[question].values())), -len(shared[question]))
    )
    found = []
    for question in order[:count]:
        labels = list(shared[question].values())
        if _pair_agreement(labels) < 1:
            responses = len(questions[question].responses)
            counts = Counter("all alike" if label == responses else f"response {label + 1}" for label in labels)
            found.append((questions[question], dict(sorted(counts.items()))))
    return found


def win_rate(questions: Mapping[int, Question], judgements: Iterable[Judgement]) -> Share | None:
    """How often people prefer the policy's responses to the reference's on validation questions, ties split; several
    answers to one question count as their mean. The first of such a question's responses is the reference's.
    """
    wins: dict[int, list[float]] = defaultdict(list)
    for one in judgements:
        if one.kind == VALIDATION and one.answer.usable:
            responses = questions[one.showing.question].responses
            if one.answer.kind == ALIKE:
                wins[one.showing.question].append(0.5)
            else:
                wins[one.showing.question].append(float(responses[one.answer.value[0]].source != responses[0].source))
    return wilson(sum(map(np.mean, wins.values())), len(wins))


def describe(found: Quality) -> str:
    """The study's quality for a terminal."""
    lines = [
        f"{found.answers:,} answers to {found.questions:,} questions, {found.shared:,} of them by several people",
        f"Krippendorff's alpha {_number(found.alpha)}; two people agree in {_shown(found.agreement)}, by chance in "
        f"{found.chance:.0%}",
        f"policy preferred to reference {_shown(found.win_rate)}",
    ]
    for one in found.labellers:
        places = " ".join(f"{share.value:.0%}" for share in one.places)
        lines += [
            "",
            f"{one.name}: {one.answers:,} answers, {one.answers - one.usable:,} cannot tell, {one.alike:,} all alike, "
            f"{one.flagged:,} flagged, median {one.median_seconds:.1f} s",
            f"  places {places or '-'}; the longest {_shown(one.longest)}",
            f"  gold {_shown(one.gold)}; repeats {_shown(one.repeats)}",
            f"  agrees with others {_shown(one.agreement)}; first half {_shown(one.agreement_then)}, second "
            f"{_shown(one.agreement_now)}",
            *(f"  ! {oddity}" for oddity in one.named),
        ]
    if found.divided:
        lines += ["", "questions that divide people:"]
    for question, counts in found.divided:
        said = ", ".join(f"{label} {count}" for label, count in counts.items())
        lines.append(f"  {question.id}: {' '.join(question.query.split())[:60]!r}: {said}")
    return "\n".join(lines)


def _shown(share: Share | None) -> str:
    return "-" if share is None else f"{share} of {share.cases:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
