"""Talk to the result: `python launch.py play EXPERIMENT [--beside OTHER]` serves a page on which the models write as
one types.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_human_preferences.commands.evaluate import load_judges
from lm_human_preferences.commands.inputs import find_run
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, ends_somewhere, response_ends
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging.judges import Judge, RewardModelJudge
from lm_human_preferences.judging.training_rewards import RewardSource
from lm_human_preferences.language.encoding import get_encoding, same_encoding
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.language.gpt2 import GPT2
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.steered_policy import is_steered
from lm_human_preferences.runs.folder import model_and_task
from lm_human_preferences.serving.links import token_of
from lm_human_preferences.serving.listener import (
    ServingParams,
    address_of,
    check_serving,
    expiry_of,
    hosts_of,
    listening,
    serve,
    warn_of_others,
)
from lm_human_preferences.train_online import retrained

if TYPE_CHECKING:
    from lm_human_preferences.serving.play_page import Players

OWN = "own"  # --judges: what the run was trained for
LENGTH = 40  # tokens, where no task says


@dataclass
class PlayParams(ServingParams):
    """Who writes, who scores it, and where the page is."""

    beside: str | None = param(None, "a second run or model folder that writes in a column of its own", "path")
    judges: str | None = param(
        OWN, "SPEC,SPEC,... or NAME=SPEC,... as evaluate takes them; own: the run's own reward; none: no scores"
    )
    prompt: str = param("", "text that the page begins with", "text")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto, float32 or bfloat16")


def play(experiment: str, params: PlayParams) -> None:
    """Serve the page until Ctrl-C. UserError, before it is served, for whatever cannot work."""
    check_serving(params)
    precision = choose_precision(params.device, params.precision)
    models, task = load_writers(experiment, params, precision)
    judges = load_scorers(experiment, params, precision)
    from lm_human_preferences.serving.play_page import PLAYER, Stage, playing  # the web server, as in `serve`

    players = players_of(models, task, judges, precision)
    secret = secrets.token_bytes(32)
    with listening(params) as listener:
        print(f"{' beside '.join(models)}; scores: {', '.join(judge.name for judge in judges) or 'none'}")
        print(f"  {address_of(params, listener)}/play/{token_of(secret, PLAYER, expiry_of(params))}")
        warn_of_others(params)
        print("Whoever has this link can let the models write. Ctrl-C stops, and the link is void.", flush=True)
        stage = Stage(players, params.prompt, secret, hosts_of(params))
        try:
            serve(playing(stage), listener)
        finally:
            stage.close()
    print("\nstopped")


def load_writers(
    experiment: str, params: PlayParams, precision: Precision
) -> tuple[dict[str, GPT2], TaskParams | None]:
    """The models by the names of their columns, and the first one's task. UserError if one is missing or their
    encodings differ.
    """
    models: dict[str, GPT2] = {}
    task: TaskParams | None = None
    for place in filter(None, (experiment, params.beside)):
        folder, its_task = model_and_task(place, params.save_dir)
        name = folder.parent.name if folder.name in ("policy", "lm") else folder.name
        if name in models:
            name = f"{name} (beside)"
        task = its_task if not models else task
        models[name] = load_model(folder).requires_grad_(False).to(precision.device)
        if is_steered(folder):
            print(f"{name}: play writes with its language model; it is steered in sample and evaluate alone")
    first, *others = (model.config for model in models.values())
    if not all(same_encoding(first, other) for other in others):
        raise UserError(
            f"--beside {params.beside}: the two models' encodings differ, so that neither can read what the other "
            "writes; name a model of the same encoding"
        )
    return models, task


def load_scorers(experiment: str, params: PlayParams, precision: Precision) -> list[Judge]:
    """Who scores what is written. UserError if a judge that is named cannot be had, or judges no single text."""
    spec = own_reward(experiment, params.save_dir) if params.judges == OWN else params.judges
    judges, people = load_judges(spec, precision.device)
    if people:
        raise UserError(f"--judges {spec}: people choose between two policies (launch.py evaluate); they score no text")
    return judges


def own_reward(experiment: str, save_dir: str) -> str | None:
    """What a run was trained for, as --judges takes it: of a run that asked people the reward model that learnt last.
    None where there is nothing of the kind, with a line that says so where it is gone.
    """
    try:
        folder = find_run(experiment, save_dir)
        stored = read_json_object(folder / "config.json").get("parameters")
    except UserError:
        return None
    rewards = stored.get("rewards") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or not isinstance(rewards, dict):
        return None
    if rewards.get("function"):
        return str(rewards["function"])
    trained = rewards.get("trained_model")
    if stored.get("online") and (later := retrained(folder)):
        trained = str(later[-1])
    source = RewardSource(trained_model=trained)
    models = source.models()
    if missing := [name for name in models if not find_path(name).exists()]:
        print(f"no scores: the run's reward model {missing[0]} is gone; --judges names another")
        return None
    names = {name: Path(name).parent.name if Path(name).name == "reward_model" else Path(name).name for name in models}
    distinct = len(set(names.values())) == len(names)
    return ",".join(f"{names[name]}={name}" if distinct else name for name in models) or source.trained_model


def players_of(
    models: dict[str, GPT2], task: TaskParams | None, judges: list[Judge], precision: Precision
) -> "Players":
    """The models with all that the page has to know of them. UserError if the task leaves no room for a text."""
    from lm_human_preferences.serving.play_page import TEMPERATURES, Players

    first = next(iter(models.values())).config
    encoding = get_encoding(first)
    contexts = [model.config.n_ctx for model in models.values()]
    contexts += [judge.config.n_ctx for judge in judges if isinstance(judge, RewardModelJudge)]
    players = Players(models, judges, encoding, precision, min(contexts), LENGTH, 1.0, Ends((encoding.end_of_text,)))
    if task is not None:
        players.task, players.formatter = task, QueryFormatter.of(task, encoding)
        players.length, players.temperature = task.response_length, task.policy.temperature
        players.ends = response_ends(task, encoding) if ends_somewhere(task) else players.ends
    if players.longest < 1:
        raise UserError(f"the task's prefix and suffix fill the models' context of {players.capacity} tokens")
    players.length = min(players.length, players.longest)
    players.temperature = min(max(players.temperature, TEMPERATURES[0]), TEMPERATURES[1])
    return players
