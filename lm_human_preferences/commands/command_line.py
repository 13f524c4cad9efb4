"""The commands of `launch.py`: one list of them, and what each does with its words and flags.

Fire finds the command and hands over its words and flags; the parameters' types are ours to check, so that a mistake
is one line that says how to mend it. `COMMANDS` at the end is the list; the functions before it are in its order.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import fire

from lm_human_preferences import expert_iteration, train_dpo, train_ilql, train_policy, train_reward, train_sft
from lm_human_preferences.commands import (
    collect,
    compare,
    convert_labels,
    evaluate,
    inspect_labels,
    people_labels,
    perplexity,
    plan,
    play,
    reward_quality,
    sample,
    sweep,
    sweep_shares,
)
from lm_human_preferences.commands.command import HELP, Command, Experiments, find_command, find_entry, words_and_flags
from lm_human_preferences.commands.help import changes, command_help, general_help, task_in_full, task_table
from lm_human_preferences.commands.inputs import check_present, find_run, missing
from lm_human_preferences.commands.task_files import with_task_files
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.compute.torchrun import is_first_to_say
from lm_human_preferences.foundation.configuration import apply_overrides, find_paths, flatten, param, parse, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.reports.report import ReportParams, write_report
from lm_human_preferences.runs.folder import Run, check_name
from lm_human_preferences.watching import doctor

Words = tuple[str, ...]
Flags = dict[str, str]  # parameter -> its text
NOT_EVALUATED = ("task.penalty_reward_value", "task.policy.initial_model")  # have no part in `evaluate`


def run(arguments: Sequence[str], experiments: Experiments) -> None:
    """Do what the command line says. UserError for whatever the user has to mend, before anything is written."""
    if arguments and arguments[0] not in HELP:
        experiments = with_task_files(find_command(arguments[0], COMMANDS), arguments[1:], experiments)
    prepared = prepare(arguments, experiments)
    if prepared is not None:
        offered = {command.name: _for_fire(command, experiments) for command in COMMANDS}
        fire.Fire(offered, command=prepared, name="launch.py", serialize=lambda result: None)


def prepare(arguments: Sequence[str], experiments: Experiments) -> list[str] | None:
    """The arguments for Fire, each flag with its value; None if help was wanted and has been printed.

    UserError for a misspelt command or flag.
    """
    if not arguments or arguments[0] in HELP:
        print(general_help(COMMANDS, experiments))
        return None
    command = find_command(arguments[0], COMMANDS)
    found = words_and_flags(command, arguments[1:])
    if found is None:
        print(command_help(command, arguments[1:], experiments))
        return None
    return [command.name, *found]


def _for_fire(command: Command, experiments: Experiments) -> Any:
    """The command as a function that Fire calls with its words and flags, all texts."""

    def function(*words: str, **flags: str) -> None:
        command.check_words(words)
        command.run(words, flags, experiments)

    return fire.decorators.SetParseFn(str)(function)


# --- what each command does ---


def train(stage: str, module: ModuleType, words: Words, flags: Flags, experiments: Experiments) -> None:
    """Resolve a stage's parameters, check them, say what differs from the task's entry, and train."""
    task, experiment = words
    check_name(experiment)
    entry = find_entry(stage, task, experiments)
    dry_run = parse(flags.pop("dry_run", "off"), bool, "dry_run")
    params = apply_overrides(entry(), flags)
    located = find_paths(params)
    settled = settle_and_check(module, located)
    if dry_run:
        print(json.dumps(to_dict(settled), indent=2, ensure_ascii=False))
        for lack in missing(settled):
            print(f"not here yet: {lack}", file=sys.stderr)
        return
    check_present(settled, task)
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # a restarted rank goes on with its run, as only all of them can tell
        Run(Path(located.run.save_dir) / experiment, located.run).check_free()
    said = f"{stage} {task}: {changes(params, entry())}"
    if is_first_to_say(said):
        print(said)
    module.train(located, task, experiment)


def settle_and_check(module: ModuleType, params: Any) -> Any:
    """A stage's parameters as a run would use them. UserError for those that cannot work on this machine."""
    settled = module.settle(params)
    module.check(settled)
    choose_precision(settled.run.device, settled.run.precision)
    return settled


def run_sample(words: Words, flags: Flags, experiments: Experiments) -> None:
    params = find_paths(apply_overrides(sample.SampleParams(), flags))
    task = find_entry("train_policy", params.task, experiments)().task if params.task else None
    sample.write_samples(words[0], params, task)


