"""What is measured: a kind of work on a model of some shape, and a task's lengths."""

import dataclasses
from dataclasses import dataclass

from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.gpt2 import SHAPES, GPT2Config

from params import books_task, cnndm_task

KINDS = {
    "rollout": "sampling the responses of a batch",
    "scoring": "reference log-probabilities and rewards of a batch",
    "update": "a PPO step: rollout, scoring, four epochs",
    "rloo": "the same by RLOO, four responses to a query",
    "reward": "an optimizer step of reward training on choices among four",
    "dpo": "an optimizer step of direct preference optimisation on choices among four",
    "supervised": "an optimizer step of supervised training",
}
RIVALS = {"rollout": "transformers", "update": "trl", "reward": "plain"}  # what a user would use instead
TASKS = {"style": books_task, "summary": cnndm_task}
RESPONSES = 4  # to a query, of RLOO
CHOICES = {"style": 8, "summary": 2}  # in a step of reward training or DPO
BATCHES = {"cpu": {"style": 16, "summary": 4}, "cuda": {"style": 512, "summary": 32}}


@dataclass(frozen=True)
class Case:
    """One measurement. `padding` is the mean share of padding in the queries, whose lengths lie evenly about it."""

    kind: str
    model: str
    task: str
    batch: int
    response_length: int | None = None  # None: the task's
    padding: float = 0.0
    subject: str = "ours"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    captured: bool = False  # decoding, as a CUDA graph

    @property
    def name(self) -> str:
        length = f", response {self.response_length}" if self.response_length else ""
        return (
            f"{self.kind} {self.model} {self.task} x{self.batch}{length}"
            + (f", {self.padding:.0%} padding" if self.padding else "")
            + (", captured" if self.captured else "")
        )

    def of(self, subject: str) -> "Case":
        """The same work done by another implementation."""
        return dataclasses.replace(self, subject=subject)

    def config(self) -> GPT2Config:
        """The model's shape, with GPT-2's context of 1,024 where its own is too short for a query and its response."""
        shape, task = GPT2Config(**SHAPES[self.model]), self.task_params()
        return (
            shape if task.query_length + task.response_length <= shape.n_ctx else dataclasses.replace(shape, n_ctx=1024)
        )

    def task_params(self) -> TaskParams:
        task = TASKS[self.task]()
        return dataclasses.replace(task, response_length=self.response_length or task.response_length)


def check_case(case: Case) -> None:
    """Raises UserError for a case that does not exist or cannot fit into the model's context."""
    for value, known, flag in (
        (case.kind, KINDS, "cases"),
        (case.model, SHAPES, "models"),
        (case.task, TASKS, "tasks"),
    ):
        if value not in known:
            raise UserError(f"--{flag} {value}: there are {', '.join(known)}")
    if case.batch < 1:
        raise UserError(f"--batch {case.batch}: must be at least 1")
    if case.kind == "rloo" and case.batch % RESPONSES:
        raise UserError(f"--batch {case.batch}: rloo needs a multiple of {RESPONSES}, its responses to a query")
    if not 0 <= case.padding < 0.5:
        raise UserError(f"--padding {case.padding}: must lie in 0 to below 0.5")


def cases_of(
    kinds: list[str],
    models: list[str],
    tasks: list[str],
    device: str,
    batch: int | None,
    padding: float,
    captured: bool = False,
    **settings,
) -> list[Case]:
    """All combinations, in the order to measure them. UserError for an unknown name."""
    if captured and device != "cuda":
        raise UserError(f"--captured: a CUDA graph needs a CUDA device, this is {device}; leave it out")
    cases = []
    for model in models:
        for task in tasks:
            for kind in kinds:
                usual = CHOICES if kind in ("reward", "dpo") else BATCHES[device]
                case = Case(
                    kind,
                    model,
                    task,
                    batch if batch is not None else usual.get(task, 1),
                    padding=padding,
                    device=device,
                    captured=captured and kind in ("rollout", "update", "rloo"),
                    **settings,
                )
                check_case(case)
                cases.append(case)
    return cases
