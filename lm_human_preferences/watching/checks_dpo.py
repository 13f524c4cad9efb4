"""What can be wrong with direct preference optimisation; checks_reward.py has what it shares with reward training."""

from lm_human_preferences.watching.check import AtMost, Judgement, check
from lm_human_preferences.watching.history import WINDOW, History

BEST_LOST = AtMost(
    "how far the mean log-probability of the best responses has fallen below the reference's, in nats",
    warning=5.0,
    severe=20.0,
    why="at 5 nats the policy writes what people chose a hundred times more rarely than before; at 20 never",
)


@check(
    "train_dpo",
    looks_at=f"`train/best_log_ratio`, mean of the last {WINDOW} steps",
    limits=(BEST_LOST,),
    why="the loss only asks that the best response lose less than the others: the probability of all of them can go "
    "to texts that nobody has seen",
    change="a larger `--beta`, a lower `--lr`, fewer `--epochs`; or first train the language model on texts like the "
    "responses",
)
def best_lost(h: History) -> Judgement | None:
    ratios = h.so_far("train/best_log_ratio", WINDOW)
    if ratios is None:
        return None
    average = ratios.mean_last(WINDOW)
    return Judgement(
        BEST_LOST.level(-average),
        f"the best responses' log-probability is {average:+.1f} nats to the reference's over the last {WINDOW} steps",
        f"raise {h.flag('beta')}, lower {h.flag('lr')}, fewer {h.flag('epochs')}; or first train the language model on "
        "texts like the responses",
    )


DPO_CHECKS = (best_lost,)
