"""What can be wrong with implicit language Q-learning; checks_reward.py has what it shares with reward training."""

from lm_human_preferences.watching.check import AtMost, Judgement, MoreThan, check
from lm_human_preferences.watching.history import WINDOW, History

VALUES_AWAY = AtMost(
    "how far the mean of Q over the texts' tokens is from 0, in deviations of the scores",
    warning=2.0,
    severe=10.0,
    why="the returns that Q learns have mean 0 and deviation 1: one text in forty is worth 2; at 10 Q feeds on itself",
)


@check(
    "train_ilql",
    looks_at=f"`train/q`, mean of the last {WINDOW} steps",
    limits=(VALUES_AWAY,),
    why="Q is learned from V and V from Q; what they make up on the way is not in any score",
    change="a lower `--lr`, a lower `--ilql.alpha`, `--ilql.tau` nearer to 0.5",
)
def values_away(h: History) -> Judgement | None:
    values = h.so_far("train/q", WINDOW)
    if values is None:
        return None
    average = values.mean_last(WINDOW)
    return Judgement(
        VALUES_AWAY.level(abs(average)),
        f"Q is {average:+.2f} on average over the last {WINDOW} steps; the returns' mean is 0, their deviation 1",
        f"lower {h.flag('lr')} or {h.flag('ilql.alpha')}, {h.flag('ilql.tau')} nearer to 0.5",
    )


TAKEN_OVER = MoreThan(
    "share of the Q heads' weights that the target copies have taken over when the run ends",
    warning=0.5,
    severe=0.1,
    why="with less than half V learns what the heads said in the run's first part; with a tenth, what nobody has "
    "learned",
)


@check(
    "train_ilql",
    looks_at="`ilql.alpha`, `ilql.sync_interval` and the number of steps",
    limits=(TAKEN_OVER,),
    why="V learns from slow copies of the Q heads, and they steer what is written: where these never arrive, neither "
    "knows anything of the scores",
    change="`--ilql.alpha` of at least 3 × `--ilql.sync_interval` / steps, more `--epochs`",
)
def stale_targets(h: History) -> Judgement | None:
    alpha, interval, total = h.parameter("ilql.alpha"), h.parameter("ilql.sync_interval"), h.total
    if not alpha or not interval or not total:
        return None
    share = 1 - (1 - alpha) ** (total // interval)
    return Judgement(
        TAKEN_OVER.level(share),
        f"the target copies take over {share:.0%} of the Q heads' weights in {total} steps",
        f"raise {h.flag('ilql.alpha')}, lower {h.flag('ilql.sync_interval')}, more {h.flag('epochs')}",
    )


HEAVY = AtMost(
    "mean weight of a token's likelihood",
    warning=10.0,
    severe=100.0,
    why="weights are exp(awac_beta × advantage), 1 without an advantage: a mean of 10 is made by a few tokens",
)


@check(
    "train_ilql",
    looks_at=f"`train/awac_weight`, mean of the last {WINDOW} steps",
    limits=(HEAVY,),
    why="the language model learns a few tokens by heart and forgets the language",
    change="a lower `--ilql.awac_beta`",
)
def heavy_tokens(h: History) -> Judgement | None:
    weights = h.so_far("train/awac_weight", WINDOW)
    if weights is None:
        return None
    average = weights.mean_last(WINDOW)
    return Judgement(
        HEAVY.level(average),
        f"a token's likelihood counts {average:.3g} on average over the last {WINDOW} steps",
        f"lower {h.flag('ilql.awac_beta')}",
    )


OTHER_SCORES = AtMost(
    "how far the mean score of the held-out texts is from that of the training texts, in deviations of these",
    warning=0.5,
    severe=1.5,
    why="of texts drawn alike a few hundred agree to 0.1; at 1.5 hardly a held-out text scores as those of training",
)


@check(
    "train_ilql",
    looks_at="`validation/return_mean`",
    limits=(OTHER_SCORES,),
    why="training takes the first labels of the file: where that is sorted, by score or by what the texts are about, "
    "they are not like the others",
    change="shuffle the lines of `--labels.source`, or take all of them with `--labels.num_train`",
)
def other_scores(h: History) -> Judgement | None:
    found = h.number("validation/return_mean")
    if found is None:
        return None
    return Judgement(
        OTHER_SCORES.level(abs(found)),
        f"the held-out texts' scores lie {found:+.2f} deviations from the training texts' mean",
        f"shuffle the lines of {h.flag('labels.source')}, or take all of them: {h.flag('labels.num_train')}",
    )


ILQL_CHECKS = (values_away, stale_targets, heavy_tokens, other_scores)
