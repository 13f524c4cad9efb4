"""Sweeps against reward models of more and fewer labels: `python launch.py sweep TASK EXPERIMENT --shares 0.1,0.3,1
--gold new --rewards.kl_coef C,C,...`, after Gao et al. 2022 (arXiv 2210.10760, section 3.3).

From top to bottom: the gold reward model, if it is to be trained -> for each share a sweep of its own, whose reward
model learns the first labels -> all of them in one figure and one table.
"""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

from lm_human_preferences.commands import sweep
from lm_human_preferences.commands.sweep import NEW, SweepParams
from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.foundation.configuration import to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json, read_json_object, write_json
from lm_human_preferences.reports import shares_report
from lm_human_preferences.runs.description import describe_run
from lm_human_preferences.runs.folder import go_on_after_restart
from lm_human_preferences.runs.locks import patiently, wait_for
from lm_human_preferences.runs.params import computing

STAGE = "sweep_shares"
FREE = (*sweep.FREE, "shares")


def parse_shares(text: str) -> list[float]:
    """The shares of `S,S,...`, the smallest first. UserError for what is none, and for one that is given twice."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            found.append(math.nan)
        if not 0 < found[-1] <= 1:
            raise UserError(f"--shares {text}: {part.strip()!r} is not a share above 0 and at most 1")
    if len(set(found)) < len(found):
        raise UserError(f"--shares {text} has a share twice")
    return sorted(found)


def labels_of(share: float, params: SweepParams) -> int:
    """How many labels a share is: whole batches, one at least."""
    new = params.rewards.train_new_model
    assert new is not None
    return max(1, round(share * new.labels.num_train / new.batch_size)) * new.batch_size


def of_share(params: SweepParams, share: float, folder: Path, gold: str | None) -> SweepParams:
    """A share's sweep, in `folder`: the same parameters with fewer labels."""
    mine = copy.deepcopy(params)
    new = mine.rewards.train_new_model
    assert new is not None
    new.labels.num_train = labels_of(share, params)
    mine.shares, mine.gold = None, gold
    mine.run = dataclasses.replace(mine.run, save_dir=str(folder), overwrite=False, resume=False)
    settled = sweep.settle(mine)
    sweep.check(settled)
    return settled


def settle(params: SweepParams) -> SweepParams:
    return sweep.settle(params)


def check(params: SweepParams) -> None:
    """UserError for settled parameters that cannot work."""
    sweep.check(params)
    shares = parse_shares(params.shares or "")
    if len({labels_of(share, params) for share in shares}) < len(shares):
        raise UserError(f"--shares {params.shares}: two of them are the same number of batches of labels")


def sweep_shares(params: SweepParams, coefficients: list[float], task: str, experiment: str) -> Path:
    """A sweep for each share, what is finished skipped; returns the folder of all. UserError before any training if it
    cannot work.
    """
    params = settle(params)
    check(params)
    shares, folder = parse_shares(params.shares or ""), Path(params.run.save_dir) / experiment
    with computing(params.run) as (precision, world):
        go_on_after_restart(params.run, folder, world)
        description = describe_run(STAGE, task, experiment, to_dict(params)) | {"launch": list(world.launch)}
        description["parameters"]["rewards"]["kl_coef"] = coefficients
        sweep.check_folder(folder, description, params, STAGE, FREE)
        sweep.open_folder(folder, description, params, world)
        gold = patiently(lambda: gold_of(params, folder, task, precision, world), world)
        for share in shares:
            if world.is_main:
                print(f"\nshare {share:g}: {labels_of(share, params):,} labels", flush=True)
            mine = of_share(params, share, folder, gold)
            sweep.sweep_here(mine, coefficients, task, name_of(share), precision, world)
        for share in shares:  # another process may still measure one
            wait_for(folder / name_of(share), world)
        if world.is_main:
            result = {"task": task, "experiment": experiment, "shares": [found_of(params, s, folder) for s in shares]}
            write_json(folder / "result.json", result)
            shares_report.write_shares_figure(result, folder)
            print(shares_report.shares_table(result))
            print(f"\nfigure {folder / 'shares.svg'}, figures in {folder / 'result.json'}; ", end="")
            print(f"python launch.py report {experiment} makes a page of them")
        return folder


def name_of(share: float) -> str:
    """The name of a share's sweep in the folder of all."""
    return f"share_{share:g}"


def gold_of(params: SweepParams, folder: Path, task: str, precision: Precision, world: World) -> str | None:
    """The gold reward model that all sweeps have in common; None if other judges judge alone."""
    if params.gold != NEW:
        return params.gold
    mine = copy.deepcopy(params)
    mine.run = dataclasses.replace(mine.run, save_dir=str(folder), overwrite=False, resume=True)
    return sweep.train_gold(sweep.settle(mine), precision, world, task)


def found_of(params: SweepParams, share: float, folder: Path) -> dict[str, Any]:
    """What a share's sweep found, and how good its reward model, or its members on average, is on held-out labels."""
    result = read_json(folder / name_of(share) / "result.json")
    reward = folder / name_of(share) / f"{name_of(share)}_reward" / "result.json"
    quality = read_json_object(reward) if reward.is_file() else {}
    of_members = [member.get("accuracy") for member in quality.get("members", [quality])]
    known = [accuracy for accuracy in of_members if accuracy is not None]
    kept = ("queries", "split", "judges", "reference_policy", "policies", "best_of_n", "fits", "verdicts")
    return {
        "share": share,
        "labels": labels_of(share, params),
        "accuracy": sum(known) / len(known) if known else None,
        **{name: result[name] for name in kept},
    }
