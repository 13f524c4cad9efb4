"""What the commands of `launch.py` do: resolve an experiment's parameters, print them, run a stage; sample, evaluate,
report and the others.

Fire finds the command and its arguments; the parameters' types are ours to check, so that a mistake is one line that
says how to mend it.
"""

import difflib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire

from lm_human_preferences.compute.torchrun import is_first_to_say
from lm_human_preferences.data.queries import dataset_folder, preparation_command
from lm_human_preferences.foundation.configuration import apply_overrides, flatten, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import SHAPES
from lm_human_preferences.runs.folder import check_name

STAGES = {
    "train_sft": "train a language model on a data set",
    "train_reward": "train a reward model on human choices",
    "train_policy": "tune a language model against a reward model with PPO",
}
OTHERS = {
    "sample": "write continuations with a trained model",
    "perplexity": "measure how well a language model predicts held-out text",
    "evaluate": "compare policies on held-out queries: judges, KL, lengths, variety, perplexity, win rates, with intervals",
    "reward_quality": "measure a reward model on held-out choices: calibration, length, agreement with people, learning curve",
    "sweep": "train policies over KL coefficients and seeds; draw proxy and gold score against KL, beside best-of-n and the optimal policies",
    "report": "draw figures and an HTML page of a run, or of what evaluate or reward_quality found",
    "plan": "predict each stage's memory on one or many devices and say what fits",
    "doctor": "look for what is wrong with a run, finished or not; exit status 1 if something is",
    "labels": "look into a label file, or write it in the other form",
    "tasks": "list the tasks, or print one in full",
}
USAGE = {
    "sample": "EXPERIMENT",
    "perplexity": "MODEL DATASET [DATASET ...]",
    "evaluate": "TASK --policies NAME=PATH,NAME=PATH",
    "reward_quality": "EXPERIMENT",
    "sweep": "TASK EXPERIMENT --rewards.kl_coef C,C,... --seeds N",
    "report": "EXPERIMENT",
    "plan": "TASK --model 774M --devices 8 --device cuda --memory 80",
    "doctor": "EXPERIMENT",
    "labels": "inspect SOURCE | convert SOURCE OUTPUT",
    "tasks": "[TASK]",
}
NOT_EVALUATED = (
    "task.penalty_reward_value",
    "task.policy.initial_model",
)  # parameters of a task that have no part in `evaluate`

Experiments = dict[str, dict[str, Callable[[], Any]]]


def prepare(arguments: list[str], experiments: Experiments) -> list[str] | None:
    """The arguments for fire; None if help was asked for and has been printed. UserError for a misspelt command or
    missing word.
    """
    words = [word for word in arguments if not word.startswith("-")]
    wants_help = any(word in ("--help", "-h", "help") for word in arguments)
    if not arguments or (wants_help and not words) or arguments == ["help"]:
        print(general_help(experiments))
        return None
    command = arguments[0]
    if command not in STAGES | OTHERS:
        near = difflib.get_close_matches(command, [*STAGES, *OTHERS], n=1, cutoff=0.4)
        raise UserError(
            f"unknown command {command!r}"
            + (f"; did you mean {near[0]}?" if near else "; python launch.py --help lists them")
        )
    for word in arguments[1:]:
        if word.startswith("-") and not word.startswith("--") and word != "-h" and not _is_number(word):
            raise UserError(f"{word}: parameters are written with two dashes, like --run.seed 1")
    if wants_help:
        print(command_help(command, arguments[1:], experiments))
        return None
    return [command, *_joined(arguments[1:])]


