"""A sweep over KL coefficients: `python launch.py sweep TASK EXPERIMENT --rewards.kl_coef 0.01,0.03,0.1,0.3 --seeds 3`.
docs/sweep.md explains it.

From top to bottom: judges, reference and held-out queries -> a policy for each coefficient and seed, by policy training
-> all of them, best-of-n and the optimal policies on the same queries: proxy (the reward trained against), gold judges,
KL -> who games the reward -> table, figure, result.json.
"""

import copy
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from lm_human_preferences import train_policy
from lm_human_preferences.before_policy import check_besides_rewards, check_reward_batches
from lm_human_preferences.commands.evaluate import HeldOut, held_out_queries, load_judges, load_policy
from lm_human_preferences.commands.members import Work, measuring_alone, train_members
from lm_human_preferences.commands.sweep_figures import LARGEST_N, Member, Scores, figures_of
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import dataset_split
from lm_human_preferences.data.tasks import penalise, readable, response_ends
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import (
    atomic_file,
    disk_errors,
    make_folder,
    read_json,
    remove_folder,
    write_json,
)
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.evaluation import sample_and_score, uniforms_of
from lm_human_preferences.judging.judges import SPECS, Judge, held_out_judges, load_judge
from lm_human_preferences.judging.training_rewards import load_rewards
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.scoring import Rewards
from lm_human_preferences.reports import sweep_report
from lm_human_preferences.reports.samples import samples_of_sweep, samples_text
from lm_human_preferences.runs.description import check_same_configuration, describe_run
from lm_human_preferences.runs.folder import go_on_after_restart, model_folder, same_finished_run
from lm_human_preferences.runs.locks import LOCK, is_busy, patiently
from lm_human_preferences.runs.params import computing
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer
from lm_human_preferences.train_reward import RewardTrainer

COEFFICIENTS_HELP = "prices of a nat of KL, with commas between them: a policy is trained for each and every seed"
NEW = "new"  # the gold reward model is trained
GOLD_SEED = 1000  # what its seed has beyond the proxies'
FREE = (
    "run.",
    "tracking.",
    "rewards.train_new_model.run.",
    "rewards.train_new_model.tracking.",
    "judges",
    "samples",
    "split",
    "responses",
    "min_effective",
    "shown",
    "gold",
)  # parameters that train nothing


@dataclass
class SweepParams(PolicyTrainingParams):
    """What policy training is told, and how the policies are measured."""

    seeds: int = param(1, "policies for each coefficient: of the seeds run.seed, run.seed + 1, ...")
    judges: str | None = param(
        None,
        "gold judges, SPEC,SPEC,... or NAME=SPEC,..., that have no part in training; none takes those of the query "
        "data set's human ratings where it has some (embeddings:datasets/movies_judge and #sense if it is made, "
        f"ratings:datasets/movies). {SPECS}",
    )
    samples: int = param(256, "held-out queries on which all are measured")
    split: str = param("test", "split of the query data set that they come from")
    responses: int = param(
        64,
        f"responses of the reference to each, for the best of n = 1, 2, 4, ... up to {LARGEST_N} and for the optimal "
        "policies",
    )
    min_effective: float = param(
        10.0, "optimal policies whose mean effective sample size, of those responses, is below this are left out"
    )
    shown: int = param(3, "queries to print with every policy's response")
    gold: str | None = param(
        None,
        "a reward model that judges beside the judges: new, which is trained first, on all labels of "
        "rewards.train_new_model and without their noise; or a run of train_reward, or its model folder",
    )
    shares: str | None = param(
        None,
        "S,S,...: shares of the labels, above 0 and at most 1; a reward model is trained on each, and a sweep of its "
        "own made against it",
    )

    @classmethod
    def of(cls, entry: PolicyTrainingParams) -> "SweepParams":
        """The task's policy training at fixed coefficients, whether the task steers or not; each policy's own
        comparison is off unless asked for, since all are compared in the end.
        """
        return cls(
            **vars(entry)
            | {
                "evaluation": dataclasses.replace(entry.evaluation, samples=0),
                "rewards": dataclasses.replace(entry.rewards, adaptive_kl=None),
            },
            split=entry.evaluation.split,
        )


