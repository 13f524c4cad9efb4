"""GPT-2 against the recorded values of the original's `Model.__call__`, padding's rules, first weights, losses.
ORIGINAL details 1-16.
"""

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.language.gpt2 import GPT2, MLP, GPT2Config
from lm_human_preferences.language.logprobs import token_logprobs
from lm_human_preferences.language.packing import lay_out_choices
from lm_human_preferences.learning.next_token import NextTokenLoss, validate
from lm_human_preferences.train_sft import SFTParams, SFTTrainer

from conftest import TINY_CONFIG, tensor
from recorded import make_policy

CASES = ["a", "b", "c", "bc"]
PADDING = TINY_CONFIG.padding_token


@pytest.fixture(scope="module")
def policy(goldens):
    return make_policy(goldens("weights"))


def close(actual, expected, atol=3e-5):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_forward(goldens, policy, case):
    f = goldens("forward")
    hidden = policy.transformer(tensor(f[f"{case}/tokens"]))
    close(hidden, f[f"{case}/h"])
    close(policy.transformer.logits(hidden), f[f"{case}/lm_logits"])
    close(policy.value_head(hidden), f[f"{case}/value"])


@pytest.mark.parametrize("case", CASES)
def test_last_states(goldens, policy, case):
    """The state of each row's last real token, with the gradient of a pass that makes all of them."""
    f = goldens("forward")
    tokens, gradients = tensor(f[f"{case}/tokens"]), []
    policy = policy.transformer
    close(policy.last_states(tokens), f[f"{case}/h"][:, -1])
    for states in (policy.last_states(tokens), policy(tokens)[:, -1]):
        gradients.append(torch.autograd.grad(states.square().sum(), list(policy.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def choices(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five queries and three responses to each: whole (0), padded anywhere and in one row without any token, twice (1),
    none with any token (2).
    """
    generator = torch.Generator().manual_seed(seed)
    queries, responses = (
        torch.randint(97, (5, 7), generator=generator),
        torch.randint(97, (5, 3, 6), generator=generator),
    )
    if seed:
        queries[1, 3:], queries[2, 1], responses[2, 1, 4:], responses[4, 0, 0] = PADDING, PADDING, PADDING, PADDING
        responses[3, 0], responses[3, 2] = PADDING, PADDING
    if seed == 2:
        responses[:] = PADDING
    return queries, responses


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_choices_share_their_querys_pass(policy, seed, recompute):
    """Hidden states and gradients are those of each response behind its own copy of the query."""
    model, (queries, responses) = policy.transformer, choices(seed)
    rows = torch.cat([queries.repeat_interleave(3, 0), responses.flatten(0, 1)], dim=1)
    gradients = []
    model.recompute_activations(recompute)
    for states in (model.choice_states(queries, responses), model.last_states(rows).view(5, 3, -1)):
        gradients.append((states, *torch.autograd.grad(states.square().sum(), list(model.parameters()))))
    model.recompute_activations(False)
    for shared, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-4)


def test_all_tokens_read_in_another_order_than_they_lie(policy):
    """An empty response ends where its query does, before the responses in front of it."""
    queries, responses = torch.tensor([[3]]), torch.tensor([[[5], [PADDING]]])
    states = policy.transformer.choice_states(queries, responses)[0]
    apart = policy.transformer.last_states(torch.tensor([[3, 5], [3, PADDING]]))
    torch.testing.assert_close(states, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_states_before_each_token_of_the_responses(policy, seed):
    """Those of each response behind its own copy of the query, and their gradients."""
    model, (queries, responses) = policy.transformer, choices(seed)
    rows = torch.cat([queries.repeat_interleave(3, 0), responses.flatten(0, 1)], dim=1)
    before = model(rows, columns=slice(queries.shape[1] - 1, -1))[responses.flatten(0, 1) != PADDING]
    gradients = []
    for states in (model.response_states(queries, responses), before):
        weights = torch.linspace(-1, 1, states.numel()).view_as(states)
        gradients.append((states, *torch.autograd.grad((weights * states).sum(), list(model.parameters()))))
    for shared, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-4)


def test_the_layout_of_choices_that_is_drawn_in_its_docstring():
    a, b, c, d, e, f, g, h, i, pad = range(10)
    queries = torch.tensor([[a, b, pad], [f, g, h]])
    responses = torch.tensor([[[c, d], [e, pad]], [[i, pad], [pad, pad]]])
    choices = lay_out_choices(queries, responses, pad)
    layout, ends = choices.layout, choices.ends
    assert layout.tokens.tolist() == [a, b, c, d, e, f, g, h, i]
    assert layout.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3]
    assert ends.tolist() == [[3, 4], [8, -1]] and layout.longest == 4
    assert choices.before.tolist() == [1, 2, 1, 7]
    rectangle = layout.packing.to_rectangle(layout.tokens[:, None].float() + 1)[..., 0] - 1
    assert rectangle.tolist() == [[a, b, -1, c, d, e, -1], [f, g, h, i, -1, -1, -1]]


def test_choices_refuse_what_a_pass_refuses(policy):
    queries, responses = choices(0)
    queries[0, 0] = PADDING
    with pytest.raises(ValueError, match="starts with padding"):
        policy.transformer.choice_states(queries, responses)
    with pytest.raises(ValueError, match="65 real tokens in a row"):
        policy.transformer.choice_states(torch.ones(1, 60, dtype=torch.int64), torch.ones(1, 2, 5, dtype=torch.int64))


@pytest.mark.parametrize("columns", [slice(5, 9), slice(-1, None), slice(None)])
def test_only_the_columns_that_are_read_go_through_the_last_block(goldens, policy, columns):
    """The same states and gradients as all of them, where padding repeats a state too."""
    tokens, gradients = tensor(goldens("forward")["b/tokens"]), []
    for states in (policy.transformer(tokens, columns=columns), policy.transformer(tokens)[:, columns]):
        gradients.append((states, *torch.autograd.grad(states.square().sum(), list(policy.transformer.parameters()))))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_padding_is_not_computed(policy, padded, monkeypatch):
    """What goes through the blocks are the real tokens; a query once for all of its responses."""
    seen, forward = [], MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    queries, responses = choices(int(padded))
    with torch.no_grad():
        policy.transformer.choice_states(queries, responses)
    tokens = int((queries != PADDING).sum() + (responses != PADDING).sum())
    # two responses without a token read the same state: then the last block makes all states
    assert seen == [tokens, tokens, tokens if padded else 15]


@pytest.mark.parametrize(
    "case, chunks", [("d_a_chunks", [10, 2, 4]), ("d_b_chunks", [10, 2, 4]), ("d_b_one", [10] + [1] * 6)]
)
def test_incremental(goldens, policy, case, chunks):
    f = goldens("forward")
    tokens = tensor(f[f"{case[2]}/tokens"])
    cache = policy.transformer.new_cache(4, 16)
    hidden = torch.cat([policy.transformer.extend(part, cache) for part in tokens.split(chunks, dim=1)], dim=1)
    close(hidden, f[f"{case}/h"])
    close(policy.transformer.logits(hidden), f[f"{case}/lm_logits"])
    close(policy.value_head(hidden), f[f"{case}/value"])


@torch.no_grad()
@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("chunks", [[16], [10, 2, 4]])
def test_keys_and_values_in_the_cache(goldens, policy, case, chunks):
    """Those of real tokens; the original's at padded places are never used, here they have none or an unreal one."""
    f = goldens("forward")
    tokens, present = tensor(f[f"{case}/tokens"]), f[f"{case}/present"]  # present [B, L, 2, H, T, D]
    cache = policy.transformer.new_cache(4, 16)
    for part in tokens.split(chunks, dim=1):
        policy.transformer.extend(part, cache)
    assert torch.equal(cache.count, (tokens != PADDING).sum(1)) and torch.equal(cache.real.sum(1), cache.count)
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        for row in range(4):
            recorded = present[row, layer][:, :, tokens[row].numpy() != PADDING]
            close(keys[row][:, cache.real[row]], recorded[0])
            close(values[row][:, cache.real[row]], recorded[1])


def test_first_weights():
    config = GPT2Config(n_vocab=400, n_ctx=128, n_embd=48, n_head=4, n_layer=5, padding_token=402)
    model, C, L = GPT2(config).initialise(generator_for(0, "test")), 48, 5
    deviations = {
        "wte": 0.02,
        "wpe": 0.01,
        "c_attn": C**-0.5,
        "c_fc": C**-0.5,
        "attn.c_proj": (C * L) ** -0.5,
        "mlp.c_proj": (4 * C * L) ** -0.5,
    }
    for name, parameter in model.named_parameters():
        module, kind = name.rsplit(".", 1)
        if module.rsplit(".", 1)[-1].startswith("ln_"):
            assert (parameter == (kind == "weight")).all(), name
        elif kind == "bias":
            assert not parameter.any(), name
        else:
            expected = next(value for ending, value in deviations.items() if module.endswith(ending))
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) < 0.1 * expected, name
    again, other = (GPT2(config).initialise(generator_for(seed, "test")) for seed in (0, 1))
    assert torch.equal(model.wte.weight, again.wte.weight) and not torch.equal(model.wte.weight, other.wte.weight)


# --- language-model losses ---


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_language_model_losses(goldens, policy, case):
    """The original's by-product counts a padded label as token 0."""
    f = goldens("forward")
    tokens = tensor(f[f"{case}/tokens"])
    labels = torch.where(tokens == PADDING, 0, tokens)[:, 1:]
    losses = -token_logprobs(policy.transformer, policy.transformer(tokens)[:, :-1], labels)[0]
    close(losses, f[f"{case}/lm_all_losses"])
    close(losses.mean(1), f[f"{case}/lm_losses"])


class RecordedRows:
    """Recorded tokens in the place of `rows.Rows`."""

    padding = PADDING

    def __init__(self, tokens: torch.Tensor):
        self.tokens, self.block = tokens, tokens.shape[1] - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tokens[rows, :-1], self.tokens[rows, 1:]


@pytest.mark.parametrize("case", CASES)
def test_supervised_training_leaves_padding_out(goldens, case):
    """Validation and the training step: the mean of the original's losses over the labels that are tokens, whatever the
    micro-batches.
    """
    f, model, precision = (
        goldens("forward"),
        make_policy(goldens("weights")).transformer,
        choose_precision("cpu", "float32"),
    )
    rows, params = RecordedRows(tensor(f[f"{case}/tokens"])), SFTParams()
    mean = f[f"{case}/lm_all_losses"][(rows.tokens[:, 1:] != PADDING).numpy()].mean()
    for micro_batch in (3, 4):
        assert validate(NextTokenLoss(model), rows, 0, precision, micro_batch) == pytest.approx(mean, abs=5e-5)
    params.optimizer.batch_size, params.run.micro_batch = 4, 3
    trainer = SFTTrainer(model, {"train": rows, "valid": rows}, params, precision)
    gradients = []
    trainer.optimizer.step = lambda: gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    metrics = trainer.step(0)
    assert metrics["train/loss"] == pytest.approx(mean, abs=5e-5)
    assert metrics["train/padding"] == pytest.approx(float((rows.tokens[:, :-1] == PADDING).float().mean()))
    [clipped] = gradients
    hidden, labels = model(rows.tokens)[:, :-1], rows.tokens[:, 1:]
    torch.nn.functional.cross_entropy(
        model.logits(hidden).flatten(0, 1), labels.flatten(), ignore_index=PADDING
    ).backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(
        clipped, whole * min(1, params.optimizer.clip_norm / float(whole.norm())), rtol=0, atol=1e-5
    )
