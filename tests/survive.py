"""Kill a small run with SIGKILL at random moments, resume it each time, and compare its end with an uninterrupted
run's.

    python tests/survive.py --stage train_policy --kills 20 --seed 0
    python tests/survive.py --stage train_policy --kills 5 --ranks 2
    python tests/survive.py --stage train_online --kills 20 (policy training that asks people)

Every second kill is aimed at a moment while a checkpoint is being written. Of several ranks a random one is killed, or
all of them and torchrun. Survived means: the resumed run ends with status 0, its weights are bitwise those of the
uninterrupted run, metrics.jsonl has each step once with the same numbers, and nothing half-written is left. Prints a
table; the exit status is 1 if a kill was not survived.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402  # it must find the project first, being run by itself
from safetensors.torch import load_file  # noqa: E402  # as above

from small import LAUNCH, flags, launch, make_world, metrics, policy_flags, reward_flags, sft_flags  # noqa: E402  # as above

RESULTS = {"train_policy": "policy", "train_online": "policy", "train_reward": "reward_model", "train_sft": "lm"}
ONLINE = flags(  # with --stage train_online: policy training that asks simulated people
    online="on",
    online__labels=48,
    online__initial_labels=16,
    online__retrainings=5,
    online__open_questions=4,
    online__labellers="simulated:lexicon?noise=0.5&people=3",
    rewards__train_new_model__batch_size=4,
    rewards__train_new_model__lr=0.01,
    rewards__train_new_model__rollout_batch_size=16,
    rewards__train_new_model__normalize_samples=16,
    rewards__train_new_model__labels__valid_source="none",
)
LONGER = {
    "train_online": flags(ppo__total_episodes=16 * 16, evaluation__samples=0),
    "train_policy": flags(ppo__total_episodes=16 * 16),
    "train_reward": flags(labels__num_train=120, batch_size=4),
    "train_sft": flags(optimizer__epochs=4, validation__interval=4),
}
PATIENCE = 120  # seconds that anything here may take


class Trial(NamedTuple):
    """One kill and what came of it."""

    aim: str  # "any moment" or "saving"
    killed: str  # whom
    after: float  # seconds after the run's folder appeared
    hit_saving: bool  # a half-written checkpoint lay there
    checkpoint: str  # the newest one then
    rows: int  # of metrics then
    problem: str  # empty: survived


class Victim:
    """The run that is killed again and again, in a small world of its own."""

    def __init__(self, folder: Path, stage: str, ranks: int):
        self.stage, self.ranks, self.runs = stage, ranks, folder / "runs"
        make_world(folder, n_labels=130)
        words = {
            "train_policy": lambda: policy_flags(folder, self.runs / "reward/reward_model"),
            "train_online": lambda: [*policy_flags(folder), *ONLINE],
            "train_reward": lambda: reward_flags(folder),
            "train_sft": lambda: sft_flags(folder),
        }
        if stage == "train_policy":
            launch("train_reward", "movies", "reward", *reward_flags(folder))
        self.words = [*map(str, words[stage]()), *LONGER[stage], "--run.save_interval", "1"]

    def command(self, name: str, *more: str) -> list[str]:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(self.ranks),
            LAUNCH[1],
        ]
        stage = "train_policy" if self.stage == "train_online" else self.stage
        return [*(torchrun if self.ranks > 1 else LAUNCH), stage, "movies", name, *self.words, *more]

    def finish(self, name: str, *more: str) -> tuple[int, str]:
        """Run to the end; exit status and standard error."""
        with started(self.command(name, *more), self.runs / f"{name}.err") as process:
            process.wait(timeout=PATIENCE)
        return process.returncode, (self.runs / f"{name}.err").read_text()


@contextmanager
def started(command: list[str], errors: Path) -> Iterator[subprocess.Popen]:
    """A process whose standard error goes to a file; whatever is left of it is killed at the end."""
    errors.parent.mkdir(exist_ok=True)
    with open(errors, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        try:
            yield process
        finally:
            for pid in [*children(process.pid), process.pid] if process.poll() is None else ():
                kill(pid)
            process.wait()


def children(pid: int) -> list[int]:
    """Process numbers of a process's children."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Whether `condition` came true before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.0002)
    return condition()