def sweep(params: SweepParams, coefficients: list[float], task: str, experiment: str) -> Path:
    """Train what is not trained yet, measure everything and draw it; returns the sweep's folder. UserError before any
    training if it cannot work.
    """
    params = settle(params)
    check(params)
    with computing(params.run) as (precision, world):
        return sweep_here(params, coefficients, task, experiment, precision, world)


def sweep_here(
    params: SweepParams, coefficients: list[float], task: str, experiment: str, precision: Precision, world: World
) -> Path:
    """`sweep` of settled parameters that are checked, on ranks that have started."""
    members, folder = members_of(params, coefficients), Path(params.run.save_dir) / experiment
    go_on_after_restart(params.run, folder, world)
    description = describe_run("sweep", task, experiment, to_dict(params)) | {"launch": list(world.launch)}
    description["parameters"]["rewards"]["kl_coef"] = coefficients
    check_besides_rewards(params, precision, world)
    check_reward_batches(params, world)
    check_folder(folder, description, params)
    measuring = Measuring.load(params, precision, world)
    open_folder(folder, description, params, world)
    params.run = dataclasses.replace(params.run, save_dir=str(folder), overwrite=False, resume=True)
    measuring.params = params = settle(params)  # reward training too goes into the sweep's folder
    if params.gold == NEW:
        folder_of_gold = patiently(lambda: train_gold(params, precision, world, task), world)
        measuring.judges.append(gold_judge(folder_of_gold, precision))
    patiently(lambda: train_policy.train_reward_model_first(params, precision, world, task, experiment), world)
    failed = train_members(works_of(params, members, task, precision, world), world)
    trained = [member for member in members if member.name not in failed]
    if not trained:
        raise UserError(f"none of the {len(members)} policies of {folder} could be trained; the lines above say why")
    with measuring_alone(folder, world) as alone:
        if alone:
            measure(measuring, folder, trained, failed, task, experiment, world)
    return folder


def measure(
    measuring: "Measuring",
    folder: Path,
    trained: list[Member],
    failed: dict[str, str],
    task: str,
    experiment: str,
    world: World,
) -> None:
    """Measure the trained policies; write and print what is found."""
    result, rows = measuring.of_policies(folder, trained)
    if world.is_main:
        result = {"task": task, "experiment": experiment, **result, "failed": failed}
        write_sweep(folder, result, rows)
        print(sweep_report.sweep_table(result))
        print(samples_text(samples_of_sweep(rows[: measuring.params.shown])))
        print(f"\nfigure {folder / 'sweep.svg'}, figures in {folder / 'result.json'}; ", end="")
        print(f"python launch.py report {experiment} makes a page of them")


# --- what is swept ---


def parse_coefficients(text: str) -> list[float]:
    """The numbers of `C,C,...`. UserError for anything else, and for a number that is given twice."""
    if not text.strip():
        raise UserError("nothing to sweep over: give the coefficients, as in --rewards.kl_coef 0.01,0.03,0.1,0.3")
    coefficients = []
    for part in text.split(","):
        try:
            coefficients.append(float(part))
        except ValueError:
            coefficients.append(math.nan)
        if not (math.isfinite(coefficients[-1]) and coefficients[-1] >= 0):
            raise UserError(
                f"--rewards.kl_coef {text}: {part.strip()!r} is not a number of 0 or more; expected numbers with "
                "commas between them"
            )
    if len({f"{c:g}" for c in coefficients}) < len(coefficients):
        raise UserError(
            f"--rewards.kl_coef {text} has a number twice (six digits count); for several policies of one coefficient "
            "give --seeds"
        )
    return coefficients


def settle(params: SweepParams) -> SweepParams:
    """What a sweep will use: a copy, settled as policy training's."""
    settled = train_policy.settle(params)
    assert isinstance(settled, SweepParams)
    if settled.gold not in (None, NEW):
        settled.gold = model_folder(str(find_path(str(settled.gold))), settled.run.save_dir, ("reward_model",))
    return settled


