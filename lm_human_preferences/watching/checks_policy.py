"""What can be wrong with policy training."""

import math

from lm_human_preferences.judging.judges import SENTENCE_JUDGES
from lm_human_preferences.watching.check import FINE, WARNING, AtMost, Judgement, MoreThan, check
from lm_human_preferences.watching.history import SHORT, WINDOW, History, Series, is_finite

POLICY_STAGES = ("train_policy", "expert_iteration")
EARLY = 3  # steps before which a mean is chance; the start model's habits show after them
LATE = 0.75  # of the steps: values and valid ends have been learned by then if ever

# --- the numbers that PPO starts from ---

RATIO = AtMost(
    "deviation of new / old probability before the first update, under bfloat16",
    warning=0.01,
    severe=0.1,
    why="the project's bound; PPO's clip range is only 20 times as wide, and a severe one is half of it before "
    "anything was learned",
)
RATIO_SAMPLING = AtMost(
    "deviation of recomputed / sampled probability, under bfloat16",
    warning=0.05,
    severe=0.2,
    why="rounding makes 0.004 to 0.005 in the shipped model of 4 blocks, more in deeper ones, and the update does not "
    "see it; a wrong cache, temperature or padding makes more",
)
RATIO_FLOAT32 = AtMost("either of them in float32", warning=0.001, severe=0.1, why="rounding gives 1e-6 to 1e-5")


@check(
    *POLICY_STAGES,
    looks_at="`ppo/ratio/std_before`; where the old log-probabilities are recomputed it is 0 by construction, and "
    "`ppo/ratio/std_sampling` is looked at. The precision is the resolved one; runs of earlier versions know what was "
    "requested alone",
    limits=(RATIO, RATIO_SAMPLING, RATIO_FLOAT32),
    why="sampling and training disagree about the same policy, so every update starts from a wrong ratio",
    change="`--ppo.old_logprobs recomputed`, `--run.precision float32`; if it stays, it is a bug",
)
def ratio(h: History) -> Judgement | None:
    before, sampling = h.number("ppo/ratio/std_before"), h.number("ppo/ratio/std_sampling")
    if sampling is not None:
        deviation, which, limit = sampling, "recomputed / sampled probability", RATIO_SAMPLING
        change = f"{h.flag('run.precision')} to float32"
    elif before is not None:
        deviation, which, limit = before, "new / old probability before the first update of the step", RATIO
        change = f"{h.flag('ppo.old_logprobs')} to recomputed, or {h.flag('run.precision')} to float32"
    else:
        return None
    if h.precision == "float32":
        limit = RATIO_FLOAT32
    return Judgement(
        limit.level(deviation),
        f"{which} deviates by {deviation:.2g} from 1, limit {limit.warning:g}",
        f"{change}; if it stays, sampling and analysis differ (temperature, cache, padding), which is a bug",
    )


KL_NOISE = 5.0  # standard errors: an honest estimate falls this far below 0 in one batch of a hundred thousand
KL_NEGATIVE = AtMost(
    f"how far the mean KL lies below 0, in nats, if that is more than {KL_NOISE:g} standard errors",
    warning=0.1,
    severe=1.0,
    why="bfloat16's rounding alone reaches a few hundredths; no rounding reaches a nat",
)


@check(
    *POLICY_STAGES,
    looks_at=f"mean `objective/kl` of the last {SHORT} steps, `objective/kl_std`",
    limits=(KL_NEGATIVE,),
    why="a KL is never negative: the log-probabilities are not those of what was sampled, and the penalty is wrong",
    change="look at sampling (temperature, top-k, uniforms); `--run.precision float32`",
)
def kl_negative(h: History) -> Judgement | None:
    kl, deviation, size = h.so_far("objective/kl"), h.so_far("objective/kl_std"), h.parameter("ppo.batch_size")
    if kl is None or deviation is None or not size:
        return None
    rows, average = min(SHORT, kl.count), kl.mean_last(SHORT)
    error = deviation.mean_last(SHORT) / math.sqrt(rows * size)
    return Judgement(
        FINE if -average <= KL_NOISE * error else KL_NEGATIVE.level(-average),
        f"mean KL {average:.3g} nats over the {rows * size} responses of the last {rows} steps, standard error "
        f"{error:.2g}",
        "look at ppo/ratio/std_before, ppo/ratio/std_sampling and any change to sampling (temperature, top-k, "
        f"uniforms); {h.flag('run.precision')} to float32",
    )


