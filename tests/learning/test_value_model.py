"""A value function of its own, against TRL's PPO (a whole update with a separate value model) and trlX's losses; and
against the recorded cycles of the original, whose policy part must not change.

TRL masks what follows a response's end and puts the score behind it; here all places count, as in the original. The
tests apply its masks to our functions.
"""

import pytest
import torch

from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.learning.direct_preference import ChoicePolicy
from lm_human_preferences.learning.ppo import (
    PPOParams,
    Targets,
    advantages_and_returns,
    both_losses,
    policy_losses,
    ppo_losses,
    value_losses,
)
from lm_human_preferences.learning.value_model import ValueModel
from lm_human_preferences.train_policy import PPOTrainer

from conftest import Goldens, tensor
from methods import (
    PAD,
    SMALLER,
    assert_gradients,
    assert_recorded,
    assert_weights_after,
    recorded,
    settings,
    with_weights,
)
from recorded import CPU, make_policy, ppo_trainer, uniforms_for

TRL = settings()["ppo_trl"]
NOTHING = QueryFormatter([], [])


# --- trlX: advantages and losses with a mask ---


@pytest.mark.parametrize("name", settings()["ppo_trlx"]["variants"])
def test_trlx_losses(name):
    g, s = recorded("ppo_trlx"), settings()["ppo_trlx"]["variants"][name]
    params = PPOParams(cliprange=s["cliprange"], cliprange_value=s["cliprange_value"], vf_coef=s["vf_coef"])
    mask, old_values = tensor(g["mask"]) == 1, tensor(g["old_values"])
    advantages, returns = advantages_and_returns(tensor(g["rewards"]), old_values, s["gamma"], s["lam"])
    whitened = (advantages - advantages.mean()) * torch.rsqrt(advantages.var() + 1e-8)  # with n - 1, as trlX
    for key, value in (("advantages", advantages), ("returns", returns), ("advantages_whitened", whitened)):
        assert_recorded("ppo_trlx", f"{name}/{key}", value)
    logprobs, values = (tensor(g[key]).requires_grad_() for key in ("logprobs", "values"))
    targets = Targets(*(part[mask] for part in (whitened, returns, tensor(g["old_logprobs"]), old_values)))
    losses = ppo_losses(logprobs[mask], values[mask], targets, params)
    policy, value = losses.policy.mean(), losses.value.mean()
    (policy + params.vf_coef * value).backward()
    log_ratio = (logprobs - tensor(g["old_logprobs"])) * mask
    found = {
        "policy_loss": policy,
        "value_loss": value,
        "loss": policy + params.vf_coef * value,
        "grad_logprobs": logprobs.grad,
        "grad_values": values.grad,
        "stats/policy/clipfrac": losses.policy_clipped.mean(),
        "stats/values/clipfrac": losses.value_clipped.mean(),
        "stats/ratio": losses.ratio.mean(),
        "stats/policy/approx_kl": (log_ratio.exp() - 1 - log_ratio).mean(),
    }
    for key, number in found.items():
        assert_recorded("ppo_trlx", f"{name}/{key}", number)


