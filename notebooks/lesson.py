"""What the notebooks share: the way to the library, how much is computed, and how an answer is checked.

What a notebook teaches is in the library; here is only what a lesson needs around it.
"""

import atexit
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
SMALL = "LMHP_NOTEBOOKS_SMALL"  # set to anything: everything in seconds, and nothing to be learnt from the figures
REWARD_MODEL = "notebook_reward"  # the run of notebook 02, which later ones use


def begin() -> None:
    """Go to the project's folder, make its modules importable and the data set `movies`, where there is none; set the
    style of figures.

    pip fetches the data set's source, once; datasets/movies.py says where it is from.
    """
    sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "notebooks")]
    from lm_human_preferences.foundation.root import project_root
    from lm_human_preferences.reports.figures import COLOURS, STYLE

    os.chdir(project_root())
    if not Path("datasets/movies/meta.json").is_file():
        subprocess.run([sys.executable, CHECKOUT / "datasets/movies.py"], check=True)
    import matplotlib
    import matplotlib.pyplot

    matplotlib.rcParams.update(STYLE)
    matplotlib.rcParams.update(
        {
            "axes.prop_cycle": matplotlib.pyplot.cycler(color=COLOURS),
            "figure.figsize": (6.4, 3.4),
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
        }
    )


def size(full: int, small: int) -> int:
    """How many to compute with: `full`, or `small` where the notebook is only tried out."""
    return small if SMALL in os.environ else full


# --- runs ---


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what a run prints, progress bars excepted; its folder has all of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def experiment(stage: str) -> Any:
    """The project's parameters for `stage` ("train_reward", "train_policy", ...) on task `movies`, for a lesson: in
    float32 on the CPU, so that everybody sees the same figures; no checkpoints, and a run of the same name is replaced.
    """
    from params import EXPERIMENTS

    params = EXPERIMENTS[stage]["movies"]()
    params.run.device, params.run.precision = "cpu", "float32"
    params.run.save_interval, params.run.overwrite = 0, True
    return params


def short_policy_training(steps: int) -> Any:
    """Policy training for a lesson: `steps` of 32 episodes of 20 tokens, two passes over each at a rate that shows
    something in so few, and no comparison at its end.
    """
    params = experiment("train_policy")
    params.task.response_length, params.ppo.batch_size = size(20, 6), size(32, 8)
    params.ppo.total_episodes = params.ppo.batch_size * steps
    params.ppo.noptepochs, params.ppo.lr = 2, 7e-4
    params.evaluation.samples, params.run.sample_interval = 0, max(1, steps)
    return params


def reward_model() -> Path:
    """The folder of the reward model that notebook 02 trains; trained now, in a minute, where there is none."""
    from lm_human_preferences import train_reward

    folder = Path("saved_models") / REWARD_MODEL / "reward_model"
    if not folder.is_dir():
        with quiet():
            train_reward.train(short_reward_training(), "movies", REWARD_MODEL)
    return folder


def short_reward_training() -> Any:
    """Reward training on the first 1,536 of the 15,136 choices, measured on 600 held-out ones."""
    params = experiment("train_reward")
    params.labels.num_train, params.labels.num_valid = size(1536, 64), size(600, 32)
    params.normalize_samples, params.rollout_batch_size = size(256, 16), size(256, 16)
    return params


def script(path: str, *words: Any) -> None:
    """Run one of the project's scripts as the command line does, and print what it prints. RuntimeError if it fails."""
    done = subprocess.run([sys.executable, str(CHECKOUT / path), *map(str, words)], capture_output=True, text=True)
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(done.stderr)


def open_page(study: str, questions: str, labellers: str, *words: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The labelling page, in a process of its own until it is ended with `terminate()`, or with this one; and each
    labeller's link, by name. RuntimeError if it does not start.
    """
    command = ["collect", "movies", study, "--questions", questions, "--labellers", labellers, "--port", "0", *words]
    page = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "launch.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    atexit.register(page.terminate)
    said, links = "", {}
    for line in page.stdout or ():
        said += line
        if found := re.match(r"  (\S+)\s+(http\S+)$", line):
            links[found[1]] = found[2]
        if line.startswith("Ctrl-C"):
            return page, links
    raise RuntimeError(said)


# --- answers ---


class WrongAnswer(Exception):
    """What is not right yet, in a sentence. Jupyter shows that and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


class _Unanswered(Exception):
    """The answer is still `...`."""


def check(answer: Any) -> Callable[[Callable[[Any], None]], None]:
    """Tries an answer at once with the function that it decorates, which says by `assert` what is wrong.

    An answer that is still `...`, or a function that returns `...`, is named and nothing more, so that "Run All" goes
    on. WrongAnswer for one that is wrong, or that fails in any other way.
    """

    def try_answer(test: Callable[[Any], None]) -> None:
        try:
            if answer is ...:
                raise _Unanswered
            test(_watched(answer) if callable(answer) else answer)
        except _Unanswered:
            print("Not answered yet: put your answer where the ... is in the cell above, run it, and run this one.")
        except AssertionError as error:
            raise WrongAnswer(str(error)) from None
        except Exception as error:
            raise WrongAnswer(f"{type(error).__name__}: {error}") from None
        else:
            print("Right.")

    return try_answer


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if result is ...:
            raise _Unanswered
        return result

    return called


# --- what is shown ---


def coloured(pieces: Sequence[str], values: Sequence[float], low: float, high: float, form: str = "{:.2f}") -> Any:
    """A text in pieces, each on a blue that is the deeper the nearer its value is to `high`; its value shows when the
    mouse rests on it.
    """
    from IPython.display import HTML

    spans = []
    for piece, value in zip(pieces, values, strict=True):
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        text = escape(piece).replace("\n", "⏎")
        style = f"background: rgba(0, 114, 178, {0.75 * share:.2f}); padding: 2px 0; white-space: pre-wrap"
        spans.append(f'<span style="{style}" title="{form.format(value)}">{text}</span>')
    return HTML(f'<div style="font-family: monospace; line-height: 1.8">{"".join(spans)}</div>')
