"""Methods side by side at equal distance: `python launch.py compare TASK EXPERIMENT --methods ppo,dpo --seeds 3`.

From top to bottom: a reward model for all that need one -> each method over a small grid of its own strength of
regularisation and over seeds, skipping what is done -> all policies, and best-of-n, on the same held-out queries before
the same judges -> gold score at matched KL, costs, samples.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_human_preferences import expert_iteration, train_dpo, train_ilql, train_policy
from lm_human_preferences.before_policy import check_besides_rewards, check_reward_batches
from lm_human_preferences.commands import sweep
from lm_human_preferences.commands.members import Work, measuring_alone, train_members
from lm_human_preferences.commands.sweep import Measuring, SweepParams
from lm_human_preferences.commands.sweep_figures import LARGEST_N
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.expert_iteration import ExpertIterationParams, ExpertTrainer
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object, write_json
from lm_human_preferences.judging.bootstrap import Bootstrap, Interval
from lm_human_preferences.judging.frontier import best_of_n_kl, best_of_n_weights, means
from lm_human_preferences.judging.matched import matched_gains
from lm_human_preferences.learning.ppo import PPOParams
from lm_human_preferences.reports import compare_report
from lm_human_preferences.reports.samples import samples_of_sweep, samples_text
from lm_human_preferences.runs.description import describe_run
from lm_human_preferences.runs.folder import go_on_after_restart
from lm_human_preferences.runs.locks import Busy, one_at_a_time, patiently
from lm_human_preferences.runs.micro_batches import forget_peak_memory
from lm_human_preferences.runs.params import computing
from lm_human_preferences.runs.tracking import read_jsonl
from lm_human_preferences.train_dpo import DPOParams, DPOTrainer
from lm_human_preferences.train_ilql import ILQLParams, ILQLTrainer
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer

METHODS = ("ppo", "rloo", "grpo", "expert_iteration", "dpo", "ilql", "best_of_n")
ENTRIES = ("train_policy", "train_dpo", "expert_iteration")  # stages whose entries of a task a comparison needs
COSTS = "costs.json"  # seconds that each policy's training took, over all calls


@dataclass
class CompareParams(SweepParams):
    """What policy training is told, what the other methods are told besides, and how all are measured."""

    methods: str = param(",".join(METHODS), f"which of {', '.join(METHODS)}, with commas between them")
    strengths: str = param(
        "0.25,1,4",
        "settings of each method, multiples of its own strength of regularisation: of rewards.kl_coef for ppo, rloo, "
        "grpo, of dpo.beta for dpo; expert_iteration samples fewer episodes by as much, and ilql is steered by "
        "ilql.beta divided by them, without training anew",
    )
    matched: str = param("2,4,8", "KL to the reference, in nats, at which methods are compared")
    responses_per_query: int = param(4, "responses to each query with rloo and grpo")
    dpo: DPOParams = param(DPOParams, "")
    expert: PPOParams = param(PPOParams, "")
    ilql: ILQLParams | None = param(None, "train_ilql, where the task has texts with scores; off: no ilql")

    @classmethod
    def of_entries(
        cls, policy: PolicyTrainingParams, dpo: DPOParams, expert: ExpertIterationParams, ilql: ILQLParams | None = None
    ) -> "CompareParams":
        """The task's entries of the stages; each policy's own comparison is off, since all are compared in the end. A
        task without texts with scores has no ilql.
        """
        own, methods = SweepParams.of(policy), [name for name in METHODS if name != "ilql" or ilql is not None]
        return cls(**vars(own), methods=",".join(methods), dpo=dpo, expert=expert.ppo, ilql=ilql)


class Trained(NamedTuple):
    """One policy to train, or that was."""

    name: str
    method: str
    strength: float
    seed: int

    @property
    def run(self) -> str:
        """The name of its run, which all strengths of ilql have in common: they differ in how it writes."""
        return f"ilql_seed_{self.seed}" if self.method == "ilql" else self.name


# --- what is compared ---


def numbers(text: str, flag: str) -> list[float]:
    """The positive numbers of `N,N,...`. UserError for anything else, and for a number that is given twice."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            found.append(math.nan)
        if not 0 < found[-1] < math.inf:
            raise UserError(f"{flag} {text}: {part.strip()!r} is not a positive number")
    if len(set(found)) < len(found):
        raise UserError(f"{flag} {text} has a number twice")
    return found


