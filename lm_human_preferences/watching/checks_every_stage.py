"""What can be wrong with every stage, or with two of them."""

import math

from lm_human_preferences.watching.check import FINE, SEVERE, WARNING, AtMost, Judgement, check
from lm_human_preferences.watching.history import SHORT, STAGES, WINDOW, History, is_finite, variance


@check(
    *STAGES,
    looks_at="all metrics. `train/corr` has no value in a batch whose labels are all equal: a warning if it had none "
    f"in {SHORT} steps",
    why="one number that is not finite (NaN or infinite; always severe) spreads into every weight",
    change="a lower `--ppo.lr`, `--lr` or `--optimizer.lr`",
)
def not_finite(h: History) -> Judgement | None:
    bad = [
        name for name, value in h.row.items() if name != "step" and not isinstance(value, str) and not is_finite(value)
    ]
    rate = f"start again with a lower {h.flag(h.learning_rate)}"
    if bad in (["train/corr"], ["validation/corr"]):
        never = bad == ["validation/corr"] or "train/corr" not in h.series and h.step + 1 >= SHORT
        return Judgement(
            WARNING if never else FINE,
            f"{bad[0]} has no value: labels, or rewards, are all equal",
            f"look at the ratings in {h.flag('labels.source')}; a larger {h.flag('batch_size')}; {rate}",
        )
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return Judgement(SEVERE if bad else FINE, f"{', '.join(bad[:3])}{more} not finite", rate)


LR_SLIP = AtMost(
    "difference from the schedule, as a share of the first rate",
    warning=0.01,
    severe=None,
    why="the schedule is exact to rounding",
)


@check(
    "train_policy",
    "expert_iteration",
    "train_reward",
    "train_dpo",
    "train_ilql",
    looks_at="`lr`, `train/lr` against a straight line to 0",
    limits=(LR_SLIP,),
    why="the configuration fixes the schedule; with another rate the run is not the one that its config.json tells of",
    change="the same `--ppo.lr` or `--lr` and number of steps after a resume",
)
def learning_rate(h: History) -> Judgement | None:
    name, total = "lr" if h.stage in ("train_policy", "expert_iteration") else "train/lr", h.total
    now, first = h.number(name), h.parameter(h.learning_rate)
    if now is None or not first or not total:
        return None
    expected = first * (1 - h.step / total)
    return Judgement(
        LR_SLIP.level(abs(now - expected), first),
        f"learning rate {now:.3g}, by the schedule of {total} steps {expected:.3g}",
        f"give a resumed run the same {h.flag(h.learning_rate)} and number of steps; a change of code, perhaps",
    )


QUERY_PADDING = AtMost(
    "share of padding in the queries",
    warning=0.95,
    severe=0.99,
    why="one-word queries in a window of eight (`movies`) make 0.7 to 0.86; at 0.99 a token in a hundred is real",
)


@check(
    "train_policy",
    "expert_iteration",
    "train_reward",
    "train_dpo",
    "train_ilql",
    looks_at="`objective/query_padding`, `labels/query_padding`",
    limits=(QUERY_PADDING,),
    why="the length was chosen for other texts, or queries hold next to nothing to respond to",
    change="`--task.query_length`, `--task.start_text`, `--task.end_text`",
)
def query_padding(h: History) -> Judgement | None:
    seen = (h.number(name) for name in ("objective/query_padding", "labels/query_padding"))
    share = next((value for value in seen if value is not None), None)
    if share is None:
        return None
    return Judgement(
        QUERY_PADDING.level(share),
        f"{share:.1%} of the queries' tokens are padding, limit {QUERY_PADDING.warning:.0%}",
        f"lower {h.flag('task.query_length')}; if queries should be longer, look at {h.flag('task.start_text')}, "
        f"{h.flag('task.end_text')} and the data",
    )


RESPONSE_PADDING = AtMost(
    "share of padding in the responses, or in the rows of supervised training",
    warning=0.9,
    severe=0.97,
    why="the score sees a tenth of what is sampled, KL and value losses see all; at 0.97 responses are one token long",
)
_PADDED = {
    "objective/response_padding": "truncated responses'",
    "labels/response_padding": "labels' responses'",
    "train/padding": "rows'",
}


@check(
    "train_policy",
    "expert_iteration",
    "train_reward",
    "train_sft",
    "train_dpo",
    "train_ilql",
    looks_at=f"`objective/response_padding`, `labels/response_padding`, `train/padding`, mean of the last {SHORT} rows",
    limits=(RESPONSE_PADDING,),
    why="next to nothing of a response is judged or trained on; tokens after its end still pay KL",
    change="`--task.response_length`, `--task.truncate_after`, `--data.block`, `--data.rows packed`",
)
def response_padding(h: History) -> Judgement | None:
    name = next((name for name in _PADDED if h.number(name) is not None), None)
    if name is None:
        return None
    share = h.series[name].mean_last(SHORT)
    if h.stage == "train_sft":
        change = f"lower {h.flag('data.block')}, or {h.flag('data.rows')} to packed"
    else:
        some = "samples" if h.stage in ("train_policy", "expert_iteration") else f"of {h.flag('labels.source')}"
        change = (
            f"lower {h.flag('task.response_length')}; if responses should be longer, raise "
            f"{h.flag('task.truncate_after')} and read some {some}"
        )
    return Judgement(
        RESPONSE_PADDING.level(share),
        f"{share:.1%} of the {_PADDED[name]} tokens are padding, limit {RESPONSE_PADDING.warning:.0%}",
        change,
    )


LOSS_NOISE = 3.0  # standard errors between the first and the last window
LOSS_RISE = AtMost(
    "how far `train/loss` has risen, as a share of its first mean, if that is more than "
    f"{LOSS_NOISE:g} standard errors",
    warning=0.05,
    severe=0.5,
    why="less is of no account even where it is certain; at 0.5 training diverges",
)


def training_loss_rises(h: History) -> Judgement | None:
    """Of reward, supervised and direct training: the last window of the training loss against the first."""
    losses = h.so_far("train/loss", 2 * WINDOW)
    if losses is None:
        return None
    first, last = losses.mean_first(WINDOW), losses.mean_last(WINDOW)
    noise = LOSS_NOISE * math.sqrt((variance(losses.first) + variance(list(losses.last))) / WINDOW)
    return Judgement(
        FINE if last - first <= noise else LOSS_RISE.level(last - first, abs(first)),
        f"training loss {last:.3g} over the last {WINDOW} steps, {first:.3g} over the first",
        f"lower {h.flag(h.learning_rate)}",
    )


EVERY_STAGE_CHECKS = (not_finite, learning_rate, query_padding, response_padding)
