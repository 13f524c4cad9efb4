"""The scale of rewards: running as trlX's, normalised on the reference's responses, and clipping."""

import json

import numpy as np
import pytest
import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.learning.reward_scale import RewardScale, check_scale


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + (1 + i) * torch.randn(8, generator=generator) for i in range(count)]


def test_the_running_divisor_is_the_deviation_of_all_rewards_so_far():
    """Those of the step included, by n - 1, as in trlX; the mean stays."""
    scale, rows = RewardScale("running"), batches(5)
    for i, rewards in enumerate(rows):
        scale.observe(rewards)
        deviation = np.concatenate(rows[: i + 1]).astype(np.float64).std(ddof=1)
        assert scale.divisor == pytest.approx(deviation, rel=1e-12)
        np.testing.assert_allclose(scale(rewards), rewards / deviation, rtol=1e-6)


def test_a_checkpoint_holds_the_whole_state():
    """Through JSON and back, bit for bit."""
    rows, straight, stopped = batches(6), RewardScale("running"), RewardScale("running")
    for rewards in rows[:3]:
        straight.observe(rewards)
        stopped.observe(rewards)
    resumed = RewardScale("running")
    resumed.resume(json.loads(json.dumps(stopped.state())))
    for rewards in rows[3:]:
        straight.observe(rewards)
        resumed.observe(rewards)
    assert resumed.state() == straight.state() and torch.equal(resumed(rows[0]), straight(rows[0]))


def test_equal_rewards_have_no_deviation_to_divide_by():
    scale = RewardScale("running")
    scale.observe(torch.ones(8))
    assert torch.equal(scale(torch.ones(8)), torch.ones(8))
    with pytest.raises(UserError, match="get the same reward"):
        RewardScale("normalised").normalise(torch.ones(8))


def test_normalised_rewards_have_mean_0_and_deviation_1():
    scale, [rewards] = RewardScale("normalised"), batches(1)
    scale.normalise(rewards)
    assert float(scale(rewards).mean()) == pytest.approx(0, abs=1e-6)
    assert float(scale(rewards).std(correction=0)) == pytest.approx(1, abs=1e-6)
    scale.observe(rewards * 10)  # of a step: changes nothing
    assert float(scale(rewards).std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_clipping_comes_after_the_scale():
    scale = RewardScale("running", clip=0.5)
    rewards = torch.tensor([-10.0, 0.0, 10.0, 0.1])
    scale.observe(rewards)
    expected = (rewards / float(rewards.std())).clamp(-0.5, 0.5)
    torch.testing.assert_close(scale(rewards), expected)
    assert torch.equal(RewardScale("none")(rewards), rewards)


@pytest.mark.parametrize(
    "values, says",
    [
        (("mean", None, 2), "--rewards.scale mean: must be none, running or normalised"),
        (("none", 0.0, 2), "--rewards.clip 0.0: must be positive"),
        (("none", None, 1), "--rewards.scale_samples 1"),
    ],
)
def test_bad_values_are_named(values, says):
    with pytest.raises(UserError, match=says):
        check_scale(*values)
