"""Implicit language Q-learning against trlX and an independent float64 implementation in numpy; mistakes that
implementations of it are known to make.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.sampling import exclude, take_top_k
from lm_human_preferences.learning.implicit_q import (
    SUMS,
    Actions,
    ImplicitQ,
    ImplicitQParams,
    ValueHeads,
    actions_of,
    implicit_q_losses,
    implicit_q_statistics,
    last_tokens,
    normalised_returns,
    return_scale,
    rewards_of_texts,
    text_sums,
)
from lm_human_preferences.learning.policy import Policy, states_before
from lm_human_preferences.learning.steered_policy import SteeredPolicy, load_policy, value_heads

import small
from conftest import tensor
from methods import CONFIG, PAD, assert_gradients, assert_recorded, padded, recorded, settings, with_weights

VARIANTS = settings()["ilql"]["variants"]
N = 4  # dialogues


def params_of(name: str) -> ImplicitQParams:
    wanted = VARIANTS[name]
    return ImplicitQParams(
        tau=wanted["tau"],
        gamma=wanted["gamma"],
        cql_scale=wanted["cql_scale"],
        awac_scale=wanted["awac_scale"],
        awac_beta=wanted["beta"],
        two_qs=wanted["two_qs"],
    )


def recorded_heads(two_qs: bool = True) -> ValueHeads:
    """Heads and target copies with the recorded weights, whose names are our parameters'."""
    heads = ValueHeads(CONFIG.n_embd, CONFIG.n_vocab, two_qs)
    weights = {name: tensor(value) for name, value in recorded("ilql_heads").items()}
    assert two_qs is False or heads.state_dict().keys() == weights.keys()
    heads.load_state_dict({name: weights[name] for name in heads.state_dict()})
    return heads


def layout() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The dialogues as rows int64 [N, T] with our padding; of each action the position before it int64 [N, A], which
    are actions bool [N, A], and their tokens int64 [N, A].
    """
    g = recorded("ilql")
    dialogues = [(g[f"dialogue{i}/tokens"], g[f"dialogue{i}/is_output"]) for i in range(N)]
    places = [np.flatnonzero(output[1:]) for _, output in dialogues]
    rows = torch.full((N, max(len(tokens) for tokens, _ in dialogues)), PAD)
    positions = torch.zeros(N, max(map(len, places)), dtype=torch.int64)
    real = torch.zeros_like(positions, dtype=torch.bool)
    for i, (tokens, _) in enumerate(dialogues):
        rows[i, : len(tokens)] = tensor(tokens).long()
        positions[i, : len(places[i])], real[i, : len(places[i])] = tensor(places[i]), True
    return rows, positions, real, torch.where(real, rows.gather(1, (positions + 1).clamp(max=rows.shape[1] - 1)), 0)


def analysed(two_qs: bool = True) -> tuple[GPT2, ValueHeads, Actions, torch.Tensor, torch.Tensor]:
    """Model, heads and what they say of the dialogues' actions [N, A]; rewards and which actions are real."""
    model, heads = with_weights("weights", "policy"), recorded_heads(two_qs)
    rows, positions, real, tokens = layout()
    hidden = model(rows).gather(1, positions[..., None].expand(-1, -1, CONFIG.n_embd))
    actions = actions_of(model, heads, hidden[real], tokens[real]).laid_out(real)
    scores = tensor(recorded("ilql")["returns"])
    return model, heads, actions, rewards_of_texts(normalised_returns(scores, *return_scale(scores)), real), real


# --- trlX's recorded values ---


