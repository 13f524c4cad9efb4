"""What asking while the policy trains gains, and what asking cleverly gains: the study of docs/people.md.

    python -m benchmarks.asking [--ways offline,random,...] [--labels 512,1024,2048,4096] [--seeds 1,2,3] [--kl 6]

Simulated people, of whom some click anywhere, answer on task movies by the judge of sentences. `offline` asks all at
once about the initial model's responses; the other ways ask a quarter of the labels so and the rest while the policy
trains, by `--online.ask`. All policies are steered to one KL and judged on held-out queries by the people's own judge,
without its noise, and by the judge of words. As they do not all come to that KL, each is compared with what all of them
reach at its own, too. Called again it goes on where it stopped. It needs datasets/movies.py and
datasets/movies_judge.py.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.runner import Command, add_study_arguments, check_study_arguments, run_all, show, whole_numbers
from benchmarks.tables import spread
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import atomic_file, read_json_object, write_json
from lm_human_preferences.language.weight_files import WEIGHTS
from lm_human_preferences.people.asking import ASKS
from lm_human_preferences.reports.expected import START_MODEL, Figure, figures_of
from lm_human_preferences.reports.figures import COLOURS, DARK, STYLE

OFFLINE = "offline"
WAYS = (OFFLINE, *ASKS)
JUDGE = "embeddings:datasets/movies_judge"
BEFORE, GOLD, WORDS = "before/scores/sentences", "after/scores/sentences", "after/scores/words"
BATCH = 32  # labels of a step of reward training on movies
FIRST_SHARE = 4  # a quarter of the labels is asked for at first


class Member(NamedTuple):
    """One policy and the answers that it took."""

    way: str
    labels: int
    seed: int

    def name(self, stage: str) -> str:
        return f"{stage}_{self.way}_{self.labels}_{self.seed}"


class Setting(NamedTuple):
    """What all members share."""

    folder: Path
    noise: float
    people: int
    kl: float
    retrainings: int
    episodes: int | None  # None: as many as the task has
    samples: int
    device: str
    precision: str
    threads: int


def commands_of(member: Member, setting: Setting) -> list[Command]:
    """A policy that asks, and its evaluation."""
    folder, policy, evaluation = setting.folder, member.name("policy"), member.name("evaluation")
    first = member.labels
    if member.way != OFFLINE:
        first = max(BATCH, member.labels // FIRST_SHARE // BATCH * BATCH)
    online = {
        "online": "on",
        "online.labels": member.labels,
        "online.initial_labels": first,
        "online.retrainings": setting.retrainings,
        "online.labellers": f"simulated:{JUDGE}?noise={setting.noise}&people={setting.people}",
        "online.ask": "random" if member.way == OFFLINE else member.way,
        "rewards.train_new_model.labels.valid_source": "none",
        "rewards.adaptive_kl": "on",
        "rewards.adaptive_kl.target": setting.kl,
        "rewards.adaptive_kl.horizon": 640,
        "evaluation.samples": 0,
        "run.save_dir": folder,
        "run.seed": member.seed,
        "run.device": setting.device,
        "run.precision": setting.precision,
        "run.threads": setting.threads,
    }
    if setting.episodes is not None:
        online["ppo.total_episodes"] = setting.episodes
    words = [word for name, value in online.items() for word in (f"--{name}", str(value))]
    judges = f"sentences={JUDGE},words=ratings:datasets/movies"
    judged = ["--policies", f"before={START_MODEL},after={folder / policy}", "--samples", str(setting.samples)]
    judged += ["--judges", judges, "--experiment", evaluation, "--save_dir", str(folder)]
    judged += ["--device", setting.device, "--precision", setting.precision]
    return [
        Command(policy, ["train_policy", "movies", policy, *words], folder / policy / "policy" / WEIGHTS),
        Command(evaluation, ["evaluate", "movies", *judged], folder / evaluation / "result.json"),
    ]


# --- what came of it ---


class Point(NamedTuple):
    """The seeds of one way and number of labels, and what each came to."""

    labels: int
    seeds: list[int]
    gold: list[float]  # ratings by the people's own judge
    words: list[float]
    kl: list[float]
    preferred: list[float]
    before: list[float]  # the initial model's rating by the people's own judge


def points_of(members: Sequence[Member], folder: Path) -> dict[str, list[Point]]:
    """Way -> its points by rising numbers of labels, of the finished members."""
    found: dict[str, dict[int, dict[int, dict[str, Figure]]]] = {}
    for member in members:
        path = folder / member.name("evaluation") / "result.json"
        if path.is_file():
            figures = figures_of(read_json_object(path))
            found.setdefault(member.way, {}).setdefault(member.labels, {})[member.seed] = figures
    keys = (GOLD, WORDS, "after/kl", "wins/sentences/after/before", BEFORE)
    return {
        way: [
            Point(labels, list(seeds), *([figures[key].value for figures in seeds.values()] for key in keys))
            for labels, seeds in sorted(by_labels.items())
        ]
        for way, by_labels in found.items()
    }


def labels_needed(golds: Sequence[tuple[int, float]], gold: float) -> float:
    """Labels at which the gold score first reaches `gold`, straight between points on a logarithmic scale; the smallest
    number where it is reached there already, infinity where it never is. golds: numbers of labels, rising, with scores.
    """
    if golds and golds[0][1] >= gold:
        return float(golds[0][0])
    for (n_0, g_0), (n_1, g_1) in zip(golds, golds[1:], strict=False):
        if g_0 < gold <= g_1:
            return math.exp(math.log(n_0) + (gold - g_0) / (g_1 - g_0) * math.log(n_1 / n_0))
    return math.inf


def table(points: dict[str, list[Point]]) -> list[str]:
    """A row for each way and number of labels: means over seeds with their extremes."""
    lines = ["| asked | labels | seeds | gold rating | preferred to before | rating by words | KL |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for way, some in points.items():
        for point in some:
            gold, words = spread(point.gold, "{:+.2f}"), spread(point.words, "{:+.2f}")
            preferred, kl = spread(point.preferred, "{:.1%}"), spread(point.kl, "{:.1f}")
            lines.append(f"| {way} | {point.labels:,} | {len(point.gold)} | {gold} | {preferred} | {words} | {kl} |")
    return lines


def differences(points: dict[str, list[Point]]) -> list[str]:
    """Gold rating of each way beyond that of offline with as many labels: the mean over the seeds that both have, with
    its 95% interval by Student's t of the pairs; empty where no two seeds can be compared.
    """
    lines = []
    offline = {point.labels: dict(zip(point.seeds, point.gold, strict=True)) for point in points.get(OFFLINE, [])}
    for way, some in points.items():
        for point in some if way != OFFLINE else ():
            other = offline.get(point.labels, {})
            gains = [gold - other[seed] for seed, gold in zip(point.seeds, point.gold, strict=True) if seed in other]
            if len(gains) > 1:
                lines.append(f"  {way}, {point.labels:,}: {_with_interval(gains)}")
    return ["gold rating beyond offline with as many labels, with 95% intervals over seeds:", *lines] if lines else []


def _with_interval(values: Sequence[float]) -> str:
    """The mean of two or more with its 95% interval by Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def curve_of(points: dict[str, list[Point]]) -> np.ndarray | None:
    """What all policies gain over the initial model at a distance d, the root of their KL: a cubic without intercept,
    the coefficients of d, d^2 and d^3 by least squares. None of three policies or fewer.
    """
    pairs = [_gains(point) for some in points.values() for point in some]
    kl, gains = (np.array([x for pair in pairs for x in pair[place]]) for place in (0, 1))
    if len(kl) <= 3:
        return None
    coefficients: np.ndarray = np.linalg.lstsq(_powers(kl), gains, rcond=None)[0]
    return coefficients


