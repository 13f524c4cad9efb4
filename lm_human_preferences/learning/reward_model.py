"""The reward model: transformer, reward head, and a gain and bias that set its scale. Original: rewards.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.parallel import Parallel
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.labels import LabelBatch
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.heads import ScalarHead
from lm_human_preferences.language.model_folders import load_heads, load_model, save_model


class RewardModel(nn.Module):
    """reward = gain * head(hidden state of the last real token) + bias.

    It sees bare query and response, without the policy's prefix and suffix. Gain and bias are parameters that the
    optimizer trains too, and are reset to 1 and 0 before each normalisation.
    """

    def __init__(self, transformer: GPT2):
        super().__init__()
        self.transformer = transformer
        self.head = ScalarHead(transformer.config.n_embd)
        self.gain = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def from_language_model(cls, folder: Path, generator: torch.Generator) -> "RewardModel":
        """An untrained reward model on a language model's trunk, its head drawn from `generator`."""
        model = cls(load_model(folder))
        model.head.initialise(generator)
        return model

    @classmethod
    def load(cls, folder: Path) -> "RewardModel":
        """A trained reward model. Raises UserError if the folder has no reward head (a plain language model, say)."""
        model, heads = cls(load_model(folder)), load_heads(folder)
        try:
            model.head.load_state_dict({"weight": heads["reward.weight"], "bias": heads["reward.bias"]})
            with torch.no_grad():
                model.gain.copy_(heads["reward_norm.gain"])
                model.bias.copy_(heads["reward_norm.bias"])
        except (KeyError, RuntimeError):
            raise UserError(
                f"{folder} holds no reward model (no reward head, gain and bias); train one with train_reward"
            ) from None
        return model

    def save(self, folder: Path, note: dict[str, Any] | None = None, world: World = World()) -> None:
        """Write a model folder with the head beside it; on several ranks all call it and rank 0 writes."""
        heads: dict[str, torch.Tensor] = {
            "reward.weight": self.head.weight,
            "reward.bias": self.head.bias,
            "reward_norm.gain": self.gain,
            "reward_norm.bias": self.bias,
        }
        save_model(folder, self.transformer, heads, note=note, world=world)

    def forward(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """Rewards of responses to queries int64 [B, Q]: float32 [B] of one each, int64 [B, R], or [B, K] of several
        each, int64 [B, K, R].

        Both may be padded. Several responses share their query's pass.
        """
        rewards: torch.Tensor = self.gain * self.head(self.states(queries, responses)) + self.bias
        return rewards

    def states(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """What the head reads, the final hidden states of each last real token: [B, C] or [B, K, C]; arguments as for
        `forward`.
        """
        if responses.ndim == 3:
            return self.transformer.choice_states(queries, responses)
        return self.transformer.last_states(torch.cat([queries, responses], dim=1))

    @torch.no_grad()
    def reset_scale(self) -> None:
        """Gain 1 and bias 0."""
        self.gain.fill_(1)
        self.bias.zero_()

    @torch.no_grad()
    def set_scale(self, mean: float, std: float, target_mean: float, target_std: float) -> None:
        """Choose gain and bias so that rewards of the given mean and std come to have the target's.

        Raises ValueError unless gain and bias are 1 and 0 (original: rewards.py set_reward_norm), or if std is 0.
        """
        if float(self.gain) != 1 or float(self.bias) != 0:
            raise ValueError("the scale can only be set after reset_scale()")
        if not std > 0:
            raise ValueError(f"rewards have standard deviation {std}: nothing to scale")
        self.gain.fill_(target_std / std)
        self.bias.fill_(target_mean - target_std / std * mean)


def label_rewards(model: RewardModel | Parallel, labels: LabelBatch, precision: Precision) -> torch.Tensor:
    """Rewards float32 [B, N] of each label's responses, on the model's device."""
    with precision.autocast():
        rewards: torch.Tensor = model(labels.queries, labels.responses)
        return rewards


@torch.no_grad()
def rewards_of(
    model: RewardModel, labels: LabelBatch, precision: Precision, micro_batch: int, world: World = World()
) -> torch.Tensor:
    """Rewards float32 [B, N] of all labels' responses, `micro_batch` responses at a time, the ranks sharing the work;
    on the CPU.
    """
    return _of_labels(lambda part: label_rewards(model, part, precision), labels, precision, micro_batch, world)


@torch.no_grad()
def states_of(
    model: RewardModel, labels: LabelBatch, precision: Precision, micro_batch: int, world: World = World()
) -> torch.Tensor:
    """What the head reads, float32 [B, N, C], of all labels' responses; the rest as `rewards_of`."""

    def states(part: LabelBatch) -> torch.Tensor:
        with precision.autocast():
            return model.states(part.queries, part.responses).float()

    return _of_labels(states, labels, precision, micro_batch, world)


def _of_labels(
    compute: Callable[[LabelBatch], torch.Tensor],
    labels: LabelBatch,
    precision: Precision,
    micro_batch: int,
    world: World,
) -> torch.Tensor:
    """`compute` [b, N, ...] of all labels, `micro_batch` responses at a time, the ranks sharing the work; on the
    CPU.
    """
    mine = labels.rows(world.share_of(torch.arange(len(labels))))
    parts = [compute(part.to(precision.device)).cpu() for part in label_parts(mine, micro_batch)]
    return world.gather(torch.cat(parts))[: len(labels)]


def label_parts(labels: LabelBatch, rows: int) -> list[LabelBatch]:
    """Parts of at most `rows` responses (at least one label) each."""
    size = max(1, rows // labels.responses.shape[1])
    return [labels.rows(slice(start, start + size)) for start in range(0, len(labels), size)]
