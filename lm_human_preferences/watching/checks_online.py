"""What can be wrong where people are asked while the policy trains (`--online on`)."""

from lm_human_preferences.watching.check import FINE, AtMost, Judgement, MoreThan, check
from lm_human_preferences.watching.history import SHORT, History

WIN_RATE = MoreThan(
    "upper end of the 95% interval of the policy's win rate over the reference",
    warning=0.5,
    severe=0.4,
    why="a policy that people like less than what it began as learns the wrong thing; the original's authors once "
    "trained with a flipped sign, and the policy wrote what people liked least",
)


@check(
    "train_policy",
    looks_at="`online/win_rate_high` at each retraining",
    limits=(WIN_RATE,),
    why="people prefer the reference: the reward has the wrong sign, or what it rewards is not what they want",
    change="read samples and labels: do the chosen ones look chosen? stop the run until it is understood",
)
def win_rate(h: History) -> Judgement | None:
    high = h.number("online/win_rate_high")
    if high is None:
        return None
    return Judgement(
        WIN_RATE.level(high),
        f"people prefer the policy in at most {high:.0%} of the validation questions",
        "read samples.jsonl beside the newest labels; if what people choose is not what is rewarded, begin anew with "
        f"fewer {h.flag('ppo.total_episodes')} or a higher {h.flag('rewards.kl_coef')}",
    )


OVER_CHANCE = MoreThan(
    "accuracy of the reward model on the labels that came after it was trained, in standard errors above chance, while "
    "the score rises",
    warning=2.0,
    severe=0.0,
    why="a reward model that knows anything of the policy's responses is right more often than that",
)


@check(
    "train_policy",
    looks_at=f"`online/accuracy_over_chance` at each retraining, `objective/score` over {SHORT} steps",
    limits=(OVER_CHANCE,),
    why="the score rises by something that people do not see: the reward model does not know the policy's responses",
    change="more `--online.retrainings` or `--online.labels`, or a higher `--rewards.kl_coef`",
)
def reward_blind(h: History) -> Judgement | None:
    over, score = h.number("online/accuracy_over_chance"), h.so_far("objective/score", SHORT)
    if over is None or score is None:
        return None
    rises = score.mean_last(SHORT) > score.mean_first(SHORT)
    return Judgement(
        OVER_CHANCE.level(over) if rises else FINE,
        f"on the labels since the last retraining the reward model was {over:+.1f} standard errors above chance, and "
        f"the score is {'rising' if rises else 'not rising'}",
        f"raise {h.flag('online.retrainings')}, {h.flag('online.labels')} or {h.flag('rewards.kl_coef')}",
    )


SHARE = AtMost(
    "share of the usable answers since the last retraining that one person gave, of several",
    warning=0.5,
    severe=None,
    why="what is learnt is then one person's taste, and nobody can tell it from a misunderstanding",
)


@check(
    "train_policy",
    looks_at="`online/largest_share`, `online/labellers` at each retraining",
    limits=(SHARE,),
    why="most labels are one person's",
    change="ask more people, or the others to do more; raise `--online.people.overlap_share`",
)
def one_labeller(h: History) -> Judgement | None:
    share, people = h.number("online/largest_share"), h.number("online/labellers")
    if share is None or people == 1:
        return None
    return Judgement(
        SHARE.level(share),
        f"one person gave {share:.0%} of the answers",
        f"ask the others to do more, and raise {h.flag('online.people.overlap_share')} to see whether they agree",
    )


BLIND = AtMost(
    "labellers whose answers look blind",
    warning=0.0,
    severe=None,
    why="they are named only on strong evidence (docs/people.md)",
)


@check(
    "train_policy",
    looks_at="`online/blind_labellers` at each retraining",
    limits=(BLIND,),
    why="somebody always takes the same card, or agrees with nobody more than by chance: their labels teach noise",
    change="look at the dashboard, talk to them; `--online.merge dawid_skene` weighs them down",
)
def blind_labeller(h: History) -> Judgement | None:
    named = h.number("online/blind_labellers")
    if named is None:
        return None
    return Judgement(
        BLIND.level(named),
        f"{named:.0f} of {h.number('online/labellers') or named:.0f} labellers answer as if blindly",
        f"python launch.py labels quality STUDY names them; {h.flag('online.merge')} to dawid_skene weighs them down",
    )


ONLINE_CHECKS = (win_rate, reward_blind, one_labeller, blind_labeller)
