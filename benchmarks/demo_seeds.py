"""The demonstration over seeds and precisions: static/expected.json and README's table.

    python -m benchmarks.demo_seeds [--seeds 1,2,3,4,5] [--precisions float32,bfloat16] [--target_kl 8]

For each seed and precision a reward model, a policy and an evaluation, as `make demo` makes them, in a process each;
with --target_kl a second policy whose KL coefficient is steered to that KL, so that seeds and precisions compare at
equal KL. With --also FOLDER the finished runs of another machine count too; several runs of one seed count as their
mean. Called again it goes on where it stopped. It needs what `make demo` prepares: datasets/movies.py and
datasets/movies_judge.py.
"""

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.runner import Command, add_study_arguments, check_study_arguments, run_all, show, whole_numbers
from benchmarks.tables import spread
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json_object, sha256, write_json
from lm_human_preferences.foundation.root import project_root
from lm_human_preferences.language.weight_files import WEIGHTS
from lm_human_preferences.reports.expected import (
    LEVEL,
    MAKER,
    START_MODEL,
    Figure,
    expected_file,
    figures_of,
    prediction_range,
    stated_parameters,
)
from lm_human_preferences.runs.description import package_versions
from lm_human_preferences.runs.tracking import read_jsonl

SAMPLES = 1000  # queries of an evaluation, as in `make demo`
JUDGES = "sentences=embeddings:datasets/movies_judge,words=ratings:datasets/movies,reward="
HORIZON = 640  # episodes over which the controller corrects: ten steps, where the default's 10,000 are twice the run
# Of a 95% interval's half width: what another processor's rounding may move a mean by. In bfloat16 it makes three of
# four responses others, as good as drawing them anew (docs/evaluation.md).
ROUNDING = {"float32": 0.25, "bfloat16": 1.5}
KL_COURSE = (2.0, 4.0, 6.0, 8.0)  # nats at which runs are compared along their way
SMOOTHED = 5  # steps of a course that a mean is taken over

# stage of the demonstration -> the name of its run in `make demo`
DEMO = {"reward": "demo_reward", "policy": "demo_policy", "evaluation": "demo_evaluation"}

# rows of README's table: title, figure before, figure after
ROWS = (
    ("score of the reward model", "before/scores/reward", "after/scores/reward"),
    ("rating by the judge of sentences, −4 to +4", "before/scores/sentences", "after/scores/sentences"),
    ("rating by the judge of words, −4 to +4", "before/scores/words", "after/scores/words"),
    ("preferred by the judge of sentences, ties split", None, "wins/sentences/after/before"),
    ("preferred by the judge of words, ties split", None, "wins/words/after/before"),
    ("KL to the initial model, nats per response", "before/kl", "after/kl"),
    ("responses without a valid end", "before/no_valid_end", "after/no_valid_end"),
    ("distinct pairs of tokens", "before/distinct_2", "after/distinct_2"),
)