DISAGREEMENT = AtMost(
    "deviation of the ensemble's members on what the policy writes, in multiples of its first value",
    warning=2.0,
    severe=4.0,
    why="the members were brought to one scale on the reference's texts; at twice the deviation of these they know "
    "half as much of what the policy writes now",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`objective/disagreement` of an ensemble of reward models: mean of the last {SHORT} steps against the "
    f"first {SHORT}",
    limits=(DISAGREEMENT,),
    why="where reward models that learned from the same labels disagree, the reward is a guess, and a policy that is "
    "trained against it finds such places",
    change="a higher `--rewards.kl_coef`; `--rewards.ensemble min` or `uwo`, a higher `--rewards.uncertainty`",
)
def disagreement(h: History) -> Judgement | None:
    deviations = h.so_far("objective/disagreement", 2 * SHORT)
    if deviations is None:
        return None
    first, last = deviations.mean_first(SHORT), deviations.mean_last(SHORT)
    return Judgement(
        DISAGREEMENT.level(last, first),
        f"the reward models' deviation is {last:.2f} over the last {SHORT} steps, {first:.2f} over the first",
        f"raise {h.flag('rewards.kl_coef')}; set {h.flag('rewards.ensemble')} to min or uwo, raise "
        f"{h.flag('rewards.uncertainty')}",
    )


EQUAL_GROUPS = AtMost(
    "share of queries whose responses all have the same score, under `ppo.estimator` rloo or grpo",
    warning=0.5,
    severe=0.9,
    why="half of what is sampled is wasted; at 0.9 nine tenths are",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`objective/equal_groups`, mean of the last {SHORT} steps",
    limits=(EQUAL_GROUPS,),
    why="a response is compared with the others to its query: where all score alike nothing is learned but the KL's "
    "price; often all are penalised",
    change="`--ppo.responses_per_query`, `--task.policy.temperature`; look at `objective/valid`",
)
def equal_groups(h: History) -> Judgement | None:
    shares = h.so_far("objective/equal_groups")
    if shares is None:
        return None
    average = shares.mean_last(SHORT)
    return Judgement(
        EQUAL_GROUPS.level(average),
        f"{average:.0%} of the queries' responses all have the same score, limit {EQUAL_GROUPS.warning:.0%}",
        f"raise {h.flag('ppo.responses_per_query')} or {h.flag('task.policy.temperature')}; look at objective/valid: "
        "are all penalised?",
    )


# --- the distance from the reference ---

KL_PER_TOKEN = AtMost(
    "mean KL in nats per response token, without `rewards.adaptive_kl`",
    warning=1.0,
    severe=2.0,
    why="three times what a tuned policy that still reads well pays; 2 nats are near the entropy of the model itself, "
    "so that nothing of it is left",
)
KL_OF_TARGET = AtMost(
    "mean KL in multiples of the target, with `rewards.adaptive_kl`",
    warning=3.0,
    severe=10.0,
    why="the controller lets the KL swing to about twice its target; a coefficient that changes by 0.2% a step will "
    "not come back from 10 times",
)


