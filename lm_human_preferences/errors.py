"""What the user did wrong, as an exception that carries one line on what to mend."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: `launch.py` and the scripts print its one line to standard error and exit with status 2.

    Anything else that is raised is the program's own fault and keeps its traceback.
    """


class Interrupted(Exception):
    """A run stopped because it was asked to, with everything saved: its one line is printed and the exit status is 0."""


def exit_on_user_error(main: Callable) -> Callable:
    """A `main` that turns a UserError into its one line on standard error and exit status 2, and a run that was asked to stop into status 0."""
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except Interrupted as end:
            if str(end):
                print(end)
            raise SystemExit(0) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
    return wrapped
