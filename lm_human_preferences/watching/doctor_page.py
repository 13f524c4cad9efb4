"""docs/doctor.md, made from the checks themselves.

python -m lm_human_preferences.watching.doctor_page > docs/doctor.md
"""

import re
import textwrap

from lm_human_preferences.watching.check import Check, Limit
from lm_human_preferences.watching.checks_dpo import DPO_CHECKS
from lm_human_preferences.watching.checks_every_stage import EVERY_STAGE_CHECKS
from lm_human_preferences.watching.checks_ilql import ILQL_CHECKS
from lm_human_preferences.watching.checks_online import ONLINE_CHECKS
from lm_human_preferences.watching.checks_policy import POLICY_CHECKS
from lm_human_preferences.watching.checks_reward import REWARD_CHECKS
from lm_human_preferences.watching.checks_sft import SFT_CHECKS

_WIDTH = 120
_HEAD = """\
# The doctor

    python launch.py doctor EXPERIMENT

reads a run's `config.json`, `metrics.jsonl`, `samples.jsonl` and `result.json`, finished or not, and prints one block
for each thing that looks wrong: what it saw and at which step, why that matters, what to change. Then it names what it
looked at and found fine, and what the run has no numbers for. Exit status: 0 healthy, 1 something was found, 2 there is
no such run. `--save_dir` is the folder that holds the run folders.

The same checks watch a run while it goes on. Each reports at most twice, when it first finds something and when that
becomes severe, on standard error and in the run's `warnings.jsonl` (`check`, `severe`, `step`, `saw`, `why`, `change`).
The run goes on: what to do is yours to decide. A resumed run does not repeat what was said before its checkpoint. The
checks marked "afterwards" need a file that is not complete before the end.

A finding is a reason to look, not a proof, and a healthy run can still be a useless one: read samples.
[metrics.md](metrics.md) says what each number is.

This page is generated from the files in [watching/](../lm_human_preferences/watching/checks.py), where each limit
stands above its check:

    python -m lm_human_preferences.watching.doctor_page > docs/doctor.md
"""
SECTIONS = (
    ("Policy training", POLICY_CHECKS),
    ("Asking people", ONLINE_CHECKS),
    ("Reward training", REWARD_CHECKS),
    ("Supervised training", SFT_CHECKS),
    ("Direct preference optimisation", DPO_CHECKS),
    ("Implicit language Q-learning", ILQL_CHECKS),
    ("Several stages", EVERY_STAGE_CHECKS),
)


def doctor_page() -> str:
    """The text of docs/doctor.md, which ends with a line break."""
    sections = [
        f"## {title}\n\n" + "\n\n".join(_describe_check(check) for check in checks) for title, checks in SECTIONS
    ]
    return "\n".join([_HEAD, *(section + "\n" for section in sections)])


def _describe_check(check: Check) -> str:
    lines = [
        *([f"Stages: {', '.join(f'`{stage}`' for stage in check.stages)}."] if len(check.stages) > 1 else []),
        f"Looks at: {check.looks_at}.",
        *(_describe_limit(limit) for limit in check.limits),
        f"Why it matters: {check.why}.",
        f"What to change: {check.change}.",
    ]
    return f"### `{check.name}`{' (afterwards)' if check.afterwards else ''}\n\n" + "\n".join(map(_item, lines))


def _describe_limit(limit: Limit) -> str:
    severe = "" if limit.severe is None else f", severe {limit.words(limit.severe)}"
    return f"Warns {limit.words(limit.warning)}{severe}: {limit.of}. Reason: {limit.why}."


def _item(line: str) -> str:
    """A line of a list, wrapped, but not inside of what is code."""
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), line)
    filled = textwrap.fill(
        whole, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\0", " ")


if __name__ == "__main__":
    print(doctor_page(), end="")