@check(
    *POLICY_STAGES,
    looks_at="`objective/kl`; with `task.top_k` or `task.top_p` and without `rewards.adaptive_kl` less that of step 0, "
    "which is what drawing among few tokens costs",
    limits=(KL_PER_TOKEN, KL_OF_TARGET),
    why="the policy has left the language model that the reward model was trained on; its score means nothing there",
    change="lower `--ppo.lr`, raise `--rewards.kl_coef`, `--rewards.adaptive_kl on`",
)
def kl_exploding(h: History) -> Judgement | None:
    kl, target = h.number("objective/kl"), h.parameter("rewards.adaptive_kl.target")
    length = h.parameter("task.response_length")
    if kl is None or not (target or length):
        return None
    limit, unit = (KL_OF_TARGET, target) if target else (KL_PER_TOKEN, length)
    of_what = f"target {target:g}" if target else f"responses of {length} tokens"
    first, drawing = h.series["objective/kl"].first[0], ""
    if not target and (h.parameter("task.top_k") or (h.parameter("task.top_p") or 1) < 1):
        kl, drawing = kl - first, f" beyond the {first:.3g} of step 0"
    return Judgement(
        limit.level(kl, unit),
        f"mean KL {kl:.3g} nats{drawing}, limit {limit.warning * unit:g} ({of_what})",
        f"lower {h.flag('ppo.lr')}, raise {h.flag('rewards.kl_coef')}"
        + ("" if target else f", or {h.flag('rewards.adaptive_kl')} to on"),
    )


KL_COEF = AtMost(
    "factor by which the coefficient is above or below its first value",
    warning=10.0,
    severe=100.0,
    why="nobody chose a price this far from the first one; at 100 there is no price at all, or nothing but the price",
)


@check(
    *POLICY_STAGES,
    looks_at="`objective/kl_coef`, with `rewards.adaptive_kl`",
    limits=(KL_COEF,),
    why="the controller cannot hold its target: the penalty has become nothing, or everything",
    change="`--rewards.adaptive_kl.target`, `--ppo.lr`, `--rewards.adaptive_kl.horizon`",
)
def kl_coef(h: History) -> Judgement | None:
    now, first = h.number("objective/kl_coef"), h.parameter("rewards.kl_coef")
    if now is None or not first or not h.parameter("rewards.adaptive_kl"):
        return None
    factor = max(now / first, first / now) if now > 0 else math.inf
    if now < first:
        change = f"lower {h.flag('rewards.adaptive_kl.target')} or raise {h.flag('ppo.lr')}"
    else:
        change = (
            f"lower {h.flag('ppo.lr')}, or raise {h.flag('rewards.adaptive_kl.horizon')} if KL and coefficient swing "
            "against each other"
        )
    return Judgement(KL_COEF.level(factor), f"KL coefficient {now:.3g}, at first {first:g}", change)


# --- the score ---

SCALE_SAMPLES = 16  # fewer scores do not tell a scale
SCALE_MEAN = AtMost(
    "how far the mean lies from 0, beyond what the number of scores leaves open",
    warning=0.5,
    severe=2.0,
    why="truncation moves the mean by a few tenths against the raw responses that set the scale; at 2 every response "
    "looks exceptionally good or bad beside the penalty",
)
SCALE_DEVIATION = AtMost(
    "factor by which the deviation is above or below 1, beyond the same",
    warning=2.0,
    severe=5.0,
    why="the KL coefficient is worth half or twice as much as it says; 5 is the paper's whole range of coefficients",
)


