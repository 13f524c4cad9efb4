"""DPO, IPO and their kin against TRL, the DPO authors' code and float64 formulas; mistakes that implementations of them
are known to make.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.learning.direct_preference import (
    LOSSES,
    ChoicePolicy,
    answer_losses,
    preference_losses,
    preference_statistics,
)
from lm_human_preferences.learning.label_losses import choice_accuracy, label_losses, ranking_losses

from conftest import tensor
from methods import (
    CONFIG,
    PAD,
    assert_gradients,
    assert_recorded,
    assert_weights_after,
    padded,
    recorded,
    settings,
    with_weights,
)

NAMES = {"sigmoid": "dpo", "ipo": "ipo_mean", "ipo_sum": "ipo", "robust": "robust", "cdpo": "cdpo"}
VARIANTS = settings()["dpo"]["variants"]


def choices_of(name: str, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A recorded batch as queries [B, Q] and responses [B, K, R] with our padding."""
    g = recorded("dpo")
    tokens = padded(g[f"{name}/input_ids"], g[f"{name}/attention_mask"])
    of_response = tensor(g[f"{name}/completion_mask"]) == 1
    rows = [(row[~mask & (row != PAD)], row[mask]) for row, mask in zip(tokens, of_response, strict=True)]
    if name != "bestofk":  # all chosen ones come first, then all rejected ones
        rows = [rows[half * len(rows) // 2 + i] for i in range(len(rows) // 2) for half in (0, 1)]
    Q, R = max(len(query) for query, _ in rows), max(len(response) for _, response in rows)
    queries, responses = torch.full((len(rows), Q), PAD), torch.full((len(rows), R), PAD)
    for i, (query, response) in enumerate(rows):
        queries[i, : len(query)], responses[i, : len(response)] = query, response
    assert torch.equal(queries[0::K], queries[1::K])
    return queries[::K], responses.view(-1, K, R)


def policy(scope: str) -> ChoicePolicy:
    return ChoicePolicy(with_weights("weights", scope), QueryFormatter([], []), 1.0)


def as_recorded(by_label: torch.Tensor) -> torch.Tensor:
    """[B, 2] of chosen and rejected as the recorded [2 B]."""
    return by_label.T.reshape(-1)


def variant(name: str) -> tuple[str, float, float]:
    """Loss, beta and label smoothing of a recorded variant."""
    return NAMES[name.partition("_b")[0]], VARIANTS[name]["beta"], VARIANTS[name]["label_smoothing"]


def losses_of(name: str, log_ratios: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    loss, beta, smoothing = variant(name)
    best = torch.zeros(len(log_ratios), dtype=torch.int64)
    return preference_losses(loss, log_ratios, lengths, best, beta, smoothing)


@pytest.fixture(scope="module")
def batch():
    """Batch 0: queries, responses, their lengths, and summed log-probabilities of the policy and the reference."""
    queries, responses = choices_of("batch0", 2)
    with torch.no_grad():
        sides = [policy(scope)(queries, responses) for scope in ("policy", "ref")]
    return queries, responses, (responses != PAD).sum(2), *(side.sum(2) for side in sides)


def test_log_probabilities(batch):
    """Of each token, at its place; their sums, without prompt and padding; lengths with the end's token."""
    queries, responses, lengths, *sums = batch
    g = recorded("dpo")
    for scope, name, of_response in (("policy", "policy", sums[0]), ("ref", "ref", sums[1])):
        with torch.no_grad():
            tokens = policy(scope)(queries, responses)
        expected = g[f"batch0/{name}_token_logps"]
        ours = np.zeros_like(expected)
        for i, mask in enumerate(g["batch0/completion_mask"]):
            row = tokens[i % len(tokens), i // len(tokens)]
            ours[i, np.flatnonzero(mask) - 1] = row[: mask.sum()]
        assert_recorded("dpo", f"batch0/{name}_token_logps", ours)
        assert_recorded("dpo", f"batch0/{name}_logps", as_recorded(of_response))
    assert_recorded("dpo", "batch0/response_lengths", as_recorded(lengths))
    for scope, name in (("policy", "policy"), ("ref", "ref")):
        with torch.no_grad():
            assert_recorded("dpo", f"batch1/{name}_logps", as_recorded(policy(scope)(*choices_of("batch1", 2)).sum(2)))


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_their_gradients(batch, name):
    _, _, lengths, logps, reference = batch
    logps = logps.clone().requires_grad_()
    losses = losses_of(name, logps - reference, lengths)
    losses.mean().backward()
    assert_recorded("dpo", f"loss/{name}/per_pair", losses)
    assert_recorded("dpo", f"loss/{name}/mean", losses.mean())
    assert_recorded("dpo", f"loss/{name}/grad_logps", as_recorded(logps.grad))
    assert_recorded("dpo", f"loss/{name}/rewards", as_recorded(VARIANTS[name]["beta"] * (logps - reference)))


@pytest.mark.parametrize(
    "name", sorted({key.split("/")[1] for key in recorded("dpo") if key.startswith("grad/") and "/" in key})
)
def test_gradients_of_every_weight(batch, name):
    queries, responses, lengths, _, reference = batch
    model = policy("policy")
    losses_of(name, model(queries, responses).sum(2) - reference, lengths).mean().backward()
    assert_gradients("dpo", f"grad/{name}/", model.transformer)


@pytest.mark.parametrize("name", settings()["dpo"]["train"])
def test_two_steps_of_training(name):
    wanted, model, reference = settings()["dpo"]["train"][name], policy("policy"), policy("ref")
    betas, eps = tuple(wanted["betas"]), wanted["eps"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=wanted["learning_rate"], betas=betas, eps=eps, weight_decay=0.0
    )
    means = []
    for number in range(2):
        queries, responses = choices_of(f"batch{number}", 2)
        with torch.no_grad():
            before = reference(queries, responses).sum(2)
        loss = losses_of(name, model(queries, responses).sum(2) - before, (responses != PAD).sum(2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(float(loss.detach()))
    assert_recorded("dpo", f"train/{name}/losses", np.array(means))
    assert_weights_after("dpo", f"train/{name}/weights_after/", model.transformer)


@pytest.mark.parametrize("kind", ["top1", "ranking", "soft"])
def test_best_of_four(kind):
    """The top choice, a ranking and a distribution over four responses; the same as the reward model's loss."""
    g, beta = recorded("dpo"), settings()["dpo"]["best_of_k"]["beta"]
    queries, responses = choices_of("bestofk", 4)
    model = policy("policy")
    with torch.no_grad():
        reference = policy("ref")(queries, responses).sum(2)
    logps = model(queries, responses).sum(2)
    logps.retain_grad()
    ratios, lengths = logps - reference, (responses != PAD).sum(2)
    if kind == "ranking":
        losses = ranking_losses(beta * ratios, tensor(g["bestofk/order"]))
    else:
        target = tensor(g["bestofk/best"]) if kind == "top1" else tensor(g["bestofk/target"])
        losses = preference_losses("dpo", ratios, lengths, target, beta, 0.0)
    if kind == "top1":
        torch.testing.assert_close(losses, label_losses(label_type("best_of_4"), beta * ratios, target))
    losses.mean().backward()
    assert_recorded("dpo", "bestofk/policy_logps", logps)
    assert_recorded("dpo", "bestofk/ref_logps", reference)
    assert_recorded("dpo", "bestofk/rewards", beta * ratios)
    assert_recorded("dpo", f"bestofk/{kind}/per_query", losses)
    assert_recorded("dpo", f"bestofk/{kind}/mean", losses.mean())
    assert_recorded("dpo", f"bestofk/{kind}/grad_logps", logps.grad)
    if kind != "soft":
        assert_gradients("dpo", f"bestofk/{kind}/grad/", model.transformer)


def test_distributions_in_float64():
    """Cross entropy with ties and one-hot targets, whose least is the target's entropy."""
    g = recorded("labels")
    rewards = tensor(g["soft/rewards"]).requires_grad_()
    losses = preference_losses("dpo", rewards, torch.ones_like(rewards), tensor(g["soft/target"]), 1.0, 0.0)
    losses.mean().backward()
    for name, value in (("loss", losses), ("mean", losses.mean()), ("grad", rewards.grad)):
        assert_recorded("labels", f"soft/{name}", value)
    assert (losses.detach() >= tensor(g["soft/entropy"]) - 1e-9).all()


# --- what is ours: K responses ---


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("K", [2, 4])
def test_formulas_in_float64(loss, K):
    """Each loss and its gradient against the plain formula, by autograd."""
    generator = torch.Generator().manual_seed(K)
    h = torch.randn(6, K, dtype=torch.float64, generator=generator).requires_grad_()
    lengths, best = torch.randint(1, 9, (6, K), generator=generator), torch.randint(0, K, (6,), generator=generator)
    beta, e = 0.3, 0.2
    plain = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        others = [j for j in range(K) if j != best[i]]
        if loss.startswith("ipo"):
            x = h[i] / lengths[i] if loss == "ipo_mean" else h[i]
            plain += sum((x[best[i]] - x[j] - 1 / (2 * beta)) ** 2 for j in others) / (K - 1)
            continue
        chosen = [beta * h[i, j] - torch.logsumexp(beta * h[i], 0) for j in range(K)]
        if K == 2:  # the pairwise form
            margin = beta * (h[i, best[i]] - h[i, others[0]])
            right, wrong = -F.logsigmoid(margin), [-F.logsigmoid(-margin)]
        else:
            right, wrong = -chosen[best[i]], [-chosen[j] for j in others]
        if loss == "cdpo":
            right = (1 - e) * right + e * sum(wrong) / (K - 1)
        elif loss == "robust":
            right = ((K - 1 - e) * right - e * sum(wrong)) / (K - 1 - K * e)
        plain += right
    (expected,) = torch.autograd.grad(plain, h, retain_graph=True)
    losses = preference_losses(loss, h, lengths, best, beta, e)
    torch.testing.assert_close(losses.sum(), plain)
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), h)[0], expected)
    one_hot = preference_losses(loss, h, lengths, F.one_hot(best, K).double(), beta, e)
    torch.testing.assert_close(one_hot, losses, rtol=0, atol=0)


def test_robust_weights_expect_the_loss_of_the_truth():
    """Over labels that are wrong with that probability, whichever the wrong answer."""
    e, K, h = 0.3, 4, torch.tensor([[0.5, -1.0, 2.0, 0.1]], dtype=torch.float64)
    per_label = torch.stack(
        [preference_losses("robust", h, torch.ones(1, K), torch.tensor([b]), 1.0, e)[0] for b in range(K)]
    )
    expected = (1 - e) * per_label[2] + e / (K - 1) * (per_label.sum() - per_label[2])
    torch.testing.assert_close(expected, answer_losses("dpo", h, torch.ones(1, K), 1.0)[0, 2])


# --- known mistakes ---


def test_padding_and_other_responses_have_no_part(batch):
    """A response's log-probability is its own, whatever its padding and whatever stands beside it."""
    queries, responses, *_ = batch
    model = policy("policy")
    with torch.no_grad():
        together = model(queries, responses)
        apart = torch.cat([model(queries, responses[:, [k]]) for k in range(2)], 1)
        wider = model(
            F.pad(queries, (0, 3), value=PAD), F.pad(responses, (0, 4), value=PAD)
        )  # padding between query and response, too
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(wider[..., : together.shape[2]], together, rtol=0, atol=1e-5)
    assert (together[responses == PAD] == 0).all() and (wider[..., together.shape[2] :] == 0).all()


def test_prefix_suffix_and_temperature_are_the_policys(batch):
    """As in `Policy.analyze`, which rollouts and evaluation use."""
    from lm_human_preferences.learning.policy import Policy

    queries, responses, *_ = batch
    whole = torch.where(responses == PAD, 7, responses)  # `analyze` takes unpadded responses
    transformer, formatter = with_weights("weights", "policy"), QueryFormatter([5, 6], [8])
    with torch.no_grad():
        ours = ChoicePolicy(transformer, formatter, 0.6)(queries, whole)
        for k in range(2):
            theirs = Policy(transformer, formatter, 0.6).analyze(queries, whole[:, k]).logprobs
            torch.testing.assert_close(ours[:, k], theirs, rtol=0, atol=1e-5)


def test_length_counts_only_where_the_loss_says_so():
    """IPO's sum ignores lengths, its mean divides by them; an empty response divides by 1."""
    h, best = torch.tensor([[2.0, 6.0]]), torch.tensor([0])
    one, other = torch.tensor([[1, 1]]), torch.tensor([[2, 3]])
    for loss in LOSSES:
        same = [preference_losses(loss, h, lengths, best, 0.5, 0.1) for lengths in (one, other)]
        assert torch.equal(*same) == (loss != "ipo_mean"), loss
    assert float(preference_losses("ipo_mean", h, other, best, 0.5, 0.0)) == pytest.approx((1 - 2 - 1) ** 2)
    assert math.isfinite(preference_losses("ipo_mean", h * 0, one * 0, best, 0.5, 0.0))


def test_statistics_by_hand():
    h, best = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 3.0]]), torch.tensor([0, 2, 1])
    stats = preference_statistics(torch.tensor([1.0, 2.0, 3.0]), h, best, 0.5)
    assert stats["loss"] == 2 and stats["accuracy"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert stats["best_log_ratio"] == pytest.approx(4 / 3) and stats["other_log_ratio"] == pytest.approx(1 / 3)
    assert stats["margin"] == pytest.approx(0.5 * (1.5 + 0 + 1.5) / 3)
    soft = F.one_hot(best, 3).float() * 0.6 + 0.1
    assert preference_statistics(torch.tensor([1.0, 2.0, 3.0]), h, soft, 0.5) == stats


def test_of_equally_probable_best_responses_any_is_right():
    """As in `choice_accuracy`: two people of whom each chose another response are no error of the policy's."""
    h, split = torch.tensor([[0.0, 1.0, -2.0], [1.0, 0.0, -2.0]]), torch.tensor([[0.5, 0.5, 0.0]] * 2)
    stats = preference_statistics(torch.zeros(2), h, split, 1.0)
    assert stats["accuracy"] == choice_accuracy(h, split) == 1
    assert stats["best_log_ratio"] == 0.5 and stats["margin"] == pytest.approx(0.5 - (-1.5 / 2))


def test_context_is_checked():
    with pytest.raises(ValueError, match="context is 64"):
        policy("policy")(torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 2, 30, dtype=torch.int64))
    assert CONFIG.n_ctx == 64
