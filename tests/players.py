"""Small models to play with for tests, and the page's stage with them."""

import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.judging.judges import FunctionJudge, Judge
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.serving.links import token_of
from lm_human_preferences.serving.play_page import PLAYER, Players, Stage

from small import CONFIG

SECRET = b"a secret of thirty-two bytes .. "


def small_model(seed: int) -> GPT2:
    """Random weights, large enough that two models differ in what they write."""
    model = GPT2(CONFIG).initialise(generator_for(seed, "test/player"))
    with torch.no_grad():
        model.wte.weight.mul_(20)
    return model.requires_grad_(False)


def letters_a(queries: list[str], responses: list[str]) -> list[float]:
    return [float(response.count("a")) for response in responses]


def small_players(models: int = 2, judge: Judge | None = None, **more) -> Players:
    """Models after and before of one encoding, 10 tokens each, scored by how many a's they write."""
    names = ("after", "before")[:models]
    own = {name: small_model(seed) for seed, name in enumerate(names)}
    judges = [judge or FunctionJudge("a's", letters_a)]
    settings = dict(capacity=CONFIG.n_ctx, length=10, temperature=1.0, ends=Ends((26,))) | more
    return Players(own, judges, get_encoding("letters"), choose_precision("cpu", "float32"), **settings)


def small_stage(models: int = 2, prompt: str = "", judge: Judge | None = None, **more) -> Stage:
    return Stage(small_players(models, judge, **more), prompt, SECRET, ())


def play_path(expires: int = 0) -> str:
    return f"/play/{token_of(SECRET, PLAYER, expires)}"


def wish(**more) -> dict:
    """A request's body."""
    whole = dict(text="the film", temperature=1.0, seed=0, length=10, page="a page of a test", number=1)
    return whole | more
