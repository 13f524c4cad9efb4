"""What can be wrong with a run, as pure functions of what it has logged so far; docs/doctor.md lists them, doctor.py
asks them.

A check looks at a `History` and says how bad things are, what it saw and what to change; None where the run has nothing
to look at (yet).
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Rows that a mean looks at.
WINDOW = 20  # batches: of 32 labels, accuracy is then known to 2 points
SHORT = 5  # steps of PPO: enough to tell a state from one odd batch

# Policy training.
RATIO_LIMIT = 0.01  # the project's bound under bfloat16; PPO's own clip range is only 20 times as wide
RATIO_LIMIT_FLOAT32 = 0.001  # rounding in float32 gives 1e-6 to 1e-5
RATIO_SEVERE = 0.1  # half of PPO's clip range before anything was learned
KL_NOISE = 5.0  # standard errors: an honest estimate falls so far below 0 in one batch of a hundred thousand
KL_NEGATIVE = 0.1  # nats: bfloat16's rounding alone reaches a few hundredths
KL_NEGATIVE_SEVERE = 1.0  # nats: more than any rounding
KL_PER_TOKEN = 1.0  # nats: three times what a tuned policy that still reads well pays
KL_PER_TOKEN_SEVERE = 2.0  # nats: near the entropy of the model itself, so nothing of it is left
KL_OF_TARGET = 3.0  # the controller lets the KL swing to about twice its target
KL_OF_TARGET_SEVERE = 10.0  # a coefficient that changes by 0.2% a step will not come back from there
KL_COEF_FACTOR = 10.0  # a price so far from the first one was never chosen by anybody
KL_COEF_FACTOR_SEVERE = 100.0  # no price at all, or nothing but the price
SCALE_MEAN = 0.5  # deviations: truncation moves the mean by a few tenths against the raw responses that set the scale
SCALE_MEAN_SEVERE = 2.0  # every response then looks exceptionally good or bad beside the penalty
SCALE_FACTOR = 2.0  # the KL coefficient is worth half or twice as much as it says
SCALE_FACTOR_SEVERE = 5.0  # it is off by as much as the paper's whole range of coefficients
SCALE_SAMPLES = 16  # fewer scores do not tell a scale
PENALISED = 0.8  # nearly every score is then the same number
PENALISED_LATE = 0.5  # an end pays from the first step on, so later most responses have one
PENALISED_SEVERE = 0.98  # nothing to learn from
PENALISED_STEPS = 3  # the start model's habit shows in a few batches
ENTROPY_SHARE = 0.2  # of the first value; a useful policy loses a tenth to a half
ENTROPY_SHARE_SEVERE = 0.05  # one response to each query
DISTINCT_SHARE = 0.5  # of the first value; a useful policy hardly repeats whole responses
DISTINCT_SHARE_SEVERE = 0.1  # a handful of responses for everything
PAIRS_SHARE = 0.5  # of the initial policy's distinct pairs of tokens, on the same queries
PAIRS_SHARE_SEVERE = 0.2  # a few phrases
SAMPLES = 20  # samples at either end of samples.jsonl; fewer repeat by chance
LATE = 0.75  # of the steps: values and valid ends have been learned by then if ever
VALUE_ROWS = 16  # steps before which nobody expects a value function
VALUE_SEVERE = -1.0  # twice the error of a constant
UPDATE_KL = 0.05  # nats per token and step; 0.0005 to 0.02 is usual
UPDATE_KL_SEVERE = 0.5  # the policy becomes another one each step
UPDATE_CLIPPED = 0.3  # of the tokens; below 0.2 is usual
UPDATE_CLIPPED_SEVERE = 0.6  # most of the update is thrown away
UPDATE_TINY = 1e-5  # nats per token and step, while the learning rate is high: nothing is learned
VALUE_LOSS_FACTOR = 2.0  # it starts at its largest, as values start at 0
VALUE_LOSS_FACTOR_SEVERE = 5.0  # values run away

# Every stage.
QUERY_PADDING = 0.95  # one-word queries in a window of eight (`movies`) make 0.7 to 0.86
QUERY_PADDING_SEVERE = 0.99  # a token in a hundred is real
RESPONSE_PADDING = 0.9  # the score sees a tenth of what is sampled, KL and value losses see all
RESPONSE_PADDING_SEVERE = 0.97  # responses are one token long
LOSS_NOISE = 3.0  # standard errors between the first and the last window
LOSS_RISE = 0.05  # of the first value: less is of no account even where it is certain
LOSS_RISE_SEVERE = 0.5  # divergence
VALID_RISE = 0.1  # nats above the best validation: the best weights are worth 10% in perplexity more than the last
VALID_RISE_SEVERE = 0.5  # the run learned its training rows by heart
LR_SLIP = 0.01  # of the first rate; the schedule is exact to rounding
WARMUP_SHARE = 0.5  # of the steps: a warm-up is a beginning

# Reward training.
GAIN = 10.0  # the trained rewards had a tenth of the deviation that they started with
GAIN_SEVERE = 100.0  # rewards are all alike: what is scaled up is noise
CHANCE_NOISE = 3.0  # standard errors: one of 700 models that learned nothing does as well
CHANCE_NOISE_SEVERE = 1.0  # one of six does as well
CHANCE_LABELS = 64  # labels in the window before accuracy in training means anything
MEMORISED_LEAD = 0.1  # accuracy above chance in training before it can be compared
# of training's lead over chance is left on held-out labels; where sentences come in several labels, one half is usual
MEMORISED = 0.33
MEMORISED_SEVERE = 0.1  # next to nothing carries over
MEMORISED_NATS = 1.5  # validation above training loss; 0.4 to 0.8 is usual with a sampled vocabulary
MEMORISED_NATS_SEVERE = 3.0  # perplexity 20 times as high on text that was not trained on

FINE, WARNING, SEVERE = 0, 1, 2
STAGES = {"train_policy": "ppo.lr", "train_reward": "lr", "train_sft": "optimizer.lr"}  # stage -> its learning rate


class Judgement(NamedTuple):
    """What a check says at one row: how bad it is, what it saw, what to change."""

    level: int  # FINE, WARNING or SEVERE
    saw: str
    change: str = ""


# --- what a run has logged so far ---


class Series:
    """A metric's first and last values and its lowest one: all that any check needs, whatever the length of the run."""

    def __init__(self):
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.lowest, self.count = math.inf, 0

    def add(self, value: float) -> None:
        if len(self.first) < WINDOW:
            self.first.append(value)
        self.last.append(value)
        self.lowest, self.count = min(self.lowest, value), self.count + 1

    def mean_first(self, n: int) -> float:
        return _mean(self.first[:n])

    def mean_last(self, n: int) -> float:
        return _mean(list(self.last)[-n:])


