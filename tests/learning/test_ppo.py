"""PPO's functions against the recorded values. ORIGINAL details 30, 59-64; hazards 14-18."""

import copy

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.language import logprobs
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.support import packed
from lm_human_preferences.language.tensorflow_checkpoints import original_name
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import (
    AdaptiveKLController,
    AdaptiveKLParams,
    FixedKLController,
    PPOParams,
    advantages_and_returns,
    compute_rewards,
    minibatch_stats,
    minibatch_targets,
    ppo_losses,
    whiten,
)

from conftest import TINY_CONFIG, Goldens, tensor
from recorded import make_policy, ppo_trainer

SETTINGS = {
    name: PPOParams(
        **{
            field: settings[field]
            for field in ("whiten_rewards", "gamma", "lam", "vf_coef", "cliprange", "cliprange_value")
        }
    )
    for name, settings in Goldens.json("hparams")["ppo_loss"].items()
}


@pytest.mark.parametrize("name, atol", [("normal", 3e-5), ("tiny", 2e-3), ("const", 3e-5), ("vector", 3e-5)])
def test_whiten(goldens, name, atol):
    g = goldens("units")
    x = tensor(g[f"whiten/{name}/x"])
    np.testing.assert_allclose(whiten(x), g[f"whiten/{name}/shift"], rtol=0, atol=atol)
    np.testing.assert_allclose(whiten(x, shift_mean=False), g[f"whiten/{name}/noshift"], rtol=0, atol=atol)