def methods_of(params: CompareParams) -> list[str]:
    """The methods by name. UserError for an unknown one."""
    named = [name.strip() for name in params.methods.split(",")]
    unknown = next((name for name in named if name not in METHODS), None)
    if unknown is not None or len(set(named)) < len(named):
        raise UserError(f"--methods {params.methods}: expected some of {', '.join(METHODS)}, each once")
    return named


def settle(params: CompareParams) -> CompareParams:
    """What a comparison will use: a copy, settled as policy training's; the other stages take its task and run."""
    settled = sweep.settle(params)
    assert isinstance(settled, CompareParams)
    shared: dict[str, Any] = {"task": settled.task, "run": settled.run, "tracking": settled.tracking}
    settled.dpo = dataclasses.replace(settled.dpo, **shared)
    if settled.ilql is not None:
        settled.ilql = dataclasses.replace(settled.ilql, **shared)
    return settled


def check(params: CompareParams) -> None:
    """UserError for settled parameters that cannot work."""
    sweep.check(params)
    if params.shares is not None or params.gold == sweep.NEW:
        raise UserError("--shares and --gold new belong to sweep: a comparison has one reward model for all methods")
    names, strengths = methods_of(params), numbers(params.strengths, "--strengths")
    numbers(params.matched, "--matched")
    if "ilql" in names and params.ilql is None:
        raise UserError("--methods ilql: this task has no texts with scores; give --ilql on and --ilql.labels.source")
    if params.rewards.kl_coef == 0 and set(names) & {"ppo", "rloo", "grpo"}:
        raise UserError("--rewards.kl_coef 0 has no multiples: give the price that --strengths multiply")
    for name in names:
        for strength in strengths:
            mine = Trained("", name, strength, params.run.seed)
            if name != "best_of_n":
                STAGES[name].check(parameters_of(params, dataclasses.replace(params.run, resume=False), mine))


def check_on(params: CompareParams, precision: Precision, world: World) -> None:
    """UserError for what one of the methods would not begin with on this device and these ranks."""
    check_reward_batches(params, world)
    for method in set(methods_of(params)) - {"best_of_n"}:
        mine = parameters_of(params, params.run, Trained("", method, 1.0, params.run.seed))
        if isinstance(mine, PolicyTrainingParams):
            check_besides_rewards(mine, precision, world)
        else:
            world.share(mine.batch_size, f"--{method}.batch_size")


def members_of(params: CompareParams) -> list[Trained]:
    """The policies to train; best-of-n trains none."""
    seeds = range(params.run.seed, params.run.seed + params.seeds)
    return [
        Trained(f"{method}_{strength:g}_seed_{seed}", method, strength, seed)
        for method in methods_of(params)
        for strength in numbers(params.strengths, "--strengths")
        for seed in seeds
        if method != "best_of_n"
    ]


def parameters_of(params: CompareParams, run: Any, member: Trained) -> Any:
    """The stage's parameters of one policy: the task's, with the method's own strength and the seed."""
    run = dataclasses.replace(run, seed=member.seed)
    if member.method == "ilql":
        assert params.ilql is not None
        return dataclasses.replace(params.ilql, run=run)
    if member.method == "dpo":
        return dataclasses.replace(params.dpo, beta=params.dpo.beta * member.strength, run=run)
    names = (item.name for item in dataclasses.fields(PolicyTrainingParams))
    shared = {name: copy.deepcopy(getattr(params, name)) for name in names} | {"run": run}
    if member.method == "expert_iteration":
        iterating = ExpertIterationParams(**shared)
        episodes = max(params.expert.batch_size, round(params.expert.total_episodes / member.strength))
        iterating.ppo = dataclasses.replace(params.expert, total_episodes=episodes)
        iterating.rewards.kl_coef, iterating.rewards.adaptive_kl = 0.0, None
        return expert_iteration.settle(iterating)
    mine = PolicyTrainingParams(**shared)
    mine.rewards.kl_coef = params.rewards.kl_coef * member.strength
    if member.method in ("rloo", "grpo"):
        mine.ppo.estimator, mine.ppo.responses_per_query = member.method, params.responses_per_query
        mine.ppo.advantage_scale = "auto"
    return train_policy.settle(mine)