@check(
    *POLICY_STAGES,
    looks_at="`objective/score`, `objective/score_std` and `objective/valid` of step 0, penalties taken out, if at "
    f"least {SCALE_SAMPLES} scores are left; not where a function or a judge is the reward, whose scores are not "
    "normalised, nor with `rewards.scale running`",
    limits=(SCALE_MEAN, SCALE_DEVIATION),
    why="penalty, KL coefficient and scores are in units of the start model's deviation; on another scale they mean "
    "something else",
    change="a reward model trained with the same `--task.policy.initial_model`, `--task.policy.temperature` and "
    "queries; `--normalize_after on`, more `--normalize_samples` there",
)
def score_scale(h: History) -> Judgement | None:
    """At step 0 the policy is the reference: without penalties its scores have mean 0 and deviation 1."""
    score, valid, size = h.number("objective/score"), h.number("objective/valid"), h.parameter("ppo.batch_size")
    penalty, all_scores = h.parameter("task.penalty_reward_value"), h.number("objective/score_std")
    if h.step or score is None or valid is None or all_scores is None or not size:
        return None
    if penalty is None:
        valid, penalty = 1.0, 0.0  # every response has its score
    if valid * size < SCALE_SAMPLES or h.parameter("rewards.scale") == "running":
        return None
    if h.parameter("rewards.function") or str(h.parameter("rewards.trained_model")).startswith(SENTENCE_JUDGES):
        return None  # used as they are, on a scale of their own
    n, average = valid * size, (score - (1 - valid) * penalty) / valid
    all_squares = all_scores * all_scores + score * score
    square = (all_squares - (1 - valid) * penalty * penalty) / valid  # the mean square without the penalised
    deviation = math.sqrt(max(0.0, square - average * average))
    excess = abs(average) - 4 * deviation / math.sqrt(n)  # a mean of n scores is uncertain, and so is their deviation
    factor = max(deviation, 1 / deviation if deviation > 0 else math.inf) / (1 + 3 / math.sqrt(2 * n))
    return Judgement(
        max(SCALE_MEAN.level(excess), SCALE_DEVIATION.level(factor)),
        f"{n:.0f} scores of the start model, the penalised left out: mean {average:.2f}, deviation {deviation:.2g}; "
        "expected 0 and 1",
        f"use a reward model trained with this {h.flag('task.policy.initial_model')}, "
        f"{h.flag('task.policy.temperature')} and queries, with --normalize_after on and more --normalize_samples; "
        f"look at {h.flag('rewards.trained_model')}",
    )


PENALISED = AtMost(
    f"share of penalised responses; before {2 * SHORT} steps are made, the severe limit alone",
    warning=0.8,
    severe=0.98,
    why="nearly every score is then the same number; at 0.98 there is nothing to learn from",
)
PENALISED_LATE = AtMost(
    f"the same once {LATE:.0%} of the steps are made",
    warning=0.5,
    severe=0.98,
    why="an end pays from the first step on, so that most responses have one by then",
)


@check(
    *POLICY_STAGES,
    looks_at=f"1 − `objective/valid`, mean of the last {2 * SHORT} steps, from step {EARLY} on",
    limits=(PENALISED, PENALISED_LATE),
    why="a penalised response earns a fixed score, so what people preferred does not reach the policy",
    change="`--task.response_length`, `--task.truncate_after`, `--task.truncate_token`, `--task.stop_tokens`; "
    "another language model; `--task.penalty_reward_value none` where a response need not end",
)
def penalised(h: History) -> Judgement | None:
    valid = h.so_far("objective/valid", EARLY)
    if valid is None or h.parameter("task.penalty_reward_value") is None:
        return None
    rows, share, late = min(valid.count, 2 * SHORT), 1 - valid.mean_last(2 * SHORT), h.progress >= LATE
    limit = PENALISED_LATE if late else PENALISED
    level = limit.level(share)
    if level == WARNING and rows < 2 * SHORT and not late:
        level = FINE
    return Judgement(
        level,
        f"{share:.0%} of the responses of the last {rows} steps got the penalty, limit {limit.warning:.0%}",
        f"raise {h.flag('task.response_length')}, lower {h.flag('task.truncate_after')}, choose a "
        f"{h.flag('task.truncate_token')} that the model does write, or first train the language model on texts that "
        "end so",
    )


# --- collapse ---

_COLLAPSED = (
    "the policy writes few things whatever the query: it exploits the reward model, and PPO has nothing left to compare"
)
_MORE_PENALTY = (
    "raise `--rewards.kl_coef`, lower `--rewards.adaptive_kl.target` or `--ppo.lr`, stop earlier, train the reward "
    "model on more and better labels"
)


def _more_penalty(h: History) -> str:
    penalty = (
        f"lower {h.flag('rewards.adaptive_kl.target')}"
        if h.parameter("rewards.adaptive_kl")
        else f"raise {h.flag('rewards.kl_coef')}"
    )
    return f"{penalty} or lower {h.flag('ppo.lr')}, stop earlier, or train the reward model on more and better labels"