def test_texts_as_states_and_actions():
    """Where each token's state is, whose value follows it, where the score lies; trlX's `dones` is 1 where there is
    more.
    """
    rows, positions, real, _ = layout()
    *_, rewards, _ = analysed()
    count = real.sum(1, keepdim=True)
    states = torch.cat([positions, torch.zeros(N, 1, dtype=torch.int64)], 1)
    end = (rows != PAD).sum(1, keepdim=True) - 1
    states.scatter_(1, count, end)
    not_done = torch.cat([real, torch.zeros(N, 1, dtype=torch.bool)], 1)
    assert_recorded("ilql", "batch/input_ids", torch.where(rows == PAD, 0, rows))
    assert_recorded("ilql", "batch/attention_mask", rows != PAD)
    assert_recorded("ilql", "batch/actions_ixs", positions)
    assert_recorded("ilql", "batch/states_ixs", states)
    assert_recorded("ilql", "batch/dones", not_done)
    assert_recorded("ilql", "batch/rewards", rewards)
    assert torch.equal(last_tokens(real).sum(1), torch.ones(N, dtype=torch.int64))
    assert torch.equal(last_tokens(real).long().argmax(1), count[:, 0] - 1)


def test_what_the_heads_say():
    """Of all actions at every recorded place, padded ones too, where trlX reads the first position."""
    model, heads, actions, _, real = analysed()
    rows, positions, _, tokens = layout()
    with torch.no_grad():
        hidden = model(rows)
        at = hidden.gather(1, positions[..., None].expand(-1, -1, CONFIG.n_embd))
        states = tensor(recorded("ilql")["batch/states_ixs"]).long()
        seen = (rows != PAD).numpy()[..., None]
        assert_recorded("ilql", "forward/hidden", hidden, np.broadcast_to(seen, hidden.shape))
        assert_recorded("ilql", "forward/logits", model.logits(hidden), np.broadcast_to(seen, (*rows.shape, 97)))
        for i in range(2):
            for name, head in ((f"q{i}", heads.q_heads[i]), (f"target_q{i}", heads.target_q_heads[i])):
                assert_recorded("ilql", f"forward/{name}", head(at))
            full = heads.q_heads[i](at)
            of_tokens = full.gather(2, tokens[..., None])[..., 0]
            torch.testing.assert_close(actions.qs[i], of_tokens * real, rtol=0, atol=1e-5)
            logs = full.log_softmax(2).gather(2, tokens[..., None])[..., 0]
            torch.testing.assert_close(actions.q_logprobs[i], logs * real, rtol=0, atol=1e-5)
        values = heads.values(hidden.gather(1, states[..., None].expand(-1, -1, CONFIG.n_embd)))
        assert_recorded("ilql", "forward/v", values[..., None])
        torch.testing.assert_close(actions.values, values[:, :-1] * real, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_losses(name):
    params = params_of(name)
    *_, actions, rewards, real = analysed(params.two_qs)
    losses, count = implicit_q_losses(actions, rewards, real, params), real.sum()
    assert_recorded("ilql", f"loss/{name}/loss", losses.total(params).sum() / count)
    for term in ("q", "v", "cql", "awac"):
        assert_recorded("ilql", f"loss/{name}/loss_{term}", getattr(losses, term).sum() / count)
    assert_recorded("ilql", f"loss/{name}/awac_weight", losses.awac_weight)


@pytest.mark.parametrize("name", ["beta0", "beta1"])
def test_gradients_of_every_weight(name):
    """The heads' gradients flow into the trunk; the target copies get none."""
    params = params_of(name)
    model, heads, actions, rewards, real = analysed()
    (implicit_q_losses(actions, rewards, real, params).total(params).sum() / real.sum()).backward()
    assert_gradients("ilql", f"grad/{name}/", model)
    learning = dict(heads.named_parameters())
    recorded_ones = [key for key in recorded("ilql") if key.startswith("grad/beta1/") and "transformer" not in key]
    assert len(recorded_ones) == sum(p.requires_grad for p in learning.values()) == 12
    for key in recorded_ones:  # beta does not enter them
        assert_recorded("ilql", key, learning[key.removeprefix("grad/beta1/")].grad)
    assert all(p.grad is None for p in heads.target_q_heads.parameters())


@pytest.mark.parametrize("alpha, times", [(0.005, 1), (0.001, 3)])
def test_target_copies_follow(alpha, times):
    heads = recorded_heads()
    for _ in range(times):
        heads.sync_targets(alpha)
    for name, value in heads.target_q_heads.named_parameters():
        assert_recorded("ilql", f"sync/alpha{alpha:g}/target_q_heads.{name}", value)


@pytest.mark.parametrize("k", [1, 3, 5, 11, 20])
def test_top_k_keeps_ties(k):
    x = tensor(recorded("ilql")["topk/x"])
    assert_recorded("ilql", f"topk/k{k}/kept", take_top_k(x, k) == x)


def decoding(case: str) -> SteeredPolicy:
    """A policy with the recorded weights, whose target copies are others than its learning heads."""
    wanted, heads = settings()["ilql"]["decode"][case], recorded_heads()
    model, temperature = with_weights("weights", "policy"), wanted["temperature"] or 1.0
    return SteeredPolicy(model, heads, QueryFormatter([], []), temperature, float(wanted["beta"]))


def prompts() -> torch.Tensor:
    """The recorded prompts with their padding on the right: positions skip it wherever it is."""
    g = recorded("ilql")
    rows = padded(g["decode/input_ids"], g["decode/attention_mask"])
    return torch.stack([torch.cat([row[row != PAD], row[row == PAD]]) for row in rows])


def steered_logits(policy: SteeredPolicy, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """What is drawn from after each of tokens int64 [B, R], before anything is excluded: [B, R, V]."""
    with torch.no_grad():
        hidden = states_before(policy.transformer, policy.formatter, prompts(), tokens).flatten(0, 1)
        logits = policy.transformer.logits(hidden) / temperature
        if (steer := policy.steer_at(temperature)) is not None:
            steer(hidden, logits)
    return logits.view(*tokens.shape, -1)


@pytest.mark.parametrize("case", settings()["ilql"]["decode"])
def test_decoding(case):
    """The target copies decide."""
    wanted, tokens = settings()["ilql"]["decode"][case], tensor(recorded("ilql")[f"decode/{case}/tokens"]).long()
    policy = decoding(case)
    model, heads = policy.transformer, policy.heads
    with torch.no_grad():
        hidden = model(torch.cat([prompts(), tokens], 1))[:, prompts().shape[1] - 1 : -1]
        advantages = heads.advantages(hidden.flatten(0, 1)).view(*tokens.shape, -1)
        adjusted = model.logits(hidden).log_softmax(2) + wanted["beta"] * advantages
    assert_recorded("ilql", f"decode/{case}/adjusted", adjusted)
    logits = steered_logits(policy, tokens, policy.temperature)
    if wanted["temperature"] == 0:
        assert torch.equal(logits.argmax(2), tokens)
        return
    probabilities = exclude(logits.flatten(0, 1), wanted["top_k"]).softmax(1).view_as(logits)
    assert_recorded("ilql", f"decode/{case}/probs", probabilities)


def test_decoding_from_given_states():
    wanted, (model, heads, *_) = settings()["ilql"]["decode_given_states"], analysed()
    rows, positions, *_ = layout()
    with torch.no_grad():
        hidden = model(rows).gather(1, positions[..., None].expand(-1, -1, CONFIG.n_embd)).flatten(0, 1)
        policy = SteeredPolicy(model, heads, QueryFormatter([], []), wanted["temperature"], wanted["beta"])
        logits = model.logits(hidden) / wanted["temperature"]
        policy.steer_at(wanted["temperature"])(hidden, logits)
    found = exclude(logits, wanted["top_k"]).softmax(1).view(*positions.shape, -1)
    assert_recorded("ilql", "decode/given_states/probs", found)


def test_every_recorded_array_has_its_test():
    """Those named above, and inputs."""
    families = ("batch/", "forward/", "loss/", "grad/", "sync/", "topk/", "decode/", "dialogue", "returns")
    assert all(key.startswith(families) for key in recorded("ilql"))


# --- an independent implementation ---


def linear_relu_linear(x: np.ndarray, head: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden layer and outputs of a head, float64."""
    z = np.maximum(x @ head["0.weight"].T + head["0.bias"], 0)
    return z, z @ head["2.weight"].T + head["2.bias"]


def backwards(x, z, head, grad_out) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gradients of a head's weights and of its input."""
    grad_z = (grad_out @ head["2.weight"]) * (z > 0)
    weights = {"2.weight": grad_out.T @ z, "2.bias": grad_out.sum(0), "0.weight": grad_z.T @ x, "0.bias": grad_z.sum(0)}
    return weights, grad_z @ head["0.weight"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(hidden, tokens, lengths, returns, heads, wte, p: ImplicitQParams):
    """Loss and all gradients in numpy, text by text: hidden [M, C] and tokens [M] of texts of `lengths` tokens."""
    M = len(tokens)
    z_v, v = linear_relu_linear(hidden, heads["v_head"])
    v = v[:, 0]
    qs = [linear_relu_linear(hidden, heads[f"q_heads.{i}"]) for i in range(2)]
    target = np.minimum(*(linear_relu_linear(hidden, heads[f"target_q_heads.{i}"])[1] for i in range(2)))
    target = target[np.arange(M), tokens]
    logits, loss = hidden @ wte.T, 0.0
    grad_v, grad_q, grad_logits = np.zeros(M), [np.zeros_like(q) for _, q in qs], np.zeros_like(logits)
    start = 0
    for length, reward in zip(lengths, returns, strict=True):
        for t in range(start, start + length):
            last = t == start + length - 1
            goal = reward if last else p.gamma * v[t + 1]
            for (_, q), grad in zip(qs, grad_q, strict=True):
                off, probabilities = q[t, tokens[t]] - goal, softmax(q[t : t + 1])[0]
                loss += off**2 - p.cql_scale * np.log(probabilities[tokens[t]])
                grad[t] += p.cql_scale * probabilities
                grad[t, tokens[t]] += 2 * off - p.cql_scale
            error = target[t] - v[t]
            share = p.tau if error >= 0 else 1 - p.tau
            loss += share * error**2
            grad_v[t] -= 2 * share * error
            weight, probabilities = p.awac_scale * np.exp(p.awac_beta * error), softmax(logits[t : t + 1])[0]
            loss -= weight * np.log(probabilities[tokens[t]])
            grad_logits[t] += weight * probabilities
            grad_logits[t, tokens[t]] -= weight
        start += length
    gradients, grad_hidden = {"wte": grad_logits.T @ hidden / M}, grad_logits @ wte
    for name, z, out in (("v_head", z_v, grad_v[:, None]), *((f"q_heads.{i}", qs[i][0], grad_q[i]) for i in range(2))):
        weights, back = backwards(hidden, z, heads[name], out)
        gradients |= {f"{name}.{part}": value / M for part, value in weights.items()}
        grad_hidden = grad_hidden + back
    return loss / M, gradients | {"hidden": grad_hidden / M}


@pytest.mark.parametrize("name", ["beta0", "beta1"])
def test_an_independent_implementation_in_float64(name):
    """Loss and gradients with respect to every head's weight, the embedding and the hidden states."""
    params, random = params_of(name), np.random.default_rng(3)
    lengths, returns = [4, 1, 6], torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)
    M, C, V = sum(lengths), CONFIG.n_embd, CONFIG.n_vocab
    model, heads = with_weights("weights", "policy").double(), recorded_heads().double()
    hidden = torch.from_numpy(random.normal(size=(M, C))).requires_grad_()
    tokens = torch.from_numpy(random.integers(0, V, M))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    with pytest.MonkeyPatch.context() as patch:  # what is float32 whatever the autocast
        patch.setattr(torch.Tensor, "float", lambda x: x.double())
        actions = actions_of(model, heads, hidden, tokens).laid_out(real)
        losses = implicit_q_losses(actions, rewards_of_texts(returns, real), real, params)
        loss = losses.total(params).sum() / M
        loss.backward()
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for key, value in heads.state_dict().items():
        head, part = key.rsplit(".", 2)[0], ".".join(key.rsplit(".", 2)[1:])
        grouped.setdefault(head, {})[part] = value.numpy()
    wte = model.wte.weight.detach().numpy()
    expected, gradients = by_hand(
        hidden.detach().numpy(), tokens.numpy(), lengths, returns.numpy(), grouped, wte, params
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    ours = {name: p.grad for name, p in heads.named_parameters() if p.requires_grad}
    ours |= {"wte": model.wte.weight.grad, "hidden": hidden.grad}
    assert ours.keys() == gradients.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value.numpy(), gradients[key], rtol=1e-9, atol=1e-12, err_msg=key)


# --- writing ---


def some_policy(beta: float, temperature: float = 0.7) -> SteeredPolicy:
    formatter = QueryFormatter([5, 6], [8])
    return SteeredPolicy(with_weights("weights", "policy"), recorded_heads(), formatter, temperature, beta)


@pytest.fixture(scope="module")
def queries():
    return torch.where(torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.2, PAD, prompts()[0])


UNIFORMS = torch.rand(5, 7, generator=torch.Generator().manual_seed(2))


def test_beta_0_is_the_plain_policy_bit_for_bit(queries):
    """Tokens, log-probabilities and entropies; also where the advantages are added and counted 0 times."""
    steered = some_policy(0.0)
    plain = Policy(steered.transformer, steered.formatter, steered.temperature)
    ours, theirs = steered.respond(queries, UNIFORMS), plain.respond(queries, UNIFORMS)
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.logprobs, theirs.logprobs)
    with torch.no_grad():
        one, other = (policy.analyze(queries, ours.tokens) for policy in (steered, plain))
    assert torch.equal(one.logprobs, other.logprobs) and torch.equal(one.entropies, other.entropies)
    with pytest.MonkeyPatch.context() as patch:
        added = some_policy(1.0).steer_at
        patch.setattr(steered, "steer_at", lambda T: lambda h, x: x.add_(steered.heads.advantages(h), alpha=0.0))
        again, analysis = steered.respond(queries, UNIFORMS), steered.analyze(queries, ours.tokens)
    assert added(0.7) is not None
    assert torch.equal(again.tokens, theirs.tokens) and torch.equal(again.logprobs, theirs.logprobs)
    torch.testing.assert_close(analysis.logprobs, other.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_measured_is_what_is_drawn_from(queries, temperature):
    """Log-probabilities of sampling equal those of the analysis, which are the formula's; so are the entropies."""
    policy = some_policy(3.0, temperature)
    drawn = policy.respond(queries, UNIFORMS)
    analysis = policy.analyze(queries, drawn.tokens)
    torch.testing.assert_close(analysis.logprobs, drawn.logprobs, rtol=0, atol=2e-5)
    torch.testing.assert_close(analysis.values, drawn.values, rtol=0, atol=2e-5)
    rows = torch.cat([policy.formatter(queries), drawn.tokens], 1)
    with torch.no_grad():
        hidden = policy.transformer(rows)[:, -8:-1]
        qs = torch.minimum(*(head(hidden) for head in policy.heads.target_q_heads))
        logits = policy.transformer.logits(hidden) + 3.0 * (qs - policy.heads.values(hidden)[..., None])
        logprobs = (logits / temperature).log_softmax(2)
    torch.testing.assert_close(
        analysis.logprobs, logprobs.gather(2, drawn.tokens[..., None])[..., 0], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(analysis.entropies, -(logprobs.exp() * logprobs).sum(2), rtol=0, atol=1e-4)
    plain = Policy(policy.transformer, policy.formatter, temperature).analyze(queries, drawn.tokens)
    assert (analysis.logprobs - plain.logprobs).abs().max() > 0.1
    assert torch.equal(policy.analyze(queries, drawn.tokens, entropies=False).logprobs, analysis.logprobs)


def test_a_steered_policys_folder(tmp_path):
    """It holds the target copies and beta, loads as it was, and is a language model to whoever wants one."""
    generator, formatter = torch.Generator().manual_seed(3), QueryFormatter([], [])
    heads = ValueHeads(small.CONFIG.n_embd, small.CONFIG.n_vocab)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    policy = SteeredPolicy(GPT2(small.CONFIG).initialise(generator), heads, formatter, 0.7, 2.0)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", formatter, 0.7)
    assert isinstance(loaded, SteeredPolicy) and loaded.beta == 2.0
    queries = torch.randint(0, 26, (5, 6), generator=generator)
    drawn = policy.respond(queries, UNIFORMS)
    assert torch.equal(loaded.respond(queries, UNIFORMS).tokens, drawn.tokens)
    unsteered, plain = (
        load_policy(tmp_path / "policy", formatter, 0.7, beta=0.0),
        Policy.load(tmp_path / "policy", formatter, 0.7),
    )
    assert type(plain) is Policy and not torch.equal(plain.respond(queries, UNIFORMS).tokens, drawn.tokens)
    assert torch.equal(unsteered.respond(queries, UNIFORMS).tokens, plain.respond(queries, UNIFORMS).tokens)
    plain.save(tmp_path / "plain")
    assert type(load_policy(tmp_path / "plain", formatter, 0.7)) is Policy
    with pytest.raises(UserError, match=r"plain has no value heads that a beta \(3\) could steer by"):
        load_policy(tmp_path / "plain", formatter, 0.7, beta=3.0)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda heads: heads.pop("target_q_heads.0.2.bias"), "lacks target_q_heads.0.2.bias"),
        (lambda heads: heads.update({"v_head.0.bias": torch.zeros(3)}), r"v_head.0.bias is \[3\], the model needs"),
    ],
)
def test_heads_that_do_not_fit(change, says):
    stored = {name: value for name, value in recorded_heads().state_dict().items() if not name.startswith("q_heads")}
    change(stored)
    with pytest.raises(UserError, match=says):
        value_heads(stored, CONFIG, Path("folder"))


# --- known mistakes ---


def rows_of(*lengths: int, width: int = 6) -> torch.Tensor:
    """Responses int64 [B, width] of such lengths."""
    tokens = torch.randint(0, 90, (len(lengths), width), generator=torch.Generator().manual_seed(7))
    return torch.where(torch.arange(width) < torch.tensor(lengths)[:, None], tokens, PAD)


def model_of(two_qs: bool = True) -> ImplicitQ:
    return ImplicitQ(with_weights("weights", "policy"), recorded_heads(two_qs), QueryFormatter([5, 6], [8]))


def mean_loss(model: ImplicitQ, queries, responses, returns, params) -> torch.Tensor:
    real = responses != PAD
    losses = implicit_q_losses(model(queries, responses), rewards_of_texts(returns, real), real, params)
    return losses.total(params).sum() / real.sum()


def test_padding_has_no_part(queries):
    """More padding behind a response changes neither losses nor statistics, and what stands there is 0."""
    responses, returns = rows_of(4, 1, 6, 3, 2), torch.tensor([1.0, -1.0, 0.5, 0.2, -0.7])
    model, params = model_of(), ImplicitQParams(awac_beta=1.0)
    wide = torch.cat([responses, torch.full((5, 3), PAD)], 1)
    with torch.no_grad():
        loss, wider = (mean_loss(model, queries, rows, returns, params) for rows in (responses, wide))
        actions = model(queries, wide)
        real = wide != PAD
        losses = implicit_q_losses(actions, rewards_of_texts(returns, real), real, params)
    torch.testing.assert_close(loss, wider, rtol=0, atol=1e-5)
    for values in (*losses, actions.logprobs, actions.values, actions.target_q, *actions.qs, *actions.q_logprobs):
        assert (values[~real] == 0).all()
    one_by_one = [
        mean_loss(model, queries[[i]], responses[[i]], returns[[i]], params) * n for i, n in enumerate((4, 1, 6, 3, 2))
    ]
    torch.testing.assert_close(loss, sum(one_by_one).detach() / 16, rtol=0, atol=1e-5)
    stats = implicit_q_statistics(text_sums(actions, losses, real, params), returns)
    assert stats["loss"] == pytest.approx(float(loss), abs=1e-5) and set(SUMS) < stats.keys()


def test_an_empty_response_changes_nothing(queries):
    responses, returns = rows_of(4, 0, 6, 3, 2), torch.tensor([1.0, 9.0, 0.5, 0.2, -0.7])
    kept, params = torch.tensor([0, 2, 3, 4]), ImplicitQParams()
    with torch.no_grad():
        with_it = mean_loss(model_of(), queries, responses, returns, params)
        without = mean_loss(model_of(), queries[kept], responses[kept], returns[kept], params)
    torch.testing.assert_close(with_it, without, rtol=0, atol=1e-5)


def hand_made(values, q, target) -> Actions:
    one = torch.zeros(1, len(values))
    row = lambda x: torch.tensor([x])  # noqa: E731  # a name for a short expression
    return Actions(one - 1, row(values), (row(q),), (one - 2,), row(target))


def test_losses_by_hand():
    """The score lies at the last token, V of the next state counts gamma, and behind the end there is nothing."""
    actions = hand_made([0.5, 2.0, 0.0], [1.0, 3.0, 0.0], [1.5, 1.0, 0.0])
    real, params = torch.tensor([[True, True, False]]), ImplicitQParams(tau=0.8, gamma=0.5, awac_beta=1.0)
    losses = implicit_q_losses(actions, rewards_of_texts(torch.tensor([4.0]), real), real, params)
    torch.testing.assert_close(losses.q, torch.tensor([[(1 - 0.5 * 2) ** 2, (3 - 4.0) ** 2, 0]]))
    torch.testing.assert_close(losses.v, torch.tensor([[0.8 * 1.0**2, 0.2 * 1.0**2, 0]]))
    torch.testing.assert_close(losses.cql, torch.tensor([[2.0, 2.0, 0]]))
    weight = torch.tensor([[1.0, -1.0, -torch.inf]]).exp()
    torch.testing.assert_close(losses.awac, weight) and torch.testing.assert_close(losses.awac_weight, weight)


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_the_expectile_looks_at_the_better_actions(tau):
    """V that minimises its loss over actions worth 0 and 1: tau. A sign that is wrong gives 1 - tau."""
    value = torch.zeros(1, 2, requires_grad=True)
    real, params = torch.ones(1, 2, dtype=torch.bool), ImplicitQParams(tau=tau)
    optimizer = torch.optim.SGD([value], lr=0.1)
    for _ in range(200):
        same = value.mean().expand(1, 2)
        actions = Actions(torch.zeros(1, 2), same, (), (), torch.tensor([[0.0, 1.0]]))
        loss = implicit_q_losses(actions._replace(qs=(same,), q_logprobs=(same,)), torch.zeros(1, 2), real, params).v
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert value.mean().item() == pytest.approx(tau, abs=1e-3)


def test_conservative_learning_raises_the_texts_actions_alone(queries):
    """A step down CQL's gradient raises Q of the tokens that the texts have above all other tokens' Q; a loss over
    other actions than the texts' does not.
    """
    model, responses = model_of(), rows_of(3, 3, 3, 3, 3, width=3)
    real = responses != PAD
    actions = model(queries, responses)
    losses = implicit_q_losses(actions, torch.zeros_like(actions.values), real, ImplicitQParams())
    losses.cql.sum().backward()
    for head in model.heads.q_heads:
        gradient = head.last.bias.grad
        taken = torch.zeros(CONFIG.n_vocab, dtype=torch.bool)
        taken[responses.flatten()] = True
        assert (gradient[~taken] > 0).all(), "what the texts do not have must lose value"
        assert gradient.sum().abs() < 1e-4 and gradient[taken].sum() < 0


def test_targets_and_next_values_have_no_gradient(queries):
    """Q is regressed on V of the next state, V on the target copies, the likelihood weighed by both: constants."""
    model, responses = model_of(), rows_of(3, 5, 2, 4, 6)
    real, params = responses != PAD, ImplicitQParams(awac_beta=1.0)
    for term, without in (("q", "v_head"), ("v", "q_heads"), ("cql", "v_head"), ("awac", "heads")):
        model.zero_grad()
        losses = implicit_q_losses(model(queries, responses), rewards_of_texts(torch.ones(5), real), real, params)
        getattr(losses, term).sum().backward()
        for name, parameter in model.heads.named_parameters():
            if name.startswith(without) or without == "heads" or "target" in name:
                assert parameter.grad is None or not parameter.grad.any(), (term, name)
        assert model.transformer.wte.weight.grad.any()


def test_the_optimum_of_a_bandit():
    """One token, known rewards: Q learns them, and steering by 1 / beta writes the policy that maximises reward less
    beta times KL, with the recorded reference, rewards and prices.
    """
    g = recorded("formulas")
    rewards, reference = (tensor(g[f"kl_optimum/{name}"]).float() for name in ("rewards", "ref_logprobs"))
    K, generator = len(rewards), torch.Generator().manual_seed(1)
    heads = ValueHeads(8, K).initialise(generator)
    state, actions = torch.randn(1, 8, generator=generator).expand(K, -1), torch.arange(K)
    real, params = torch.ones(K, 1, dtype=torch.bool), ImplicitQParams(cql_scale=0.0, tau=0.5)
    optimizer = torch.optim.Adam([p for p in heads.parameters() if p.requires_grad], lr=0.02)
    model = GPT2(GPT2Config(n_vocab=K, n_ctx=4, n_embd=8, n_head=1, n_layer=1, padding_token=K)).initialise(generator)
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 600)
        said = actions_of(model, heads, state, actions).laid_out(real)
        losses = implicit_q_losses(said, rewards[:, None], real, params)
        optimizer.zero_grad()
        (losses.q + losses.v).mean().backward()
        optimizer.step()
        heads.sync_targets(0.1)
    with torch.no_grad():
        advantages = heads.advantages(state[:1])[0]
        assert float(heads.values(state[:1])) == pytest.approx(float(rewards.mean()), abs=0.02)
    for beta, optimum in zip(g["kl_optimum/betas"], g["kl_optimum/policy"], strict=True):
        steered = torch.softmax(reference + advantages / float(beta), 0)
        np.testing.assert_allclose(steered.numpy(), optimum, atol=0.01)


def test_new_heads_value_nothing_and_differ():
    """All values are 0 at first, so decoding is the language model's; yet the two Q heads learn apart."""
    heads = ValueHeads(CONFIG.n_embd, CONFIG.n_vocab).initialise(torch.Generator().manual_seed(1))
    hidden = torch.randn(3, CONFIG.n_embd, generator=torch.Generator().manual_seed(2))
    assert not heads.advantages(hidden).any()
    one, other = (head.features(hidden) for head in heads.q_heads)
    assert (one - other).abs().max() > 0.1
    for own, target in zip(heads.q_heads.parameters(), heads.target_q_heads.parameters(), strict=True):
        assert torch.equal(own, target) and own is not target and not target.requires_grad
