"""How long until people's stand-in prefers the policy: minutes on two cores to 85% preferred at 8 nats or less.

    python -m benchmarks.leaderboard [--seeds 1,2,3] [--what "what changed"] [-- FLAGS OF train_policy]

For each seed a reward model and a policy as `make demo` trains them, the policy with FLAGS besides, one after the other
on two threads, and 1,000 held-out responses before the judge of sentences, who had no part in training
(docs/evaluation.md). The minutes are those of the two trainings, from the start of their processes to the end;
preparing data and judging do not count. It prints a row for docs/leaderboard.md, and whether that counts: three seeds
at least in one precision, each with the share and the KL that are asked for. Called again it goes on where it stopped.
It needs what `make demo` prepares: datasets/movies.py and datasets/movies_judge.py.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.demo_seeds import Member, commands_of, members_of
from benchmarks.runner import SECONDS, Command, add_folder_arguments, run_all, show
from benchmarks.tables import spread
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.reports.expected import figures_of

PREFERRED, NATS, SEEDS, THREADS = 0.85, 8.0, 3, 2  # what a row has to show
GOLD = "sentences"  # the judge, as demo_seeds names it
HEADER = ["| date | commit | minutes | preferred | KL, nats | seeds | processor | what changed |"]
HEADER += ["|---|---|--:|--:|--:|--:|---|---|"]


class Outcome(NamedTuple):
    """What one seed came to."""

    seed: int
    minutes: float
    preferred: float  # share of queries, ties split
    kl: float  # nats per response
    commit: str
    processor: str
    threads: int
    precision: str

    @property
    def reaches(self) -> bool:
        return self.preferred >= PREFERRED and self.kl <= NATS


def with_flags(commands: Sequence[Command], flags: Sequence[str]) -> list[Command]:
    """A demonstration's commands, those of the policy with these flags."""
    return [c._replace(words=[*c.words, *flags]) if c.words[0] == "train_policy" else c for c in commands]


def outcome_of(member: Member) -> Outcome | None:
    """What a finished seed came to, None where it is not finished. UserError where a training was interrupted, so that
    nobody knows how long it took.
    """
    finished = {stage: member.finished(stage) for stage in ("reward", "policy", "evaluation")}
    if not all(finished.values()):
        return None
    folder = member.folder
    seconds = read_json_object(folder / SECONDS) if (folder / SECONDS).is_file() else {}
    trainings = [member.name(stage) for stage in ("reward", "policy")]
    if untimed := [name for name in trainings if name not in seconds]:
        raise UserError(
            f"{folder / untimed[0]} was interrupted or trained by another command, and nobody knows how long it took; "
            "give another --folder"
        )
    (_, result), (policy, _) = (finished[stage] or ({}, {}) for stage in ("evaluation", "policy"))
    figures, computed = figures_of(result), policy.get("computed", {})
    return Outcome(
        member.seed,
        sum(seconds[name] for name in trainings) / 60,
        figures[f"wins/{GOLD}/after/before"].value,
        figures["after/kl"].value,
        str(policy.get("commit") or "unknown")[:8],
        str(computed.get("processor", "unknown")),
        int(computed.get("threads", 0)),
        member.precision,
    )


def row(outcomes: Sequence[Outcome], date: str, what: str) -> str:
    """The leaderboard's row: means over seeds with their extremes."""
    cells = [
        date,
        ", ".join(sorted({outcome.commit for outcome in outcomes})),
        spread([outcome.minutes for outcome in outcomes], "{:.1f}"),
        spread([outcome.preferred for outcome in outcomes], "{:.1%}"),
        spread([outcome.kl for outcome in outcomes], "{:.1f}"),
        str(len({outcome.seed for outcome in outcomes})),
        ", ".join(sorted({outcome.processor for outcome in outcomes})),
        what,
    ]
    return "| " + " | ".join(cells) + " |"


def why_not(outcomes: Sequence[Outcome]) -> str | None:
    """Why a row of these does not count, None if it does."""
    if (seeds := len({outcome.seed for outcome in outcomes})) < SEEDS:
        return f"{seeds} of the {SEEDS} seeds that it takes"
    if len({outcome.precision for outcome in outcomes}) > 1:
        return "not all were trained in one precision"
    if short := [str(outcome.seed) for outcome in outcomes if not outcome.reaches]:
        return f"seed {', '.join(short)} has not {PREFERRED:.0%} preferred at {NATS:g} nats or less"
    if any(outcome.threads != THREADS for outcome in outcomes):
        return f"not all were trained on {THREADS} threads"
    if any("+" in outcome.commit or outcome.commit == "unknown" for outcome in outcomes):
        return "the source tree had changes that no commit has"
    return None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--seeds", default="1,2,3", metavar="A,B", help="seeds of reward model and policy")
    p.add_argument("--precision", default="float32", help="float32 or bfloat16, for all seeds")
    p.add_argument("--what", default="", metavar="TEXT", help="what changed, for the row")
    add_folder_arguments(p, "saved_models/leaderboard")
    return p


def report(members: Sequence[Member], what: str) -> None:
    """Print each finished seed and the row. UserError if none is."""
    outcomes = [found for member in members if (found := outcome_of(member)) is not None]
    if not outcomes:
        raise UserError(f"no seed of {members[0].folder} is finished")
    for outcome in outcomes:
        reached = "reached" if outcome.reaches else "not reached"
        print(
            f"seed {outcome.seed}: {outcome.minutes:.1f} minutes, {outcome.preferred:.1%} preferred at "
            f"{outcome.kl:.1f} nats: {reached}"
        )
    print("\n" + "\n".join([*HEADER, row(outcomes, datetime.date.today().isoformat(), what)]))
    reason = why_not(outcomes)
    print("\nThis row counts." if reason is None else f"\nThis row does not count: {reason}.")


@exit_on_user_error
def main(words: Sequence[str] | None = None) -> None:
    given: list[Any] = list(sys.argv[1:] if words is None else words)
    cut = given.index("--") if "--" in given else len(given)
    arguments, flags = parser().parse_args(given[:cut]), given[cut + 1 :]
    folder = arguments.folder
    if arguments.precision not in ("float32", "bfloat16"):
        raise UserError(f"--precision {arguments.precision}: must be float32 or bfloat16; a row has one precision")
    members = members_of(arguments.seeds, arguments.precision, folder)
    commands = {member: with_flags(commands_of(member, "cpu", THREADS, None), flags) for member in members}
    if arguments.dry_run:
        return show(commands.values())
    failed = run_all(list(commands.values()), folder, 1, arguments.only_report)
    report(members, arguments.what)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the logs lie in {folder / 'logs'}")


if __name__ == "__main__":
    main()
