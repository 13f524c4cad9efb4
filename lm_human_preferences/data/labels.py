"""Human labels: their types, their losses and statistics. Original: label_types.py, train_reward.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError


@dataclass
class LabelParams:
    """Which labels."""

    type: str = param(
        "best_of_4", "best_of_N for any N, scalar_rating or scalar_compare (also called scalar_comparison)"
    )
    num_train: int = param(4992, "labels to train on: the first of the file; a multiple of the batch size")
    source: str = param("", "label file (JSON of token lists or JSONL of texts), or its web address", "path")
    valid_source: str | None = param(
        None, "label file to measure on; none takes what the source has beyond num_train", "path"
    )
    num_valid: int = param(2000, "labels to measure on, at most")


@dataclass
class LabelBatch:
    """Labels as tensors. `target` is the best response's index (int64) for best_of_N, else a float32 rating or
    difference.

    Tokens may be int32, as files are read; `to` makes them the int64 that models take.
    """

    queries: torch.Tensor  # [B, Q]
    responses: torch.Tensor  # [B, N, R]; N is 1 for scalar_rating, 2 for scalar_compare
    target: torch.Tensor  # [B]

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, index) -> "LabelBatch":
        return LabelBatch(self.queries[index], self.responses[index], self.target[index])

    def to(self, device: torch.device) -> "LabelBatch":
        return LabelBatch(
            self.queries.to(device, torch.int64), self.responses.to(device, torch.int64), self.target.to(device)
        )


@dataclass(frozen=True)
class LabelType:
    """One kind of question to people: how many responses it shows, what the answer is called, and the loss of rewards
    [B, N].
    """

    name: str
    n_responses: int
    answer: str
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # rewards [B, N], target [B] -> losses [B]

    @property
    def is_choice(self) -> bool:
        return self.answer == "best"

    def response_names(self) -> list[str]:
        return ["sample"] if self.answer == "score" else [f"sample{i}" for i in range(self.n_responses)]

    def target_mean_std(self, target: torch.Tensor) -> tuple[float, float]:
        """Mean and deviation that rewards are normalised to *before* training: 0 and 1 for choices, else those of the
        labels.

        Biased deviation over all labels; of `difference` / 2 for comparisons. After training it is always 0 and 1.
        """
        if self.is_choice:
            return 0.0, 1.0
        values = target.double() / (2 if self.answer == "difference" else 1)
        return float(values.mean()), float(values.std(correction=0))

    def stats(self, rewards: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
        """Statistics of a whole global batch: `loss` and `error` (the same number, as in the original), and what else
        the type has.
        """
        loss = float(self.losses(rewards, target).mean())
        stats = {"loss": loss, "error": loss}
        if self.is_choice:
            stats["accuracy"] = float((rewards.argmax(1) == target).float().mean())
        if self.answer == "score":
            stats |= {
                "label_mean": float(target.mean()),
                "label_var": float(target.var(correction=0)),
                "corr": float(pearson_r(rewards[:, 0], target)),
            }
        if self.answer == "difference":
            stats["corr"] = float(pearson_r(rewards[:, 1] - rewards[:, 0], target))
        return stats


def label_type(name: str) -> LabelType:
    """The label type of that name. Raises UserError for an unknown one."""
    if (
        name.startswith("best_of_")
        and name.removeprefix("best_of_").isdigit()
        and int(name.removeprefix("best_of_")) >= 2
    ):
        n = int(name.removeprefix("best_of_"))
        return LabelType(name, n, "best", lambda rewards, best: F.cross_entropy(rewards, best, reduction="none"))
    if name == "scalar_rating":
        return LabelType(name, 1, "score", lambda rewards, score: (rewards[:, 0] - score) ** 2)
    if name in ("scalar_compare", "scalar_comparison"):
        return LabelType(
            name, 2, "difference", lambda rewards, difference: (rewards[:, 1] - rewards[:, 0] - difference) ** 2
        )
    raise UserError(f"--labels.type {name}: must be best_of_N (N at least 2), scalar_rating or scalar_compare")


def pearson_r(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Correlation of two vectors [B] (original: utils/core.py pearson_r)."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).mean() / ((x * x).mean() * (y * y).mean()).sqrt()