def check(params: SweepParams) -> None:
    """UserError for settled parameters that cannot work."""
    if params.seeds < 1 or params.samples < 1 or params.shown < 0:
        raise UserError("--seeds and --samples must be at least 1, --shown not negative")
    if params.responses < 2:
        raise UserError(f"--responses {params.responses}: there is no choice among fewer than 2 responses")
    if not 1 <= params.min_effective <= params.responses:
        raise UserError(
            f"--min_effective {params.min_effective:g}: must lie between 1 and --responses {params.responses}"
        )
    if params.rewards.adaptive_kl is not None:
        raise UserError(
            "a sweep is over fixed coefficients, which a controller would leave: give --rewards.adaptive_kl off"
        )
    if params.online is not None:
        raise UserError("a sweep's policies share one reward model, which --online would replace: give --online off")
    if params.task.top_k or params.task.top_p < 1:
        raise UserError(
            "a sweep measures distance from the reference by responses that the reference draws among all tokens: give "
            "--task.top_k 0 --task.top_p 1"
        )
    # a sweep always goes on where it stopped, so that --run.overwrite may stand beside --run.resume
    train_policy.check(dataclasses.replace(params, run=dataclasses.replace(params.run, resume=False)))
    if params.rewards.train_new_model is None and (params.gold == NEW or params.shares is not None):
        flag = "--gold new" if params.gold == NEW else f"--shares {params.shares}"
        raise UserError(f"{flag} trains reward models: leave --rewards.trained_model and --rewards.function out")
    if params.gold not in (None, NEW) and not Path(str(params.gold)).is_dir():
        raise UserError(f"--gold {params.gold}: there is no such reward model; name a run of train_reward, or new")
    folder = dataset_split(params.task, params.split)[0]
    if not params.judges and params.gold is None and not held_out_judges(folder):
        raise UserError(
            f"{folder / 'sentences.jsonl'} does not exist, so no human ratings can judge; name a judge that has no "
            "part in training with --judges SPEC"
        )


def members_of(params: SweepParams, coefficients: list[float]) -> list[Member]:
    """The policies to train."""
    seeds = range(params.run.seed, params.run.seed + params.seeds)
    return [Member(f"kl_{kl_coef:g}_seed_{seed}", kl_coef, seed) for kl_coef in coefficients for seed in seeds]


def check_folder(
    folder: Path, description: dict[str, Any], params: SweepParams, stage: str = "sweep", free: tuple[str, ...] = FREE
) -> None:
    """UserError if `folder` holds anything but this sweep (or another `stage`), or may not be replaced. free: the
    parameters that may have changed.
    """
    make_folder(folder.parent)
    if not folder.exists() or not any(folder.iterdir()):
        return
    stored = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if stored.get("stage") != stage:
        raise UserError(f"{folder} exists and holds no {stage}; give another name")
    if not params.run.overwrite:
        check_same_configuration(
            stored,
            description,
            f"{folder} exists (give another name, or --run.overwrite to train everything anew)",
            free,
        )


def open_folder(folder: Path, description: dict[str, Any], params: SweepParams, world: World) -> None:
    """The sweep's folder with its configuration; with `run.overwrite` without anything else. UserError where that would
    take a run away from the process that works on it.
    """

    def problem() -> str | None:
        try:
            if (folder / "config.json").exists() and not params.run.overwrite:
                write_json(folder / "config.json", description)
                return None
            if params.run.overwrite and folder.exists():
                busy = next((lock.parent for lock in sorted(folder.rglob(LOCK)) if is_busy(lock.parent)), None)
                if busy is not None:
                    return f"--run.overwrite: another process is working on {busy}; wait until it has ended"
                with disk_errors(folder):
                    remove_folder(folder)
            _open_anew(folder, description)
        except UserError as error:
            return str(error)
        return None

    if found := world.from_main(problem() if world.is_main else None):
        raise UserError(found)