def betas_of(params: CompareParams, members: list[Trained]) -> dict[str, float]:
    """How strongly the policies of ilql are steered, by name: the more, the less strength holds them."""
    if params.ilql is None:
        return {}
    return {member.name: params.ilql.beta / member.strength for member in members if member.method == "ilql"}


class Stage(NamedTuple):
    """How a method is checked and trained."""

    check: Callable[[Any], None]
    trainer: Any  # has `prepare` and `run`


_POLICY = Stage(train_policy.check, PPOTrainer)
STAGES = {
    "ppo": _POLICY,
    "rloo": _POLICY,
    "grpo": _POLICY,
    "expert_iteration": Stage(expert_iteration.check, ExpertTrainer),
    "dpo": Stage(train_dpo.check, DPOTrainer),
    "ilql": Stage(train_ilql.check, ILQLTrainer),
}


# --- the comparison ---


def compare(params: CompareParams, task: str, experiment: str) -> Path:
    """Train what is not trained yet, measure everything and write it; returns the folder. UserError before any training
    if it cannot work.
    """
    params = settle(params)
    check(params)
    folder = Path(params.run.save_dir) / experiment
    with computing(params.run) as (precision, world):
        go_on_after_restart(params.run, folder, world)
        description = describe_run("compare", task, experiment, to_dict(params)) | {"launch": list(world.launch)}
        check_on(params, precision, world)
        sweep.check_folder(folder, description, params, "compare", FREE)
        measuring = Measuring.load(params, precision, world)
        sweep.open_folder(folder, description, params, world)
        params.run = dataclasses.replace(params.run, save_dir=str(folder), overwrite=False, resume=True)
        measuring.params = params = settle(params)
        patiently(lambda: train_policy.train_reward_model_first(params, precision, world, task, experiment), world)
        members = members_of(params)
        failed = train_all(params, members, task, precision, world)
        trained = [member for member in members if member.name not in failed]
        if members and not trained:
            raise UserError(
                f"none of the {len(members)} policies of {folder} could be trained; the lines above say why"
            )
        with measuring_alone(folder, world) as alone:
            if alone:
                measure(measuring, folder, trained, failed, task, experiment, world)
        return folder


def measure(
    measuring: Measuring,
    folder: Path,
    trained: list[Trained],
    failed: dict[str, str],
    task: str,
    experiment: str,
    world: World,
) -> None:
    """Measure the trained policies; write and print what is found."""
    params = measuring.params
    assert isinstance(params, CompareParams)
    folders = {member.name: folder / member.run / "policy" for member in trained}
    sides, pool, samples = measuring.measured(folders, betas_of(params, trained))
    if world.is_main:
        result = {
            "task": task,
            "experiment": experiment,
            **measuring.facts(),
            **figures_of(params, trained, sides, pool, folder),
            "failed": failed,
        }
        rows = measuring.lines(sides, samples)
        compare_report.write_comparison(folder, result, rows)
        print(compare_report.comparison_table(result))
        shown = compare_report.one_of_each_method(result, rows[: params.shown])
        print(samples_text(samples_of_sweep(shown)))
        print(f"\nfigure {folder / 'compare.svg'}, figures in {folder / 'result.json'}")


FREE = (
    *sweep.FREE,
    "dpo.run.",
    "dpo.tracking.",
    "ilql.run.",
    "ilql.tracking.",
    "matched",
    "methods",
    "strengths",
    "seeds",
)  # may change between calls: what is trained stays


def train_all(
    params: CompareParams, members: list[Trained], task: str, precision: Precision, world: World
) -> dict[str, str]:
    """Train each policy whose run is not finished (`train_members`). Returns why the failed ones failed, by name."""
    folder = Path(params.run.save_dir)
    first = {member.run: member for member in reversed(members)}

    def work(member: Trained) -> Work:
        def train(begun: bool) -> None:
            forget_peak_memory(precision.device)
            started = time.perf_counter()
            mine = parameters_of(params, dataclasses.replace(params.run, resume=begun), member)
            try:
                STAGES[member.method].trainer.prepare(mine, precision, world).run(task, member.run)
            except Busy:
                raise
            except BaseException:
                add_cost(folder, member.run, time.perf_counter() - started, world)
                raise
            add_cost(folder, member.run, time.perf_counter() - started, world)

        return Work(member.run, folder / member.run, train)

    failed = train_members([work(member) for member in members if first[member.run] is member], world)
    return {member.name: failed[member.run] for member in members if member.run in failed}