def run_play(words: Words, flags: Flags, experiments: Experiments) -> None:
    play.play(words[0], find_paths(apply_overrides(play.PlayParams(), flags)))


def run_perplexity(words: Words, flags: Flags, experiments: Experiments) -> None:
    params = find_paths(apply_overrides(perplexity.PerplexityParams(), flags))
    print("\n".join(perplexity.perplexity_lines(words[0], words[1:], params)))


def run_evaluate(words: Words, flags: Flags, experiments: Experiments) -> None:
    if unused := next((name for name in NOT_EVALUATED if name in flags), None):
        raise UserError(
            f"--{unused} has no part in evaluate: scores there are without penalty, and --policies names the models"
        )
    entry = find_entry("train_policy", words[0], experiments)()
    params = find_paths(apply_overrides(evaluate.EvaluateParams(task=entry.task), flags))
    evaluate.evaluate(params, words[0])


def run_collect(words: Words, flags: Flags, experiments: Experiments) -> None:
    task, experiment = words
    entry = find_entry("train_policy", task, experiments)()
    params = find_paths(apply_overrides(collect.CollectParams(task=entry.task), flags))
    collect.collect(params, task, experiment)


def run_reward_quality(words: Words, flags: Flags, experiments: Experiments) -> None:
    params = find_paths(apply_overrides(reward_quality.RewardQualityParams(), flags))
    settings = find_entry("train_reward", params.task, experiments)() if params.task else None
    reward_quality.reward_quality(words[0], params, find_paths(settings) if settings else None)


def run_sweep(words: Words, flags: Flags, experiments: Experiments) -> None:
    task, experiment = words
    check_name(experiment)
    coefficients = sweep.parse_coefficients(flags.pop("rewards.kl_coef", ""))
    params = sweep.SweepParams.of(find_entry("train_policy", task, experiments)())
    params = find_paths(apply_overrides(params, flags))
    several = params.shares is not None
    check_present(settle_and_check(sweep_shares if several else sweep, params), task)
    do = sweep_shares.sweep_shares if several else sweep.sweep
    do(params, coefficients, task, experiment)


def comparison_of(task: str, experiments: Experiments) -> compare.CompareParams:
    """The parameters of a comparison with the task's own values. UserError unless its stages have the task; train_ilql
    may lack it.
    """
    policy, dpo, expert = (find_entry(stage, task, experiments)() for stage in compare.ENTRIES)
    ilql = experiments["train_ilql"][task]() if task in experiments["train_ilql"] else None
    return compare.CompareParams.of_entries(policy, dpo, expert, ilql)


def run_compare(words: Words, flags: Flags, experiments: Experiments) -> None:
    task, experiment = words
    check_name(experiment)
    params = find_paths(apply_overrides(comparison_of(task, experiments), flags))
    check_present(settle_and_check(compare, params), task)
    compare.compare(params, task, experiment)


def run_report(words: Words, flags: Flags, experiments: Experiments) -> None:
    params = find_paths(apply_overrides(ReportParams(), flags))
    print(f"report in {write_report(find_run(words[0], params.save_dir), params.samples)}")


def run_plan(words: Words, flags: Flags, experiments: Experiments) -> None:
    """Flags are the command's own or any stage's; a stage takes those that it has. A stage that would not begin is left
    out; UserError where none would, or none of those that take a flag.
    """
    task, own = words[0], flatten(plan.PlanParams())
    stages = {stage: entries[task]() for stage, entries in experiments.items() if task in entries}
    if not stages:
        find_entry("train_policy", task, experiments)
    shared = {name: value for name, value in flags.items() if name not in own}
    for name, value in shared.items():
        if not any(name in flatten(params) for params in stages.values()):
            apply_overrides(next(iter(stages.values())), {name: value})  # says which name is nearest
    takers = {name: [stage for stage, params in stages.items() if name in flatten(params)] for name in shared}
    for stage, params in stages.items():
        apply_overrides(params, {name: value for name, value in shared.items() if stage in takers[name]})
    planned = {name: value for name, value in flags.items() if name in own}
    params = find_paths(apply_overrides(plan.PlanParams(), planned))
    stages = {stage: find_paths(entry) for stage, entry in stages.items()}
    refused = dict[str, UserError]()
    for stage, entry in stages.items():
        try:
            MODULES[stage].check(MODULES[stage].settle(entry))
        except UserError as error:
            refused[stage] = error
    for together in (list(stages), *takers.values()):
        if refused.keys() >= set(together):
            raise refused[together[0]]
    for stage, reason in refused.items():
        print(f"{stage} is left out: {reason}")
        del stages[stage]
    print(plan.plan(params, stages, task))


