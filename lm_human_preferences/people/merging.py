"""Several answers to one question as one target: a distribution over its K responses.

Dawid and Skene's model (1979) is fitted by EM as crowd-kit 1.4.2 fits it, whose recorded numbers the tests hold it to;
crowd-kit itself would bring transformers, nltk and pandas for these forty lines.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.people.records import Answer, Judgement

MERGES = ("majority", "each", "dawid_skene")
SURE = (1 / 3, 2 / 3, 1.0)  # how much of an answer of sureness 1, 2, 3 counts; the rest is spread over all responses
_LEAST = 1e-10  # crowd-kit's least probability


def answer_distribution(answer: Answer, responses: int) -> np.ndarray:
    """What one answer says, float64 [K]: all on the chosen (or first ranked) response, spread evenly over those that
    are alike, and flatter where the labeller was not sure.
    """
    return _flattened(_choice(answer, responses), _sureness(answer))


def _choice(answer: Answer, responses: int) -> np.ndarray:
    """The same as if the labeller had been sure."""
    found = np.zeros(responses)
    chosen = answer.value if answer.kind == "alike" else answer.value[:1]
    found[chosen] = 1 / len(chosen)
    return found


def _sureness(answer: Answer) -> float:
    return SURE[answer.sureness - 1] if answer.sureness is not None else 1.0


def _flattened(distribution: np.ndarray, share: float) -> np.ndarray:
    """That share of it, and the rest spread evenly."""
    return distribution if share == 1.0 else share * distribution + (1 - share) / len(distribution)


def merged(judgements: Iterable[Judgement], responses: int, how: str) -> dict[int, np.ndarray]:
    """Question -> target float64 [K], from all usable answers to it but repeats, in the order of the first answers.

    majority: the response that most people chose, evenly those that as many did, flatter as its choosers were not sure;
    each: the mean of what everybody says; dawid_skene: the posterior of the true answer, where labellers count by how
    well they agree with the rest, however sure they were. UserError for another way.
    """
    if how not in MERGES:
        raise UserError(f"--merge {how}: must be {', '.join(MERGES)}")
    said: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        if judgement.answer.usable and not judgement.showing.repeat:
            said.setdefault(judgement.showing.question, []).append(judgement)
    if how == "dawid_skene":
        return _by_dawid_skene(said, responses)
    targets = {}
    for question, some in said.items():
        if how == "majority":
            votes = np.array([_choice(one.answer, responses) for one in some])
            best = np.isclose(votes.sum(axis=0), votes.sum(axis=0).max())
            shares = [_sureness(one.answer) for one, vote in zip(some, votes, strict=True) if (vote[best] > 0).any()]
            targets[question] = _flattened(best / best.sum(), float(np.mean(shares)))
        else:
            targets[question] = np.mean([answer_distribution(one.answer, responses) for one in some], axis=0)
    return targets


def _by_dawid_skene(said: Mapping[int, Sequence[Judgement]], responses: int) -> dict[int, np.ndarray]:
    """All alike says nothing of which is true: it is left out, and where nobody says more the target is even."""
    questions = {question: place for place, question in enumerate(said)}
    labellers: dict[str, int] = {}
    rows = [
        (questions[question], labellers.setdefault(one.showing.labeller, len(labellers)), one.answer.value[0])
        for question, some in said.items()
        for one in some
        if one.answer.kind != "alike"
    ]
    targets = {question: np.full(responses, 1 / responses) for question in said}
    if rows:
        table = np.array(rows)
        kept = np.unique(table[:, 0])  # questions with an answer, renumbered
        table[:, 0] = np.searchsorted(kept, table[:, 0])
        posterior = dawid_skene(table, responses).posterior
        names = list(said)
        for place, row in zip(kept, posterior, strict=True):
            targets[names[place]] = row / row.sum()
    return targets


class DawidSkene(NamedTuple):
    """What EM found."""

    posterior: np.ndarray  # [questions, labels] of the true label
    prior: np.ndarray  # [labels]
    errors: np.ndarray  # [labellers, given label, true label]: probability that a labeller gives a label
    bounds: list[float]  # evidence lower bound by the number of answers, after each iteration


def dawid_skene(answers: np.ndarray, labels: int, iterations: int = 100, tolerance: float | None = 1e-5) -> DawidSkene:
    """Dawid and Skene's model of rows (question, labeller, label), int [n, 3], each question with an answer.

    Begins with the shares of votes; ends after `iterations`, or when the bound grows by less than the tolerance.
    """
    question, labeller, label = np.asarray(answers).T
    questions, labellers = question.max() + 1, labeller.max() + 1
    votes = np.zeros((questions, labels))
    np.add.at(votes, (question, label), 1)
    posterior = votes / votes.sum(1, keepdims=True)
    prior, errors = posterior.mean(0), _errors(posterior, question, labeller, label, labellers)
    bounds: list[float] = []
    for _ in range(iterations):
        posterior = _posterior(prior, errors, question, labeller, label, questions)
        prior = posterior.mean(0)
        errors = _errors(posterior, question, labeller, label, labellers)
        bounds.append(_bound(posterior, prior, errors, question, labeller, label) / len(label))
        if tolerance is not None and len(bounds) > 1 and bounds[-1] - bounds[-2] < tolerance:
            break
    return DawidSkene(np.maximum(posterior, _LEAST), prior, errors, bounds)


def _errors(
    posterior: np.ndarray, question: np.ndarray, labeller: np.ndarray, label: np.ndarray, labellers: int
) -> np.ndarray:
    """The M-step: how often each labeller gives a label where another is true [labellers, given, true]."""
    labels = posterior.shape[1]
    counts = np.zeros((labellers, labels, labels))
    np.add.at(counts, (labeller, label), posterior[question])
    given = np.zeros((labellers, labels), dtype=bool)
    given[labeller, label] = True
    counts = np.where(given[:, :, None], np.maximum(counts, _LEAST), 0.0)
    found: np.ndarray = counts / counts.sum(1, keepdims=True)
    return found


def _posterior(
    prior: np.ndarray, errors: np.ndarray, question: np.ndarray, labeller: np.ndarray, label: np.ndarray, questions: int
) -> np.ndarray:
    """The E-step [questions, labels]."""
    logs = np.zeros((questions, len(prior)))
    with np.errstate(divide="ignore"):  # a label that nobody gave has prior 0
        np.add.at(logs, question, np.log2(errors[labeller, label]))
        joint = np.log2(prior) + logs
    joint = np.exp2(joint - joint.max(1, keepdims=True))
    found: np.ndarray = joint / joint.sum(1, keepdims=True)
    return found


def _bound(
    posterior: np.ndarray,
    prior: np.ndarray,
    errors: np.ndarray,
    question: np.ndarray,
    labeller: np.ndarray,
    label: np.ndarray,
) -> float:
    """As crowd-kit has it, which the recorded stopping depends on: the prior counts once for each answer."""
    posterior = np.maximum(posterior, _LEAST)
    seen = (np.log(errors[labeller, label]) + np.log(np.maximum(prior, _LEAST))) * posterior[question]
    return float(seen.sum() - (posterior * np.log(posterior)).sum())