def add_cost(folder: Path, name: str, seconds: float, world: World) -> None:
    """Add to the time that a policy's training has taken, which may be of several calls."""
    if world.is_main:
        with one_at_a_time(folder / f".{COSTS}.lock"):
            costs = read_json_object(folder / COSTS) if (folder / COSTS).exists() else {}
            write_json(folder / COSTS, costs | {name: costs.get(name, 0.0) + seconds})


# --- the figures ---


def figures_of(
    params: CompareParams, trained: list[Trained], sides: dict[str, Any], pool: dict[str, np.ndarray], folder: Path
) -> dict[str, Any]:
    """What is known of each policy, and each method's gold score at the matched distances, with intervals over queries.

    sides: of each trained policy; pool: "proxy" and each judge -> float64 [n, N], of the reference's responses.
    """
    n, N = pool["proxy"].shape
    bootstrap, judges = Bootstrap(n, params.run.seed), [judge for judge in pool if judge != "proxy"]
    reference = means(pool, np.full((n, N), 1 / N))
    costs = read_json_object(folder / COSTS) if (folder / COSTS).exists() else {}
    targets = numbers(params.matched, "--matched")
    best = best_of_n_points(pool) if "best_of_n" in methods_of(params) else []

    def gains(method: str, judge: str) -> list[Interval]:
        if method == "best_of_n":
            kl, settings = np.array([np.full(n, kl) for _, kl, _ in best]), [float(number) for number, _, _ in best]
            values = np.array([scores[judge] - reference[judge] for _, _, scores in best])
        else:
            own = [member for member in trained if member.method == method]
            kl, settings = np.array([sides[m.name].kl for m in own]), [m.strength for m in own]
            values = np.array([sides[m.name].gold[judge] - reference[judge] for m in own])
        return matched_gains(kl, values, settings, targets, bootstrap)

    methods = [m for m in methods_of(params) if m == "best_of_n" or any(t.method == m for t in trained)]
    return {
        "methods": methods,
        "targets": targets,
        "matched": {method: {judge: gains(method, judge) for judge in judges} for method in methods},
        "reference_policy": {judge: bootstrap.mean(reference[judge]) for judge in judges},
        "policies": {
            member.name: {
                **member._asdict(),
                "kl": bootstrap.mean(sides[member.name].kl),
                "proxy": bootstrap.mean(sides[member.name].proxy),
                "gold": {judge: bootstrap.mean(values) for judge, values in sides[member.name].gold.items()},
                "run": member.run,
                "seconds": costs.get(member.run),
                "memory": peak_memory_of(folder / member.run),
                "labels": labels_of(params, member.method),
            }
            for member in trained
        },
        "best_of_n": [
            {"n": number, "kl": kl, "gold": {judge: bootstrap.mean(scores[judge]) for judge in judges}}
            for number, kl, scores in best
        ],
    }


def best_of_n_points(pool: dict[str, np.ndarray]) -> list[tuple[int, float, dict[str, np.ndarray]]]:
    """n, KL in nats, and each score's mean of each query float64 [n queries], for n = 2, 4, 8 ..."""
    largest = min(pool["proxy"].shape[1], LARGEST_N).bit_length()
    numbers_of_n = [2**power for power in range(1, largest)]
    return [(n, best_of_n_kl(n), means(pool, best_of_n_weights(pool["proxy"], n))) for n in numbers_of_n]


def peak_memory_of(run: Path) -> float | None:
    """The most memory that a run had on a GPU, GiB. None of one on a CPU, whose process has had others before it."""
    config = read_json_object(run / "config.json") if (run / "config.json").exists() else {}
    if config.get("computed", {}).get("device") != "cuda":
        return None
    rows = read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return max((row["memory/peak"] for row in rows if "memory/peak" in row), default=None)


def labels_of(params: CompareParams, method: str) -> int | None:
    """How many labels a method learned from: DPO and ILQL themselves, the others through the reward model, if that can
    be told.
    """
    if method == "dpo":
        return params.dpo.labels.num_train
    if method == "ilql" and params.ilql is not None:
        return params.ilql.labels.num_train
    for model in params.rewards.models()[:1]:
        config = Path(model).parent / "config.json"
        if config.is_file():
            labels = read_json_object(config).get("parameters", {}).get("labels", {})
            return labels.get("num_train") if isinstance(labels, dict) else None
    return None