@dataclass
class History:
    """A run up to its newest row of metrics. `samples` and `result` are empty while it goes on."""

    stage: str
    parameters: dict[str, Any]  # nested, as in config.json
    series: dict[str, Series] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)  # the newest
    step: int = 0
    samples: list[dict] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        self.row, self.step = row, row.get("step", self.step + 1)
        for name, value in row.items():
            if name != "step" and _is_finite(value):
                self.series.setdefault(name, Series()).add(float(value))

    def number(self, name: str) -> float | None:
        """The newest row's value, None if it has none that is finite."""
        return float(self.row[name]) if _is_finite(self.row.get(name)) else None

    def so_far(self, name: str, at_least: int = 1) -> Series | None:
        """A metric's values, None unless the newest row has one and there are `at_least` so many."""
        found = self.series.get(name)
        return found if found is not None and found.count >= at_least and self.number(name) is not None else None

    def parameter(self, dotted: str) -> Any:
        """A resolved parameter by its dotted name, None if the run has no such one."""
        value: Any = self.parameters
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def flag(self, dotted: str) -> str:
        """The parameter as a flag with its present value, for advice."""
        value = self.parameter(dotted)
        shown = (
            "none"
            if value is None
            else "off"
            if value is False
            else "on"
            if value is True or isinstance(value, dict)
            else value
        )
        return f"--{dotted} (now {shown})"

    @property
    def total(self) -> int | None:
        """Steps of the whole run, None where the configuration alone does not tell."""
        count, size = {
            "train_policy": ("ppo.total_episodes", "ppo.batch_size"),
            "train_reward": ("labels.num_train", "batch_size"),
        }.get(self.stage, ("", ""))
        count, size = self.parameter(count), self.parameter(size)
        return math.ceil(count / size) if count and size else None

    @property
    def progress(self) -> float:
        """Share of the steps that are done; 0 where their number is unknown."""
        return (self.step + 1) / self.total if self.total else 0.0