def _powers(kl: np.ndarray) -> np.ndarray:
    """[p, 3] of KL [p]."""
    d = np.sqrt(kl)
    return np.stack([d, d**2, d**3], axis=1)


def _gains(point: Point) -> tuple[list[float], list[float]]:
    """KL, and gold rating beyond the initial model's, of each seed."""
    return point.kl, [after - before for after, before in zip(point.gold, point.before, strict=True)]


def beyond_kl(points: dict[str, list[Point]]) -> list[str]:
    """Gold rating of each way beyond what all policies reach at the same KL, `curve_of`: the mean over its seeds with
    its 95% interval by Student's t; empty where that cannot be told.
    """
    coefficients, lines = curve_of(points), []
    if coefficients is None:
        return []
    for way, some in points.items():
        for point in some:
            kl, gains = map(np.array, _gains(point))
            beyond = gains - _powers(kl) @ coefficients
            if len(beyond) > 1:
                lines.append(f"  {way}, {point.labels:,}: {_with_interval(beyond)}")
    heading = "gold rating beyond that of all policies at the same KL, with 95% intervals over seeds:"
    return [heading, *lines] if lines else []


def needed_table(points: dict[str, list[Point]]) -> list[str]:
    """Labels that each way needs for what the most labels gave offline, on the line through its means and on that of
    each seed; empty where nothing was asked offline.
    """
    if not points.get(OFFLINE):
        return []
    best = points[OFFLINE][-1]
    gold = statistics.fmean(best.gold)
    lines = [f"labels for the gold rating {gold:+.2f} that {best.labels:,} gave offline:"]
    for way, some in points.items():
        needed = labels_needed([(point.labels, statistics.fmean(point.gold)) for point in some], gold)
        share = f", {needed / best.labels:.2f} of them" if needed < math.inf else ""
        said = f"{_needed(needed, some)}{share}"
        whole = [seed for seed in some[0].seeds if all(seed in point.seeds for point in some)]
        own = [[(point.labels, point.gold[point.seeds.index(seed)]) for point in some] for seed in whole]
        by_seed = sorted(labels_needed(golds, gold) for golds in own)
        if len(by_seed) > 1:
            said += f" (single seeds: {'; '.join(_needed(number, some) for number in by_seed)})"
        lines.append(f"  {way}: {said}")
    return lines