def _open_anew(folder: Path, description: dict[str, Any]) -> None:
    """Whole or not at all, so that another process never sees a folder without its configuration."""
    folder = Path(os.path.realpath(folder))  # a folder that is a link stays one
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    write_json(make_folder(partial) / "config.json", description)
    try:
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial)
        if not (folder / "config.json").exists():  # else another process has been faster
            raise UserError(f"{folder} cannot be made: {error.strerror or error}") from None


# --- training ---


def train_gold(params: SweepParams, precision: Precision, world: World, task: str) -> str:
    """The gold reward model's folder: a run called `gold` in the sweep's folder, which is not trained again when it is
    finished. It learns all labels as they are, from another seed than the proxies.
    """
    new = params.rewards.train_new_model
    assert new is not None
    run = Path(params.run.save_dir) / "gold"
    begun, finished = world.from_main([(run / name).exists() for name in ("config.json", "result.json")])
    gold = copy.deepcopy(new)
    gold.members, gold.labels.noise = 1, 0.0
    gold.run = dataclasses.replace(new.run, seed=new.run.seed + GOLD_SEED, overwrite=False, resume=begun)
    if finished:
        same_finished_run(run, "train_reward", task, to_dict(gold), world)
    else:
        if world.is_main:
            print("the gold reward model: training", flush=True)
        RewardTrainer.prepare(gold, precision, world).run(task, "gold")
    return str(run / "reward_model")


def gold_judge(folder: str, precision: Precision) -> Judge:
    """A reward model as the judge `gold`."""
    judge = load_judge(f"gold={folder}", precision.device)
    assert isinstance(judge, Judge)
    return judge


def works_of(params: SweepParams, members: list[Member], task: str, precision: Precision, world: World) -> list[Work]:
    """How each policy is trained."""

    def work(member: Member) -> Work:
        def train(begun: bool) -> None:
            names = (item.name for item in dataclasses.fields(PolicyTrainingParams))
            mine = PolicyTrainingParams(**{name: copy.deepcopy(getattr(params, name)) for name in names})
            mine.rewards.kl_coef, mine.run.seed, mine.run.resume = member.kl_coef, member.seed, begun
            PPOTrainer.prepare(mine, precision, world).run(task, member.name)

        return Work(member.name, Path(params.run.save_dir) / member.name, train)

    return [work(member) for member in members]


# --- measuring ---


