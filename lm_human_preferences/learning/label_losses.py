"""What a reward model learns from people's labels: equation 1's loss and its kin, and statistics of how well it does.

Original: label_types.py (losses and statistics of each type), utils/core.py (pearson_r).
"""

import torch
import torch.nn.functional as F

from lm_human_preferences.data.labels import LabelType


def label_losses(kind: LabelType, rewards: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of each label, float32 [B], from the rewards of its responses, float32 [B, N].

    best_of_N: equation 1, the cross entropy of the best response's index (target int64 [B]), or of a distribution over
    the responses (float32 [B, N]), under a softmax over the N rewards. ranking_of_N: `ranking_losses`. scalar_rating:
    the squared error of the one reward (target float32 [B]). scalar_compare: the squared error of the second reward
    minus the first.
    """
    if kind.answer == "best":
        return F.cross_entropy(rewards, target, reduction="none")
    if kind.is_ranking:
        return ranking_losses(rewards, target)
    if kind.answer == "score":
        return (rewards[:, 0] - target) ** 2
    return (rewards[:, 1] - rewards[:, 0] - target) ** 2


def ranking_losses(rewards: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Minus the log-probability of a ranking after Plackett and Luce, float32 [B]: the best is chosen among all
    responses, the second among the rest, and so on.

    rewards: float32 [B, N]; order: int64 [B, N], the responses' indices, the best first, and at the end -1 - n for each
    response n that has no rank. With N = 2, or the best one alone, it is equation 1.
    """
    ranked = rewards.gather(1, torch.where(order < 0, -1 - order, order))
    rest = ranked.flip(1).logcumsumexp(1).flip(1)  # of each place, over the responses from it on
    return ((rest - ranked) * (order >= 0)).sum(1)


def label_statistics(kind: LabelType, rewards: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """Statistics of a whole global batch, rewards [B, N] and target [B].

    `loss` and `error` (the same number, as in the original) for every type; besides, `accuracy` for choices and
    rankings (`choice_accuracy`), `corr` for the scalar types, `label_mean` and `label_var` (biased) for ratings.
    """
    loss = float(label_losses(kind, rewards, target).mean())
    statistics = {"loss": loss, "error": loss}
    if kind.is_choice or kind.is_ranking:
        statistics["accuracy"] = choice_accuracy(rewards, target)
    if kind.answer == "score":
        statistics |= {
            "label_mean": float(target.mean()),
            "label_var": float(target.var(correction=0)),
            "corr": float(pearson_r(rewards[:, 0], target)),
        }
    if kind.answer == "difference":
        statistics["corr"] = float(pearson_r(rewards[:, 1] - rewards[:, 0], target))
    return statistics


def choice_accuracy(rewards: torch.Tensor, target: torch.Tensor) -> float:
    """How often the highest of rewards [B, N] is the best response's; of a distribution [B, N], one of its most
    probable ones'; of a ranking, the first one's.
    """
    chosen = rewards.argmax(1)
    if target.is_floating_point():
        return float((target.gather(1, chosen[:, None])[:, 0] == target.amax(1)).float().mean())
    return float((chosen == (target if target.ndim == 1 else target[:, 0])).float().mean())


def chance_accuracy(target: torch.Tensor, responses: int) -> float:
    """The `choice_accuracy` to expect of rewards [B, N] that know nothing: 1 / N, and more where several responses are
    a label's best. target: as there; responses: N.
    """
    if target.is_floating_point():
        return float((target == target.amax(1, keepdim=True)).sum(1).double().mean() / responses)
    return 1 / responses


def pearson_r(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of two vectors [B], a scalar; not a number where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).mean() / ((x * x).mean() * (y * y).mean()).sqrt()
