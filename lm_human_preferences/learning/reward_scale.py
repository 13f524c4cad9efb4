"""How rewards become the scores that a policy is trained for: their scale, and where they are cut."""

import math
from dataclasses import dataclass

import torch

from lm_human_preferences.foundation.errors import UserError

REWARD_SCALES = ("none", "running", "normalised")


@dataclass
class RunningMoments:
    """Mean and spread of all numbers so far, in float64 (Chan et al. 1983, "Algorithms for computing the sample
    variance").
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of the squared distances from the mean

    def update(self, values: torch.Tensor) -> None:
        """Take float [n] in as well."""
        values = values.double().cpu()
        n, mean = len(values), float(values.mean())
        distance, count = mean - self.mean, self.count + n
        self.squares += float(((values - mean) ** 2).sum()) + distance**2 * self.count * n / count
        self.mean += distance * n / count
        self.count = count

    @property
    def deviation(self) -> float:
        """Of samples (n - 1)."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


class RewardScale:
    """score = (reward - shift) / divisor, cut to [-clip, clip].

    none: as they are. running: the divisor is the deviation of all rewards of the run so far, those of the step
    included (trlX's `scale_reward: running`); a mean is not taken off. normalised: shift and divisor are mean and
    deviation of the reference's responses, measured once, before the first step.
    """

    def __init__(self, kind: str = "none", clip: float | None = None):
        self.kind, self.clip = kind, clip
        self.moments = RunningMoments()
        self.shift, self.divisor = 0.0, 1.0

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        """Scores float32 [n] of rewards float32 [n]."""
        if self.kind != "none":
            rewards = (rewards - self.shift) / self.divisor
        return rewards if self.clip is None else rewards.clamp(-self.clip, self.clip)

    def observe(self, rewards: torch.Tensor) -> None:
        """A step's rewards float32 [B], of the whole global batch; they set the divisor where it is running."""
        if self.kind == "running":
            self.moments.update(rewards)
            self.divisor = self.moments.deviation or 1.0  # as long as all are the same there is nothing to divide by

    def normalise(self, rewards: torch.Tensor) -> None:
        """Set shift and divisor so that `rewards`, float32 [n], come to have mean 0 and (biased) deviation 1. UserError
        where they are all the same.
        """
        values = rewards.double()
        mean, deviation = float(values.mean()), float(values.std(correction=0))
        if not deviation > 0:
            raise UserError(
                f"--rewards.scale normalised: all {len(values)} responses of the reference get the same reward "
                f"({mean:g}), so there is no scale; give --rewards.scale none"
            )
        self.shift, self.divisor = mean, deviation

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        moments = self.moments
        return {
            "shift": self.shift,
            "divisor": self.divisor,
            "count": moments.count,
            "mean": moments.mean,
            "squares": moments.squares,
        }

    def resume(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        self.shift, self.divisor = state["shift"], state["divisor"]
        self.moments = RunningMoments(int(state["count"]), state["mean"], state["squares"])


def check_scale(kind: str, clip: float | None, samples: int) -> None:
    """Raises UserError for values of the flags --rewards.scale, .clip and .scale_samples that cannot work."""
    if kind not in REWARD_SCALES:
        raise UserError(f"--rewards.scale {kind}: must be none, running or normalised")
    if clip is not None and not 0 < clip < math.inf:
        raise UserError(f"--rewards.clip {clip}: must be positive, or none")
    if samples < 2:
        raise UserError(f"--rewards.scale_samples {samples}: must be at least 2")
