"""Which responses are shown: hand-made cases, what the measures are, and that asking so teaches more per label."""

import functools
import math
from itertools import combinations

import pytest
import torch

from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.learning.head_posterior import fit_heads
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.people.asking import HeadsAsk, choice_information, choice_variance, choose, choose_by

WAYS = ("disagreement", "thompson", "information")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_information_is_mutual_information():
    """Two heads that are sure of opposite choices: one bit. The same heads: nothing, however unsure. By hand for the
    rest."""
    opposite = torch.tensor([[50.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    assert float(choice_information(opposite)) == pytest.approx(math.log(2))
    assert float(choice_information(torch.zeros(4, 3))) == pytest.approx(0, abs=1e-7)
    scores = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    p = scores.softmax(1)
    joint = p / 5
    by_hand = (joint * (joint / (joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True))).log()).sum()
    assert float(choice_information(scores)) == pytest.approx(float(by_hand))
    assert float(choice_variance(scores)) == pytest.approx(float(((p - p.mean(0)) ** 2).mean(0).sum()))


@pytest.mark.parametrize("worth", [choice_information, choice_variance])
def test_a_pair_is_the_best_of_all_pairs_and_sets_grow_by_the_best(worth):
    scores = 2 * torch.randn(7, 9, generator=generator(3), dtype=torch.float64)
    pair = choose_by(worth, scores, 2)
    assert tuple(pair) == max(combinations(range(9), 2), key=lambda two: float(worth(scores[:, list(two)])))
    three = choose_by(worth, scores, 3)
    assert three[:2] == pair
    rest = [one for one in range(9) if one not in pair]
    assert three[2] == max(rest, key=lambda one: float(worth(scores[:, [*pair, one]])))


@pytest.mark.parametrize("how", WAYS)
def test_what_all_heads_agree_on_is_not_asked(how):
    """Heads differ about candidates 2 and 5 alone, which are also the best by some head."""
    scores = torch.zeros(8, 6)
    scores[:4, 2], scores[4:, 5] = 9.0, 9.0
    assert choose(how, scores, 2, generator()) == [2, 5]


@pytest.mark.parametrize("how", WAYS)
def test_as_many_as_are_shown_each_once(how):
    for seed in range(20):
        scores = torch.randn(4, 6, generator=generator(seed))
        found = choose(how, scores, 4, generator(seed))
        assert found == sorted(set(found)) and len(found) == 4 and set(found) <= set(range(6))
    same = torch.arange(5.0).expand(3, 5)  # all heads the same: Thompson takes the best ones in turn
    assert choose("thompson", same, 3, generator()) == [2, 3, 4]


def accuracy_of(way, seed):
    """How often what 90 labels of questions asked in this way have taught finds the best of four held-out responses: a
    linear taste in 12 dimensions, 16 candidates a question of which 4 are shown, six rounds of 15 labels.
    """
    g = generator(seed)
    taste = 4 * torch.randn(12, generator=g, dtype=torch.float64)
    held_out = torch.randn(2000, 4, 12, generator=g, dtype=torch.float64)
    states, best, heads = torch.zeros(0, 4, 12).double(), torch.zeros(0, dtype=torch.int64), None
    for label in range(90):
        candidates = torch.randn(16, 12, generator=g, dtype=torch.float64)
        random = heads is None or way == "random"
        shown = list(range(4)) if random else choose(way, heads.scores(candidates), 4, g)
        answer = torch.multinomial((candidates[shown] @ taste / 12**0.5).softmax(0), 1, generator=g)
        states, best = torch.cat([states, candidates[None, shown]]), torch.cat([best, answer])
        if label % 15 == 14:
            heads = fit_heads(states, best, 12, g)
    mean = heads.weights.mean(0) / heads.scale
    return float(((held_out @ mean).argmax(1) == (held_out @ taste).argmax(1)).double().mean())


@pytest.mark.parametrize("how", WAYS)
def test_asking_teaches_more_per_label(how):
    """Over ten seeds; docs/people.md has 60 of them with intervals."""
    gains = [accuracy_of(how, seed) - accuracy_of("random", seed) for seed in range(10)]
    assert sum(gains) / 10 > 0.01, gains


@pytest.mark.parametrize("how", WAYS)
def test_questions_are_chosen_together_as_they_are_alone(how, monkeypatch):
    """With other numbers of candidates each, and in parts."""
    config = GPT2Config(n_vocab=50, n_ctx=16, n_embd=16, n_head=2, n_layer=2, padding_token=51)
    model = RewardModel(GPT2(config).initialise(generator())).requires_grad_(False)
    model.head.initialise(generator(1))
    draw = functools.partial(torch.randint, 0, 50, generator=generator(2))
    states, best = model.states(draw((12, 3)), draw((12, 4, 6))), torch.randint(0, 4, (12,), generator=generator())
    precision = Precision(torch.device("cpu"), bfloat16=False)
    ask = HeadsAsk(how, 3, fit_heads(states, best, 8, generator()), model, precision, seed=1)
    queries = draw((5, 3))
    candidates = [draw((count, 6)) for count in (9, 3, 16, 4, 7)]
    alone = [ask([n], queries[n : n + 1], candidates[n : n + 1])[0] for n in range(5)]
    assert ask(range(5), queries, candidates) == alone
    monkeypatch.setattr("lm_human_preferences.people.asking.ROWS", 40)
    assert ask(range(5), queries, candidates) == alone
    assert all(max(some) < len(rows) for some, rows in zip(alone, candidates, strict=True))
