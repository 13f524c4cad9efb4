"""How threads wait and freed memory is kept, set before PyTorch is loaded."""

import os
import subprocess
import sys

import pytest

from small import ROOT

FAULTS = """
from lm_human_preferences.foundation import process
{settle}
import resource, sys
assert "torch" not in sys.modules
import torch
torch.set_num_threads(1)
for _ in range(2):
    torch.ones(2 ** 24)  # 64 MiB
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2 ** 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def run(code: str, **environment) -> str:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "THP_", "MALLOC_", "GLIBC_"))
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_freed_memory_is_used_again():
    """So it costs no page faults, which it does without `tune_threads_and_memory` and where the user has settings."""
    # the fewest where there should be none: a machine that is short of memory moves pages about, which counts as well
    assert int(run(FAULTS.format(settle="process.tune_threads_and_memory()"))) < 20
    assert int(run(FAULTS.format(settle=""))) > 1000
    # the user's own settings stay
    assert (
        int(
            run(
                FAULTS.format(settle="process.tune_threads_and_memory()"),
                MALLOC_ARENA_MAX="2",
                THP_MEM_ALLOC_ENABLE="0",
            )
        )
        > 1000
    )


def test_what_the_user_has_set_stays():
    code = (
        "from lm_human_preferences.foundation import process; process.tune_threads_and_memory(); "
        "import os; print(*map(os.environ.get, process.WAITING))"
    )
    assert (
        run(code) == "passive 10000\n"
        and run(code, OMP_WAIT_POLICY="active") == "active None\n"
        and run(code, GOMP_SPINCOUNT="7") == "None 7\n"
    )


def test_the_command_line_settles_before_pytorch_is_loaded():
    lines = (ROOT / "launch.py").read_text().splitlines()
    settled = next(i for i, line in enumerate(lines) if line.startswith("process.tune_threads_and_memory()"))
    before = "\n".join(lines[:settled])
    assert run(f"{before}\nimport sys; print('torch' in sys.modules)") == "False\n"