class Member(NamedTuple):
    """One demonstration, and where its runs lie."""

    precision: str
    seed: int
    folder: Path

    def name(self, stage: str) -> str:
        return f"{stage}_{self.precision}_{self.seed}"

    def finished(self, stage: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """config.json and result.json of a finished run, None of another one."""
        run = self.folder / self.name(stage)
        if not (run / "result.json").is_file():
            return None
        return read_json_object(run / "config.json"), read_json_object(run / "result.json")


def commands_of(member: Member, device: str, threads: int, target_kl: float | None) -> list[Command]:
    """What makes a demonstration, in this order; what differs from `make demo` is where it lies, seed and precision."""
    folder = member.folder
    run = ["--run.save_dir", str(folder), "--run.seed", str(member.seed), "--run.precision", member.precision]
    run += ["--run.device", device, "--run.threads", str(threads)]
    reward, commands = member.name("reward"), list[Command]()

    def add(name: str, *words: str) -> None:
        commands.append(Command(name, list(words), folder / name / "result.json"))

    add(reward, "train_reward", "movies", reward, *run)
    steered = ["--rewards.adaptive_kl", "on", "--rewards.adaptive_kl.target", str(target_kl)]
    steered += ["--rewards.adaptive_kl.horizon", str(HORIZON)]
    for kind, flags in [("", []), *([] if target_kl is None else [("steered_", steered)])]:
        policy, evaluation = member.name(f"{kind}policy"), member.name(f"{kind}evaluation")
        model = ["--rewards.trained_model", str(folder / reward / "reward_model")]
        add(policy, "train_policy", "movies", policy, *model, *flags, *run)
        policies = ["--policies", f"before={START_MODEL},after={folder / policy}", "--samples", str(SAMPLES)]
        judges = ["--judges", f"{JUDGES}{folder / reward}", "--experiment", evaluation, "--save_dir", str(folder)]
        computing = ["--device", device, "--precision", member.precision]
        add(evaluation, "evaluate", "movies", *policies, *judges, *computing)
    return commands


# --- what came of it ---


def figures_by_member(members: Iterable[Member], stage: str) -> dict[str, dict[str, dict[Member, Figure]]]:
    """Figure's name -> precision -> member -> its figure, of the finished runs of a stage."""
    found: dict[str, dict[str, dict[Member, Figure]]] = {}
    for member in members:
        if run := member.finished(stage):
            for key, figure in figures_of(run[1]).items():
                found.setdefault(key, {}).setdefault(member.precision, {})[member] = figure
    return found


def seed_means(figures: dict[Member, Figure]) -> list[float]:
    """The mean of each seed's runs: one draw, on however many processors it was made."""
    by_seed: dict[int, list[float]] = {}
    for member, figure in figures.items():
        by_seed.setdefault(member.seed, []).append(figure.value)
    return [statistics.fmean(values) for values in by_seed.values()]


def summary(figures: dict[Member, Figure], factor: float) -> dict[str, Any]:
    """What expected.json says of one figure, of members in one precision and of two seeds at least.

    factor: as `prediction_range` takes it, with a degree of freedom fewer than there are seeds.
    """
    values = {member: figure.value for member, figure in sorted(figures.items())}
    (precision,) = {member.precision for member in figures}
    floor = ROUNDING[precision] * statistics.fmean(figure.half_width for figure in figures.values())
    mean, low, high = prediction_range(seed_means(figures), factor, floor)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "least": min(values.values()),
        "most": max(values.values()),
        "values": list(values.values()),
        "seeds": [member.seed for member in values],
    }


def expected_runs(members: Sequence[Member]) -> dict[str, Any]:
    """`runs` of expected.json. Raises UserError where a figure has one seed only, or two runs were told otherwise."""
    from scipy.stats import t

    runs: dict[str, Any] = {}
    for stage, name in DEMO.items():
        figures: dict[str, Any] = {}
        for key, by_precision in figures_by_member(members, stage).items():
            for precision, found in by_precision.items():
                seeds = len({member.seed for member in found})
                if seeds < 2:
                    raise UserError(f"{stage} in {precision}: a range needs two seeds at least, {seeds} is done")
                factor = float(t.ppf((1 + LEVEL) / 2, seeds - 1))
                figures.setdefault(key, {})[precision] = summary(found, factor)
        told = {m: stated_parameters(run[0]) for m in members if (run := m.finished(stage))}
        if not told:
            raise UserError(f"{members[0].folder} has no finished run of {stage}")
        first = next(iter(told))
        if other := next((m for m in told if told[m] != told[first]), None):
            raise UserError(
                f"{first.folder / first.name(stage)} and {other.folder / other.name(stage)} were told different "
                "parameters; take another --folder"
            )
        runs[name] = {"parameters": told[first], "figures": figures}
    return runs


def write_expected(path: Path, members: Sequence[Member]) -> None:
    """expected.json of what is finished."""
    configs = [run[0] for m in members if (run := m.finished("policy"))]
    computed = {tuple(config["computed"].get(key) for key in ("processor", "precision", "torch")) for config in configs}
    write_json(
        path,
        {
            "made by": MAKER,
            "commit": sorted({str(config["commit"]) for config in configs}),
            "computed": sorted(map(list, computed)),
            "versions": package_versions(),
            "model": sha256(project_root() / START_MODEL / WEIGHTS),
            "level": LEVEL,
            "runs": expected_runs(members),
        },
    )


# --- tables ---


def in_words(figures: dict[Member, Figure]) -> str:
    """Mean of the seeds, and the extremes of all runs: "85.2% (80.3% to 87.4%)"."""
    values, form = [figure.value for figure in figures.values()], next(iter(figures.values())).form
    return spread(values, form, statistics.fmean(seed_means(figures)))