@dataclass
class DoctorParams:
    """Where the run lies."""

    save_dir: str = param("saved_models", "folder that holds the run folders", "path")


def run_doctor(words: Words, flags: Flags, experiments: Experiments) -> None:
    """Exit status 1 if something is wrong with the run."""
    folder = find_run(words[0], find_paths(apply_overrides(DoctorParams(), flags)).save_dir)
    diagnosis = doctor.examine(folder)
    print(doctor.describe(diagnosis, folder.name))
    if not diagnosis.healthy:
        raise SystemExit(1)


def run_labels(words: Words, flags: Flags, experiments: Experiments) -> None:
    """`inspect` and `convert` take label files; `inspect`, `quality` and `export` take what people answered."""
    save_dir = str(find_path(flags.get("save_dir", people_labels.StudyLabelsParams.save_dir)))
    of_study = words[0] in ("export", "quality") or (
        words[0] == "inspect" and people_labels.find_study(words[1], save_dir) is not None
    )
    if len(words) == 2 and of_study:
        study = find_paths(apply_overrides(people_labels.StudyLabelsParams(), flags))
        do = {
            "export": people_labels.export,
            "quality": people_labels.study_quality,
            "inspect": people_labels.inspect_study,
        }
        print(do[words[0]](words[1], study))
        return
    params = apply_overrides(inspect_labels.LabelToolParams(), flags)
    if words[0] == "inspect" and len(words) == 2:
        print(inspect_labels.inspect(words[1], params))
    elif words[0] == "convert" and len(words) == 3:
        print(convert_labels.convert(words[1], words[2], params))
    else:
        raise UserError(
            "labels takes these forms: python launch.py labels inspect SOURCE, labels convert SOURCE OUTPUT, labels "
            "quality STUDY, labels export STUDY"
        )


@dataclass
class TasksParams:
    """None."""


def run_tasks(words: Words, flags: Flags, experiments: Experiments) -> None:
    apply_overrides(TasksParams(), flags)
    print(task_in_full(words[0], experiments) if words else task_table(experiments))


# --- the list of them ---


MODULES = {
    "train_sft": train_sft,
    "train_reward": train_reward,
    "train_policy": train_policy,
    "expert_iteration": expert_iteration,
    "train_dpo": train_dpo,
    "train_ilql": train_ilql,
}


def _stage(name: str, params: type, help: str) -> Command:
    usage, takes = "TASK EXPERIMENT [--parameter value ...]", "a task and a name for the run"
    do = partial(train, name, MODULES[name])
    return Command(name, usage, takes, (2, 2), help, do, (params,), stage=name, of_entry=lambda entry: entry)