# --- checks of policy training ---


def ratio(h: History) -> Judgement | None:
    deviation = h.number("ppo/ratio/std_before")
    if deviation is None:
        return None
    limit = RATIO_LIMIT_FLOAT32 if h.parameter("run.precision") == "float32" else RATIO_LIMIT
    return Judgement(
        _level(deviation, limit, RATIO_SEVERE),
        f"new / old probability deviates by {deviation:.2g} from 1 before the first update of the step, limit {limit:g}",
        f"{h.flag('ppo.old_logprobs')} to recomputed, or {h.flag('run.precision')} to float32; if it stays, sampling and analysis differ "
        "(temperature, cache, padding), which is a bug",
    )


def kl_negative(h: History) -> Judgement | None:
    kl, deviation, size = h.so_far("objective/kl"), h.so_far("objective/kl_std"), h.parameter("ppo.batch_size")
    if kl is None or deviation is None or not size:
        return None
    rows, mean = min(SHORT, kl.count), kl.mean_last(SHORT)
    error = deviation.mean_last(SHORT) / math.sqrt(rows * size)
    level = FINE if -mean <= KL_NOISE * error else _level(-mean, KL_NEGATIVE, KL_NEGATIVE_SEVERE)
    return Judgement(
        level,
        f"mean KL {mean:.3g} nats over the {rows * size} responses of the last {rows} steps, standard error {error:.2g}",
        f"look at ppo/ratio/std_before and at any change to sampling (temperature, top-k, uniforms); {h.flag('run.precision')} to float32",
    )


def kl_exploding(h: History) -> Judgement | None:
    kl, target, length = (
        h.number("objective/kl"),
        h.parameter("rewards.adaptive_kl.target"),
        h.parameter("task.response_length"),
    )
    if kl is None or not (target or length):
        return None
    limits = (
        (KL_OF_TARGET * target, KL_OF_TARGET_SEVERE * target)
        if target
        else (KL_PER_TOKEN * length, KL_PER_TOKEN_SEVERE * length)
    )
    whereof = f"target {target:g}" if target else f"responses of {length} tokens"
    return Judgement(
        _level(kl, *limits),
        f"mean KL {kl:.3g} nats, limit {limits[0]:g} ({whereof})",
        f"lower {h.flag('ppo.lr')}, raise {h.flag('rewards.kl_coef')}"
        + ("" if target else f", or {h.flag('rewards.adaptive_kl')} to on"),
    )


def kl_coef(h: History) -> Judgement | None:
    now, first = h.number("objective/kl_coef"), h.parameter("rewards.kl_coef")
    if now is None or not first or not h.parameter("rewards.adaptive_kl"):
        return None
    factor = max(now / first, first / now) if now > 0 else math.inf
    change = (
        f"lower {h.flag('rewards.adaptive_kl.target')} or raise {h.flag('ppo.lr')}"
        if now < first
        else f"lower {h.flag('ppo.lr')}, or raise {h.flag('rewards.adaptive_kl.horizon')} if KL and coefficient swing against each other"
    )
    return Judgement(
        _level(factor, KL_COEF_FACTOR, KL_COEF_FACTOR_SEVERE), f"KL coefficient {now:.3g}, at first {first:g}", change
    )


