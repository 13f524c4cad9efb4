"""Help, and the tables of tasks: what the command line prints of itself."""

import inspect
import json
from collections.abc import Iterable
from typing import Any

from lm_human_preferences.commands.command import Command, Experiments, nearest
from lm_human_preferences.data.tasks import ends_in_words
from lm_human_preferences.foundation.configuration import flatten
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.reports.tables import aligned

Rows = dict[str, tuple[Any, str]]  # a parameter's dotted name -> its value and what it is


def general_help(commands: Iterable[Command], experiments: Experiments) -> str:
    """What `python launch.py --help` prints."""
    lines = ["Learning from human preferences with language models.", "", "commands:"]
    lines += [f"  {command.line}\n      {command.help}" for command in commands]
    lines += [
        "",
        "tasks: " + ", ".join(_tasks(experiments)) + "; or a file of your own, TASK.json (docs/your_data.md)",
        "",
        "EXPERIMENT is the name of the run; everything it makes lies in saved_models/EXPERIMENT/.",
        "Every parameter can be set by its dotted name:  --ppo.lr 1e-5  --rewards.adaptive_kl off",
        "  python launch.py train_policy movies --help     lists them with their values",
        "  --dry_run                                       checks, prints the resolved configuration and stops",
        "Many processes: torchrun --nproc_per_node 8 launch.py train_policy ...",
        "",
        "Environment variables:",
        "  LMHP_HOME=FOLDER          has datasets/ and saved_models/, where that is not the folder of launch.py",
        "  OMP_WAIT_POLICY=active    waiting threads keep their cores busy; by default they sleep",
        "  MALLOC_ARENA_MAX=8        freed memory goes back to the system; by default the process keeps it",
        "  THP_MEM_ALLOC_ENABLE=0    large tensors take no huge pages",
    ]
    return "\n".join(lines)


def command_help(command: Command, arguments: Iterable[str], experiments: Experiments) -> str:
    """Help on a command: its parameters, what they mean, and their values (for the task named, if there are any)."""
    lines = [f"{command.line}: {command.help}"]
    if command.stage is None or command.of_entry is None:
        rows: Rows = flatten(command.params[0]()) if command.params else {}
        return "\n".join([*lines, *command.about, *parameter_lines(rows)])
    entries = experiments[command.stage]
    task = next((word for word in arguments if word in entries), next(iter(entries)))
    entry = entries[task]()
    rows, of_entry = flatten(command.of_entry(entry)), flatten(entry)
    rows = {name: row for name, row in rows.items() if name not in command.hidden}
    own = {name: row for name, row in rows.items() if name not in of_entry}  # the command's own first
    page = f" ({command.about[0]})" if command.about else ""
    lines += [f"tasks: {', '.join(entries)}", "", f"parameters, with their values for {task}{page}:"]
    return "\n".join([*lines, *command.about[1:], *parameter_lines(own | rows)])


def parameter_lines(rows: Rows) -> list[str]:
    return [f"  --{name} {shown(value)}\n        {text}" for name, (value, text) in rows.items()]


def shown(value: Any) -> str:
    """A parameter's value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def task_table(experiments: Experiments) -> str:
    """One line a task: lengths, what ends a response, KL, batch sizes, learning rates."""
    rows = [
        ["task", "stages", "query", "response", "ends with", "KL coefficient", "episodes", "policy lr"]
        + ["labels", "reward lr", "model"]
    ]
    for task in _tasks(experiments):
        stages = [stage.removeprefix("train_") for stage, entries in experiments.items() if task in entries]
        row = [task, " ".join(stages)] + [""] * 9
        if task in experiments["train_policy"]:
            p = experiments["train_policy"][task]()
            t, adaptive = p.task, p.rewards.adaptive_kl
            row[2:8] = [
                str(t.query_length),
                str(t.response_length),
                ends_in_words(t),
                f"{p.rewards.kl_coef:g}" + (f" to {adaptive.target:g} nats" if adaptive else ""),
                f"{p.ppo.total_episodes:,} by {p.ppo.batch_size}",
                f"{p.ppo.lr:g}",
            ]
            row[10] = t.policy.initial_model
        if task in experiments["train_reward"]:
            r = experiments["train_reward"][task]()
            row[8:10] = [f"{r.labels.num_train:,} by {r.batch_size}", f"{r.lr:g}"]
        rows.append(row)
    return "\n".join(aligned(rows, left=len(rows[0]), indent="", gap="  "))


def task_in_full(task: str, experiments: Experiments) -> str:
    """Every stage's parameters of a task. UserError if there is no such task."""
    stages = {stage: entries[task] for stage, entries in experiments.items() if task in entries}
    if not stages:
        every = _tasks(experiments)
        raise UserError(f"there is no task {task!r}{nearest(task, every) or '; there are ' + ', '.join(every)}")
    return "\n\n".join(
        "\n".join(
            [f"{stage} {task}: {inspect.getdoc(getattr(entry, 'func', entry)) or ''}".rstrip(": ")]
            + [f"  {name} = {shown(value)}" for name, (value, _) in flatten(entry()).items()]
        )
        for stage, entry in stages.items()
    )


def _tasks(experiments: Experiments) -> list[str]:
    return sorted({task for entries in experiments.values() for task in entries})


def changes(params: Any, entry: Any) -> str:
    """How many parameters are as the task's entry has them, and which are not."""
    now, before = flatten(params), flatten(entry)
    changed = {name: value for name, (value, _) in now.items() if name not in before or before[name][0] != value}
    said = f"{len(now) - len(changed)} parameters as the task has them"
    return said + (", changed: " + ", ".join(f"{name} = {value}" for name, value in changed.items()) if changed else "")
