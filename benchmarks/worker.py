"""A process that holds one subject and does a repetition of its work whenever it is asked: `python -m benchmarks.worker
CASE`.

It answers each line of standard input with one line of JSON. Nothing else reaches its standard output: what libraries
print goes to standard error.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

from lm_human_preferences.foundation import process

if __name__ == "__main__" and json.loads(sys.argv[1])["subject"] == "ours":
    process.tune_threads_and_memory()  # as launch.py does; before the imports that load PyTorch

import torch

from benchmarks.cases import Case
from benchmarks.clock import PhaseClock
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.foundation.errors import UserError


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        repeat = prepare(Case(**json.loads(sys.argv[1])))
        print(json.dumps({"ready": True}), file=answers)
        for _ in sys.stdin:
            print(json.dumps(repeat()), file=answers)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=answers)


def prepare(case: Case) -> Callable[[], dict]:
    """What one repetition of the case is: a function that does it and describes it."""
    if case.threads:
        torch.set_num_threads(case.threads)
    precision = choose_precision(case.device, case.precision)
    clock = PhaseClock(precision.device)
    if case.subject == "peaks":
        from benchmarks.peaks import Peaks

        return Peaks(case, precision.device)
    if case.subject == "ours":
        from benchmarks import ours

        subject = ours.make(case, precision, clock)
        work = subject.work
    else:
        from benchmarks import others

        subject, work = None, others.make(case, precision)

    def repeat() -> dict:
        started = time.process_time()
        seconds, phases, _ = clock.measure(work)
        answer = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - started,
            "memory": peak_memory(precision.device),
        }
        if subject is not None:
            answer |= {
                "phases": phases,
                "rows": subject.rows,
                "tokens": subject.tokens(),
                "flops": subject.flops(),
                "precision": "bfloat16" if precision.bfloat16 else "float32",
            }
        return answer

    return repeat


def peak_memory(device: torch.device) -> int:
    """The largest number of bytes held so far: on a GPU of its memory, on a CPU of this process, the libraries
    included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except OSError:  # not Linux; there ru_maxrss would count what the parent held before this program began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
