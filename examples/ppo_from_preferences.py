"""The method in one file: a reward model from people's choices, then PPO against it (Ziegler et al. 2019).

    python datasets/movies.py                   # once: film reviews; which of four sentences people liked best
    python examples/ppo_from_preferences.py

Read it from top to bottom: each function is a step of the method, `main` is the whole of it. It uses nothing of the
library but GPT-2 itself (lm_human_preferences/language/), and computes what train_reward.py and train_policy.py do: the
test of that is tests/house/test_examples.py::test_the_example_equals_the_trainers.
Shapes: B rows of a batch, K responses of a choice, Q tokens of a query, R of a response, C channels, V vocabulary.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn as nn

sys.path.insert(0, str(ROOT := Path(__file__).resolve().parent.parent))

from lm_human_preferences.language.encoding import gpt2_encoding
from lm_human_preferences.language.heads import ScalarHead
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.language.sampling import sample

PADDING, END = 50259, 50256  # padding is no token: the model skips it wherever it stands
TEMPERATURE, KL_COEF = 0.7, 0.15  # of sampling, and so of every probability; the price of a nat from the reference
RESPONSE, FIRST_END, PENALTY = 32, 3, -1.0  # its tokens, the first place where it may end, the score if it does not
GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEF = 1.0, 0.95, 0.2, 0.2, 0.1
CHOICES, CHOICES_PER_STEP, REWARD_LR = 4096, 32, 5e-4
STEPS, EPISODES, EPOCHS, POLICY_LR = 30, 64, 4, 1e-4


class RewardModel(nn.Module):
    """A language model with a linear layer at the last token; gain and bias set the scale of its rewards."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer, self.head = transformer, ScalarHead(transformer.config.n_embd)
        self.gain, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, queries, responses):
        """[B, Q], [B, R] -> rewards [B]."""
        hidden = self.transformer.last_states(torch.cat([queries, responses], dim=1))  # of the last real token
        return self.gain * self.head(hidden) + self.bias


class Policy(nn.Module):
    """A language model with a value head, a linear layer that predicts the reward still to come; at first it is 0."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer, self.value_head = transformer, ScalarHead(transformer.config.n_embd)

    def respond(self, queries, uniforms):
        """Queries [B, Q] and a random number for each token [B, R] -> responses, log-probabilities, values [B, R]."""
        return sample(self.transformer, queries, uniforms, temperature=TEMPERATURE, value_head=self.value_head)

    def analyse(self, queries, responses):
        """Log-probabilities of given responses and the values before each of their tokens, [B, R] each."""
        before = slice(queries.shape[1] - 1, -1)  # the places before each of the response's tokens
        states = self.transformer(torch.cat([queries, responses], dim=1), before)  # [B, R, C]
        logprobs = (self.transformer.logits(states) / TEMPERATURE).log_softmax(dim=-1)  # [B, R, V]
        return logprobs.gather(2, responses[:, :, None])[:, :, 0], self.value_head(states)


class Adam:
    """Adam as TensorFlow has it: epsilon is added to the root of the second moment *before* its bias is corrected."""

    def __init__(self, model):
        self.parameters, self.steps = list(model.parameters()), 0
        self.m, self.v = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, lr, beta1=0.9, beta2=0.999, epsilon=1e-5):
        self.steps += 1
        rate = lr * (1 - beta2**self.steps) ** 0.5 / (1 - beta1**self.steps)
        for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
            m.lerp_(p.grad, 1 - beta1)
            v.lerp_(p.grad**2, 1 - beta2)
            p.sub_(rate * m / (v.sqrt() + epsilon))
            p.grad = None


def reward_step(model, optimizer, queries, responses, best, lr):
    """One step on choices: queries [B, Q], responses [B, K, R], the best one's number [B] -> loss (equation 1)."""
    B, K, R = responses.shape
    rewards = model(queries.repeat_interleave(K, dim=0), responses.reshape(B * K, R)).view(B, K)
    loss = nn.functional.cross_entropy(rewards, best)  # -log( exp r(x, y_best) / sum of exp r(x, y_i) )
    loss.backward()
    optimizer.step(lr)
    return loss.item()


@torch.no_grad()
def normalise(model, reference, queries, uniforms):
    """Set gain and bias so that the reference's own responses get rewards of mean 0 and deviation 1."""
    model.gain.fill_(1.0), model.bias.fill_(0.0)
    rewards = model(queries, reference.respond(queries, uniforms).tokens)
    mean, std = rewards.mean(), rewards.std(correction=0)
    model.gain.copy_(1 / std), model.bias.copy_(-mean / std)


@torch.no_grad()
def score(reward_model, queries, responses):
    """Scores [B] of responses [B, R], cut after their end; those without an end get the penalty instead."""
    is_end = (responses == END) & (torch.arange(responses.shape[1]) >= FIRST_END)
    ends_before = is_end.cumsum(dim=1) - is_end.long()
    rewards = reward_model(queries, responses.masked_fill(ends_before > 0, PADDING))
    return torch.where(is_end.any(dim=1), rewards, PENALTY)


