"""Which of many responses to show: those from whose comparison the reward would be learnt best.

A person's minute is the dearest thing in a study. All ways work on the scores that several reward heads, each of which
could have given the labels so far, give to C candidate responses to one query.

- `disagreement`: the K whose choice probabilities differ most among the heads (the ensembles' standard deviation of
  Dwaracherla et al. 2024, arXiv 2402.00396, for K responses instead of two).
- `thompson`: the best response of a head drawn at random, then of another one, and so on (double Thompson sampling, the
  same paper; active exploration of Liu et al. 2024, arXiv 2411.01493).
- `information`: the K whose choice tells most about which head is right: the mutual information of both (Houlsby et
  al. 2011, arXiv 1112.5745; information-directed asking of Asghari et al. 2026, arXiv 2603.17378).

Which K of C is a search over sets; it begins with the best pair and adds the best one at a time.
"""

from collections.abc import Callable, Sequence

import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.learning.head_posterior import HeadPosterior
from lm_human_preferences.learning.reward_model import RewardModel

ASKS = ("random", "disagreement", "thompson", "information")
ROWS = 256  # candidates whose states are computed together
DRAWS = 30  # of a head for one more response, as Dwaracherla et al. 2024; then the last one's best of the rest


def choice_information(scores: torch.Tensor) -> torch.Tensor:
    """What a choice among K responses tells about which of M heads is right, in nats, float [...]; scores float
    [M, ..., K] of the heads. It is at most the smaller of log M and log K.
    """
    logs = scores.log_softmax(-1)
    mean = logs.exp().mean(0)
    found: torch.Tensor = (logs.exp() * logs).sum(-1).mean(0) - torch.special.xlogy(mean, mean).sum(-1)
    return found


def choice_variance(scores: torch.Tensor) -> torch.Tensor:
    """How the heads' probabilities of the K choices differ: the sum of their biased variances, float [...]; scores
    float [M, ..., K].
    """
    return scores.softmax(-1).var(0, correction=0).sum(-1)


def choose_by(worth: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor, count: int) -> list[int]:
    """`count` of the C candidates with scores float [M, C], at least two: the pair of the greatest worth, and then
    whoever adds most to it; of equals the first.
    """
    pairs = torch.combinations(torch.arange(scores.shape[1]), 2)
    found: list[int] = pairs[int(worth(scores[:, pairs]).argmax())].tolist()
    while len(found) < count:
        rest = torch.tensor([one for one in range(scores.shape[1]) if one not in found])
        sets = torch.cat([torch.tensor(found).expand(len(rest), -1), rest[:, None]], dim=1)
        found.append(int(rest[int(worth(scores[:, sets]).argmax())]))
    return found


def choose_by_thompson(scores: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """`count` of the C candidates with scores float [M, C]: each the best one of a head drawn at random, which is drawn
    again where its best one is there already.
    """
    found: list[int] = []
    while len(found) < count:
        for _ in range(DRAWS):
            head = scores[int(torch.randint(len(scores), (), generator=generator))]
            if int(head.argmax()) not in found:
                break
        order = head.sort(descending=True, stable=True).indices.tolist()
        found.append(next(one for one in order if one not in found))
    return found


def choose(how: str, scores: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """The `count` of C candidates to show, by one of ASKS but `random`, in the candidates' order; scores float
    [M, C].
    """
    if how == "thompson":
        found = choose_by_thompson(scores, count, generator)
    else:
        found = choose_by(choice_information if how == "information" else choice_variance, scores, count)
    return sorted(found)


class HeadsAsk:
    """Chooses what to show by the heads of the reward model in use; what it draws follows from seed and number."""

    def __init__(self, how: str, shown: int, heads: HeadPosterior, model: RewardModel, precision: Precision, seed: int):
        """how: one of ASKS but `random`; shown: responses that people see."""
        self.how, self.shown, self.heads = how, shown, heads
        self.model, self.precision, self.seed = model, precision, seed

    @torch.no_grad()
    def __call__(
        self, numbers: Sequence[int], queries: torch.Tensor, candidates: Sequence[torch.Tensor]
    ) -> list[list[int]]:
        """Which of its candidates, int64 [n, R], each of the questions `numbers` shows, about queries int64 [B, Q]."""
        found, most = [], max(map(len, candidates))
        # questions of a batch need rows of the same number: candidates that are missing are the first one again
        filled = torch.stack([torch.cat([some, some[:1].expand(most - len(some), -1)]) for some in candidates])
        at_once, device = max(1, ROWS // most), self.precision.device
        for start in range(0, len(numbers), at_once):
            part = slice(start, start + at_once)
            with self.precision.autocast():
                states = self.model.states(queries[part].to(device), filled[part].to(device)).float().cpu()
            for number, state, some in zip(numbers[part], states, candidates[part], strict=True):
                scores = self.heads.scores(state[: len(some)])
                found.append(choose(self.how, scores, self.shown, generator_for(self.seed, "people/ask", number)))
        return found