def _needed(labels: float, points: Sequence[Point]) -> str:
    if labels == math.inf:
        return f"more than {points[-1].labels:,}"
    return f"{'at most ' if labels == points[0].labels else ''}{labels:,.0f}"


def draw(points: dict[str, list[Point]], path: Path) -> None:
    """Write gold rating against labels, and against KL, as PNG: a dot for each seed; left a line through each way's
    means, right the curve through all policies, with larger dots for more labels.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import NullLocator

    numbers = sorted({point.labels for some in points.values() for point in some})
    sizes = {number: 14 + 22 * place for place, number in enumerate(numbers)}
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(9.4, 3.8), layout="constrained")
        by_labels, by_kl = canvas.subplots(1, 2, sharey=True)
        for (way, some), colour in zip(points.items(), COLOURS, strict=False):
            labels = [point.labels for point in some]
            by_labels.plot(labels, [statistics.fmean(point.gold) for point in some], color=colour, label=way)
            for point in some:
                by_labels.plot([point.labels] * len(point.gold), point.gold, ".", color=colour, alpha=0.6)
                by_kl.scatter(point.kl, point.gold, sizes[point.labels], color=colour, alpha=0.6, linewidth=0)
        coefficients = curve_of(points)
        if coefficients is not None:
            every = [point for some in points.values() for point in some]
            reached = [kl for point in every for kl in point.kl]
            kl = np.linspace(min(reached), max(reached), 200)
            start = statistics.fmean(before for point in every for before in point.before)
            by_kl.plot(kl, start + _powers(kl) @ coefficients, color=DARK, label="all policies")
            by_kl.legend()
        by_labels.set_xscale("log", base=2)
        by_labels.set_xticks(numbers, [f"{number:,}" for number in numbers])
        by_labels.xaxis.set_minor_locator(NullLocator())
        by_labels.set_xlabel("answers of simulated people")
        by_labels.set_ylabel("gold rating")
        by_labels.legend()
        by_kl.set_xlabel("KL to the initial model, nats")
        with atomic_file(path) as temporary:
            canvas.savefig(temporary, format="png", metadata={"Software": None})


# --- the command ---


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.asking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--ways", default=",".join(WAYS), metavar="A,B", help=f"of {', '.join(WAYS)}")
    p.add_argument("--labels", default="512,1024,2048,4096", metavar="A,B", help="multiples of 32")
    p.add_argument("--seeds", default="1,2,3", metavar="A,B")
    p.add_argument("--noise", type=float, default=0.3, help="share of answers that are clicks anywhere")
    p.add_argument("--people", type=int, default=5)
    p.add_argument("--kl", type=float, default=6.0, help="nats that all policies are steered to")
    p.add_argument("--retrainings", type=int, default=5, help="of the reward model while a policy trains")
    p.add_argument("--episodes", type=int, help="of a policy (default: the task's)")
    p.add_argument("--samples", type=int, default=1000, help="queries of an evaluation")
    p.add_argument("--precision", default="auto", help="auto, float32 or bfloat16, as the stages' --run.precision")
    p.add_argument("--figure", type=Path, default=Path("static/asking.png"))
    add_study_arguments(p, "policies", "saved_models/asking")
    return p


def members_of(ways: str, labels: str, seeds: str) -> list[Member]:
    """Seed by seed, the most labels first, so that a study that is cut short compares all ways. UserError for what
    cannot be.
    """
    for way in ways.split(","):
        if way not in WAYS:
            raise UserError(f"--ways {ways}: {way} is none of {', '.join(WAYS)}")
    counts, numbers = whole_numbers(labels, "--labels", BATCH), whole_numbers(seeds, "--seeds")
    if any(count % BATCH for count in counts):
        raise UserError(f"--labels {labels}: must be multiples of {BATCH}, the labels of a step of reward training")
    ordered = sorted(counts, reverse=True)
    return [Member(way, count, seed) for seed in numbers for count in ordered for way in ways.split(",")]


@exit_on_user_error
def main() -> None:
    a = parser().parse_args()
    members = members_of(a.ways, a.labels, a.seeds)
    check_study_arguments(a)
    if a.episodes is not None and a.episodes < 1:
        raise UserError(f"--episodes {a.episodes}: must be at least 1")
    if a.people < 1 or not 0 <= a.noise <= 1 or not a.kl > 0 or a.samples < 2:
        raise UserError("--people and --kl must be positive, --samples at least 2, --noise a share")
    setting = Setting(
        a.folder, a.noise, a.people, a.kl, a.retrainings, a.episodes, a.samples, a.device, a.precision, a.threads
    )
    chains = [commands_of(member, setting) for member in members]
    if a.dry_run:
        return show(chains)
    failed = run_all(chains, a.folder, a.jobs, a.only_report)
    points = points_of(members, a.folder)
    print("\n" + "\n".join([*table(points), "", *differences(points), *beyond_kl(points), *needed_table(points)]))
    if points:
        draw(points, a.figure)
        write_json(a.folder / "points.json", {way: [one._asdict() for one in some] for way, some in points.items()})
        print(f"figure in {a.figure}")
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the same command goes on")


if __name__ == "__main__":
    main()
