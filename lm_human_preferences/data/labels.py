"""People's labels: their types, and batches of them. What is learnt from them is in `learning/label_losses.py`.

Original: label_types.py, train_reward.py.
"""

from dataclasses import dataclass

import torch

from lm_human_preferences.data.exchange.reading import ReadingParams
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError


@dataclass
class LabelParams(ReadingParams):
    """Which labels."""

    type: str = param(
        "best_of_4",
        "best_of_N or ranking_of_N for any N, scalar_rating or scalar_compare (also called scalar_comparison)",
    )
    num_train: int = param(4992, "labels to train on: the first of the file; a multiple of the batch size")
    source: str = param(
        "", "label file in any form that `labels convert` reads (docs/your_data.md), or its web address", "path"
    )
    valid_source: str | None = param(
        None, "label file to measure on; none takes what the source has beyond num_train", "path"
    )
    num_valid: int = param(2000, "labels to measure on, at most")
    noise: float = param(0.0, "share of the training labels whose answer is made wrong on purpose")
    noise_seed: int | None = param(None, "seed that decides which, and what they say instead; none takes run.seed")


def check_labels(params: LabelParams, batch_size: int) -> "LabelType":
    """The label type; raises UserError, naming the flag and the numbers, for labels that no training can have."""
    if batch_size < 1:
        raise UserError(f"--batch_size {batch_size}: must be at least 1")
    if params.num_train < 1 or params.num_train % batch_size:
        raise UserError(f"--labels.num_train {params.num_train} does not divide by --batch_size {batch_size}")
    if params.num_valid < 0:
        raise UserError(f"--labels.num_valid {params.num_valid}: must not be negative")
    if not 0 <= params.noise <= 1:
        raise UserError(f"--labels.noise {params.noise}: must lie between 0 and 1")
    if not params.source:
        raise UserError("this task has no labels yet: give a file with --labels.source")
    return label_type(params.type)


@dataclass
class LabelBatch:
    """Labels as tensors. `target` is for best_of_N the best response's index, int64 [B], or a distribution over the
    responses, float32 [B, N]; for ranking_of_N the responses' indices, the best first, int64 [B, N], where -1 - n is
    response n without a rank; else a float32 rating or difference [B].

    Tokens may be int32, as files are read; `to` makes them the int64 that models take.
    """

    queries: torch.Tensor  # [B, Q]
    responses: torch.Tensor  # [B, N, R]; N is 1 for scalar_rating, 2 for scalar_compare
    target: torch.Tensor  # [B] or [B, N]

    @property
    def best(self) -> torch.Tensor:
        """Of choices and rankings the best response's index, int64 [B]; of several most probable ones the first."""
        if self.target.ndim == 1:
            return self.target
        return self.target.argmax(1) if self.target.is_floating_point() else self.target[:, 0]

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, index: slice | torch.Tensor) -> "LabelBatch":
        """The labels of a slice, or of row numbers int64 [n]."""
        return LabelBatch(self.queries[index], self.responses[index], self.target[index])

    def to(self, device: torch.device) -> "LabelBatch":
        return LabelBatch(
            self.queries.to(device, torch.int64), self.responses.to(device, torch.int64), self.target.to(device)
        )


@dataclass(frozen=True)
class LabelType:
    """One kind of question to people: how many responses it shows, and what the answer is called ("best", "ranking",
    "score" or "difference").
    """

    name: str
    n_responses: int
    answer: str

    @property
    def is_choice(self) -> bool:
        return self.answer == "best"

    @property
    def is_ranking(self) -> bool:
        return self.answer == "ranking"

    def response_names(self) -> list[str]:
        """The responses' keys in the original's JSON."""
        return ["sample"] if self.answer == "score" else [f"sample{i}" for i in range(self.n_responses)]

    def target_mean_std(self, target: torch.Tensor) -> tuple[float, float]:
        """Mean and deviation that rewards are normalised to *before* training: 0 and 1 for choices and rankings, else
        those of all labels [n].

        The deviation is the biased one; for comparisons both are of `difference` / 2. After training it is always 0
        and 1.
        """
        if self.is_choice or self.is_ranking:
            return 0.0, 1.0
        values = target.double() / (2 if self.answer == "difference" else 1)
        return float(values.mean()), float(values.std(correction=0))


def label_type(name: str) -> LabelType:
    """The label type of that name. Raises UserError for an unknown one."""
    for answer in ("best", "ranking"):
        number = name.removeprefix(f"{answer}_of_")
        if number != name and number.isdigit() and int(number) >= 2:
            return LabelType(name, int(number), answer)
    if name == "scalar_rating":
        return LabelType(name, 1, "score")
    if name in ("scalar_compare", "scalar_comparison"):
        return LabelType(name, 2, "difference")
    raise UserError(
        f"--labels.type {name}: must be best_of_N or ranking_of_N (N at least 2), scalar_rating or scalar_compare"
    )
