"""Direct preference optimisation: a policy learns people's choices without a reward model in between.

The reward of a response is implicit, beta * (log pi - log rho), with pi the policy, rho the reference and beta the
price of a nat (Rafailov et al. 2023, arXiv 2305.18290, section 4). With two responses the losses here are the papers'
own; Plackett and Luce's form for K responses is in that paper's appendix A.3, those of IPO, cDPO and robust DPO for K
responses are ours.

Shapes: B labels, K responses to a query, R response tokens.
"""

import torch
import torch.nn as nn

from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.logprobs import token_logprobs

LOSSES = ("dpo", "ipo", "ipo_mean", "cdpo", "robust")
SMOOTHED = ("cdpo", "robust")  # those that --label_smoothing is for


class ChoicePolicy(nn.Module):
    """A language model that gives the log-probabilities of several responses to one query in one pass.

    `temperature` divides the logits, in the policy as in the reference: what is learned is the policy that samples at
    that temperature.
    """

    def __init__(self, transformer: GPT2, formatter: QueryFormatter, temperature: float):
        super().__init__()
        self.transformer, self.formatter, self.temperature = transformer, formatter, temperature

    def forward(self, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """Log-probabilities float32 [B, K, R] of the tokens of responses int64 [B, K, R] to queries int64 [B, Q], 0 at
        padding. The K responses share their query's pass.
        """
        real = responses != self.transformer.config.padding_token
        hidden = self.transformer.response_states(self.formatter(queries), responses)
        logprobs, _ = token_logprobs(self.transformer, hidden, responses[real], self.temperature, entropies=False)
        return logprobs.new_zeros(responses.shape).masked_scatter(real, logprobs)


def preference_losses(
    loss: str, log_ratios: torch.Tensor, lengths: torch.Tensor, target: torch.Tensor, beta: float, smoothing: float
) -> torch.Tensor:
    """The loss of each label, float32 [B].

    loss: one of `LOSSES`; log_ratios: float32 [B, K], log pi - log rho of each response, summed over its tokens;
    lengths: [B, K], its tokens; target: the best response's index, int64 [B], or a distribution over the responses,
    float32 [B, K]; smoothing: how probable it is that a label is wrong, for `cdpo` and `robust`.
    """
    answers = answer_weights(loss, target, log_ratios, smoothing)
    return (answers * answer_losses(loss, log_ratios, lengths, beta)).sum(1)


def answer_losses(loss: str, log_ratios: torch.Tensor, lengths: torch.Tensor, beta: float) -> torch.Tensor:
    """What the loss would be if each of the responses were the best one, float32 [B, K].

    dpo, cdpo, robust: -log softmax(beta * log_ratios), Plackett and Luce's probability of the first choice; with K = 2
    -log sigmoid of the difference (Rafailov et al. 2023, equation 7). ipo: (difference - 1 / (2 beta))^2 of the log
    ratios of the best and another response (Azar et al. 2023, arXiv 2310.12036, equation 17), the mean over the others;
    ipo_mean: the same of log ratios per token, as TRL has it.
    """
    if loss not in ("ipo", "ipo_mean"):
        return -torch.log_softmax(beta * log_ratios, dim=1)
    if loss == "ipo_mean":
        log_ratios = log_ratios / lengths.clamp(min=1)
    K = log_ratios.shape[1]
    errors = (log_ratios[:, :, None] - log_ratios[:, None, :] - 1 / (2 * beta)) ** 2  # [B, best, other]
    others = ~torch.eye(K, dtype=torch.bool, device=errors.device)
    return (errors * others).sum(2) / (K - 1)


def answer_weights(loss: str, target: torch.Tensor, log_ratios: torch.Tensor, smoothing: float) -> torch.Tensor:
    """How much each response's loss counts, float [B, K]: 1 for the answer, or its distribution.

    With probability `smoothing` a label is wrong, any other response being the best one. cdpo: the expectation of the
    loss over the true answer (Mitchell 2023, a note on DPO with noisy preferences). robust: the weights whose
    expectation over wrong labels is 1 for the true answer (Chowdhury et al. 2024, arXiv 2403.00409, equation 12), so
    that the others' are negative. Both papers have K = 2.
    """
    K = log_ratios.shape[1]
    weights = nn.functional.one_hot(target, K) if target.ndim == 1 else target
    weights = weights.to(log_ratios.dtype)
    if loss not in SMOOTHED:
        return weights
    wrong = smoothing / (K - 1)
    smoothed = weights * (1 - smoothing) + (1 - weights) * wrong
    return smoothed if loss == "cdpo" else (weights - wrong) / (1 - K * wrong)


def preference_statistics(
    losses: torch.Tensor, log_ratios: torch.Tensor, target: torch.Tensor, beta: float
) -> dict[str, float]:
    """Statistics of a whole global batch: losses [B], log_ratios [B, K], target as in `preference_losses`.

    `accuracy` counts the labels whose best response has the highest implicit reward; where several are highest, as all
    are before the first update, each counts as its share. `margin`: implicit reward of the best less the mean of the
    others'. `best_log_ratio`, `other_log_ratio`: mean log pi - log rho in nats. The most probable responses of a
    distribution are its best; where there are several, any of them is right, and their mean is taken.
    """
    K = log_ratios.shape[1]
    best = nn.functional.one_hot(target, K) == 1 if target.ndim == 1 else target == target.amax(1, keepdim=True)
    chosen = (best * log_ratios).sum(1) / best.sum(1)
    others = (log_ratios.sum(1) - chosen) / (K - 1)
    highest = log_ratios == log_ratios.amax(1, keepdim=True)
    right = (highest & best).sum(1) / highest.sum(1)
    return {
        "loss": float(losses.mean()),
        "accuracy": float(right.mean()),
        "margin": beta * float((chosen - others).mean()),
        "best_log_ratio": float(chosen.mean()),
        "other_log_ratio": float(others.mean()),
    }
