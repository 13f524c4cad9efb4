"""What a study is made of: its settings, questions, what was shown to whom, and answers."""

from dataclasses import dataclass, field
from typing import Any

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError

PLAIN, GOLD, VALIDATION = "plain", "gold", "validation"  # kinds of questions
CHOICE, ALIKE, RANKING, SKIP = "choice", "alike", "ranking", "skip"  # kinds of answers
REFERENCE, POLICY = "reference", "policy"  # where the responses of a validation question came from
LONGEST_NOTE = 2000  # characters


@dataclass
class StudyParams:
    """How people are asked."""

    responses: int = param(4, "responses shown at once, 2 to 9")
    mode: str = param("choose", "choose: the best one; rank: all in order, the best first")
    sureness: bool = param(False, "also ask how sure people are, 1 to 3")
    overlap_share: float = param(0.05, "share of questions that several people get (the paper: 0.05)")
    overlap_people: int = param(5, "how many people get these (the paper: 5)")
    repeat_share: float = param(0.05, "share of what a person sees that they have answered before")
    gold_share: float = param(0.05, "share of what a person sees whose answer is known, while there are such questions")
    validation_share: float = param(
        0.05, "share of questions with two responses of the reference and two of the policy, where there are both"
    )
    lease_minutes: float = param(10.0, "after this long an open question goes to somebody else")
    seed: int = param(0, "seed of the order of cards and of who gets what")


def check_study(params: StudyParams) -> None:
    """UserError, naming the flag and the number, for settings that cannot work."""
    if not 2 <= params.responses <= 9:
        raise UserError(f"--study.responses {params.responses}: must be 2 to 9, a key each")
    if params.mode not in ("choose", "rank"):
        raise UserError(f"--study.mode {params.mode}: must be choose or rank")
    for name in ("overlap_share", "repeat_share", "gold_share", "validation_share"):
        if not 0 <= getattr(params, name) <= 1:
            raise UserError(f"--study.{name} {getattr(params, name)}: must lie between 0 and 1")
    if params.repeat_share + params.gold_share >= 1:
        raise UserError(
            f"--study.repeat_share {params.repeat_share} and --study.gold_share {params.gold_share} leave no room for "
            "new questions; together they must be below 1"
        )
    if params.overlap_people < 1 or not params.lease_minutes > 0:
        raise UserError("--study.overlap_people must be at least 1, --study.lease_minutes positive")


@dataclass(frozen=True)
class Response:
    """A response, and where it came from, which no labeller ever sees."""

    text: str
    source: str  # the policy's name, or the file of questions
    tokens: list[int] | None = None  # as it was scored: truncated, padded; None for texts of one's own
    digest: str | None = None  # of the policy's model folder
    step: int | None = None  # of the training that the policy is in


@dataclass(frozen=True)
class Question:
    """A query and K responses, of which people choose the best."""

    query: str
    responses: list[Response]
    kind: str = PLAIN
    gold: int | None = None  # the response that is known to be the best
    query_tokens: list[int] | None = None  # padded
    wanted: int = 1  # answers
    key: str | None = None  # a question with the same key is not added twice
    id: int = 0  # in the store; 0: not there yet


@dataclass(frozen=True)
class Showing:
    """A question as one labeller gets it. `places[i]` is the number of the response on card i."""

    id: int
    question: int
    labeller: str
    places: list[int]
    repeat: bool
    shown: float  # Unix time, seconds


@dataclass(frozen=True)
class Answer:
    """What a labeller answered. `value`: response numbers (not places): the chosen one, those that are alike, or a
    ranking, the best first (of the first ones only, perhaps); empty for a skip.
    """

    kind: str
    value: list[int] = field(default_factory=list)
    sureness: int | None = None  # 1 to 3

    @property
    def usable(self) -> bool:
        """Whether something can be learnt from it."""
        return self.kind != SKIP


@dataclass(frozen=True)
class Judgement:
    """An answer with all that the store knows of it."""

    id: int
    answer: Answer
    showing: Showing
    kind: str  # of the question
    instructions: str  # the digest of those that the labeller had read
    answered: float  # Unix time, seconds
    replaces: int | None
    note: str | None  # what the labeller flagged, None if nothing

    @property
    def seconds(self) -> float:
        """From the card being shown to the answer."""
        return self.answered - self.showing.shown

    @property
    def place(self) -> int | None:
        """The place of the chosen (or first ranked) card; None for other answers."""
        return self.showing.places.index(self.answer.value[0]) if self.answer.kind in (CHOICE, RANKING) else None


Settings = dict[str, Any]  # a study's settings as JSON
