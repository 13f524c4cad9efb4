"""Ensembles of reward models: the formulas of Coste et al., and an ensemble in the place of a reward model."""

import torch

from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.learning.reward_ensemble import RewardEnsemble, combine, reward_models
from lm_human_preferences.learning.scoring import Scorer

from conftest import tensor
from methods import assert_recorded, recorded
from recorded import make_reward_model


def test_the_recorded_formulas():
    g = recorded("formulas")
    scores = tensor(g["ensemble/scores"])
    for how in ("mean", "min"):
        assert_recorded("formulas", f"ensemble/{how}", combine(scores, how, 0.5))
    assert_recorded("formulas", "ensemble/variance", scores.var(0, correction=0))
    lambdas = g["ensemble/lambdas"].tolist()
    assert_recorded("formulas", "ensemble/uwo", torch.stack([combine(scores, "uwo", price) for price in lambdas]))
    unbiased = torch.stack([scores.mean(0) - price * scores.var(0) for price in lambdas])  # their PPO code's
    assert_recorded("formulas", "ensemble/uwo_unbiased", unbiased)
    assert torch.equal(combine(scores, "uwo", 0.0), combine(scores, "mean", 0.0))


def test_an_ensemble_is_a_reward_model(goldens):
    """`mean` of one member is the member bit for bit; of several, with the penalty and the deviation of the members."""
    g, weights = goldens("reward"), goldens("weights")
    queries, responses = tensor(g["queries"]), tensor(g["responses"])
    member, other = make_reward_model(weights), make_reward_model(weights)
    with torch.no_grad():
        other.bias += 1
        other.gain *= 1.5
        alone = member(queries, responses)
        one = RewardEnsemble([member], "mean", 0.5)
        assert torch.equal(one(queries, responses), alone)
        two = RewardEnsemble([member, other], "uwo", 2.0)
        scores = torch.stack([alone, other(queries, responses)])
        torch.testing.assert_close(two(queries, responses), scores.mean(0) - 2 * scores.var(0, correction=0))
        task = TaskParams(truncate_token=int(responses[0, 0]), truncate_after=0, penalty_reward_value=-7.0)
        scorer = Scorer(two, task, 99)
        rewards, valid, truncated, disagreement = scorer.measure(queries, responses)
        penalised = scorer.scores(rewards, valid)
        assert (penalised[~valid] == -7).all() and bool(valid[0]) and not bool(valid.all())
        torch.testing.assert_close(
            disagreement, torch.stack([member(queries, truncated), other(queries, truncated)]).std(0, correction=0)
        )
        single = Scorer(member, task, 99).measure(queries, responses)
        assert (single.disagreement == 0).all() and len(Scorer(member, task, 99)(queries, responses)) == 3
    assert reward_models(two) == [member, other] and reward_models(member) == [member]
    assert reward_models(lambda queries, responses: alone) == []
