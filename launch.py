"""The command line: read it, pick the experiment, start the run. `python launch.py --help` tells the rest."""

import functools
import sys

import fire

from lm_human_preferences.foundation import process

process.tune_threads_and_memory()  # before the imports that load PyTorch

from lm_human_preferences.commands import command_line
from lm_human_preferences.compute import torchrun
from lm_human_preferences.foundation.errors import exit_on_user_error

from params import EXPERIMENTS


@functools.partial(exit_on_user_error, is_first=torchrun.is_first_to_say)
def main() -> None:
    arguments = command_line.prepare(sys.argv[1:], EXPERIMENTS)
    if arguments is not None:
        fire.Fire(
            command_line.Commands(EXPERIMENTS), command=arguments, name="launch.py", serialize=lambda result: None
        )


if __name__ == "__main__":
    torchrun.run_then_exit(main)