def score_scale(h: History) -> Judgement | None:
    """At step 0 the policy is the reference: without penalties its scores have mean 0 and deviation 1."""
    score, valid, size = h.number("objective/score"), h.number("objective/valid"), h.parameter("ppo.batch_size")
    penalty, all_scores = h.parameter("task.penalty_reward_value"), h.number("objective/score_std")
    if (
        h.step
        or score is None
        or valid is None
        or penalty is None
        or all_scores is None
        or not size
        or valid * size < SCALE_SAMPLES
    ):
        return None
    if h.parameter("rewards.function") or str(h.parameter("rewards.trained_model")).startswith("hf:"):
        return None  # used as they are, on a scale of their own
    n, mean = valid * size, (score - (1 - valid) * penalty) / valid
    square = (
        all_scores * all_scores + score * score - (1 - valid) * penalty * penalty
    ) / valid  # mean square of what is not penalised
    deviation = math.sqrt(max(0.0, square - mean * mean))
    excess = abs(mean) - 4 * deviation / math.sqrt(n)  # a mean of n scores is uncertain, and so is their deviation
    factor = max(deviation, 1 / deviation if deviation > 0 else math.inf) / (1 + 3 / math.sqrt(2 * n))
    level = max(_level(excess, SCALE_MEAN, SCALE_MEAN_SEVERE), _level(factor, SCALE_FACTOR, SCALE_FACTOR_SEVERE))
    return Judgement(
        level,
        f"{n:.0f} scores of the start model that are no penalty: mean {mean:.2f}, deviation {deviation:.2g}; expected 0 and 1",
        f"use a reward model trained with this {h.flag('task.policy.initial_model')}, {h.flag('task.policy.temperature')} and queries, "
        f"with --normalize_after on and more --normalize_samples; look at {h.flag('rewards.trained_model')}",
    )


def penalised(h: History) -> Judgement | None:
    valid = h.so_far("objective/valid", PENALISED_STEPS)
    if valid is None:
        return None
    rows = min(valid.count, 2 * SHORT)
    share = 1 - valid.mean_last(2 * SHORT)
    limit = PENALISED_LATE if h.progress >= LATE else PENALISED
    level = (
        _level(share, limit, PENALISED_SEVERE)
        if rows == 2 * SHORT or h.progress >= LATE
        else SEVERE
        if share > PENALISED_SEVERE
        else FINE
    )
    return Judgement(
        level,
        f"{share:.0%} of the responses of the last {rows} steps got the penalty, limit {limit:.0%}",
        f"raise {h.flag('task.response_length')}, lower {h.flag('task.truncate_after')}, choose a {h.flag('task.truncate_token')} that the "
        "model does write, or first train the language model on texts that end so",
    )


def entropy(h: History) -> Judgement | None:
    values = h.so_far("objective/entropy", 2 * SHORT)
    return values and _collapse(
        values, "mean entropy of {} nats per response", ENTROPY_SHARE, ENTROPY_SHARE_SEVERE, _more_penalty(h)
    )


def distinct(h: History) -> Judgement | None:
    values = h.so_far("objective/distinct", 2 * SHORT)
    return values and _collapse(
        values, "share of distinct responses {}", DISTINCT_SHARE, DISTINCT_SHARE_SEVERE, _more_penalty(h)
    )


