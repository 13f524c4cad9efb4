"""What can be wrong with learning from labels, by a reward model or by the policy itself."""

import math

from lm_human_preferences.watching.check import FINE, SEVERE, WARNING, AtMost, Judgement, MoreThan, check
from lm_human_preferences.watching.checks_every_stage import LOSS_RISE, training_loss_rises
from lm_human_preferences.watching.history import WINDOW, History

CHANCE_LABELS = 64  # labels in the window before accuracy in training means anything
CHANCE = MoreThan(
    "what held-out accuracy (correlation) leads chance by, in standard errors of chance; in training the severe limit "
    "is a warning",
    warning=3.0,
    severe=1.0,
    why="one of 700 models that learned nothing leads by 3, one of six by 1",
)


@check(
    "train_reward",
    "train_dpo",
    "train_ilql",
    looks_at="`validation/accuracy` against `validation/chance`, or `validation/corr` against 0; before there is one, "
    f"in the second half of a single pass, `train/accuracy` or `train/corr` over the last {WINDOW} batches, if they "
    f"hold at least {CHANCE_LABELS} labels (each of which is new to the model)",
    limits=(CHANCE,),
    why="a reward model that does not know what people prefer gives the policy noise to climb",
    change="read labels; `--lr` times 3 and divided by 3; more `--labels.num_train`, more `--epochs` of few labels",
)
def chance(h: History) -> Judgement | None:
    """Held-out accuracy or correlation; before there is one, that of the newest training batches."""
    change = (
        f"read some labels of {h.flag('labels.source')} as text; try {h.flag('lr')} times 3 and divided by 3, more "
        f"{h.flag('labels.num_train')}, or more {h.flag('epochs')} of few labels"
    )
    accuracy, base, choices = (h.number(f"validation/{name}") for name in ("accuracy", "chance", "choices"))
    error = h.number("validation/standard_error")  # of the accuracy: runs of earlier versions have no choices
    if base is not None and choices:
        error = math.sqrt(base * (1 - base) / choices)
    if accuracy is not None and error is not None and base is not None:
        return Judgement(
            CHANCE.level(accuracy - base, error),
            f"held-out accuracy {accuracy:.1%}; chance is {base:.1%}, standard error {error:.1%}",
            change,
        )
    correlation, count = h.number("validation/corr"), h.number("validation/labels")
    if correlation is not None and count is not None and count > 0:
        error = 1 / math.sqrt(count)
        return Judgement(
            CHANCE.level(correlation, error),
            f"correlation with {count:.0f} held-out labels {correlation:.2f}, standard error {error:.2f}; chance is 0",
            change,
        )
    return _chance_in_training(h, change)


def _chance_in_training(h: History, change: str) -> Judgement | None:
    kind, size = str(h.parameter("labels.type")).removeprefix("best_of_"), h.parameter("batch_size")
    name, base = ("accuracy", 1 / max(2, int(kind))) if kind.isdigit() else ("corr", 0.0)
    batches, passes = h.so_far(f"train/{name}"), h.parameter("epochs") or 1
    if batches is None or not size or passes > 1 or h.progress < 0.5 or len(batches.last) * size < CHANCE_LABELS:
        return None
    n, average = len(batches.last) * size, batches.mean_last(WINDOW)
    error = math.sqrt(base * (1 - base) / n) if name == "accuracy" else 1 / math.sqrt(n)
    return Judgement(
        WARNING if CHANCE.level(average - base, error) == SEVERE else FINE,
        f"{name} {average:.2f} on the last {n} training labels, standard error {error:.2f}; chance is {base:g}",
        change,
    )


MEMORISED_LEAD = 0.1  # accuracy above chance in training before it can be compared
MEMORISED = MoreThan(
    f"share of training's lead over chance that is left on held-out labels, which have {CHANCE.warning:g} standard "
    f"errors in their favour; once training leads chance by {MEMORISED_LEAD:g}",
    warning=0.33,
    severe=0.1,
    why="where sentences come in several labels, one half is usual; at 0.1 next to nothing carries over",
)


@check(
    "train_reward",
    "train_dpo",
    looks_at=f"`train/accuracy` of the last {WINDOW} batches against `validation/accuracy`",
    limits=(MEMORISED,),
    why="what was learned by heart does not carry over to texts that the model has not seen",
    change="remove repeated labels from `--labels.source`, fewer `--epochs`, lower `--lr`, more different labels",
)
def memorising(h: History) -> Judgement | None:
    training = h.series.get("train/accuracy")
    valid, error, base = (h.number(f"validation/{name}") for name in ("accuracy", "standard_error", "chance"))
    if training is None or valid is None or error is None or base is None:
        return None
    average = training.mean_last(WINDOW)
    lead, carried = average - base, valid + CHANCE.warning * error - base
    return Judgement(
        FINE if lead < MEMORISED_LEAD else MEMORISED.level(carried, lead),
        f"accuracy {average:.1%} on the last {len(training.last)} training batches, {valid:.1%} (standard error "
        f"{error:.1%}) on held-out labels; chance is {base:.1%}",
        f"remove repeated labels or responses from {h.flag('labels.source')}, fewer {h.flag('epochs')}, lower "
        f"{h.flag('lr')}, more different labels",
    )


GAIN = AtMost(
    "`normalize_after/gain`",
    warning=10.0,
    severe=100.0,
    why="the trained rewards had a tenth of the deviation that they should have; at 100 they are all alike, and what "
    "is scaled up is noise",
)


@check(
    "train_reward",
    looks_at="`normalize_after/gain`, `normalize_after/std`",
    limits=(GAIN,),
    why="training made all rewards alike, and normalisation blew up what little was left",
    change="lower `--lr`, more `--labels.num_train`; if samples are all alike, `--task.policy.temperature` and queries",
)
def reward_scale(h: History) -> Judgement | None:
    gain, deviation = h.number("normalize_after/gain"), h.number("normalize_after/std")
    if gain is None:
        return None
    return Judgement(
        GAIN.level(gain),
        f"rewards of sampled responses had deviation {deviation or 0:.2g} after training; the gain became {gain:.3g}",
        f"lower {h.flag('lr')}, more {h.flag('labels.num_train')}; look at {h.flag('task.policy.temperature')} and the "
        "queries: are samples all alike?",
    )


@check(
    "train_reward",
    "train_dpo",
    "train_ilql",
    looks_at=f"`train/loss`, mean of the last {WINDOW} steps against the first {WINDOW}",
    limits=(LOSS_RISE,),
    why="training makes the model worse at what it is trained for",
    change="lower `--lr`",
)
def loss_rising(h: History) -> Judgement | None:
    return training_loss_rises(h)


REWARD_CHECKS = (chance, memorising, reward_scale, loss_rising)