def test_compute_rewards(goldens):
    g = goldens("ppo")
    rewards, non_score = compute_rewards(
        tensor(g["compute_rewards/scores"]),
        tensor(g["rollouts/logprobs"]),
        tensor(g["compute_rewards/ref_logprobs"]),
        Goldens.json("hparams")["compute_rewards"]["kl_coef"],
    )
    np.testing.assert_allclose(rewards, g["compute_rewards/rewards"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(non_score, g["compute_rewards/non_score_reward"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_targets(goldens, name):
    g, params = goldens("ppo"), SETTINGS[name]
    rewards, values = tensor(g["compute_rewards/rewards"]), tensor(g["rollouts/values"])
    targets = minibatch_targets(rewards, tensor(g["rollouts/logprobs"]), values, params)
    np.testing.assert_allclose(targets.advantages, g[f"{name}/advantages_whitened"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(targets.returns, g[f"{name}/returns"], rtol=0, atol=3e-5)
    whitened = whiten(rewards, shift_mean=False) if params.whiten_rewards else rewards
    if name == "whiten":
        np.testing.assert_allclose(whitened, g["whiten/rewards_whitened"], rtol=0, atol=3e-5)
    advantages, _ = advantages_and_returns(whitened, values, params.gamma, params.lam)
    np.testing.assert_allclose(advantages, g[f"{name}/advantages"], rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_statistics_and_gradients(goldens, name):
    g, params, policy = goldens("ppo"), SETTINGS[name], make_policy(goldens("weights"))
    queries, responses = tensor(g["rollouts/queries"]), tensor(g["rollouts/responses"])
    targets = minibatch_targets(
        tensor(g["compute_rewards/rewards"]), tensor(g["rollouts/logprobs"]), tensor(g["rollouts/values"]), params
    )
    analysis = policy.analyze(queries, responses)
    if name == "whiten":
        np.testing.assert_allclose(analysis.logprobs.detach(), g["whiten/new_logprobs"], rtol=0, atol=5e-5)
        np.testing.assert_allclose(analysis.values.detach(), g["whiten/new_values"], rtol=0, atol=3e-5)
        np.testing.assert_allclose(analysis.entropies, g["whiten/new_entropies"], rtol=0, atol=5e-5)
    losses = ppo_losses(analysis.logprobs, analysis.values, targets, params)
    loss = losses.policy.mean() + params.vf_coef * losses.value.mean()
    np.testing.assert_allclose(loss.item(), g[f"{name}/loss"], rtol=0, atol=5e-5)
    stats = minibatch_stats(losses, analysis.values, analysis.entropies, targets, params)
    recorded = {
        key.removeprefix(f"{name}/stats/"): float(value) for key, value in g.items() if key.startswith(f"{name}/stats/")
    }
    assert stats.keys() == recorded.keys() | {"ratio/std"}  # the last is ours
    for key, value in recorded.items():
        np.testing.assert_allclose(stats[key], value, rtol=0, atol=5e-5, err_msg=key)
    loss.backward()
    checked = 0
    for ours, parameter in policy.transformer.named_parameters():
        recorded_grad = g[f"{name}/grad/policy/{original_name(ours)}"]
        np.testing.assert_allclose(
            parameter.grad.reshape(-1), recorded_grad.reshape(-1), rtol=0, atol=1e-5, err_msg=ours
        )
        checked += 1
    np.testing.assert_allclose(
        policy.value_head.weight.grad, g[f"{name}/grad/policy/model/heads/value/w"], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        policy.value_head.bias.grad, g[f"{name}/grad/policy/model/heads/value/b"], rtol=0, atol=1e-5
    )
    assert checked + 2 == sum(key.startswith(f"{name}/grad/") for key in g)


def test_kl_controllers(goldens):
    g, settings = goldens("ppo"), Goldens.json("hparams")["kl_controller"]
    adaptive = AdaptiveKLController(settings["init"], AdaptiveKLParams(settings["target"], settings["horizon"]))
    fixed = FixedKLController(settings["fixed"])
    seen = [(adaptive.value, fixed.value)]
    for kl in g["kl/series"]:
        adaptive.update(float(kl), settings["n_steps"])
        fixed.update(float(kl), settings["n_steps"])
        seen.append((adaptive.value, fixed.value))
    np.testing.assert_allclose([a for a, _ in seen], g["kl/adaptive_values"], rtol=1e-12)
    np.testing.assert_array_equal([f for _, f in seen], g["kl/fixed_values"])


def test_the_ratio_is_one_before_any_update(goldens):
    g, policy = goldens("ppo"), make_policy(goldens("weights"))
    queries = tensor(g["rollouts/queries"])
    with torch.no_grad():
        drawn = policy.respond(queries, torch.rand(12, 6, generator=torch.Generator().manual_seed(0)))
        ratio = torch.exp(policy.analyze(queries, drawn.tokens).logprobs - drawn.logprobs)
    assert (ratio - 1).abs().max() < 1e-5


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_k": 12}, {"top_p": 0.7}, {"top_k": 40, "top_p": 0.5}])
def test_the_ratio_is_one_whatever_tokens_are_drawn_among(rule, padded):
    """A random model, in float32. What was drawn stays possible after an update, when its own top-k is another."""
    draw = torch.Generator().manual_seed(0)
    policy = Policy(GPT2(TINY_CONFIG).initialise(draw), QueryFormatter([70], [9]), 0.7)
    with torch.no_grad():
        for p in policy.transformer.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.3)
    queries = torch.randint(97, (5, 6), generator=draw)
    if padded:
        queries[0, 2:], queries[3, 4] = 99, 99
    policy.top_k, policy.top_p = rule.get("top_k", 0), rule.get("top_p", 1.0)
    drawn = policy.respond(queries, torch.rand(5, 7, generator=draw))
    analysis = policy.analyze(queries, drawn.tokens, support=drawn.support)
    assert (torch.exp(analysis.logprobs - drawn.logprobs) - 1).abs().max() < 1e-5
    whole = policy.analyze(queries, drawn.tokens)
    assert (whole.logprobs <= analysis.logprobs + 1e-6).all() and (whole.entropies >= analysis.entropies - 1e-5).all()
    if policy.top_k != 1:
        assert (whole.logprobs < analysis.logprobs - 1e-3).any()
    with torch.no_grad():
        for p in policy.transformer.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.3)
    assert (policy.analyze(queries, drawn.tokens, support=drawn.support).logprobs > -100).all()


@pytest.mark.parametrize("kept_bytes", [0, 97 * 4 * 3, 2**29])
def test_gradients_of_truncated_distributions(kept_bytes, monkeypatch):
    """Equal to autograd's through a masked log-softmax, whether exponentials are kept or logits made again."""
    monkeypatch.setitem(logprobs.KEPT_BYTES, "cpu", kept_bytes)
    monkeypatch.setitem(logprobs.CHUNK_ROWS, "cpu", 4)
    draw = torch.Generator().manual_seed(0)
    model, hidden = GPT2(TINY_CONFIG).initialise(draw), torch.randn(9, TINY_CONFIG.n_embd, generator=draw)
    hidden.requires_grad_()
    left = torch.rand(9, 97, generator=draw) < 0.2
    labels = torch.multinomial(left.float() + 1e-9, 1, generator=draw)[:, 0]
    weights = torch.randn(9, generator=draw)

    def gradients(of) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.autograd.grad((of * weights).sum(), (hidden, model.wte.weight))

    ours, entropies = logprobs.token_logprobs(model, hidden, labels, 0.7, support=packed(left))
    reference = (hidden @ model.wte.weight.T / 0.7).masked_fill(~left, -1e10).log_softmax(1)
    theirs = reference.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(entropies, -(reference.exp() * reference).sum(1).detach())
    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, -110.0])
@pytest.mark.parametrize("old_logprobs", ["sampling", "recomputed"])
def test_bfloat16_keeps_the_first_ratio_and_the_logprobs(goldens, old_logprobs, offset):
    """Where logits lie near -110 too, as GPT-2's do: bfloat16 numbers are 0.5 apart there.

    The ratio alone would not show a bfloat16 vocabulary projection, since both passes round alike; the distance from
    float32 does.
    """
    trainer = ppo_trainer(goldens, Goldens.json("hparams")["ppo_cycle"], micro_batch=5)
    trainer.precision, trainer.recompute = Precision(torch.device("cpu"), bfloat16=True), old_logprobs == "recomputed"
    transformer, queries = trainer.policy.transformer, tensor(goldens("ppo_cycle")["step0/queries"])
    trainer.queries.batch = lambda size: queries
    with torch.no_grad():  # a channel that adds the same number to every logit
        transformer.wte.weight[:, 0], transformer.ln_f.weight[0], transformer.ln_f.bias[0] = 1.0, 0.0, offset
        assert abs(transformer.logits(transformer(queries)).mean() - offset) < 5
    before = copy.deepcopy(trainer.policy)
    metrics, rollout = trainer.step(0)
    assert metrics["ppo/ratio/std_before"] < 0.01
    assert (rollout.logprobs - before.analyze(queries, rollout.responses).logprobs).abs().max() < 0.1