def token_rewards(scores, logprobs, ref_logprobs):
    """The price of distance at each token, the score at the last: [B], [B, R], [B, R] -> [B, R]."""
    rewards = -KL_COEF * (logprobs - ref_logprobs)
    rewards[:, -1] += scores
    return rewards


def whiten(x, keep_mean=False):
    """x scaled to variance 1, and to mean 0 unless the mean is kept."""
    whitened = (x - x.mean()) / (x.var(correction=0) + 1e-8).sqrt()
    return whitened + x.mean() if keep_mean else whitened


def advantages_and_returns(rewards, values):
    """Generalised advantage estimation: was a token better than expected? [B, R] -> whitened advantages, returns."""
    rewards = whiten(rewards, keep_mean=True)
    surprises = rewards + GAMMA * nn.functional.pad(values[:, 1:], (0, 1)) - values  # after the last token comes 0
    advantages, following = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        following = advantages[:, t] = surprises[:, t] + GAMMA * LAMBDA * following
    return whiten(advantages), advantages + values


def ppo_losses(logprobs, values, old_logprobs, old_values, advantages, returns):
    """The clipped losses of policy and values, all [B, R] -> two numbers."""
    ratio = torch.exp(logprobs - old_logprobs)
    policy_loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
    clipped = torch.clamp(values, old_values - VALUE_CLIP, old_values + VALUE_CLIP)
    return policy_loss, 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).mean()


def ppo_step(policy, reference, reward_model, optimizer, queries, uniforms, lr):
    """One step: write, score, compare with the reference, update a few times. Returns what there is to look at."""
    responses, old_logprobs, old_values, _ = policy.respond(queries, uniforms)
    ref_logprobs, _ = reference.analyse(queries, responses)
    scores = score(reward_model, queries, responses)
    rewards = token_rewards(scores, old_logprobs, ref_logprobs)
    advantages, returns = advantages_and_returns(rewards, old_values)
    losses = []
    for _ in range(EPOCHS):  # the same episodes each time; what the policy has learned moves the ratio away from 1
        logprobs, values = policy.analyse(queries, responses)
        policy_loss, value_loss = ppo_losses(logprobs, values, old_logprobs, old_values, advantages, returns)
        (policy_loss + VALUE_COEF * value_loss).backward()
        optimizer.step(lr)
        losses.append((policy_loss.item(), value_loss.item()))
    kl = (old_logprobs - ref_logprobs).sum(dim=1).mean()
    return dict(scores=scores, kl=kl, rewards=rewards, advantages=advantages, losses=losses)


def read_choices(split):
    """Choices of the data set: queries [B, Q], responses [B, 4, R], the best one's number [B]."""
    file = ROOT / f"datasets/movies/labels_{split}.json"
    if not file.exists():
        sys.exit(f"{file} does not exist: prepare the data set first (python datasets/movies.py)")
    rows = json.loads(file.read_text())
    columns = zip(*((row["query"], [row[f"sample{i}"] for i in range(4)], row["best"]) for row in rows), strict=True)
    return [torch.tensor(column) for column in columns]


def main():
    random, tiny = torch.Generator().manual_seed(1), ROOT / "saved_models/tiny"
    choices, held_out = read_choices("train"), read_choices("test")
    policy, reference = Policy(load_model(tiny)), Policy(load_model(tiny)).requires_grad_(False)
    reward_model = RewardModel(load_model(tiny))
    reward_model.head.initialise(random)
    order = torch.randperm(len(choices[0]), generator=random)
    queries, uniforms = choices[0][order], torch.rand(256, RESPONSE, generator=random)
    normalise(reward_model, reference, queries[:256], uniforms)
    optimizer = Adam(reward_model)
    for start in range(0, CHOICES, CHOICES_PER_STEP):
        batch = (column[order[start : start + CHOICES_PER_STEP]] for column in choices)
        loss = reward_step(reward_model, optimizer, *batch, lr=REWARD_LR * (1 - start / CHOICES))
        if start % (CHOICES // 8) == 0:
            print(f"reward model: {start:5,} choices, loss {loss:.3f} (1.386 without knowledge)")
    normalise(reward_model, reference, queries[:256], uniforms)
    optimizer = Adam(policy)
    for step in range(STEPS):
        batch, uniforms = queries.split(EPISODES)[step], torch.rand(EPISODES, RESPONSE, generator=random)
        seen = ppo_step(policy, reference, reward_model, optimizer, batch, uniforms, POLICY_LR * (1 - step / STEPS))
        print(f"policy: step {step:2}, score {seen['scores'].mean():5.2f}, KL {seen['kl']:4.1f} nats")
    queries, uniforms, encoding = held_out[0][::300], torch.rand(6, RESPONSE, generator=random), gpt2_encoding()
    for name, model in (("before", reference), ("after", policy)):
        for tokens in torch.cat([queries, model.respond(queries, uniforms).tokens], dim=1).tolist():
            print(f"{name:>6}: {encoding.decode(tokens).partition('<|endoftext|>')[0]}")


if __name__ == "__main__":
    main()