def _joined(arguments: list[str]) -> list[str]:
    """`--name value` as `--name=value`, so that a value such as -0.5 is never taken for a flag; a lone `--name` becomes
    `--name=on`.
    """
    joined, i = [], 0
    while i < len(arguments):
        word = arguments[i]
        following = arguments[i + 1] if i + 1 < len(arguments) else None
        if word.startswith("--") and "=" not in word:
            takes_value = following is not None and (not following.startswith("-") or _is_number(following))
            joined.append(f"{word}={following if takes_value else 'on'}")
            i += 2 if takes_value else 1
        else:
            joined.append(word)
            i += 1
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class Commands:
    """The commands fire offers."""

    def __init__(self, experiments: Experiments):
        self._experiments = experiments

    @fire.decorators.SetParseFn(str)
    def train_sft(self, *words: str, **overrides: str) -> None:
        from lm_human_preferences.train_sft import train

        self._stage("train_sft", train, words, overrides)

    @fire.decorators.SetParseFn(str)
    def train_reward(self, *words: str, **overrides: str) -> None:
        from lm_human_preferences.train_reward import train

        self._stage("train_reward", train, words, overrides)

    @fire.decorators.SetParseFn(str)
    def train_policy(self, *words: str, **overrides: str) -> None:
        from lm_human_preferences.train_policy import train

        self._stage("train_policy", train, words, overrides)

    @fire.decorators.SetParseFn(str)
    def sample(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.sample import SampleParams, write_samples

        params = apply_overrides(SampleParams(), options)
        task = find_entry("train_policy", params.task, self._experiments)().task if params.task else None
        write_samples(_one_word(words, "sample", "EXPERIMENT"), params, task)

    @fire.decorators.SetParseFn(str)
    def perplexity(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.perplexity import PerplexityParams, measure

        if len(words) < 2:
            raise UserError(
                f"perplexity takes a model and a data set: python launch.py perplexity {USAGE['perplexity']}"
            )
        print("\n".join(measure(words[0], words[1:], apply_overrides(PerplexityParams(), options))))

    @fire.decorators.SetParseFn(str)
    def evaluate(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.evaluate import EvaluateParams, evaluate

        task = _one_word(words, "evaluate", USAGE["evaluate"])
        if unused := next((name for name in NOT_EVALUATED if name in options), None):
            raise UserError(
                f"--{unused} has no part in evaluate: scores there are without penalty, and --policies names the models"
            )
        entry = find_entry("train_policy", task, self._experiments)()
        evaluate(apply_overrides(EvaluateParams(task=entry.task), options), task)

    @fire.decorators.SetParseFn(str)
    def sweep(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.sweep import SweepParams, parse_coefficients, sweep

        if len(words) != 2:
            raise UserError(
                f"sweep takes a task and a name: python launch.py sweep {USAGE['sweep']} [--parameter value ...]"
                + (f"; what is {words[2]!r}?" if len(words) > 2 else "")
            )
        task, experiment = words
        check_name(experiment)
        coefficients = parse_coefficients(options.pop("rewards.kl_coef", ""))
        params = apply_overrides(SweepParams.of(find_entry("train_policy", task, self._experiments)()), options)
        check_present(params, task)
        sweep(params, coefficients, task, experiment)

    @fire.decorators.SetParseFn(str)
    def reward_quality(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.reward_quality import RewardQualityParams, measure

        params = apply_overrides(RewardQualityParams(), options)
        settings = find_entry("train_reward", params.task, self._experiments)() if params.task else None
        measure(_one_word(words, "reward_quality", "EXPERIMENT"), params, settings)

    @fire.decorators.SetParseFn(str)
    def report(self, *words: str, **options: str) -> None:
        from lm_human_preferences.reports.report import ReportParams, write_report

        params = apply_overrides(ReportParams(), options)
        print(
            f"report in {write_report(find_run(_one_word(words, 'report', 'EXPERIMENT'), params.save_dir), params.samples)}"
        )

    @fire.decorators.SetParseFn(str)
    def labels(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.inspect_labels import LabelToolParams, convert, inspect

        params = apply_overrides(LabelToolParams(), options)
        if words[:1] == ("inspect",) and len(words) == 2:
            print(inspect(words[1], params))
        elif words[:1] == ("convert",) and len(words) == 3:
            print(convert(words[1], words[2], params))
        else:
            raise UserError(
                "labels takes two forms: python launch.py labels inspect SOURCE, python launch.py labels convert SOURCE OUTPUT"
            )

    @fire.decorators.SetParseFn(str)
    def doctor(self, *words: str, **options: str) -> None:
        from lm_human_preferences.watching.doctor import describe, examine

        save_dir = _only(options, "save_dir", "saved_models")
        folder = find_run(_one_word(words, "doctor", "EXPERIMENT"), save_dir)
        diagnosis = examine(folder)
        print(describe(diagnosis, folder.name))
        if not diagnosis.healthy:
            raise SystemExit(1)

    @fire.decorators.SetParseFn(str)
    def plan(self, *words: str, **options: str) -> None:
        from lm_human_preferences.commands.plan import PlanParams, plan

        task = _one_word(words, "plan", USAGE["plan"])
        own = {name: value for name, value in options.items() if name in flatten(PlanParams())}
        shared = {name: value for name, value in options.items() if name not in own}
        stages = {stage: self._experiments[stage][task] for stage in STAGES if task in self._experiments[stage]}
        if not stages:
            find_entry("train_policy", task, self._experiments)
        entries = {stage: _planned(entry(), shared) for stage, entry in stages.items()}
        if unknown := next(
            (name for name in shared if not any(name in flatten(entry) for entry in entries.values())), None
        ):
            apply_overrides(next(iter(entries.values())), {unknown: shared[unknown]})
        print(plan(apply_overrides(PlanParams(), own), entries, task))

    @fire.decorators.SetParseFn(str)
    def tasks(self, *words: str, **options: str) -> None:
        _only(options)
        print(
            task_table(self._experiments)
            if not words
            else task_in_full(_one_word(words, "tasks", "TASK"), self._experiments)
        )

    def _stage(self, stage: str, train: Callable, words: tuple[str, ...], overrides: dict[str, str]) -> None:
        """Resolve the parameters, say what differs from the task's entry, and run."""
        if len(words) != 2:
            raise UserError(
                f"{stage} takes a task and a name for the run: python launch.py {stage} TASK EXPERIMENT [--parameter value ...]"
                + (f"; what is {words[2]!r}?" if len(words) > 2 else "")
            )
        task, experiment = words
        check_name(experiment)
        entry = find_entry(stage, task, self._experiments)
        dry_run = overrides.pop("dry_run", None)
        params = apply_overrides(entry(), overrides)
        if dry_run is not None and dry_run.lower() not in ("on", "off", "true", "false"):
            raise UserError(f"--dry_run {dry_run}: expected on or off")
        if dry_run is not None and dry_run.lower() in ("on", "true"):
            print(json.dumps(to_dict(params), indent=2))
            return
        inherited = flatten(entry())
        changed = {
            name: value
            for name, (value, _) in flatten(params).items()
            if name not in inherited or inherited[name][0] != value
        }
        said = f"{stage} {task}: {len(flatten(params)) - len(changed)} parameters as the task has them" + (
            ", changed: " + ", ".join(f"{name} = {value}" for name, value in changed.items()) if changed else ""
        )
        if is_first_to_say(said):
            print(said)
        check_present(params, task)
        train(params, task, experiment)


def check_present(params: Any, task: str) -> None:
    """UserError in one line that lists which model, queries and labels the run needs and lacks, and the command that
    brings each.
    """
    missing = []
    spec = None if hasattr(params, "model") else params.task  # supervised training names model and data set itself
    model = spec.policy.initial_model if spec else params.model.initial
    if model is not None and not Path(model).is_dir():
        missing.append(f"the model {model}{how_to_get_model(Path(model))}")
    dataset = (spec.query_dataset if spec else params.data.dataset).partition(":")[0]
    if not dataset_folder(dataset).is_dir():
        missing.append(f"the data set datasets/{dataset} ({preparation_command(dataset)})")
    reward = params if hasattr(params, "labels") else getattr(getattr(params, "rewards", None), "train_new_model", None)
    rewards = getattr(params, "rewards", None)
    if (
        reward is not None
        and getattr(rewards, "trained_model", None) is None
        and getattr(rewards, "function", None) is None
    ):
        for source in (reward.labels.source, reward.labels.valid_source):
            if source and "://" not in source and not Path(source).exists():
                missing.append(f"the labels {source}")
    if missing:
        raise UserError(f"task {task} needs {'; '.join(missing)}")


def how_to_get_model(folder: Path) -> str:
    """What brings a model folder that is missing, in brackets; empty if nothing does."""
    maker = Path("saved_models/prepare_pytorch_checkpoint.py")
    if folder == Path("saved_models/tiny"):
        return " (it comes with the repository: git checkout saved_models/tiny)"
    if folder.name == "lm" and folder.parent.parent == Path("saved_models"):
        return f" (python launch.py train_sft TASK {folder.parent.name}, TASK being the one it is named after)"
    return f" (python {maker} {folder.name})" if folder.name in SHAPES else ""


def find_entry(stage: str, task: str, experiments: Experiments) -> Callable[[], Any]:
    """The function that makes the parameters of a stage and task; UserError for an unknown task."""
    if task in experiments[stage]:
        return experiments[stage][task]
    near = difflib.get_close_matches(task, experiments[stage], n=1, cutoff=0.4)
    raise UserError(
        f"{stage} has no task {task!r}"
        + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(experiments[stage])}")
    )


def find_run(experiment: str, save_dir: str) -> Path:
    """The folder of a run given by name or path; UserError if there is none."""
    for folder in (Path(save_dir) / experiment, Path(experiment)):
        if (folder / "config.json").is_file():
            return folder
    near = difflib.get_close_matches(
        experiment, [p.name for p in Path(save_dir).glob("*") if p.is_dir()], n=1, cutoff=0.5
    )
    raise UserError(f"there is no run {experiment!r} in {save_dir}" + (f"; did you mean {near[0]}?" if near else ""))


def _one_word(words: tuple[str, ...], command: str, what: str) -> str:
    if len(words) != 1:
        raise UserError(f"{command} takes one name: python launch.py {command} {what}")
    return words[0]


def _only(options: dict[str, str], name: str | None = None, default: str = "") -> str:
    unknown = [option for option in options if option != name]
    if unknown:
        raise UserError(f"unknown parameter --{unknown[0]}" + (f"; did you mean --{name}?" if name else ""))
    return options.get(name, default) if name else ""


# --- help and tables ---


def general_help(experiments: Experiments) -> str:
    lines = ["Learning from human preferences with language models.", "", "commands:"]
    lines += [
        f"  python launch.py {name} TASK EXPERIMENT [--parameter value ...]\n      {text}"
        for name, text in STAGES.items()
    ]
    lines += [f"  python launch.py {name} {USAGE[name]}\n      {text}" for name, text in OTHERS.items()]
    lines += [
        "",
        "tasks: " + ", ".join(sorted({task for entries in experiments.values() for task in entries})),
        "",
        "EXPERIMENT is the name of the run; everything it makes lies in saved_models/EXPERIMENT/.",
        "Every parameter can be set by its dotted name:  --ppo.lr 1e-5  --rewards.adaptive_kl off",
        "  python launch.py train_policy movies --help     lists them with their values",
        "  --dry_run                                       prints the resolved configuration and stops",
        "Many processes: torchrun --nproc_per_node 8 launch.py train_policy ...",
    ]
    return "\n".join(lines)


def command_help(command: str, arguments: list[str], experiments: Experiments) -> str:
    """Help on a command; for a stage with all its parameters, their values in the task's entry, and what they mean."""
    if command in OTHERS:
        lines = [f"python launch.py {command} {USAGE[command]}: {OTHERS[command]}"]
        if command == "sample":
            from lm_human_preferences.commands.sample import SampleParams

            lines += parameter_lines(SampleParams())
        if command == "perplexity":
            from lm_human_preferences.commands.perplexity import PerplexityParams

            lines += [
                "MODEL is a run or a model folder, DATASET a folder or the name of one in datasets/.",
                *parameter_lines(PerplexityParams()),
            ]
        if command == "evaluate":
            lines += evaluation_help(arguments, experiments)
        if command == "sweep":
            lines += sweep_help(arguments, experiments)
        if command == "reward_quality":
            from lm_human_preferences.commands.reward_quality import RewardQualityParams

            lines += [
                "EXPERIMENT is a run of train_reward, or a reward-model folder (then give --task).",
                *parameter_lines(RewardQualityParams()),
            ]
        if command == "labels":
            from lm_human_preferences.commands.inspect_labels import LabelToolParams

            lines += [
                "SOURCE is a file or a web address; OUTPUT ends in .json (token lists) or .jsonl (texts).",
                *parameter_lines(LabelToolParams()),
            ]
        if command == "report":
            from lm_human_preferences.reports.report import ReportParams

            lines += parameter_lines(ReportParams())
        if command == "plan":
            from lm_human_preferences.commands.plan import PlanParams

            lines += parameter_lines(PlanParams())
            lines += [
                "and the stages' own parameters, such as --run.micro_batch 16, --run.recompute_activations on or --ppo.batch_size 64"
            ]
        if command == "doctor":
            lines += ["  --save_dir saved_models    folder that holds the run folders"]
        return "\n".join(lines)
    words = [word for word in arguments if not word.startswith("-") and word in experiments[command]]
    task = words[0] if words else next(iter(experiments[command]))
    params = find_entry(command, task, experiments)()
    head = [
        f"python launch.py {command} TASK EXPERIMENT [--parameter value ...]: {STAGES[command]}",
        f"tasks: {', '.join(experiments[command])}",
        "",
        f"parameters, with their values for {task}:",
    ]
    return "\n".join(head + parameter_lines(params))


def evaluation_help(arguments: list[str], experiments: Experiments) -> list[str]:
    """The parameters of `evaluate`, those of the task as the task named has them."""
    from lm_human_preferences.commands.evaluate import EvaluateParams

    entries = experiments["train_policy"]
    task = next((word for word in arguments if word in entries), next(iter(entries)))
    rows = {
        name: row
        for name, row in flatten(EvaluateParams(task=entries[task]().task)).items()
        if name not in NOT_EVALUATED
    }
    own = {name: row for name, row in rows.items() if not name.startswith("task.")}
    return [
        f"tasks: {', '.join(entries)}",
        "",
        f"parameters, with their values for {task} (docs/evaluation.md explains judges and figures):",
        *_lines(own),
        *_lines({name: row for name, row in rows.items() if name not in own}),
    ]


def sweep_help(arguments: list[str], experiments: Experiments) -> list[str]:
    """The parameters of `sweep`: its own, then those of policy training as the task named has them."""
    from lm_human_preferences.commands.sweep import COEFFICIENTS_HELP, SweepParams

    entries = experiments["train_policy"]
    task = next((word for word in arguments if word in entries), next(iter(entries)))
    rows, policy = flatten(SweepParams.of(entries[task]())), flatten(entries[task]())
    del rows["rewards.kl_coef"]
    own = {name: row for name, row in rows.items() if name not in policy}
    return [
        f"tasks: {', '.join(entries)}",
        "",
        f"parameters, with their values for {task} (docs/sweep.md explains the figure):",
        f"  --rewards.kl_coef C,C,...\n        {COEFFICIENTS_HELP}",
        *_lines(own),
        *_lines({name: row for name, row in rows.items() if name in policy}),
    ]


def parameter_lines(params: Any) -> list[str]:
    return _lines(flatten(params))


def _lines(rows: dict[str, tuple[Any, str]]) -> list[str]:
    return [f"  --{name} {_shown(value)}\n        {text}" for name, (value, text) in rows.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _planned(entry: Any, overrides: dict[str, str]) -> Any:
    """A stage's parameters with those of the overrides that it has."""
    return apply_overrides(entry, {name: value for name, value in overrides.items() if name in flatten(entry)})


def task_table(experiments: Experiments) -> str:
    """One line a task: lengths, what ends a response, KL, batch sizes, learning rates."""
    rows = [
        (
            "task",
            "stages",
            "query",
            "response",
            "ends with",
            "KL coefficient",
            "episodes",
            "policy lr",
            "labels",
            "reward lr",
            "model",
        )
    ]
    for task in sorted({task for entries in experiments.values() for task in entries}):
        stages = [stage.removeprefix("train_") for stage in STAGES if task in experiments[stage]]
        row = [task, " ".join(stages)] + [""] * 9
        if task in experiments["train_policy"]:
            p = experiments["train_policy"][task]()
            t, adaptive = p.task, p.rewards.adaptive_kl
            row[2:8] = [
                str(t.query_length),
                str(t.response_length),
                f"{t.truncate_token} after {t.truncate_after}",
                f"{p.rewards.kl_coef:g}" + (f" to {adaptive.target:g} nats" if adaptive else ""),
                f"{p.ppo.total_episodes:,} by {p.ppo.batch_size}",
                f"{p.ppo.lr:g}",
            ]
            row[10] = t.policy.initial_model
        if task in experiments["train_reward"]:
            r = experiments["train_reward"][task]()
            row[8:10] = [f"{r.labels.num_train:,} by {r.batch_size}", f"{r.lr:g}"]
        rows.append(tuple(row))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def task_in_full(task: str, experiments: Experiments) -> str:
    """Every stage's parameters of a task."""
    entries = {stage: experiments[stage][task] for stage in STAGES if task in experiments[stage]}
    if not entries:
        every = sorted({name for stage in experiments.values() for name in stage})
        near = difflib.get_close_matches(task, every, n=1, cutoff=0.4)
        raise UserError(
            f"there is no task {task!r}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(every)}")
        )
    return "\n\n".join(
        "\n".join(
            [f"{stage} {task}: {inspect.getdoc(getattr(entry, 'func', entry)) or ''}".rstrip(": ")]
            + [f"  {name} = {_shown(value)}" for name, (value, _) in flatten(entry()).items()]
        )
        for stage, entry in entries.items()
    )
