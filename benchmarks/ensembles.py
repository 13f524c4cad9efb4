"""Whether several reward models withstand wrong labels better than one: the study of docs/methods.md.

    python -m benchmarks.ensembles [--seeds 1,2,3] [--noise 0.25] [--coefficients 0.05,0.1,0.2,0.4]

For each seed four reward models learn the labels of task movies, of which a share is made wrong, the same for all four.
Policies are trained against the first of them (`one`), against the four's mean (`mean`), and against their mean less
their disagreement (`uwo`), over coefficients of the KL penalty: a `sweep` each, whose judges had no part in training.
It prints what each came to, and the gold score at equal KL; called again it goes on where it stopped. It needs
datasets/movies.py and datasets/movies_judge.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.runner import Command, add_study_arguments, check_study_arguments, run_all, show, whole_numbers
from benchmarks.tables import spread
from lm_human_preferences.commands.sweep import parse_coefficients
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import atomic_file, read_json_object, write_json
from lm_human_preferences.judging.matched import at_distance
from lm_human_preferences.reports.figures import COLOURS, STYLE

KINDS = {"one": (), "mean": ("--rewards.ensemble", "mean"), "uwo": ("--rewards.ensemble", "uwo")}
MEMBERS = 4
PROXY = "proxy"
TARGETS = (2.0, 4.0, 8.0)  # nats at which kinds are compared


class Setting(NamedTuple):
    """What all seeds share."""

    folder: Path
    noise: float
    coefficients: str
    device: str
    precision: str
    threads: int


def commands_of(seed: int, setting: Setting) -> list[Command]:
    """Four reward models, and a sweep for each kind of reward."""
    folder, models = setting.folder, f"reward_{seed}"
    run = ["--run.save_dir", str(folder), "--run.device", setting.device, "--run.precision", setting.precision]
    run += ["--run.threads", str(setting.threads)]
    wrong = ["--labels.noise", str(setting.noise), "--labels.noise_seed", str(seed)]
    first = str(1 + MEMBERS * (seed - 1))  # no two seeds have a member in common
    words = ["train_reward", "movies", models, "--members", str(MEMBERS), *wrong, "--run.seed", first, *run]
    commands = [Command(models, words, folder / models / "result.json")]
    for kind, flags in KINDS.items():
        name, model = f"{kind}_{seed}", folder / models / ("member_1" if kind == "one" else "")
        words = ["sweep", "movies", name, "--rewards.trained_model", str(model), *flags]
        words += ["--rewards.kl_coef", setting.coefficients, "--run.seed", str(seed), *run]
        commands.append(Command(name, words, folder / name / "result.json"))
    return commands


# --- what came of it ---


class Curve(NamedTuple):
    """The policies of one sweep by rising coefficient, as gains over the reference."""

    kl: np.ndarray  # nats, float64 [c]
    gains: dict[str, np.ndarray]  # proxy and each judge -> float64 [c]


def curve_of(result: dict[str, Any]) -> Curve:
    """Of a sweep's result.json."""
    policies = sorted(result["policies"].values(), key=lambda policy: policy["kl_coef"])

    def scores(side: dict[str, Any]) -> dict[str, float]:
        return {PROXY: side["proxy"]["mean"]} | {judge: value["mean"] for judge, value in side["gold"].items()}

    reference = scores(result["reference_policy"])
    gains = {
        name: np.array([scores(policy)[name] - before for policy in policies]) for name, before in reference.items()
    }
    return Curve(np.array([policy["kl"]["mean"] for policy in policies]), gains)


def curves_of(seeds: Sequence[int], folder: Path) -> dict[str, list[Curve]]:
    """Kind -> the curves of its finished sweeps, one a seed."""
    found: dict[str, list[Curve]] = {}
    for kind in KINDS:
        for seed in seeds:
            path = folder / f"{kind}_{seed}" / "result.json"
            if path.is_file():
                found.setdefault(kind, []).append(curve_of(read_json_object(path)))
    return found


