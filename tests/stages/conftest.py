"""The world of the tests of faults, made once; other files have a world of their own."""

from pathlib import Path

import pytest

from faults import stopped_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped_world(tmp_path_factory.mktemp("faults"))