def _fallen(h: History, values: Series | None, what: str, limit: MoreThan) -> Judgement | None:
    """How far the mean of the last rows has fallen against that of the first."""
    if values is None:
        return None
    first, last = values.mean_first(SHORT), values.mean_last(SHORT)
    return Judgement(
        limit.level(last, first),
        f"{what.format(f'{last:.3g}')} over the last {SHORT} steps, {first:.3g} over the first",
        _more_penalty(h),
    )


ENTROPY = MoreThan(
    "share of its first value",
    warning=0.2,
    severe=0.05,
    why="a useful policy loses a tenth to a half; at 0.05 it writes one response to each query",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`objective/entropy`, mean of the last {SHORT} steps against that of the first {SHORT}",
    limits=(ENTROPY,),
    why=_COLLAPSED,
    change=_MORE_PENALTY,
)
def entropy(h: History) -> Judgement | None:
    return _fallen(h, h.so_far("objective/entropy", 2 * SHORT), "mean entropy of {} nats per response", ENTROPY)


DISTINCT = MoreThan(
    "share of its first value",
    warning=0.5,
    severe=0.1,
    why="a useful policy hardly repeats whole responses; at 0.1 it has a handful for everything",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`objective/distinct`, mean of the last {SHORT} steps against that of the first {SHORT}",
    limits=(DISTINCT,),
    why=_COLLAPSED,
    change=_MORE_PENALTY,
)
def distinct(h: History) -> Judgement | None:
    return _fallen(h, h.so_far("objective/distinct", 2 * SHORT), "share of distinct responses {}", DISTINCT)


SAMPLES = 20  # samples at either end of samples.jsonl; fewer repeat by chance


@check(
    *POLICY_STAGES,
    looks_at=f"distinct responses among the last {SAMPLES} of `samples.jsonl` against the first {SAMPLES}",
    limits=(DISTINCT,),
    why=_COLLAPSED,
    change=_MORE_PENALTY,
    afterwards=True,
)
def samples_repeat(h: History) -> Judgement | None:
    responses = [row.get("response") for row in h.samples]
    if len(responses) < 2 * SAMPLES:
        return None
    first, last = (len(set(part)) / SAMPLES for part in (responses[:SAMPLES], responses[-SAMPLES:]))
    return Judgement(
        DISTINCT.level(last, first),
        f"{last:.0%} of the last {SAMPLES} responses in samples.jsonl are different, {first:.0%} of the first",
        _more_penalty(h),
    )


PAIRS = MoreThan(
    "share of the initial policy's, on the same queries",
    warning=0.5,
    severe=0.2,
    why="a useful policy keeps two thirds; at 0.2 it has a few phrases",
)


@check(
    *POLICY_STAGES,
    looks_at="`distinct_2` in `result.json`, after training against before",
    limits=(PAIRS,),
    why=_COLLAPSED,
    change=_MORE_PENALTY,
    afterwards=True,
)
def pairs(h: History) -> Judgement | None:
    before, after = ((h.result.get(side) or {}).get("distinct_2") for side in ("before", "after"))
    if not is_finite(before) or not is_finite(after) or before <= 0:
        return None
    return Judgement(
        PAIRS.level(after, before),
        f"{after:.0%} of the pairs of tokens on held-out queries are different, {before:.0%} before training",
        _more_penalty(h),
    )


# --- values and updates ---