def value_function(h: History) -> Judgement | None:
    values = h.so_far("ppo/val/var_explained", VALUE_ROWS)
    if values is None or h.progress < LATE:
        return None
    explained = values.mean_last(VALUE_ROWS // 2)
    level = FINE if explained > 0 else SEVERE if explained < VALUE_SEVERE else WARNING
    return Judgement(
        level,
        f"the values of the last {VALUE_ROWS // 2} steps explain {explained:.2g} of the returns' variance; a constant explains 0",
        f"raise {h.flag('ppo.batch_size')} or {h.flag('ppo.vf_coef')}, more {h.flag('ppo.total_episodes')}; lower {h.flag('ppo.lr')} if the "
        "KL climbs as well; where all scores are alike (objective/score_std near 0) mend that first",
    )


def update_size(h: History) -> Judgement | None:
    moved, clipped = h.so_far("ppo/policy/approxkl", PENALISED_STEPS), h.so_far("ppo/policy/clipfrac", PENALISED_STEPS)
    if moved is None or clipped is None:
        return None
    kl, share = moved.mean_last(SHORT), clipped.mean_last(SHORT)
    level = max(_level(kl, UPDATE_KL, UPDATE_KL_SEVERE), _level(share, UPDATE_CLIPPED, UPDATE_CLIPPED_SEVERE))
    saw = f"updates of the last {min(SHORT, moved.count)} steps moved the policy by {kl:.2g} nats per token and clipped {share:.0%} of the tokens"
    if kl < UPDATE_TINY and moved.count >= SHORT and 0 < h.progress < 0.5:
        return Judgement(WARNING, saw, f"raise {h.flag('ppo.lr')}, by 3 say")
    return Judgement(level, saw, f"lower {h.flag('ppo.lr')} or {h.flag('ppo.noptepochs')}")


def samples_repeat(h: History) -> Judgement | None:
    """Needs samples.jsonl, hence only afterwards."""
    responses = [row.get("response") for row in h.samples]
    if len(responses) < 2 * SAMPLES:
        return None
    first, last = (len(set(part)) / SAMPLES for part in (responses[:SAMPLES], responses[-SAMPLES:]))
    return Judgement(
        _level(-last, -DISTINCT_SHARE * first, -DISTINCT_SHARE_SEVERE * first),
        f"{last:.0%} of the last {SAMPLES} responses in samples.jsonl are different, {first:.0%} of the first",
        _more_penalty(h),
    )


def pairs(h: History) -> Judgement | None:
    """Needs result.json, hence only afterwards."""
    before, after = ((h.result.get(side) or {}).get("distinct_2") for side in ("before", "after"))
    if not _is_finite(before) or not _is_finite(after) or before <= 0:
        return None
    return Judgement(
        _level(-after, -PAIRS_SHARE * before, -PAIRS_SHARE_SEVERE * before),
        f"{after:.0%} of the pairs of tokens on held-out queries are different, {before:.0%} before training",
        _more_penalty(h),
    )


# --- checks of reward training ---


def chance(h: History) -> Judgement | None:
    """Held-out accuracy or correlation; before there is one, that of the newest training batches, each label of which
    is new to the model.
    """
    more = f"read some labels of {h.flag('labels.source')} as text; try {h.flag('lr')} times 3 and divided by 3, more {h.flag('labels.num_train')}"
    accuracy, error, base = (h.number(f"validation/{name}") for name in ("accuracy", "standard_error", "chance"))
    if accuracy is not None and error is not None and base is not None:
        return Judgement(
            _below(accuracy - base, error),
            f"held-out accuracy {accuracy:.1%}, standard error {error:.1%}; chance is {base:.1%}",
            more,
        )
    correlation, count = h.number("validation/corr"), h.number("validation/labels")
    if correlation is not None and count is not None and count > 0:
        error = 1 / math.sqrt(count)
        return Judgement(
            _below(correlation, error),
            f"correlation with {count:.0f} held-out labels {correlation:.2f}, standard error {error:.2f}; chance is 0",
            more,
        )
    kind, size, name = str(h.parameter("labels.type")), h.parameter("batch_size"), "corr"
    if kind.startswith("best_of_") and kind.removeprefix("best_of_").isdigit():
        name, base = "accuracy", 1 / max(2, int(kind.removeprefix("best_of_")))
    batches = h.so_far(f"train/{name}")
    if batches is None or not size or h.progress < 0.5 or len(batches.last) * size < CHANCE_LABELS:
        return None
    n, mean = len(batches.last) * size, batches.mean_last(WINDOW)
    lead, error = (mean - base, math.sqrt(base * (1 - base) / n)) if name == "accuracy" else (mean, 1 / math.sqrt(n))
    return Judgement(
        WARNING if lead <= CHANCE_NOISE_SEVERE * error else FINE,
        f"{name} {mean:.2f} on the last {n} training labels, "
        f"standard error {error:.2f}; chance is {base if name == 'accuracy' else 0:g}",
        more,
    )


def memorising(h: History) -> Judgement | None:
    if h.stage == "train_sft":
        training, valid = h.series.get("train/loss"), h.number("valid/loss")
        if training is None or valid is None:
            return None
        gap = valid - training.mean_last(WINDOW)
        return Judgement(
            _level(gap, MEMORISED_NATS, MEMORISED_NATS_SEVERE),
            f"validation loss {valid:.2f}, training loss {training.mean_last(WINDOW):.2f} nats per token",
            f"fewer {h.flag('optimizer.epochs')}, {h.flag('optimizer.dropout')} to 0.1, {h.flag('validation.patience')} to 4, more text",
        )
    training = h.series.get("train/accuracy")
    valid, error, base = (h.number(f"validation/{name}") for name in ("accuracy", "standard_error", "chance"))
    if training is None or valid is None or error is None or base is None:
        return None
    mean = training.mean_last(WINDOW)
    lead, carried = mean - base, valid + CHANCE_NOISE * error - base
    level = FINE if lead < MEMORISED_LEAD else _level(-carried, -MEMORISED * lead, -MEMORISED_SEVERE * lead)
    return Judgement(
        level,
        f"accuracy {mean:.1%} on the last {len(training.last)} training batches, {valid:.1%} (standard error {error:.1%}) on "
        f"held-out labels; chance is {base:.1%}",
        f"remove repeated labels or responses from {h.flag('labels.source')}, lower {h.flag('lr')}, more different labels",
    )


def reward_scale(h: History) -> Judgement | None:
    gain, deviation = h.number("normalize_after/gain"), h.number("normalize_after/std")
    if gain is None:
        return None
    return Judgement(
        _level(gain, GAIN, GAIN_SEVERE),
        f"rewards of sampled responses had deviation {deviation or 0:.2g} after training; the gain became {gain:.3g}",
        f"lower {h.flag('lr')}, more {h.flag('labels.num_train')}; look at {h.flag('task.policy.temperature')} and the queries: are samples "
        "all alike?",
    )


# --- checks of several stages ---


def not_finite(h: History) -> Judgement | None:
    bad = [
        name for name, value in h.row.items() if name != "step" and not isinstance(value, str) and not _is_finite(value)
    ]
    rate = f"start again with a lower {h.flag(STAGES.get(h.stage, 'lr'))}"
    if bad in (
        ["train/corr"],
        ["validation/corr"],
    ):  # undefined in a batch whose labels are all equal, which may happen; always so is another matter
        never = bad == ["validation/corr"] or "train/corr" not in h.series and h.step + 1 >= SHORT
        return Judgement(
            WARNING if never else FINE,
            f"{bad[0]} has no value: labels, or rewards, are all equal",
            f"look at the ratings in {h.flag('labels.source')}; a larger {h.flag('batch_size')}; {rate}",
        )
    return Judgement(
        SEVERE if bad else FINE,
        f"{', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} not finite",
        rate,
    )


def query_padding(h: History) -> Judgement | None:
    share = next(
        (
            value
            for name in ("objective/query_padding", "labels/query_padding")
            if (value := h.number(name)) is not None
        ),
        None,
    )
    return (
        None
        if share is None
        else Judgement(
            _level(share, QUERY_PADDING, QUERY_PADDING_SEVERE),
            f"{share:.1%} of the queries' tokens are padding, limit {QUERY_PADDING:.0%}",
            f"lower {h.flag('task.query_length')}; if queries should be longer, look at {h.flag('task.start_text')}, {h.flag('task.end_text')} and the data",
        )
    )


def response_padding(h: History) -> Judgement | None:
    names = {
        "objective/response_padding": "truncated responses'",
        "labels/response_padding": "labels' responses'",
        "train/padding": "rows'",
    }
    name = next((name for name in names if h.number(name) is not None), None)
    if name is None:
        return None
    share = h.series[name].mean_last(SHORT)
    change = (
        f"lower {h.flag('data.block')}, or {h.flag('data.rows')} to packed"
        if h.stage == "train_sft"
        else f"lower {h.flag('task.response_length')}; if responses should be longer, raise {h.flag('task.truncate_after')} and read some"
        + (" samples" if h.stage == "train_policy" else f" of {h.flag('labels.source')}")
    )
    return Judgement(
        _level(share, RESPONSE_PADDING, RESPONSE_PADDING_SEVERE),
        f"{share:.1%} of the {names[name]} tokens are padding, limit {RESPONSE_PADDING:.0%}",
        change,
    )


def loss_rising(h: History) -> Judgement | None:
    rate = f"lower {h.flag(STAGES.get(h.stage, 'lr'))}"
    valid = h.so_far("valid/loss", 2)
    rise = valid.last[-1] - valid.lowest if valid is not None else 0.0
    if rise > VALID_RISE:
        return Judgement(
            _level(rise, VALID_RISE, VALID_RISE_SEVERE),
            f"validation loss {valid.last[-1]:.3f} nats per token, at its best {valid.lowest:.3f}",
            f"{h.flag('validation.patience')} to 4, fewer {h.flag('optimizer.epochs')}, {h.flag('optimizer.dropout')} to 0.1; "
            "the best weights were kept",
        )
    if h.stage == "train_policy":
        values = (
            h.so_far("ppo/loss/value", WINDOW) if h.parameter("ppo.whiten_rewards") else None
        )  # without whitening it grows with the score
        if values is None or values.mean_first(WINDOW // 2) <= 0:
            return None
        first, last = values.mean_first(WINDOW // 2), values.mean_last(WINDOW // 2)
        return Judgement(
            _level(last / first, VALUE_LOSS_FACTOR, VALUE_LOSS_FACTOR_SEVERE),
            f"value loss {last:.3g} over the last {WINDOW // 2} steps, {first:.3g} over the first",
            f"{rate} or {h.flag('ppo.vf_coef')}",
        )
    losses = h.so_far("train/loss", 2 * WINDOW)
    if losses is None:
        return Judgement(FINE, "validation loss is at its best") if valid is not None else None
    first, last = losses.mean_first(WINDOW), losses.mean_last(WINDOW)
    noise = LOSS_NOISE * math.sqrt((_variance(losses.first) + _variance(list(losses.last))) / WINDOW)
    level = (
        FINE if last - first <= noise else _level(last - first, LOSS_RISE * abs(first), LOSS_RISE_SEVERE * abs(first))
    )
    return Judgement(level, f"training loss {last:.3g} over the last {WINDOW} steps, {first:.3g} over the first", rate)


def learning_rate(h: History) -> Judgement | None:
    name, total = {"train_policy": "lr", "train_reward": "train/lr"}.get(h.stage, ""), h.total
    now, first = h.number(name), h.parameter(STAGES.get(h.stage, ""))
    if now is None or not first or not total:
        return None
    expected = first * (1 - h.step / total)
    return Judgement(
        WARNING if abs(now - expected) > LR_SLIP * first else FINE,
        f"learning rate {now:.3g}, by the schedule of {total} steps {expected:.3g}",
        f"give a resumed run the same {h.flag(STAGES[h.stage])} and number of steps; a change of code, perhaps",
    )


def warmup(h: History) -> Judgement | None:
    """Only afterwards: before, nobody knows how many steps there will be."""
    steps, made = h.parameter("optimizer.warmup"), h.series.get("train/loss")
    if steps is None or made is None or not h.result:
        return None
    return Judgement(
        WARNING if steps > WARMUP_SHARE * made.count else FINE,
        f"{steps} of {made.count} steps were warm-up",
        f"lower {h.flag('optimizer.warmup')} or raise {h.flag('optimizer.epochs')}",
    )


@dataclass(frozen=True)
class Check:
    """A check by name: the stages that it looks at, and why it matters."""

    judge: Callable[[History], Judgement | None]  # None: the run has nothing (yet) that it could look at
    stages: tuple[str, ...]
    why: str
    afterwards: bool = False  # needs samples.jsonl or result.json

    @property
    def name(self) -> str:
        return self.judge.__name__


_POLICY, _REWARD, _SFT = ("train_policy",), ("train_reward",), ("train_sft",)
_COLLAPSED = (
    "the policy writes few things whatever the query: it exploits the reward model, and PPO has nothing left to compare"
)
CHECKS = (
    Check(
        ratio,
        _POLICY,
        "sampling and training disagree about the same policy, so every update starts from a wrong ratio",
    ),
    Check(
        kl_negative,
        _POLICY,
        "a KL is never negative: the log-probabilities are not those of what was sampled, and the penalty is wrong",
    ),
    Check(
        kl_exploding,
        _POLICY,
        "the policy has left the language model that the reward model was trained on; its score means nothing there",
    ),
    Check(kl_coef, _POLICY, "the controller cannot hold its target: the penalty has become nothing, or everything"),
    Check(
        score_scale,
        _POLICY,
        "penalty, KL coefficient and scores are in units of the start model's deviation; on another scale they mean something else",
    ),
    Check(
        penalised,
        _POLICY,
        "a penalised response earns a fixed score, so what people preferred does not reach the policy",
    ),
    Check(entropy, _POLICY, _COLLAPSED),
    Check(distinct, _POLICY, _COLLAPSED),
    Check(samples_repeat, _POLICY, _COLLAPSED, afterwards=True),
    Check(pairs, _POLICY, _COLLAPSED, afterwards=True),
    Check(value_function, _POLICY, "values that predict nothing leave all the noise of the returns in the advantages"),
    Check(
        update_size,
        _POLICY,
        "PPO's surrogate holds only near the old policy; with updates of next to nothing it never leaves it",
    ),
    Check(chance, _REWARD, "a reward model that does not know what people prefer gives the policy noise to climb"),
    Check(
        memorising, _REWARD + _SFT, "what was learned by heart does not carry over to texts that the model has not seen"
    ),
    Check(reward_scale, _REWARD, "training made all rewards alike, and normalisation blew up what little was left"),
    Check(not_finite, _POLICY + _REWARD + _SFT, "one number that is not finite spreads into every weight"),
    Check(loss_rising, _POLICY + _REWARD + _SFT, "training makes the model worse at what it is trained for"),
    Check(
        learning_rate,
        _POLICY + _REWARD,
        "the configuration fixes the schedule; with another rate the run is not the one that its config.json tells of",
    ),
    Check(warmup, _SFT, "most of the run went by before the learning rate reached its value", afterwards=True),
    Check(
        query_padding,
        _POLICY + _REWARD,
        "the length was chosen for other texts, or queries hold next to nothing to respond to",
    ),
    Check(
        response_padding,
        _POLICY + _REWARD + _SFT,
        "next to nothing of a response is judged or trained on; tokens after its end still pay KL",
    ),
)


# --- arithmetic ---


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _variance(values: list[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) * (value - mean) for value in values) / len(values)


def _level(value: float, warning: float, severe: float) -> int:
    """How bad a value is that should stay at or below `warning`."""
    return SEVERE if value > severe else WARNING if value > warning else FINE


def _below(lead: float, error: float) -> int:
    """How bad it is that something leads chance by only so much, of which `error` is the standard error."""
    return SEVERE if lead <= CHANCE_NOISE_SEVERE * error else WARNING if lead <= CHANCE_NOISE * error else FINE


def _collapse(values: Series, what: str, warning: float, severe: float, change: str) -> Judgement:
    """How far the mean of the last rows has fallen against that of the first."""
    first, last = values.mean_first(SHORT), values.mean_last(SHORT)
    return Judgement(
        _level(-last, -warning * first, -severe * first),
        f"{what.format(f'{last:.3g}')} over the last {SHORT} steps, {first:.3g} over the first",
        change,
    )


def _more_penalty(h: History) -> str:
    penalty = (
        f"lower {h.flag('rewards.adaptive_kl.target')}"
        if h.parameter("rewards.adaptive_kl")
        else f"raise {h.flag('rewards.kl_coef')}"
    )
    return f"{penalty} or lower {h.flag('ppo.lr')}, stop earlier, or train the reward model on more and better labels"