def table(curves: dict[str, list[Curve]]) -> list[str]:
    """A row for each kind and judge: gain at equal KL, means over seeds with their extremes; `-` where the policies of
    a seed did not go so far.
    """
    lines = ["| reward | gain by | " + " | ".join(f"at {kl:g} nats" for kl in TARGETS) + " | seeds |"]
    lines.append("|---|---|" + "--:|" * (len(TARGETS) + 1))
    for kind, seeds in curves.items():
        for name in seeds[0].gains:
            matched = np.array([at_distance(one.kl, one.gains[name], np.array(TARGETS)) for one in seeds])
            cells = [spread(column, "{:+.2f}") if np.isfinite(column).all() else "-" for column in matched.T]
            lines.append(f"| {kind} | {name} | " + " | ".join(cells) + f" | {len(seeds)} |")
    return lines


def accuracies(seeds: Sequence[int], folder: Path) -> list[float]:
    """Held-out accuracy of all finished reward models."""
    results = [folder / f"reward_{seed}" / "result.json" for seed in seeds]
    return [
        float(member["accuracy"]) for path in results if path.is_file() for member in read_json_object(path)["members"]
    ]


def draw(curves: dict[str, list[Curve]], judge: str, path: Path) -> None:
    """Write the gain by the proxy and by a judge against the root of KL as PNG: a line for each kind and seed, a dot
    for each policy.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(8.4, 3.6), layout="constrained")
        for axis, name in zip(canvas.subplots(1, 2), (PROXY, judge), strict=True):
            for (kind, seeds), colour in zip(curves.items(), COLOURS, strict=False):
                for number, one in enumerate(seeds):
                    label = "_" if number else kind  # once in the legend
                    axis.plot(np.sqrt(np.maximum(one.kl, 0)), one.gains[name], ".-", color=colour, label=label)
            axis.set_xlabel("√ KL to the reference (√ nats per response)")
            axis.set_ylabel("gain by the reward" if name == PROXY else f"gain by {name}")
        axis.legend()
        with atomic_file(path) as temporary:
            canvas.savefig(temporary, format="png")


# --- the command ---


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.ensembles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--seeds", default="1,2,3", metavar="A,B", help="of wrong labels, reward models and policies")
    p.add_argument("--noise", type=float, default=0.25, help="share of the labels that is made wrong")
    p.add_argument("--coefficients", default="0.05,0.1,0.2,0.4", metavar="A,B", help="of the KL penalty")
    p.add_argument("--judge", default="embeddings", help="the judge that is drawn, as the sweeps name it")
    p.add_argument("--precision", default="auto", help="auto, float32 or bfloat16, as the stages' --run.precision")
    p.add_argument("--figure", type=Path, default=Path("static/ensembles.png"))
    add_study_arguments(p, "seeds", "saved_models/ensembles")
    return p


@exit_on_user_error
def main() -> None:
    a = parser().parse_args()
    seeds = whole_numbers(a.seeds, "--seeds", 1)
    check_study_arguments(a)
    parse_coefficients(a.coefficients)
    if not 0 <= a.noise < 1:
        raise UserError(f"--noise {a.noise}: must be a share, of 0 or more and below 1")
    setting = Setting(a.folder, a.noise, a.coefficients, a.device, a.precision, a.threads)
    chains = [commands_of(seed, setting) for seed in seeds]
    if a.dry_run:
        return show(chains)
    failed = run_all(chains, a.folder, a.jobs, a.only_report)
    if right := accuracies(seeds, a.folder):
        print(f"\nheld-out accuracy of {len(right)} reward models: {spread(right, '{:.1%}')}")
    curves = curves_of(seeds, a.folder)
    if curves:
        print("\n" + "\n".join(table(curves)))
        if a.judge not in next(iter(curves.values()))[0].gains:
            raise UserError(f"--judge {a.judge}: the sweeps have {', '.join(next(iter(curves.values()))[0].gains)}")
        draw(curves, a.judge, a.figure)
        facts = {
            kind: [{"kl": one.kl.tolist()} | {k: v.tolist() for k, v in one.gains.items()} for one in some]
            for kind, some in curves.items()
        }
        write_json(a.folder / "curves.json", facts)
        print(f"figure in {a.figure}")
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the same command goes on")


if __name__ == "__main__":
    main()
