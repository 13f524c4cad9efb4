"""What can be wrong with supervised training."""

from lm_human_preferences.watching.check import FINE, AtMost, Judgement, check
from lm_human_preferences.watching.checks_every_stage import LOSS_RISE, training_loss_rises
from lm_human_preferences.watching.history import WINDOW, History

MEMORISED = AtMost(
    "`valid/loss` − `train/loss`, nats a token",
    warning=1.5,
    severe=3.0,
    why="0.4 to 0.8 is usual with a sampled vocabulary; at 3 perplexity is 20 times as high on text that was not "
    "trained on",
)


@check(
    "train_sft",
    looks_at=f"`valid/loss` against `train/loss`, mean of the last {WINDOW} steps",
    limits=(MEMORISED,),
    why="what was learned by heart does not carry over to texts that the model has not seen",
    change="fewer `--optimizer.epochs`, `--optimizer.dropout 0.1`, `--validation.patience 4`, more text",
)
def memorising(h: History) -> Judgement | None:
    training, valid = h.series.get("train/loss"), h.number("valid/loss")
    if training is None or valid is None:
        return None
    average = training.mean_last(WINDOW)
    return Judgement(
        MEMORISED.level(valid - average),
        f"validation loss {valid:.2f}, training loss {average:.2f} nats per token",
        f"fewer {h.flag('optimizer.epochs')}, {h.flag('optimizer.dropout')} to 0.1, {h.flag('validation.patience')} "
        "to 4, more text",
    )


VALID_RISE = AtMost(
    "`valid/loss` above the best one, nats a token",
    warning=0.1,
    severe=0.5,
    why="the best weights are worth 10% in perplexity more than the last; at 0.5 the run learned its rows by heart",
)


@check(
    "train_sft",
    looks_at=f"`valid/loss` against its best; `train/loss`, mean of the last {WINDOW} steps against the first {WINDOW}",
    limits=(VALID_RISE, LOSS_RISE),
    why="training makes the model worse at what it is trained for",
    change="lower `--optimizer.lr`, `--validation.patience 4`, fewer `--optimizer.epochs`, `--optimizer.dropout 0.1`",
)
def loss_rising(h: History) -> Judgement | None:
    valid = h.so_far("valid/loss", 2)
    rise = valid.last[-1] - valid.lowest if valid is not None else 0.0
    if valid is not None and VALID_RISE.level(rise) > FINE:
        return Judgement(
            VALID_RISE.level(rise),
            f"validation loss {valid.last[-1]:.3f} nats per token, at its best {valid.lowest:.3f}",
            f"{h.flag('validation.patience')} to 4, fewer {h.flag('optimizer.epochs')}, {h.flag('optimizer.dropout')} "
            "to 0.1; the best weights were kept",
        )
    if (judgement := training_loss_rises(h)) is not None:
        return judgement
    return Judgement(FINE, "validation loss is at its best") if valid is not None else None


WARMUP = AtMost(
    "share of the steps that were warm-up", warning=0.5, severe=None, why="a warm-up is a beginning, not half of a run"
)


@check(
    "train_sft",
    looks_at="steps that were made against `--optimizer.warmup`",
    limits=(WARMUP,),
    why="most of the run went by before the learning rate reached its value",
    change="lower `--optimizer.warmup`, raise `--optimizer.epochs`",
    afterwards=True,
)
def warmup(h: History) -> Judgement | None:
    """Before the end nobody knows how many steps there will be."""
    steps, made = h.parameter("optimizer.warmup"), h.series.get("train/loss")
    if steps is None or made is None or not h.result:
        return None
    return Judgement(
        WARMUP.level(steps, made.count),
        f"{steps} of {made.count} steps were warm-up",
        f"lower {h.flag('optimizer.warmup')} or raise {h.flag('optimizer.epochs')}",
    )


SFT_CHECKS = (memorising, loss_rising, warmup)
