"""The command line: read it, pick the experiment, start the run. `python launch.py --help` tells the rest."""

import functools
import sys

from lm_human_preferences.foundation import process

process.keep_output_going()
process.tune_threads_and_memory()  # before the imports that load PyTorch

from lm_human_preferences.commands import command_line  # noqa: E402  # PyTorch is loaded only after that
from lm_human_preferences.compute import torchrun  # noqa: E402  # as above
from lm_human_preferences.foundation.errors import exit_on_user_error  # noqa: E402  # as above

from params import EXPERIMENTS  # noqa: E402  # as above


@functools.partial(exit_on_user_error, is_first=torchrun.is_first_to_say)
def main() -> None:
    command_line.run(sys.argv[1:], EXPERIMENTS)


if __name__ == "__main__":
    torchrun.run_then_exit(main)
