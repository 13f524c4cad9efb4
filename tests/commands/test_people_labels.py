"""`labels inspect` and `labels quality` of a study; tests/people/ has what they say."""

import pytest

from small import run_here
from studies import make_study, question


@pytest.mark.parametrize("what", ["inspect", "quality"])
def test_a_study_is_found_from_another_folder(tmp_path, monkeypatch, capsys, what):
    (tmp_path / "elsewhere").mkdir()
    make_study(tmp_path / "saved_models/asked", [question(0)])
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_here("labels", what, "asked")
    assert capsys.readouterr().out