COMMANDS = (
    _stage("train_sft", train_sft.SFTParams, "train a language model on a data set"),
    _stage("train_reward", train_reward.RewardTrainingParams, "train a reward model on human choices"),
    _stage("train_policy", train_policy.PolicyTrainingParams, "tune a language model against a reward model with PPO"),
    _stage(
        "expert_iteration",
        expert_iteration.ExpertIterationParams,
        "tune a language model on the best of its own responses, again and again",
    ),
    _stage("train_dpo", train_dpo.DPOParams, "tune a language model on human choices without a reward model"),
    _stage(
        "train_ilql",
        train_ilql.ILQLParams,
        "learn values from texts with scores and let them steer what the language model writes",
    ),
    Command(
        "sample",
        "EXPERIMENT",
        "one name",
        (1, 1),
        "write continuations with a trained model",
        run_sample,
        (sample.SampleParams,),
    ),
    Command(
        "play",
        "EXPERIMENT [--beside OTHER]",
        "one name",
        (1, 1),
        "serve a page on which a trained model writes as you type, beside another one",
        run_play,
        (play.PlayParams,),
        about=("EXPERIMENT and OTHER are runs or model folders (docs/play.md).",),
    ),
    Command(
        "perplexity",
        "MODEL DATASET [DATASET ...]",
        "a model and a data set",
        (2, 1000),
        "measure how well a language model predicts held-out text",
        run_perplexity,
        (perplexity.PerplexityParams,),
        about=("MODEL is a run or a model folder, DATASET a folder or the name of one in datasets/.",),
    ),
    Command(
        "evaluate",
        "TASK --policies NAME=PATH,NAME=PATH",
        "one task",
        (1, 1),
        "compare policies on held-out queries: judges, KL, lengths, variety, perplexity, win rates, with intervals",
        run_evaluate,
        (evaluate.EvaluateParams,),
        stage="train_policy",
        of_entry=lambda entry: evaluate.EvaluateParams(task=entry.task),
        hidden=NOT_EVALUATED,
        about=("docs/evaluation.md explains judges and figures",),
    ),
    Command(
        "collect",
        "TASK EXPERIMENT --labellers NAME,NAME",
        "a task and a name for the study",
        (2, 2),
        "ask people which response is best, on a web page of this machine",
        run_collect,
        (collect.CollectParams,),
        stage="train_policy",
        of_entry=lambda entry: collect.CollectParams(task=entry.task),
        about=("docs/people.md explains how a study is run",),
    ),
    Command(
        "reward_quality",
        "EXPERIMENT",
        "one name",
        (1, 1),
        "measure a reward model on held-out choices: calibration, length, agreement with people, learning curve",
        run_reward_quality,
        (reward_quality.RewardQualityParams,),
        about=("EXPERIMENT is a run of train_reward, or a reward-model folder (then give --task).",),
    ),
    Command(
        "sweep",
        "TASK EXPERIMENT --rewards.kl_coef C,C,... --seeds N",
        "a task and a name",
        (2, 2),
        "train policies over KL coefficients and seeds; draw proxy and gold score against KL, beside best-of-n and the "
        "optimal policies",
        run_sweep,
        (sweep.SweepParams,),
        stage="train_policy",
        of_entry=sweep.SweepParams.of,
        hidden=("rewards.kl_coef",),  # has several values here
        about=("docs/sweep.md explains the figure", f"  --rewards.kl_coef C,C,...\n        {sweep.COEFFICIENTS_HELP}"),
    ),
    Command(
        "compare",
        "TASK EXPERIMENT --methods ppo,rloo,dpo,best_of_n --seeds N",
        "a task and a name",
        (2, 2),
        "train policies by several methods, over strengths of regularisation and seeds; compare them at equal KL",
        run_compare,
        (compare.CompareParams,),
        about=("docs/methods.md explains the methods and the comparison; values are the task's unless given.",),
    ),
    Command(
        "report",
        "EXPERIMENT",
        "one name",
        (1, 1),
        "draw figures and an HTML page of a run, or of what evaluate or reward_quality found",
        run_report,
        (ReportParams,),
    ),
    Command(
        "plan",
        "TASK --model 774M --devices 8 --device cuda --memory 80",
        "one task",
        (1, 1),
        "predict each stage's memory on one or many devices and say what fits",
        run_plan,
        (
            plan.PlanParams,
            train_sft.SFTParams,
            train_reward.RewardTrainingParams,
            train_policy.PolicyTrainingParams,
            train_dpo.DPOParams,
            train_ilql.ILQLParams,
            expert_iteration.ExpertIterationParams,
        ),
        about=(
            "Its own parameters; and the stages', such as --run.micro_batch 16, --run.recompute_activations on or "
            "--ppo.batch_size 64.",
        ),
    ),
    Command(
        "doctor",
        "EXPERIMENT",
        "one name",
        (1, 1),
        "look for what is wrong with a run, finished or not; exit status 1 if something is",
        run_doctor,
        (DoctorParams,),
    ),
    Command(
        "labels",
        "inspect SOURCE | convert SOURCE OUTPUT | quality STUDY | export STUDY",
        "one of these forms",
        (2, 3),
        "look into a label file or write it in the other form; what people answered, and how far it can be trusted",
        run_labels,
        (inspect_labels.LabelToolParams, people_labels.StudyLabelsParams),
        about=(
            "SOURCE is a file of any form (docs/your_data.md), a web address or a study; OUTPUT ends in .json (token",
            "lists), .jsonl (texts), .csv or .parquet, and --to says which form it has.",
            "STUDY is a study of collect, by name or path; quality and export take --merge, --output, --save_dir",
            "(docs/people.md).",
        ),
    ),
    Command(
        "tasks", "[TASK]", "one task at most", (0, 1), "list the tasks, or print one in full", run_tasks, (TasksParams,)
    ),
)
STAGES = tuple(command.name for command in COMMANDS if command.stage == command.name)
