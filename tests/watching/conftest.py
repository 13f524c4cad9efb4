"""The world in which runs are broken, made once for all tests of the doctor."""

from pathlib import Path

import pytest

from sick import sick_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sick_world(tmp_path_factory.mktemp("world"))
