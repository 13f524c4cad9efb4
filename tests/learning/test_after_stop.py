"""Responses that end at different places: scores, KL, rewards and losses of a batch made by hand, with both settings
of task.after_stop.

What is expected is computed here row by row, on lists of each row's own tokens, without masks.
"""

import math

import numpy as np
import pytest
import torch

from lm_human_preferences.data.tasks import TaskParams, response_ends, responses_are_valid, truncate_responses
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.learning.group_advantages import GroupTargets, group_stats, grpo_losses, rloo_losses
from lm_human_preferences.learning.ppo import (
    PPOParams,
    Rollout,
    compute_rewards,
    minibatch_stats,
    minibatch_targets,
    ppo_losses,
    rollout_stats,
    without_what_follows,
)
from lm_human_preferences.learning.reward_scale import RewardScale
from lm_human_preferences.learning.scoring import Scorer

PAD, DOT, BANG = 99, 13, 7
ENDS = Ends((DOT, BANG), after=1)
RESPONSES = torch.tensor(
    [
        [1, 2, DOT, 4, 5],  # ends at place 2
        [DOT, BANG, 3, DOT, 5],  # the first end stands before place 1: it ends at place 1
        [1, 2, 3, 4, BANG],  # at the last place
        [1, 2, 3, 4, 5],  # nowhere
        [BANG, 2, 3, DOT, DOT],  # at place 3
        [1, DOT, 1, DOT, 1],  # at place 1
    ]
)
LENGTHS = [3, 2, 5, 5, 4, 2]  # tokens up to the end, it included
B, R = RESPONSES.shape
KL_COEF, PARAMS = 0.3, PPOParams(batch_size=B, gamma=0.9, lam=0.8, vf_coef=0.5, whiten_rewards=True)


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(B, R, generator=torch.Generator().manual_seed(seed))


def made_rollout() -> Rollout:
    scorer = Scorer(
        lambda queries, responses: (responses != PAD).sum(1).float(),
        TaskParams(truncate_token=DOT, stop_tokens=str(BANG), truncate_after=1, penalty_reward_value=-2.0),
        PAD,
    )
    queries, logprobs = torch.ones(B, 3, dtype=torch.int64), numbers(0) - 3
    scores, valid, truncated = scorer(queries, RESPONSES)
    return Rollout(
        queries, RESPONSES, logprobs, numbers(1), logprobs, numbers(2) - 3, scores, valid, truncated, queries != PAD
    )


def test_a_response_ends_at_the_first_of_several_tokens():
    """The score is that of the response up to there; one that ends nowhere gets the penalty, or its own score."""
    rollout = made_rollout()
    assert (rollout.truncated != PAD).sum(1).tolist() == LENGTHS
    assert rollout.valid.tolist() == [True, True, True, False, True, True]
    assert rollout.scores.tolist() == [3, 2, 5, -2, 4, 2]
    task = TaskParams(truncate_token=DOT, stop_tokens=str(BANG), truncate_after=1, penalty_reward_value=None)
    unpenalised = Scorer(lambda queries, responses: (responses != PAD).sum(1).float(), task, PAD)
    assert unpenalised(rollout.queries, RESPONSES)[0].tolist() == LENGTHS
    one, both = TaskParams(truncate_token=DOT), TaskParams(stop_tokens=f"{DOT}")
    assert response_ends(one) == response_ends(both) == Ends((DOT,), 0)  # one mechanism
    assert torch.equal(truncate_responses(RESPONSES, Ends(), PAD), RESPONSES)
    assert responses_are_valid(RESPONSES, Ends()).all()


def expected_of(ragged: bool) -> dict[str, np.ndarray | float]:
    """KL, rewards, advantages and losses, row by row over each row's own tokens, or over all R where not `ragged`."""
    lengths, rollout = (LENGTHS if ragged else [R] * B), made_rollout()
    old, ref, values = (x.double().numpy() for x in (rollout.logprobs, rollout.ref_logprobs, rollout.values))
    rewards = []
    for i, n in enumerate(lengths):
        row = [-KL_COEF * (old[i, t] - ref[i, t]) for t in range(n)]
        row[-1] += float(rollout.scores[i])
        rewards.append(row)
    flat = np.concatenate(rewards)
    scale = 1 / math.sqrt(flat.var() + 1e-8)
    whitened = [[(r - flat.mean()) * scale + flat.mean() for r in row] for row in rewards]
    advantages = []
    for i, row in enumerate(whitened):
        found, running = [], 0.0
        for t in reversed(range(len(row))):
            after = values[i, t + 1] if t + 1 < len(row) else 0.0
            running = row[t] + PARAMS.gamma * after - values[i, t] + PARAMS.gamma * PARAMS.lam * running
            found.insert(0, running)
        advantages.append(found)
    returns = [a + values[i, t] for i, row in enumerate(advantages) for t, a in enumerate(row)]
    flat_a = np.concatenate(advantages)
    white = (flat_a - flat_a.mean()) / math.sqrt(flat_a.var() + 1e-8)
    new = np.concatenate([numbers(3).double().numpy()[i, :n] - 3 for i, n in enumerate(lengths)])
    new_values = np.concatenate([numbers(4).double().numpy()[i, :n] for i, n in enumerate(lengths)])
    before = np.concatenate([old[i, :n] for i, n in enumerate(lengths)])
    before_values = np.concatenate([values[i, :n] for i, n in enumerate(lengths)])
    ratio = np.exp(new - before)
    policy = np.maximum(-white * ratio, -white * ratio.clip(1 - PARAMS.cliprange, 1 + PARAMS.cliprange))
    clipped = before_values + (new_values - before_values).clip(-PARAMS.cliprange_value, PARAMS.cliprange_value)
    value = 0.5 * np.maximum((new_values - returns) ** 2, (clipped - returns) ** 2)
    return {
        "rewards": flat,
        "kl": float(np.mean([(old[i, :n] - ref[i, :n]).sum() for i, n in enumerate(lengths)])),
        "entropy": float(np.mean([-old[i, :n].sum() for i, n in enumerate(lengths)])),
        "advantages": white,
        "loss/policy": policy.mean(),
        "loss/value": value.mean(),
        "returns/var": np.var(returns),
        "val/vpred": new_values.mean(),
        "policy/approxkl": (0.5 * (new - before) ** 2).mean(),
        "ratio/std": ratio.std(),
    }


