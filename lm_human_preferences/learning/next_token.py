"""Supervised learning of the next token: the loss of a language model, and its mean on held-out rows."""

import torch
import torch.nn as nn
from tqdm import tqdm

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.rows import ReferenceRows, Rows
from lm_human_preferences.language.dropout import RowDropout
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.language.packing import gather_rows
from lm_human_preferences.language.sampled_vocabulary import SampledVocabulary


class NextTokenLoss(nn.Module):
    """A language model and its loss in one module, so that all parameters are read inside one forward pass."""

    def __init__(self, transformer: GPT2):
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        dropout: RowDropout | None = None,
        sampled: SampledVocabulary | None = None,
        step: int = 0,
    ) -> torch.Tensor:
        """Negative log-likelihoods float32 [N] of the labels that are no padding; inputs and labels int64 [B, T].

        Labels may lie on the host whatever the device: then nothing here waits for a GPU.
        """
        hidden = self.transformer(inputs, dropout=dropout).flatten(0, 1)
        labels = labels.flatten()
        places = (labels != self.transformer.config.padding_token).nonzero()[:, 0]
        if len(places) < len(labels):
            hidden, labels = gather_rows(hidden, places.to(hidden.device, non_blocking=True)), labels[places]
        if sampled is not None:
            return sampled.losses(self.transformer, hidden, labels, step)
        labels = labels.to(hidden.device, non_blocking=True)
        return -token_logprobs(self.transformer, hidden, labels, entropies=False)[0]


def validate(
    model: NextTokenLoss,
    rows: Rows | ReferenceRows,
    limit: int,
    precision: Precision,
    micro_batch: int,
    world: World = World(),
) -> float:
    """Mean loss in nats per token over the first `limit` rows (all if 0), with the whole vocabulary; the ranks share
    the work.
    """
    total, n_tokens = row_losses(model, rows, limit, precision, micro_batch, world).sum(0).tolist()
    return float(total / n_tokens)


@torch.no_grad()
def row_losses(
    model: NextTokenLoss,
    rows: Rows | ReferenceRows,
    limit: int,
    precision: Precision,
    micro_batch: int,
    world: World = World(),
    describe: str | None = None,
) -> torch.Tensor:
    """Loss in nats, summed over a row's tokens, and how many they are: float64 [n, 2] of the first `limit` rows (all if
    0); the ranks share the work.

    describe: what a progress bar is to be called; none shows none.
    """
    count = min(limit or len(rows), len(rows))
    sums, mine = [], world.share_of(torch.arange(count))
    with tqdm(total=len(mine), desc=describe, unit="row", disable=describe is None) as bar:
        for part in mine.split(micro_batch):
            inputs, labels = rows.batch(part.numpy())
            with precision.autocast():
                losses = model(inputs.to(precision.device), labels).double().cpu()
            real = labels != rows.padding
            of_row = torch.arange(len(part))[:, None].expand_as(labels)[real]
            of_rows = torch.zeros(len(part), dtype=torch.float64).index_add_(0, of_row, losses)
            sums.append(torch.stack([of_rows, real.sum(1).double()], dim=1))
            bar.update(len(part))
    return world.gather(torch.cat(sums))[:count]