# --- TRL: one whole update ---


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries with padding behind them instead of before, responses [B, R], and the number of real response tokens."""
    g = recorded("ppo_trl")
    queries, responses = tensor(g["queries"]), tensor(g["postprocessed_responses"])
    moved = torch.full_like(queries, PAD)
    for row, query in zip(moved, queries, strict=True):
        real = query[query != TRL["pad_token"]]
        row[: len(real)] = real
    return moved, responses, tensor(g["sequence_lengths"]) + 1


def model_with_head(scope: str) -> ValueModel:
    model = ValueModel(with_weights("ppo_weights", scope, SMALLER), NOTHING)
    with torch.no_grad():
        model.head.weight.copy_(tensor(recorded("ppo_weights")[f"{scope}/score.weight"])[0])
    return model


def test_a_whole_update_of_trl():
    g, params = recorded("ppo_trl"), PPOParams(cliprange=0.2, cliprange_value=0.2, vf_coef=TRL["vf_coef"])
    queries, responses, lengths = rows()
    R = responses.shape[1]
    places = torch.arange(R)
    is_token, has_value = places < lengths[:, None], places <= lengths[:, None]  # TRL values one place more
    policy, reference = (
        ChoicePolicy(with_weights("ppo_weights", scope, SMALLER), NOTHING, TRL["temperature"])
        for scope in ("policy", "ref")
    )
    value, rewards = model_with_head("value"), model_with_head("reward")

    def logprobs_of(model, index=slice(None)):
        """1 at padding, as TRL has it."""
        return torch.where(is_token[index], model(queries[index], responses[index][:, None])[:, 0], 1.0)

    def values_of(index=slice(None)):
        return torch.where(has_value[index], value(queries[index], responses[index]), 0.0)

    with torch.no_grad():
        old, ref, old_values = logprobs_of(policy), logprobs_of(reference), values_of()
        whole = torch.cat([queries, torch.where(is_token, responses, PAD)], 1)
        scores = rewards.head(rewards.transformer.last_states(whole))
    ended = (responses == TRL["eos_token"]).any(1)
    scores = scores - torch.where(ended, 0.0, TRL["missing_eos_penalty"])
    kl = old - ref
    token_rewards = -TRL["kl_coef"] * kl
    token_rewards[torch.arange(len(scores)), lengths.clamp(max=R - 1)] += scores
    advantages, returns = advantages_and_returns(token_rewards, old_values, TRL["gamma"], TRL["lam"])
    mean, variance = advantages[is_token].mean(), advantages[is_token].var()  # with n - 1
    whitened = torch.where(is_token, (advantages - mean) * torch.rsqrt(variance + 1e-8), 0.0)
    found = {
        "logprobs": old,
        "ref_logprobs": ref,
        "values": old_values,
        "scores": scores,
        "kl": kl,
        "rewards": token_rewards,
        "returns": returns,
        "advantages": whitened,
    }
    for key, number in found.items():
        assert_recorded("ppo_trl", key, number)

    modules = torch.nn.ModuleList([policy, value])
    value.head.bias.requires_grad_(False)  # TRL's has none
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=TRL["learning_rate"], betas=(0.9, 0.999), eps=TRL["adam_eps"], weight_decay=0.0
    )
    for update, index in enumerate(tensor(g["minibatch_inds"])):
        targets = Targets(whitened, returns, old, old_values).rows(index)
        new, values = logprobs_of(policy, index), values_of(index)

        def where(mask, targets=targets):
            return Targets(*(part[mask] for part in targets[:4]))

        of_policy = policy_losses(new[is_token[index]], where(is_token[index]), params)
        of_value = value_losses(values[has_value[index]], where(has_value[index]), params)
        loss = of_policy.loss.mean() + TRL["vf_coef"] * of_value.loss.mean()
        optimizer.zero_grad()
        loss.backward()
        numbers = {
            "new_logprobs": new,
            "vpred": values,
            "policy_loss": of_policy.loss.mean(),
            "value_loss": of_value.loss.mean(),
            "loss": loss,
            "clipfrac": of_policy.clipped.mean(),
            "value_clipfrac": of_value.clipped.mean(),
        }
        for key, number in numbers.items():
            assert_recorded("ppo_trl", f"update{update}/{key}", number)
        if update == 0:
            assert_gradients("ppo_trl", "update0/grad/policy/", policy.transformer)
            assert_gradients("ppo_trl", "update0/grad/value/", value.transformer)
            assert_recorded("ppo_trl", "update0/grad/value/score.weight", value.head.weight.grad[None])
        optimizer.step()
    assert_weights_after("ppo_trl", "weights_after/policy/", policy.transformer)
    assert_weights_after("ppo_trl", "weights_after/value/", value.transformer)
    assert_recorded("ppo_trl", "weights_after/value/score.weight", value.head.weight[None])


# --- the original's cycle, with the shared weights copied ---


def test_the_policys_part_of_the_recorded_cycle(goldens):
    """Before any update a value model with the policy's weights has its values, so that the first minibatch has the
    recorded losses of policy and values; then each trunk learns its own part alone.
    """
    c, settings_of = goldens("ppo_cycle"), Goldens.json("hparams")["ppo_cycle"]
    shared, apart = ppo_trainer(goldens, settings_of), ppo_trainer(goldens, settings_of)
    twin = make_policy(goldens("weights"))
    values = ValueModel(twin.transformer, twin.formatter)
    values.head.load_state_dict(twin.value_head.state_dict())
    params = apart.params
    params.value.model = "separate"
    apart = PPOTrainer(apart.policy, apart.reference, apart.scorer.rewards, apart.queries, params, CPU, values=values)
    found = {}
    for name, trainer in (("shared", shared), ("apart", apart)):
        queries, responses = tensor(c["step0/queries"]), tensor(c["step0/responses"])
        trainer.queries.batch = lambda size, queries=queries: queries
        uniforms = uniforms_for(trainer.policy, queries, responses)
        trainer.uniforms = lambda _, uniforms=uniforms: uniforms
        trainer.order = lambda _, epoch: tensor(c["step0/permutations"])[epoch]
        minibatches = []
        train = trainer.train_minibatch
        trainer.train_minibatch = lambda *args, train=train, kept=minibatches: kept.append(train(*args)) or kept[-1]
        trainer.step(0)
        found[name] = [{key: float(value) for key, value in row.items()} for row in minibatches]
    assert found["apart"][0] == pytest.approx(found["shared"][0], rel=1e-5, abs=1e-6)
    assert len(found["apart"]) == len(found["shared"]) > 1
    assert found["apart"][-1]["loss/policy"] != found["shared"][-1]["loss/policy"]  # no value loss in its trunk
    moved = [not torch.equal(p, q) for p, q in zip(apart.policy.parameters(), values.parameters(), strict=True)]
    assert all(moved)
    weight, bias = apart.policy.value_head.weight, apart.policy.value_head.bias
    before = make_policy(goldens("weights")).value_head
    assert torch.equal(weight, before.weight) and torch.equal(bias, before.bias)  # nothing trains it


def test_losses_of_both_are_the_losses():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 4, generator=generator) for _ in range(6)]
    targets, params = Targets(*parts[:4]), PPOParams()
    both = both_losses(policy_losses(parts[4], targets, params), value_losses(parts[5], targets, params))
    whole = ppo_losses(*parts[4:], targets, params)
    assert all(torch.equal(one, other) for one, other in zip(both, whole, strict=True))