@pytest.mark.parametrize("after_stop", ["penalise", "ignore"])
def test_kl_rewards_and_losses_of_rows_that_end_at_different_places(after_stop):
    ignored, rollout = after_stop == "ignore", made_rollout()
    if ignored:
        rollout = without_what_follows(rollout, ENDS)
        assert rollout.counted.sum(1).tolist() == LENGTHS
    counted = rollout.counted
    expected, mask = expected_of(ignored), torch.ones(B, R, dtype=torch.bool) if counted is None else counted
    rewards, non_score = compute_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, KL_COEF, counted)
    np.testing.assert_allclose(rewards[mask], expected["rewards"], atol=1e-5)
    stats = rollout_stats(rollout, non_score, KL_COEF)
    assert stats["objective/kl"] == pytest.approx(expected["kl"], abs=1e-5)
    assert stats["objective/entropy"] == pytest.approx(expected["entropy"], abs=1e-5)
    assert stats["objective/score_total"] == pytest.approx(
        float(rollout.scores.mean()) - KL_COEF * expected["kl"], abs=1e-5
    )
    targets = minibatch_targets(rewards, rollout.logprobs, rollout.values, PARAMS, counted)
    np.testing.assert_allclose(targets.advantages[mask], expected["advantages"], atol=1e-5)
    new, values = ((torch.where(mask, x, 0.0)).requires_grad_() for x in (numbers(3) - 3, numbers(4)))
    losses = ppo_losses(new, values, targets, PARAMS)
    loss = (losses.policy.sum() + PARAMS.vf_coef * losses.value.sum()) / targets.n_counted
    assert float(loss.detach()) == pytest.approx(
        expected["loss/policy"] + PARAMS.vf_coef * expected["loss/value"], abs=1e-5
    )
    found = minibatch_stats(losses, values, numbers(5), targets, PARAMS)
    for name in ("loss/policy", "loss/value", "returns/var", "val/vpred", "policy/approxkl", "ratio/std"):
        assert float(found[name]) == pytest.approx(expected[name], abs=2e-5), name
    loss.backward()
    assert ignored == bool((new.grad[~mask] == 0).all() and (~mask).any())


def test_the_two_settings_differ_and_all_rows_of_full_length_are_the_same():
    """What follows does count as in the original; where nothing follows the settings are one."""
    assert abs(expected_of(True)["kl"] - expected_of(False)["kl"]) > 0.1
    rollout = without_what_follows(made_rollout(), Ends((1000,)))
    rewards, _ = compute_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, KL_COEF, rollout.counted)
    original, _ = compute_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, KL_COEF)
    assert rollout.counted.all() and torch.equal(rewards, original)
    one, other = (
        minibatch_targets(rewards, rollout.logprobs, rollout.values, PARAMS, counted)
        for counted in (rollout.counted, None)
    )
    for a, b in zip(one[:4], other[:4], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_losses_without_values_over_the_tokens_that_count():
    """RLOO's ratio is of the response up to its end; GRPO's mean over its own tokens, KL in the loss included."""
    rollout = without_what_follows(made_rollout(), ENDS)
    advantages, new = torch.tensor([1.0, -0.5, 0.3, -2.0, 0.7, 1.1]), torch.where(rollout.counted, numbers(3) - 3, 0.0)
    targets = GroupTargets(advantages, rollout.logprobs, rollout.ref_logprobs, rollout.counted)
    rloo = rloo_losses(new, targets, PARAMS, targets.counted)
    grpo = grpo_losses(new, targets, PARAMS, 0.1, targets.counted)
    for i, n in enumerate(LENGTHS):
        old, ref, now = (x[i, :n].double() for x in (rollout.logprobs, rollout.ref_logprobs, new))
        a, ratio = float(advantages[i]), float((now - old).sum().exp())
        assert float(rloo.total[i]) == pytest.approx(max(-a * ratio, -a * min(max(ratio, 0.8), 1.2)), rel=1e-5)
        each = (now - old).exp()
        k3 = (ref - now).exp() - 1 - (ref - now)
        loss = torch.maximum(-a * each, -a * each.clamp(0.8, 1.2)) + 0.1 * k3
        assert float(grpo.total[i]) == pytest.approx(float(loss.mean()), rel=1e-5)
    entropies = torch.where(rollout.counted, numbers(5), 0.0)
    stats = group_stats(grpo, entropies, targets.counted)
    assert float(stats["policy/entropy"]) == pytest.approx(float(numbers(5)[rollout.counted].mean()), abs=1e-6)


def test_a_clipped_score_is_still_penalised():
    """The penalty is on the scale of the scores: it is neither scaled nor cut."""
    task = TaskParams(truncate_token=DOT, penalty_reward_value=-2.0)
    scale = RewardScale("none", clip=1.5)
    scorer = Scorer(lambda queries, responses: torch.tensor([5.0, -5.0, 1.0]), task, PAD, scale=scale)
    assert scorer(torch.ones(3, 1), torch.tensor([[DOT], [DOT], [1]]))[0].tolist() == [1.5, -1.5, -2.0]
