"""RLOO and GRPO against TRL, and by hand; mistakes that implementations of them are known to make."""

import math

import pytest
import torch

from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.learning.direct_preference import ChoicePolicy
from lm_human_preferences.learning.group_advantages import (
    GroupTargets,
    advantage_stats,
    group_relative,
    grpo_losses,
    k3,
    leave_one_out,
    rloo_losses,
)
from lm_human_preferences.learning.ppo import PPOParams

from conftest import tensor
from methods import PAD, assert_gradients, assert_recorded, padded, recorded, settings, with_weights

GROUPS = {"k2": 2, "k4": 4}
TOKENS = {"grpo": "response", "bnpo": "all", "dapo": "all", "dr_grpo": "constant"}
VARIANTS = settings()["policy_gradient"]["grpo"]["variants"]
LONGEST = settings()["policy_gradient"]["grpo"]["max_completion_length"]
PPO = PPOParams(cliprange=0.2)


def of(file: str, group: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, Q], responses [B, R] with our padding, and the mask of their tokens."""
    g = recorded(file)
    mask = tensor(g[f"{group}/completion_mask"])
    responses = padded(g[f"{group}/completion_ids"], g[f"{group}/completion_mask"])
    return tensor(g[f"{group}/prompt_ids"]), responses, mask == 1


def logprobs_of(scope: str, file: str, group: str) -> torch.Tensor:
    """Of the response tokens [B, R], 0 at padding."""
    queries, responses, _ = of(file, group)
    model = ChoicePolicy(with_weights("weights", scope), QueryFormatter([], []), 1.0)
    return model(queries, responses[:, None])[:, 0]


# --- advantages ---


@pytest.mark.parametrize("group", GROUPS)
def test_rloo_advantages(group):
    g, k = recorded("rloo"), GROUPS[group]
    with torch.no_grad():
        old, reference = logprobs_of("policy", "rloo", group), logprobs_of("ref", "rloo", group)
    kl = (old - reference).sum(1)
    assert_recorded("rloo", f"{group}/old_token_logps", old)
    assert_recorded("rloo", f"{group}/ref_token_logps", reference)
    assert_recorded("rloo", f"{group}/old_logps", old.sum(1))
    assert_recorded("rloo", f"{group}/kl", kl)
    names = {key.split("/")[1] for key in g if key.startswith(f"{group}/beta")}
    assert len(names) == 5
    for name in names:
        rewards = tensor(g[f"{group}/rewards"])
        if "_clip" in name:
            rewards = rewards.clamp(-1, 1)
        penalised = rewards - float(name.removeprefix("beta").partition("_")[0]) * kl
        advantages = leave_one_out(penalised, k, "batch" if name.endswith("_norm") else "none")
        assert_recorded("rloo", f"{group}/{name}/penalised_rewards", penalised)
        assert_recorded("rloo", f"{group}/{name}/advantages", advantages)
    rewards = tensor(g[f"{group}/rewards"])
    plain = leave_one_out(rewards - 0.05 * kl, k)
    older = (plain - plain.mean()) / (plain.std() + 1e-8)  # an earlier TRL's, which adds less to the deviation
    assert_recorded("rloo", f"{group}/trl021_norm_adv/advantages", older)
    scores = ((rewards - rewards.mean()) / (rewards.std() + 1e-8)).clamp(-1.2, 1.2)
    assert_recorded("rloo", f"{group}/trl021_norm_reward/advantages", leave_one_out(scores - 0.05 * kl, k))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_grpo_advantages(group, scale):
    g = recorded("grpo")
    advantages = group_relative(tensor(g[f"{group}/rewards"]), GROUPS[group], scale)
    assert_recorded("grpo", f"{group}/advantages/{scale}", advantages)
    with torch.no_grad():
        assert_recorded("grpo", f"{group}/ref_token_logps", logprobs_of("ref", "grpo", group))


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 3.0, 8.0, 5.0, 5.0, 5.0])
    assert leave_one_out(rewards, 3).tolist() == [1 - 5.5, 3 - 4.5, 8 - 2.0, 0, 0, 0]
    assert group_relative(rewards, 3, "none").tolist() == [-3, -1, 4, 0, 0, 0]
    deviation = math.sqrt((9 + 1 + 16) / 2)
    scaled = group_relative(rewards, 3)
    assert scaled[:3].tolist() == pytest.approx([x / (deviation + 1e-4) for x in (-3, -1, 4)])
    assert scaled[3:].tolist() == [0, 0, 0]  # not 0 / 0
    one, other = leave_one_out(torch.tensor([2.5, -1.0]), 2).tolist()
    assert one == -other == 3.5
    assert advantage_stats(rewards, rewards, 3)["objective/equal_groups"] == 0.5


# --- losses ---


@pytest.mark.parametrize("group", GROUPS)
def test_rloo_losses(group):
    g, (_, _, mask) = recorded("rloo"), of("rloo", group)
    new = tensor(g[f"{group}/loss/new_token_logps"]).requires_grad_()
    old, advantages = tensor(g[f"{group}/old_token_logps"]), tensor(g[f"{group}/beta0.05/advantages"])
    losses = rloo_losses(new, GroupTargets(advantages, old, old), PPO, mask)
    losses.total.mean().backward()
    assert_recorded("rloo", f"{group}/loss/per_sequence", losses.total)
    assert_recorded("rloo", f"{group}/loss/mean", losses.total.mean())
    assert_recorded("rloo", f"{group}/loss/ratio", losses.ratio.log().sum(1).exp())
    assert_recorded("rloo", f"{group}/loss/grad_new_token_logps", new.grad)
    share = settings()["policy_gradient"]["rloo"]["share of clipped responses"][group]
    assert float(losses.clipped[:, 0].mean()) == share


def grpo_targets(name: str, new: torch.Tensor) -> GroupTargets:
    g = recorded("grpo")
    old = new.detach() if name.endswith("_onpolicy") else tensor(g["loss/old_token_logps"])
    return GroupTargets(tensor(g["loss/advantages"]), old, tensor(g["k4/ref_token_logps"]))


@pytest.mark.parametrize("name", VARIANTS)
def test_grpo_losses(name):
    g, (_, _, mask), beta = recorded("grpo"), of("grpo", "k4"), VARIANTS[name]["beta"]
    params = PPOParams(cliprange=0.2, unbiased_kl=VARIANTS[name]["use_bias_correction_kl"])
    new = tensor(g["loss/new_token_logps"]).requires_grad_()
    targets, tokens = grpo_targets(name, new), TOKENS[VARIANTS[name]["loss_type"]]
    losses = grpo_losses(new, targets, params, beta, mask, tokens=tokens, longest=LONGEST)
    losses.total.mean().backward()
    assert_recorded("grpo", f"loss/{name}/mean", losses.total.mean())
    assert_recorded("grpo", f"loss/{name}/grad_new_token_logps", new.grad)
    each = torch.eye(new.shape[1], dtype=torch.bool)  # the loss of one token at a time
    per_token = torch.stack(
        [grpo_losses(new, targets, params, beta, mask & place, tokens="constant", longest=1).total for place in each], 1
    )
    assert_recorded("grpo", f"loss/{name}/per_token", per_token)
    assert_recorded("grpo", "loss/kl_k3", torch.where(mask, k3(new, targets.ref_logprobs), 0.0))
    if not name.endswith("_onpolicy"):
        assert_recorded("grpo", "loss/ratio", torch.where(mask, losses.ratio, 0.0))
        assert float(losses.clipped.sum() / mask.sum()) == pytest.approx(
            settings()["policy_gradient"]["grpo"]["share of clipped tokens"]
        )


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_gradients_of_every_weight(method):
    g, (queries, responses, mask) = recorded(method), of(method, "k4")
    model = ChoicePolicy(with_weights("weights", "policy"), QueryFormatter([], []), 1.0)
    new = model(queries, responses[:, None])[:, 0]
    if method == "rloo":
        old = torch.zeros_like(new)  # the recorded sums as the first token's
        old[:, 0] = tensor(g["model/old_logps"])
        targets = GroupTargets(tensor(g["k4/beta0.05/advantages"]), old, old)
        losses = rloo_losses(new, targets, PPO, mask)
    else:
        old, reference = tensor(g["model/old_token_logps"]), tensor(g["k4/ref_token_logps"])
        losses = grpo_losses(new, GroupTargets(tensor(g["loss/advantages"]), old, reference), PPO, 0.04, mask)
    losses.total.mean().backward()
    assert_recorded(method, "model/loss", losses.total.mean())
    assert_gradients(method, "model/grad/", model.transformer)


def test_finite_differences():
    generator = torch.Generator().manual_seed(0)
    new, old, reference = (torch.randn(6, 4, dtype=torch.float64, generator=generator) * 0.1 - 1 for _ in range(3))
    targets = GroupTargets(torch.randn(6, dtype=torch.float64, generator=generator), old, reference)
    functions = (
        lambda x: rloo_losses(x, targets, PPO).total.mean(),
        lambda x: grpo_losses(x, targets, PPO, 0.3).total.mean(),
    )
    for function in functions:
        assert torch.autograd.gradcheck(function, new.clone().requires_grad_(), eps=1e-6, atol=1e-6)


def test_without_a_mask_all_tokens_count_alike():
    """The three ways to add up tokens are one where all responses have R of them."""
    generator = torch.Generator().manual_seed(1)
    new, old, reference = (torch.randn(6, 4, generator=generator) * 0.1 for _ in range(3))
    targets = GroupTargets(torch.randn(6, generator=generator), old, reference)
    one, all_, constant = (
        grpo_losses(new, targets, PPO, 0.1, tokens=tokens).total.mean() for tokens in ("response", "all", "constant")
    )
    assert float(one) == pytest.approx(float(all_)) == pytest.approx(float(constant))
    assert PAD not in new


# --- the optimum that they should reach ---


def forward_optimum(reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """The policy that maximises E[r] - beta KL(rho, pi): rho / (a constant - r / beta), the constant found by
    bisection.
    """
    low, high = float((rewards / beta).max()) + 1e-6, float((rewards / beta).max()) + 100
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((reference.exp() / (middle - rewards / beta)).sum()) > 1 else (low, middle)
    return reference.exp() / (low - rewards / beta)


@pytest.mark.parametrize("method", ["rloo", "grpo", "grpo, unbiased KL"])
def test_the_optimum_of_a_bandit(method):
    """One token, known rewards: the policy becomes softmax(log rho + r / beta) (formulas.npz). GRPO with its own KL,
    whose gradient is that of the other direction, becomes what is best for that one.
    """
    g, k = recorded("formulas"), 8
    reference, rewards = (tensor(g[f"kl_optimum/{name}"]).float() for name in ("ref_logprobs", "rewards"))
    beta = float(g["kl_optimum/betas"][1])
    optimum = tensor(g["kl_optimum/policy"])[1].float()
    torch.testing.assert_close(optimum, torch.softmax(reference + rewards / beta, 0))
    if method == "grpo":
        optimum = forward_optimum(reference, rewards, beta)
    logits, generator = reference.clone().requires_grad_(), torch.Generator().manual_seed(3)
    params = PPOParams(cliprange=0.2, unbiased_kl="unbiased" in method)
    optimizer, last = torch.optim.Adam([logits], lr=0.05), []
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        old = torch.log_softmax(logits.detach(), 0)
        actions = torch.multinomial(old.exp(), 64 * k, replacement=True, generator=generator)
        logprobs, before = torch.log_softmax(logits, 0)[actions][:, None], old[actions][:, None]
        if method == "rloo":
            advantages = leave_one_out(rewards[actions] - beta * (old - reference)[actions], k)
            losses = rloo_losses(logprobs, GroupTargets(advantages, before, before), params)
        else:
            advantages = group_relative(rewards[actions], k, "none") * k / (k - 1)  # unbiased for k responses
            losses = grpo_losses(logprobs, GroupTargets(advantages, before, reference[actions][:, None]), params, beta)
        optimizer.zero_grad()
        losses.total.mean().backward()
        optimizer.step()
        last = [*last[-99:], torch.softmax(logits.detach(), 0)]
    found = torch.stack(last).mean(0)
    assert float((found - optimum).abs().max()) < 0.02, (found, optimum)
