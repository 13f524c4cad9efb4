"""What a run comes to: policy training as `launch.py` does it, on random weights, for as long as there is time."""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.parts import Line, Part, Setting, attempt, line
from benchmarks.ours import random_model
from lm_human_preferences import train_policy
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.queries import write_meta, write_token_file
from lm_human_preferences.foundation.errors import Interrupted
from lm_human_preferences.language.model_folders import save_model
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer

EPISODES = 1_000_000  # of the paper's runs on continuations
WARM_UP = 2  # updates that do not count
DOCUMENTS, LENGTH, FULL_STOP = 4000, 120, 13


def sentiment(setting: Setting) -> Iterator[Line]:
    """Task `sentiment` as it is in params.py, from its queries on disk to its metrics: seconds of an update, and of the
    paper's million episodes.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        prepare(folder, setting)
        yield line("sentiment, random weights: made", f"{time.monotonic() - started:.1f} s")
        ways = (False, True) if setting.cuda else (False,)
        for number, captured in enumerate(ways):
            name = f"sentiment{', captured decoding' if captured else ''}"
            seconds = 2.0 if setting.quick else max(5.0, (setting.left - 10) / (len(ways) - number) - 8)
            yield attempt(name, lambda c=captured, s=seconds: run(folder, setting, c, min(s, 25)))
            setting.clear()


def prepare(folder: Path, setting: Setting) -> None:
    """A language model, a reward model and queries, all random, as files of their true formats."""
    case = setting.case("update", "124M", "style", 512)
    config = case.config()
    save_model(folder / "model", random_model(config, "policy", setting.device))
    reward = RewardModel(random_model(config, "reward", setting.device))
    reward.head.initialise(generator_for(1, "benchmark/head"))
    reward.save(folder / "reward_model")
    random = np.random.default_rng(1)
    documents = random.integers(0, config.n_vocab - 1, (DOCUMENTS, LENGTH))
    documents[:, ::8] = FULL_STOP  # a query begins after the first and ends with the last that fits
    split = write_token_file(folder / "books", "train", [row.astype(np.uint16) for row in documents])
    write_meta(folder / "books", source="made up", licence="none", splits={"train": split}, encoding="gpt2")


def parameters(folder: Path, setting: Setting, captured: bool) -> PolicyTrainingParams:
    """Those of the task, but for where its files lie."""
    from params import EXPERIMENTS

    params: PolicyTrainingParams = EXPERIMENTS["train_policy"]["sentiment"]()
    params.task.policy.initial_model = str(folder / "model")
    params.task.query_dataset = str(folder / "books")
    params.rewards.trained_model = str(folder / "reward_model")
    params.evaluation.samples = 0
    run = params.run
    run.device, run.save_dir, run.save_interval = str(setting.device), str(folder / "runs"), 0
    run.captured_decoding = "on" if captured else "off"
    if setting.quick:
        params.ppo.batch_size, params.task.response_length, params.task.truncate_after = 8, 4, 2
    return params


def run(folder: Path, setting: Setting, captured: bool, seconds: float) -> Line:
    """The stage, asked to stop after so many seconds of updates; it saves a checkpoint and ends, as any run does."""
    params = parameters(folder, setting, captured)
    name = "captured" if captured else "plain"
    begun = time.monotonic()
    with stop_after(seconds):
        try:
            train_policy.train(params, "sentiment", name)
        except Interrupted as stopped:
            print(stopped, file=sys.stderr)
    whole = time.monotonic() - begun
    rows = [json.loads(text) for text in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "elapsed/time" in row]
    times = np.diff([0.0, *(row["elapsed/time"] for row in rows)])[WARM_UP:]
    each = median(times.tolist() or [rows[-1]["elapsed/time"] / len(rows)])
    updates = -(-EPISODES // params.ppo.batch_size)
    last: dict[str, Any] = rows[-1]
    return line(
        "",
        f"{len(rows)} updates of {params.ppo.batch_size}, {each:.3g} s each: a million episodes in "
        f"{updates * each / 60:.1f} minutes; start and stop {whole - last['elapsed/time']:.1f} s; "
        f"ratio's deviation {last['ppo/ratio/std_before']:.1e}, peak {last['memory/peak']:.1f} GiB",
        None,
        seconds=each,
        times=times.tolist(),
        last=last,
    )


class stop_after:
    """Inside the block the first update that ends after so many seconds of updates stops the run, as SIGTERM does."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __enter__(self) -> None:
        self.step, begun = PPOTrainer.step, []

        def stopping(trainer: PPOTrainer, step: int) -> Any:
            begun.append(time.monotonic())
            result = self.step(trainer, step)
            if time.monotonic() - begun[0] > self.seconds and len(begun) > WARM_UP:
                signal.raise_signal(signal.SIGTERM)
            return result

        PPOTrainer.step = stopping  # type: ignore[method-assign]  # put back when the block ends

    def __exit__(self, *_: object) -> None:
        PPOTrainer.step = self.step  # type: ignore[method-assign]


PARTS = [Part("sentiment", "real", 60, sentiment)]
