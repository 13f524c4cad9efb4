"""Which checkpoints are kept; tests/stages/test_faults.py damages them, test_scaling.py shares them out to ranks."""

from pathlib import Path

import pytest
import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.runs.checkpoints import Checkpoints, check_finite


def steps_of(checkpoints: Checkpoints) -> list[int]:
    return [int(folder.name) for folder in checkpoints.all()]


def test_damaged_checkpoints_of_later_steps_go_not_the_new_one(tmp_path: Path):
    """A run whose newest checkpoints are damaged begins again before them."""
    checkpoints, tensors = Checkpoints(tmp_path, 2, World()), {"a": torch.ones(2)}
    for step in (20, 40):
        checkpoints.save(step, tensors, {})
        (tmp_path / f"{step:08d}/state.json").write_text("{")
    assert checkpoints.load({"a": torch.zeros(2)}) is None
    checkpoints.save(10, tensors, {})
    assert steps_of(checkpoints) == [10] and checkpoints.load({"a": torch.zeros(2)}) is not None
    for step in (20, 30):
        checkpoints.save(step, tensors, {})
    assert steps_of(checkpoints) == [20, 30]


def test_a_weight_that_is_no_number_is_told_in_one_line():
    with pytest.raises(UserError) as caught:
        check_finite({"a": torch.tensor([1.0, float("nan")])}, "policy", World())
    assert str(caught.value) == (
        "a holds a NaN or an infinity, so no policy is written; if it happens again, start anew with a lower learning "
        "rate"
    )