VALUE_ROWS = 16  # steps before which nobody expects a value function
VALUE = MoreThan(
    "explained share of the variance",
    warning=0.0,
    severe=-1.0,
    why="a constant explains 0; at −1 the error is twice that of a constant",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`ppo/val/var_explained`, mean of the last {VALUE_ROWS // 2} steps, once {LATE:.0%} of the steps and at "
    f"least {VALUE_ROWS} are made",
    limits=(VALUE,),
    why="values that predict nothing leave all the noise of the returns in the advantages",
    change="raise `--ppo.batch_size`, `--ppo.vf_coef`, `--ppo.total_episodes`; lower `--ppo.lr` if the KL climbs",
)
def value_function(h: History) -> Judgement | None:
    values = h.so_far("ppo/val/var_explained", VALUE_ROWS)
    if values is None or h.progress < LATE:
        return None
    explained = values.mean_last(VALUE_ROWS // 2)
    return Judgement(
        VALUE.level(explained),
        f"the values of the last {VALUE_ROWS // 2} steps explain {explained:.2g} of the returns' variance; a constant "
        "explains 0",
        f"raise {h.flag('ppo.batch_size')} or {h.flag('ppo.vf_coef')}, more {h.flag('ppo.total_episodes')}; lower "
        f"{h.flag('ppo.lr')} if the KL climbs as well; where all scores are alike (objective/score_std near 0) mend "
        "that first",
    )


UPDATE_TINY = 1e-5  # nats per token and step, while the learning rate is high: nothing is learned
UPDATE_KL = AtMost(
    "`ppo/policy/approxkl`, nats a token",
    warning=0.05,
    severe=0.5,
    why=f"0.0005 to 0.02 is usual; at 0.5 the policy becomes another one each step. Below {UPDATE_TINY:g} in the first "
    "half of a run is a warning too: nothing is learned while the learning rate is high",
)
UPDATE_CLIPPED = AtMost(
    "`ppo/policy/clipfrac`, share of the tokens",
    warning=0.3,
    severe=0.6,
    why="below 0.2 is usual; at 0.6 most of the update is thrown away",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`ppo/policy/approxkl` and `ppo/policy/clipfrac`, means of the last {SHORT} steps",
    limits=(UPDATE_KL, UPDATE_CLIPPED),
    why="PPO's surrogate holds only near the old policy; with updates of next to nothing it never leaves it",
    change="lower `--ppo.lr` or `--ppo.noptepochs`; raise `--ppo.lr` if updates are tiny",
)
def update_size(h: History) -> Judgement | None:
    moved, clipped = h.so_far("ppo/policy/approxkl", EARLY), h.so_far("ppo/policy/clipfrac", EARLY)
    if moved is None or clipped is None:
        return None
    kl, share = moved.mean_last(SHORT), clipped.mean_last(SHORT)
    saw = (
        f"updates of the last {min(SHORT, moved.count)} steps moved the policy by {kl:.2g} nats per token and clipped "
        f"{share:.0%} of the tokens"
    )
    if kl < UPDATE_TINY and moved.count >= SHORT and 0 < h.progress < 0.5:
        return Judgement(WARNING, saw, f"raise {h.flag('ppo.lr')}, by 3 say")
    level = max(UPDATE_KL.level(kl), UPDATE_CLIPPED.level(share))
    return Judgement(level, saw, f"lower {h.flag('ppo.lr')} or {h.flag('ppo.noptepochs')}")


VALUE_LOSS = AtMost(
    "last mean against the first, as a factor",
    warning=2.0,
    severe=5.0,
    why="it starts at its largest, as values start at 0; at 5 values run away",
)


@check(
    *POLICY_STAGES,
    looks_at=f"`ppo/loss/value` of whitened rewards, mean of the last {WINDOW // 2} steps against the first "
    f"{WINDOW // 2}; without whitening it grows with the score",
    limits=(VALUE_LOSS,),
    why="training makes the values worse at what they are trained for",
    change="lower `--ppo.lr` or `--ppo.vf_coef`",
)
def loss_rising(h: History) -> Judgement | None:
    values = h.so_far("ppo/loss/value", WINDOW) if h.parameter("ppo.whiten_rewards") else None
    if values is None or values.mean_first(WINDOW // 2) <= 0:
        return None
    first, last = values.mean_first(WINDOW // 2), values.mean_last(WINDOW // 2)
    return Judgement(
        VALUE_LOSS.level(last / first),
        f"value loss {last:.3g} over the last {WINDOW // 2} steps, {first:.3g} over the first",
        f"lower {h.flag('ppo.lr')} or {h.flag('ppo.vf_coef')}",
    )


POLICY_CHECKS = (
    ratio,
    kl_negative,
    kl_exploding,
    kl_coef,
    score_scale,
    penalised,
    entropy,
    distinct,
    samples_repeat,
    pairs,
    value_function,
    update_size,
    loss_rising,
    equal_groups,
    disagreement,
)
