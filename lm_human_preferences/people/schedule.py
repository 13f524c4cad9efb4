"""When how many labels are wanted, and when the reward model learns again: the paper's online procedure (section 2.3).

Its code was never published; what its section says is here as pure functions.
"""

import math
from dataclasses import dataclass

from lm_human_preferences.data.labels import LabelType
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.people.asking import ASKS
from lm_human_preferences.people.merging import MERGES
from lm_human_preferences.people.records import StudyParams, check_study

LEARNING = ("afresh", "continued")
_ROUNDING = 1e-9  # what float64 may add to a whole number of labels


@dataclass
class OnlineParams:
    """Training that asks people while it goes on (section 2.3 of the paper)."""

    labels: int = param(5000, "labels in all")
    initial_labels: int = param(1000, "of them before the first step, on responses of the initial model")
    retrainings: int = param(19, "times that the reward model is trained anew, at evenly spaced counts of labels")
    learning: str = param(
        "afresh",
        "afresh: each retraining begins from the language model, on all labels (the paper); continued: it goes on from "
        "the reward model before, on the labels that came since",
    )
    lr: float | None = param(
        None, "learning rate of the first step of a continued one; none is --rewards.train_new_model.lr"
    )
    rounds: int = param(
        0, "above 0: the labels come in this many batches, a retraining after each, instead of a few at each step"
    )
    open_questions: int = param(64, "questions that are open beyond those that the next step needs")
    ask: str = param(
        "random",
        f"which responses people see: {', '.join(ASKS)}; all but random show those of the candidates from whose "
        "comparison the reward model would learn most",
    )
    candidates: int = param(16, "responses written for a question, of which --online.ask shows some")
    heads: int = param(16, "reward heads that say what the labels leave open, for --online.ask")
    random_share: float = param(
        0.2,
        "share of questions whose responses --online.ask does not choose: accuracy on new labels is measured on them",
    )
    merge: str = param("majority", f"several answers to one question: {', '.join(MERGES)}")
    study: str | None = param(None, "the study that people answer in; none is EXPERIMENT_people")
    labellers: str | None = param(
        None, "simulated:JUDGE?noise=0.3&first=0.1&people=5 instead of people; none waits for the page's answers"
    )
    wait: bool = param(True, "on: wait for answers; off: save and end where some are missing, to be started again")
    people: StudyParams = param(StudyParams, "")


def check_online(params: OnlineParams, kind: LabelType, batch_size: int) -> None:
    """UserError, naming the flag and the number, for a schedule that cannot work. batch_size: of reward training."""
    check_study(params.people)
    if not kind.is_choice:
        raise UserError(f"--online: people choose among responses, so that the labels are best_of_N, not {kind.name}")
    if params.people.responses != kind.n_responses:
        raise UserError(
            f"--online.people.responses {params.people.responses} is not the {kind.n_responses} of the labels' type "
            f"{kind.name}; give the same"
        )
    if params.people.validation_share > 0.5:
        raise UserError(
            f"--online.people.validation_share {params.people.validation_share}: must be at most 0.5; validation "
            "questions are no labels, and the run would wait for labels most of the time"
        )
    if params.people.mode != "choose":
        raise UserError("--online.people.mode must be choose: the reward model learns choices here")
    if not 1 <= params.initial_labels <= params.labels:
        raise UserError(
            f"--online.initial_labels {params.initial_labels} must lie between 1 and --online.labels {params.labels}"
        )
    if params.initial_labels % batch_size:
        raise UserError(
            f"--online.initial_labels {params.initial_labels} does not divide by "
            f"--rewards.train_new_model.batch_size {batch_size}"
        )
    for name in ("retrainings", "rounds"):
        if getattr(params, name) < 0:
            raise UserError(f"--online.{name} {getattr(params, name)}: must not be negative")
    if params.open_questions < 1:
        raise UserError(f"--online.open_questions {params.open_questions}: must be at least 1")
    if params.learning not in LEARNING:
        raise UserError(f"--online.learning {params.learning}: must be {' or '.join(LEARNING)}")
    if params.lr is not None and (params.learning != "continued" or not 0 < params.lr < math.inf):
        raise UserError(f"--online.lr {params.lr}: must be positive, and --online.learning continued")
    if params.ask not in ASKS:
        raise UserError(f"--online.ask {params.ask}: must be {', '.join(ASKS[:-1])} or {ASKS[-1]}")
    if params.candidates < params.people.responses:
        raise UserError(
            f"--online.candidates {params.candidates}: must be at least the {params.people.responses} that are shown"
        )
    if params.heads < 2:
        raise UserError(f"--online.heads {params.heads}: must be at least 2, or nothing can differ")
    if not 0 < params.random_share <= 1:
        raise UserError(f"--online.random_share {params.random_share}: must lie above 0 and at most at 1")
    if params.merge not in MERGES or params.merge == "each":
        raise UserError(f"--online.merge {params.merge}: must be majority or dawid_skene")


def labels_wanted(episode: int, total: int, initial: int, labels: int) -> float:
    """Labels that must be in before that episode (0 is the first): N0 + (N - N0)(1 - (1 - n / total)^2). It rises fast
    while the policy changes fast, and is N at the end.
    """
    return initial + (labels - initial) * (1 - (1 - episode / total) ** 2)


def batched_labels_wanted(episode: int, total: int, initial: int, labels: int, rounds: int) -> float:
    """The same where labels come in batches: the episodes are rounds + 1 equal parts, and before each part but the
    first one an equal share of the labels must be in.
    """
    return initial + (labels - initial) * min(rounds, episode * (rounds + 1) // total) / rounds


def wanted_before(episode: int, total: int, params: OnlineParams) -> int:
    """Whole labels that must be in before an episode."""
    if params.rounds:
        found = batched_labels_wanted(episode, total, params.initial_labels, params.labels, params.rounds)
    else:
        found = labels_wanted(episode, total, params.initial_labels, params.labels)
    return math.ceil(found - _ROUNDING)


def retraining_counts(params: OnlineParams, batch_size: int) -> list[int]:
    """The counts of labels at which the reward model learns anew, rising: evenly spaced between the initial labels and
    all of them (batches: at the end of each), rounded down to whole batches, those that coincide once.
    """
    first, last = params.initial_labels, params.labels
    if params.rounds:
        counts = [first + (last - first) * part / params.rounds for part in range(1, params.rounds + 1)]
    else:
        parts = params.retrainings + 1
        counts = [first + (last - first) * part / parts for part in range(1, parts)]
    whole = {int(count + _ROUNDING) // batch_size * batch_size for count in counts}
    return sorted(count for count in whole if count > first)


def questions_wanted(labels: int, params: OnlineParams, both: bool) -> int:
    """Questions that must have been asked so that `labels` and some more can be answered. both: a share of them are
    validation questions, which are no labels.
    """
    share = params.people.validation_share if both else 0.0
    plain = min(labels, params.labels) + params.open_questions
    return math.ceil(plain / (1 - share)) + 1