def readme_table(members: Sequence[Member], stage: str = "evaluation") -> list[str]:
    """README's table: a column before and one after for each precision, means over seeds with the extremes of all
    runs.
    """
    figures = figures_by_member(members, stage)
    precisions = sorted({precision for by in figures.values() for precision in by}, reverse=True)
    if not precisions:
        return [f"no finished {stage}"]
    names = [f"{side}, {precision}" for precision in precisions for side in ("before", "after")]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for title, *sides in ROWS:
        cells = [
            in_words(figures[key][precision]) if key and precision in figures.get(key, {}) else ""
            for precision in precisions
            for key in sides
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def score_at(rows: Sequence[dict[str, Any]], kl: float) -> float:
    """A run's score of training, means over SMOOTHED steps, where its KL passes `kl` for the first time, by linear
    interpolation; NaN where it never does.
    """
    pairs = [
        tuple(
            statistics.fmean(row[key] for row in rows[i : i + SMOOTHED]) for key in ("objective/kl", "objective/score")
        )
        for i in range(len(rows) - SMOOTHED + 1)
    ]
    for (kl_0, score_0), (kl_1, score_1) in zip(pairs, pairs[1:], strict=False):
        if kl_0 <= kl <= kl_1 and kl_0 < kl_1:
            return score_0 + (score_1 - score_0) * (kl - kl_0) / (kl_1 - kl_0)
    return math.nan


def course_table(members: Sequence[Member]) -> list[str]:
    """The reward model's score at equal KL along each run's way, means over runs with extremes; the number of runs
    that came so far.
    """
    lines = ["| score at KL | " + " | ".join(f"{kl:g} nats" for kl in KL_COURSE) + " |"]
    lines.append("|---|" + "--:|" * len(KL_COURSE))
    for precision in dict.fromkeys(member.precision for member in members):
        cells = []
        for kl in KL_COURSE:
            found = [
                score_at(read_jsonl(path), kl)
                for member in members
                if member.precision == precision
                and (path := member.folder / member.name("policy") / "metrics.jsonl").is_file()
            ]
            known = [value for value in found if not math.isnan(value)]
            cells.append(f"{spread(known, '{:+.2f}') if known else '-'}, {len(known)} of {len(found)}")
        lines.append(f"| {precision} | " + " | ".join(cells) + " |")
    return lines


def report(members: Sequence[Member], target_kl: float | None) -> None:
    accuracy = figures_by_member(members, "reward").get("accuracy", {})
    for precision, figures in accuracy.items():
        print(f"\nheld-out accuracy of the reward model, {precision}: {in_words(figures)}, {len(figures)} runs")
    print("\n" + "\n".join(readme_table(members)))
    print("\nAlong the runs, at equal KL:\n\n" + "\n".join(course_table(members)))
    if target_kl is not None:
        print(f"\nSteered to {target_kl:g} nats:\n\n" + "\n".join(readme_table(members, "steered_evaluation")))


# --- the command ---


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--seeds", default="1,2,3,4,5", metavar="A,B", help="seeds of reward model and policy")
    p.add_argument("--precisions", default="float32,bfloat16", metavar="A,B", help="of float32, bfloat16")
    p.add_argument("--also", type=Path, metavar="FOLDER", help="count another machine's finished runs of these names")
    p.add_argument("--target_kl", type=float, metavar="NATS", help="another policy each, steered to this KL")
    p.add_argument("--output", type=Path, default=expected_file(), metavar="FILE", help="default: static/expected.json")
    add_study_arguments(p, "demonstrations", "saved_models/demo_seeds")
    return p


def members_of(seeds: str, precisions: str, folder: Path) -> list[Member]:
    """Seed by seed, so that a run that is cut short has all precisions. Raises UserError for what is neither."""
    numbers, kinds = whole_numbers(seeds, "--seeds"), precisions.split(",")
    for kind in kinds:
        if kind not in ("float32", "bfloat16"):
            raise UserError(f"--precisions {precisions}: {kind} is neither float32 nor bfloat16")
    if len(set(kinds)) < len(kinds):
        raise UserError(f"--precisions {precisions} names one twice")
    return [Member(kind, seed, folder) for seed in numbers for kind in kinds]


@exit_on_user_error
def main() -> None:
    arguments = parser().parse_args()
    members = members_of(arguments.seeds, arguments.precisions, arguments.folder)
    check_study_arguments(arguments)
    if arguments.target_kl is not None and arguments.target_kl <= 0:
        raise UserError(f"--target_kl {arguments.target_kl}: must be positive")
    if arguments.also is not None and not arguments.also.is_dir():
        raise UserError(f"--also {arguments.also}: there is no such folder")
    commands = {
        member: commands_of(member, arguments.device, arguments.threads, arguments.target_kl) for member in members
    }
    if arguments.dry_run:
        return show(commands.values())
    failed = run_all(list(commands.values()), arguments.folder, arguments.jobs, arguments.only_report)
    if arguments.also is not None:
        members += [member._replace(folder=arguments.also) for member in members]
    report(members, arguments.target_kl)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; {arguments.output} is not written")
    write_expected(arguments.output, members)
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
