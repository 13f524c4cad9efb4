"""What a command is, and its words and flags out of a command line."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_human_preferences.foundation.configuration import hint_of, needs_value, takes_any_text
from lm_human_preferences.foundation.errors import UserError

Experiments = dict[str, dict[str, Callable[[], Any]]]  # stage -> task -> what makes the parameters
FLAG = re.compile(r"--[A-Za-z][\w.-]*(=.*)?", re.DOTALL)
HELP = ("help", "-h", "--help")


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    usage: str  # what follows the name
    takes: str  # the same in words
    count: tuple[int, int]  # how many words, at least and at most
    help: str  # one sentence
    run: Callable[[tuple[str, ...], dict[str, str], Experiments], None]  # with its words and its flags' texts
    params: tuple[type, ...] = ()  # the dataclasses whose fields are its flags; help shows the first one's
    stage: str | None = None  # whose entries hold the values that help shows
    of_entry: Callable[[Any], Any] | None = None  # the parameters with the values of such an entry
    hidden: tuple[str, ...] = ()  # parameters that it does not have all the same
    about: tuple[str, ...] = ()  # lines of help above the parameters

    @property
    def line(self) -> str:
        return f"python launch.py {self.name} {self.usage}".rstrip()

    def check_words(self, words: Sequence[str]) -> None:
        """UserError for too few words, or too many."""
        least, most = self.count
        if not least <= len(words) <= most:
            surplus = f"; what is {words[most]!r}?" if len(words) > most > 0 else ""
            raise UserError(f"{self.name} takes {self.takes}: {self.line}{surplus}")

    def hint(self, flag: str) -> Any:
        """The type that the parameter `flag` is declared with, None if there is no such parameter."""
        name = flag.partition("=")[0].replace("-", "_")
        return next((hint for kind in self.params if (hint := hint_of(kind, name)) is not None), None)


def find_command(name: str, commands: Iterable[Command]) -> Command:
    """The command of that name. UserError that names the nearest one if there is none."""
    by_name = {command.name: command for command in commands}
    if name in by_name:
        return by_name[name]
    raise UserError(f"unknown command {name!r}{nearest(name, by_name) or '; python launch.py --help lists them'}")


def find_entry(stage: str, task: str, experiments: Experiments) -> Callable[[], Any]:
    """The function that makes the parameters of a stage and task. UserError for an unknown task."""
    if task in experiments[stage]:
        return experiments[stage][task]
    near = nearest(task, experiments[stage])
    raise UserError(f"{stage} has no task {task!r}{near or '; there are ' + ', '.join(experiments[stage])}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """`; did you mean X?` where some known name is near, else an empty text."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def words_and_flags(command: Command, arguments: Sequence[str]) -> list[str] | None:
    """The arguments after the command's name, each flag and its value as one `--name=value`; None if help is wanted.

    A value is the next argument unless that looks like a flag itself: `--name`, or `-h`. A text may be anything else,
    `help` and `-5 degrees` too; what looks like a flag is given as `--name=--text`. A lone `--name` is `--name=on`.
    Raises UserError for parameters with one dash, and for a lone flag whose parameter is not switched on and off.
    """
    found: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument in HELP:
            return None
        if not FLAG.fullmatch(argument):
            if argument.startswith("-") and not _is_number(argument):
                raise UserError(f"{argument}: parameters are written with two dashes, like --run.seed 1")
            found.append(argument)
            continue
        hint = command.hint(argument[2:])
        if "=" in argument:
            found.append(argument)
        elif left and _is_value(left[0], hint):
            found.append(f"{argument}={left.pop(0)}")
        elif left and left[0] in HELP:
            return None
        elif needs_value(hint):
            how = f"; one that looks like a flag is written {argument}=--TEXT" if takes_any_text(hint) else ""
            raise UserError(f"{argument} needs a value{how}")
        else:
            found.append(f"{argument}=on")
    return found


def _is_value(argument: str, hint: Any) -> bool:
    """Whether what follows a flag, of the type `hint`, is its value."""
    if takes_any_text(hint):
        return not FLAG.fullmatch(argument) and argument != "-h"
    return argument not in HELP and (not argument.startswith("-") or _is_number(argument))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
