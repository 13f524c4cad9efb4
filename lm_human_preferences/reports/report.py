"""A run or a result as one page: `<folder>/report/index.html`, which needs no other file and no network, and its
figures beside it.

Which file writes what: run_report.py the page of a stage's run (run_figures.py draws it), evaluation_report.py,
quality_report.py, sweep_report.py, shares_report.py and compare_report.py all that is shown of what these commands
found. A reward-training run shows its `quality_<run>` too, if it lies beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_folder, read_json_object
from lm_human_preferences.reports.compare_report import write_comparison_page
from lm_human_preferences.reports.evaluation_report import write_evaluation_page
from lm_human_preferences.reports.logged_run import read_run, stage_of
from lm_human_preferences.reports.quality_report import write_quality_page
from lm_human_preferences.reports.run_report import write_run_page
from lm_human_preferences.reports.shares_report import write_shares_page
from lm_human_preferences.reports.sweep_report import write_sweep_page


@dataclass
class ReportParams:
    """What a page shows, and where the run lies."""

    samples: int = param(200, "held-out queries to show with the policies' responses, the first of the list")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")


# what a page needs of a result.json
_FOUND = {
    "evaluate": ("task", "policies", "wins", "queries", "split", "reference"),
    "reward_quality": ("task", "choices", "accuracy", "accuracy_overlapping", "calibration", "length"),
    "compare": ("task", "policies", "matched", "methods", "targets", "judges", "failed"),
    "sweep_shares": ("task", "shares"),
    "sweep": ("task", "policies", "verdicts", "best_of_n", "optimal", "judges", "failed", "proxy"),
}


def write_report(folder: Path, samples: int = 200) -> Path:
    """Draw the figures of the run or result in `folder` and write its page into `<folder>/report/`, which is replaced
    as a whole.

    `samples`: how many queries to show, the first of the list. Returns index.html's path. Raises UserError if the
    folder is neither, or nothing was logged yet.
    """
    folder = Path(folder)
    if samples < 0:
        raise UserError(f"--samples {samples}: must not be negative")
    stage = stage_of(folder)
    is_result = stage in _FOUND
    if is_result:
        _check_result(folder, str(stage))
    run = None if is_result else read_run(folder)
    with atomic_folder(folder / "report") as out:
        if run is not None:
            write_run_page(run, folder, out, samples)
        elif stage == "evaluate":
            write_evaluation_page(folder, out, samples)
        elif stage == "compare":
            write_comparison_page(folder, out, samples)
        elif stage == "reward_quality":
            write_quality_page(folder, out)
        elif stage == "sweep_shares":
            write_shares_page(folder, out)
        else:
            write_sweep_page(folder, out, samples)
    return folder / "report" / "index.html"


def _check_result(folder: Path, stage: str) -> None:
    """UserError without a result.json of that command's."""
    if not (folder / "result.json").exists():
        raise UserError(f"{folder} has no result.json: run {stage} again")
    result = read_json_object(folder / "result.json")
    if lacking := [name for name in _FOUND[stage] if name not in result]:
        raise UserError(f"{folder / 'result.json'} has no {lacking[0]!r}: run {stage} again, with this version")