def writing(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written."""
    try:
        return any(entry.name.startswith(".") for entry in os.scandir(checkpoints))
    except FileNotFoundError:
        return False


def strike(victim: Victim, name: str, aim: str, seconds: float, steps: int, rng: random.Random) -> Trial | None:
    """Start the run and kill it at a random moment; None if it had ended before. Of several ranks the survivors then
    end by themselves.
    """
    run = victim.runs / name
    with started(victim.command(name), victim.runs / f"{name}.err") as process:
        if not wait_for(process, (run / "config.json").exists):
            raise SystemExit(f"the run did not start:\n{(victim.runs / f'{name}.err').read_text()}")
        begun = time.monotonic()
        if aim == "saving":
            number = rng.randrange(1, steps)
            wait_for(process, lambda: (run / f"checkpoints/{number:08d}").exists() or number == 1)
            wait_for(process, lambda: writing(run / "checkpoints"))
            time.sleep(rng.uniform(0, 0.002))
        else:
            time.sleep(rng.uniform(0, seconds))
        ranks = children(process.pid) if victim.ranks > 1 else []
        if process.poll() is not None or victim.ranks > 1 and not ranks:
            return None
        after, everyone = time.monotonic() - begun, rng.random() < 0.5
        chosen = rng.randrange(len(ranks)) if ranks else 0
        for pid in [*ranks, process.pid] if everyone or not ranks else [ranks[chosen]]:
            kill(pid)
        process.wait(timeout=PATIENCE)
    saved = sorted(path.name for path in (run / "checkpoints").glob("0*"))
    who = "the process" if not ranks else "all ranks" if everyone else f"rank {chosen}"
    rows = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0
    return Trial(aim, who, after, writing(run / "checkpoints"), saved[-1] if saved else "none", rows, "")


def compare(victim: Victim, name: str, reference: str) -> str:
    """What is wrong with a resumed run's end; empty if nothing is."""
    one, other = victim.runs / name, victim.runs / reference
    if metrics(one) != metrics(other):
        return "metrics.jsonl differs"
    for file in sorted((other / RESULTS[victim.stage]).glob("*.safetensors")):
        ours, theirs = load_file(one / RESULTS[victim.stage] / file.name), load_file(file)
        if ours.keys() != theirs.keys() or any(not torch.equal(ours[key], theirs[key]) for key in theirs):
            return f"{file.name} differs"
    left = [str(path.relative_to(one)) for path in one.rglob(".*")] + (
        ["checkpoints/"] if (one / "checkpoints").exists() else []
    )
    return f"left behind: {', '.join(left)}" if left else ""


def trials(victim: Victim, kills: int, seed: int) -> Iterator[Trial]:
    """Kill, resume and compare so many times, after one uninterrupted run."""
    rng = random.Random(seed)
    with started(victim.command("whole"), victim.runs / "whole.err") as process:
        wait_for(process, (victim.runs / "whole/config.json").exists)
        begun = time.monotonic()
        process.wait(timeout=PATIENCE)
    seconds, steps = time.monotonic() - begun, len(metrics(victim.runs / "whole"))
    for number in range(kills):
        aim, trial, name = ("any moment", "saving")[number % 2], None, ""
        for attempt in range(10):
            name = f"killed_{number}_{attempt}"
            trial = strike(victim, name, aim, seconds, steps, rng)
            if trial is not None:
                break
        if trial is None:
            raise SystemExit("the run always ends before it is killed")
        status, errors = victim.finish(name, "--run.resume")
        yield trial._replace(
            problem=compare(victim, name, "whole")
            if status == 0
            else f"exit status {status}: {errors.strip().splitlines()[-1:]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stage", choices=list(RESULTS), default="train_policy")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    survived, row = 0, "{:>4}  {:<10}  {:<11}  {:>7}  {:>10}  {:>8}  {:>4}  {}"
    print(row.format("kill", "aimed at", "killed", "after s", "mid-saving", "saved", "rows", "outcome"))
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate(
            trials(Victim(Path(folder), arguments.stage, arguments.ranks), arguments.kills, arguments.seed), 1
        ):
            survived += not trial.problem
            print(
                row.format(
                    number,
                    trial.aim,
                    trial.killed,
                    f"{trial.after:.2f}",
                    "yes" if trial.hit_saving else "no",
                    trial.checkpoint,
                    trial.rows,
                    trial.problem or "same end",
                ),
                flush=True,
            )
    print(
        f"{arguments.stage}, {arguments.ranks} rank{'s' if arguments.ranks > 1 else ''}: {survived} of "
        f"{arguments.kills} survived"
    )
    raise SystemExit(survived < arguments.kills)


if __name__ == "__main__":
    main()
