"""Which parameters may differ when a run goes on."""

import pytest

from lm_human_preferences.commands import compare, sweep
from lm_human_preferences.runs.description import FREE, is_free


@pytest.mark.parametrize(
    "name, free, differs",
    [
        ("run.save_interval", FREE, True),
        ("online.wait", FREE, True),
        ("online.waiting", FREE, False),
        ("run.seed", FREE, False),
        ("responses", compare.FREE, True),
        ("responses_per_query", compare.FREE, False),
        ("dpo.run.device", compare.FREE, True),
        ("rewards.train_new_model.run.overwrite", sweep.FREE, True),  # a copy of the sweep's own
        ("rewards.train_new_model.run.overwrite", compare.FREE, True),
        ("rewards.train_new_model.labels.source", sweep.FREE, False),
    ],
)
def test_a_free_name_is_a_whole_parameter_or_a_group(name, free, differs):
    assert is_free(name, free) == differs
