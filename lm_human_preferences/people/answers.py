"""What a training run takes from a study: how many labels there are, and the first so many of them as a label file.

Such a file is written once and never again, so that a run that goes on learns from the very labels that it had.
"""

from pathlib import Path

from lm_human_preferences.data.label_files import save_labels
from lm_human_preferences.people.export import as_texts, as_tokens, has_tokens, labels_of
from lm_human_preferences.people.quality import Quality, quality
from lm_human_preferences.people.records import Question
from lm_human_preferences.people.store import Store


def write_first_labels(store: Store, count: int, merge: str, path: Path, after: int = 0) -> None:
    """The first `count` labels, without the first `after` of them, in the order in which they came, as the answers
    stood when the last of them came, unless the file is there already. Questions with tokens are written as tokens,
    others as texts.
    """
    if path.exists():
        return
    first, last = store.first_labelled(count)
    questions = {question.id: question for question in store.questions()}
    wanted = {number: questions[number] for number in first[after:]}
    labels = {question.id: label for question, label in labels_of(wanted, store.judgements(until=last), merge)}
    forms = ((as_tokens if has_tokens(wanted[n]) else as_texts)(wanted[n], labels[n]) for n in wanted)
    save_labels(path, forms)


def label_questions(store: Store, count: int) -> list[Question]:
    """The questions of the first `count` labels, as `write_first_labels` orders them."""
    questions = {question.id: question for question in store.questions()}
    return [questions[number] for number in store.first_labelled(count)[0]]


def quality_between(store: Store, after: int, count: int) -> tuple[Quality, int]:
    """The quality of the answers that came after the one of number `after` until there were `count` labels, and the
    number of the last of them.
    """
    _, last = store.first_labelled(count)
    judgements = [one for one in store.judgements(until=last) if one.id > after]
    return quality({question.id: question for question in store.questions()}, judgements), last


def quality_metrics(found: Quality) -> dict[str, float]:
    """What of a study's quality goes into a run's metrics; what is not known yet is left out."""
    shares = [one.usable for one in found.labellers]
    metrics = {"online/labellers": float(len(shares)), "online/chance_agreement": found.chance}
    if sum(shares):
        metrics["online/largest_share"] = max(shares) / sum(shares)
    metrics["online/blind_labellers"] = float(sum(bool(one.named) for one in found.labellers))
    if found.agreement is not None:
        metrics["online/agreement"] = found.agreement.value
    if found.alpha is not None:
        metrics["online/alpha"] = found.alpha
    if found.win_rate is not None:
        rate = found.win_rate
        metrics |= {"online/win_rate": rate.value, "online/win_rate_low": rate.low, "online/win_rate_high": rate.high}
    return metrics