@dataclass
class Measuring:
    """Judges, reference and queries, loaded before any training so that what is wrong with them shows at once."""

    params: SweepParams
    precision: Precision
    world: World
    judges: list[Judge]
    reference: Policy
    encoding: Encoding
    held_out: HeldOut

    @classmethod
    def load(cls, params: SweepParams, precision: Precision, world: World) -> "Measuring":
        """UserError if something cannot be had or does not fit."""
        task = params.task
        reference = load_policy(Path(task.policy.initial_model), task)
        config = reference.transformer.config
        encoding = get_encoding(config)
        if params.rewards.train_new_model is None:
            load_rewards(params.rewards, config, task, torch.device("cpu"))
        held_out = held_out_queries(task, encoding, params.samples, params.split, params.run.seed)
        judges, people = load_judges(
            params.judges or held_out_judges(dataset_split(task, params.split)[0]), precision.device
        )
        if people:
            raise UserError(
                "people cannot judge a sweep: they would have to choose between all its policies; compare two with "
                "evaluate"
            )
        if params.gold is not None and "gold" in [judge.name for judge in judges]:
            raise UserError("--judges has a judge called gold, as --gold's is: give it another name")
        if params.gold not in (None, NEW):
            judges.append(gold_judge(str(params.gold), precision))
        return cls(params, precision, world, judges, reference, encoding, held_out)

    def of_policies(self, folder: Path, trained: list[Member]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What `result.json` holds, and a line a query with every policy's response."""
        p = self.params
        sides, pool, samples = self.measured({member.name: folder / member.name / "policy" for member in trained})
        figures = figures_of(trained, sides, pool, p.min_effective, Bootstrap(p.samples, p.run.seed))
        return self.facts() | figures, self.lines(sides, samples)

    def measured(
        self, folders: dict[str, Path], betas: Mapping[str, float] = MappingProxyType({})
    ) -> tuple[dict[str, Scores], dict[str, np.ndarray], Scores]:
        """The scores of each policy, given by its folder; "proxy" and each judge -> float64 [n, N] of the reference's
        responses, N to each query; and these responses. betas: of those policies that are steered by another strength
        than their own.
        """
        p, N = self.params, self.params.responses
        proxy = load_rewards(p.rewards, self.reference.transformer.config, p.task, self.precision.device)
        proxy = proxy.to(self.precision.device).requires_grad_(False) if isinstance(proxy, torch.nn.Module) else proxy
        rewards = [proxy, *(judge.on_tokens(self.encoding) for judge in self.judges)]
        uniforms, sides = uniforms_of(p.task, p.samples, p.run.seed), {}
        for name, folder in folders.items():
            policy = load_policy(folder, p.task, betas.get(name))
            sides[name] = self.scores(policy, self.held_out.tokens, uniforms, rewards)
        if self.world.is_main:
            print(f"the reference: {N} responses to each of {p.samples:,} queries", flush=True)
        many = torch.rand(p.samples * N, p.task.response_length, generator=generator_for(p.run.seed, "sweep/uniforms"))
        samples = self.scores(self.reference, self.held_out.tokens.repeat_interleave(N, 0), many, rewards)
        pool = {
            "proxy": samples.proxy.reshape(-1, N),
            **{name: values.reshape(-1, N) for name, values in samples.gold.items()},
        }
        return sides, pool, samples

    def facts(self) -> dict[str, Any]:
        """What was measured on and by whom, as `result.json` says it."""
        p = self.params
        return {
            "split": p.split,
            "queries": p.samples,
            "responses": p.responses,
            "seed": p.run.seed,
            "reference": p.task.policy.initial_model,
            "proxy": p.rewards.function or p.rewards.trained_model,
            "judges": [judge.name for judge in self.judges],
        }

    def scores(self, policy: Policy, queries: torch.Tensor, uniforms: torch.Tensor, rewards: list[Rewards]) -> Scores:
        """Responses of `policy` to queries int64 [m, Q] at uniforms float32 [m, R], measured against the reference."""
        device, task = self.precision.device, self.params.task
        found = sample_and_score(
            policy.to(device),
            self.reference.to(device),
            rewards,
            response_ends(task, self.encoding),
            queries,
            uniforms,
            self.precision,
            self.params.run.micro_batch_scoring or 64,
            self.world,
        )
        proxy, *gold = found.scores.double().unbind(1)
        return Scores(
            penalise(proxy, found.valid, task.penalty_reward_value).numpy(),
            {judge.name: column.numpy() for judge, column in zip(self.judges, gold, strict=True)},
            found.kl.double().sum(1).numpy(),
            [readable(self.encoding, row) for row in found.tokens],
        )

    def lines(self, sides: dict[str, Scores], samples: Scores) -> list[dict[str, Any]]:
        """A line a query: every policy's response, the reference's first one before them."""
        N = self.params.responses
        lines: list[dict[str, Any]] = []
        for i, query in enumerate(self.held_out.texts):
            row: dict[str, Any] = {"query": query, "document": self.held_out.documents[i], "policies": {}}
            for name, side, at in (("reference", samples, i * N), *((name, side, i) for name, side in sides.items())):
                row["policies"][name] = {
                    "response": side.texts[at],
                    "proxy": float(side.proxy[at]),
                    "kl": float(side.kl[at]),
                    "gold": {judge: float(values[at]) for judge, values in side.gold.items()},
                }
            lines.append(row)
        return lines


# --- what is written ---


def write_sweep(folder: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """result.json, evaluation.jsonl (a line a query), sweep.svg and sweep.png."""
    write_json(folder / "result.json", result)
    with atomic_file(folder / "evaluation.jsonl") as temporary:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(lines, encoding="utf-8")
    sweep_report.write_sweep_figure(result, folder)
