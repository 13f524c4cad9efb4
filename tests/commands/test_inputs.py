"""What a stage needs and lacks."""

from lm_human_preferences.commands.inputs import missing

from params import EXPERIMENTS


def test_stages_that_learn_from_texts_alone_need_no_queries(tmp_path, monkeypatch):
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for stage, needs in (("train_dpo", False), ("train_ilql", False), ("train_reward", True), ("train_policy", True)):
        lacks = "; ".join(missing(EXPERIMENTS[stage]["own"]()))
        assert ("the data set datasets/own" in lacks) == needs and "the model saved_models/tiny" in lacks
