"""Processes that are forked from one that has loaded everything are those that load it themselves."""

import os
import subprocess

import pytest

import warm
from small import launch


@pytest.mark.parametrize("words", [("train_reward", "movies", "x", "--lr", "high"), ("doctor", "nothing"), ("--help",)])
def test_same_status_and_words(tmp_path, words):
    """In another folder, so that the line that names it differs if the folder does not count."""
    forked, alone = (launch(*words, cwd=tmp_path, check=False, **more) for more in ({}, {"PYTHONHASHSEED": "1"}))
    assert (forked.returncode, forked.stdout, forked.stderr) == (alone.returncode, alone.stdout, alone.stderr)
    assert forked.stdout or forked.stderr


def test_what_takes_too_long_is_killed(tmp_path):
    server = warm.Warm({name: value for name, value in os.environ.items() if name != warm.PER_TEST})
    with pytest.raises(subprocess.TimeoutExpired):
        server.run(["--help"], tmp_path, timeout=0)
    assert server.run(["doctor", "nothing"], tmp_path, timeout=60).returncode == 2, "and the next one works"
