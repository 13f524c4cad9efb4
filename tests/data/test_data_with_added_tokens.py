"""Data for models with added tokens: token files and labels of GPT-2's own encoding serve them, those with added tokens
serve no other.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_human_preferences.commands.convert_labels import convert
from lm_human_preferences.commands.inspect_labels import LabelToolParams
from lm_human_preferences.data.label_files import load_labels
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.queries import TokenFile, query_stream, read_meta
from lm_human_preferences.data.rows import make_rows
from lm_human_preferences.data.tasks import TaskParams, check_task
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding, gpt2_encoding
from lm_human_preferences.language.model_folders import load_config

from gpt2_folders import make_dlite, make_padded
from load_scripts import load_script, run_main

TEXT = "### Instruction:\nName a film.\n\n### Response:\nAlien.\n\n### End"
END, INSTRUCTION, RESPONSE = 50257, 50258, 50259
KIND, TASK = label_type("best_of_2"), TaskParams(query_length=12, response_length=8)


@pytest.fixture(scope="module")
def dlite(tmp_path_factory) -> Path:
    return make_dlite(tmp_path_factory.mktemp("models") / "dlite")


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory, dlite) -> dict[str, Path]:
    """The same texts with GPT-2's own encoding and with DLite's."""
    root, script = tmp_path_factory.mktemp("data"), load_script("datasets/corpus.py")
    (root / "texts").mkdir()
    for name in ("train", "valid"):
        lines = [json.dumps({"text": f"{n} {TEXT}"}) + "\n" for n in range(4)]
        (root / f"texts/{name}.jsonl").write_text("".join(lines))
    for name, more in (("plain", []), ("added", ["--encoding", dlite])):
        run_main(script, "--input", root / "texts", "--output", root / name, "--processes", "1", *more)
    return {name: root / name for name in ("plain", "added")}


def test_documents_are_encoded_for_a_model(data_sets, dlite):
    encoding = get_encoding(load_config(dlite))
    for name, own in (("plain", gpt2_encoding()), ("added", encoding)):
        assert TokenFile(data_sets[name], "train")[1].tolist() == [*own.encode(f"1 {TEXT}"), 50256]
    tokens = TokenFile(data_sets["added"], "train").tokens
    assert {END, INSTRUCTION, RESPONSE} <= set(tokens.tolist())
    assert "added_tokens" not in read_meta(data_sets["plain"])
    assert [token["text"] for token in read_meta(data_sets["added"])["added_tokens"]] == [
        token.text for token in encoding.added_tokens
    ]


@pytest.mark.parametrize("name", ["plain", "added"])
def test_queries_and_rows_are_padded_outside_the_vocabulary(data_sets, dlite, name):
    """A query that ends with each added token comes out as it went in."""
    config = load_config(dlite)
    encoding, task = get_encoding(config), TaskParams(query_dataset=str(data_sets[name]), query_length=60)
    for query in query_stream(task, encoding, 0, "test").batch(4):
        assert query[-1] == 50262 and encoding.decode(query.tolist())[2:] == TEXT
    inputs, labels = make_rows(data_sets[name], "train", "documents", 64, config).batch(np.array([0]))
    assert (inputs == 50262).any() and (labels == 50262).any()
    assert bool((inputs == RESPONSE).any()) == (name == "added")


def test_data_with_tokens_that_a_model_has_not(data_sets, tmp_path):
    padded, task = load_config(make_padded(tmp_path / "padded")), TaskParams(query_dataset=str(data_sets["added"]))
    says = r"is encoded with the added tokens '### End' as 50257, .* which the model \(gpt2, 5025"
    for attempt in (
        lambda: query_stream(task, gpt2_encoding(), 0, "test"),
        lambda: query_stream(task, get_encoding(padded), 0, "test"),
        lambda: make_rows(data_sets["added"], "train", "packed", 8, padded),
    ):
        with pytest.raises(UserError, match=says) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    query_stream(TaskParams(query_dataset=str(data_sets["plain"])), get_encoding(padded), 0, "test")


def test_data_of_another_encoding(data_sets, tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps(read_meta(data_sets["plain"]) | {"encoding": "letters"}))
    for name in ("train.bin", "train.idx.npy"):
        (tmp_path / name).write_bytes((data_sets["plain"] / name).read_bytes())
    task = TaskParams(query_dataset=str(tmp_path))
    with pytest.raises(UserError, match="has the encoding letters, but the model has gpt2, 50257 tokens"):
        query_stream(task, gpt2_encoding(), 0, "test")


def test_markers_around_queries_are_single_tokens(dlite):
    """What stands around a query and what ends it, by the task's texts."""
    config = load_config(dlite)
    encoding = get_encoding(config)
    task = TaskParams(
        query_prefix="### Instruction:\n",
        query_suffix="\n\n### Response:\n",
        start_text="### Instruction:",
        end_text="### End",
        truncate_token=END,
        query_length=20,
        response_length=16,
    )
    check_task(task, encoding, config.n_ctx)
    assert encoding.encode(task.query_suffix) == [628, RESPONSE]
    with pytest.raises(UserError, match="--task.truncate_token 50257: must lie in 0..50256"):
        check_task(task, gpt2_encoding(), config.n_ctx)


# --- labels ---


def choice(query: str, responses: list[str]) -> dict:
    return {"query": query, "responses": responses, "best": 1}


def test_labels_of_texts_with_added_tokens(dlite, tmp_path):
    encoding, path = get_encoding(load_config(dlite)), tmp_path / "labels.jsonl"
    path.write_text(json.dumps(choice("Name a film.\n### Response:\n", ["Alien.### End", "No."])))
    labels = load_labels(str(path), KIND, TASK, encoding)
    assert labels.queries[0].tolist() == [5376, 257, 2646, 13, 198, RESPONSE, *[50262] * 6]
    assert labels.responses[0, 0].tolist() == [44501, 13, END, *[50262] * 5]
    model = str(dlite)
    said = convert(str(path), str(tmp_path / "again.jsonl"), LabelToolParams(encoding=model))
    assert said.endswith("1 labels as texts")
    assert json.loads((tmp_path / "again.jsonl").read_text()) == json.loads(path.read_text())
    with pytest.raises(
        UserError, match="label 0 holds an added token, and token lists are of GPT-2's own; write texts"
    ):
        convert(str(path), str(tmp_path / "lists.json"), LabelToolParams(encoding=model))
    assert not (tmp_path / "lists.json").exists()


@pytest.mark.parametrize(
    "ends, closed",
    [
        (dict(stop_tokens="### End"), [END]),
        (dict(truncate_token=13, stop_tokens='["### End", "<|endoftext|>"]'), [END]),
        (dict(stop_tokens="50256,### End"), [50256]),
        (dict(truncate_token=13), []),
        ({}, []),
    ],
)
def test_texts_are_closed_by_the_first_end_that_is_no_text(dlite, tmp_path, ends, closed):
    encoding, path = get_encoding(load_config(dlite)), tmp_path / "labels.jsonl"
    path.write_text(json.dumps(choice("Name a film.", ["Alien.", "No.### End"])))
    task = TaskParams(query_length=12, response_length=8, **ends)
    first, second = load_labels(str(path), KIND, task, encoding).responses[0].tolist()
    assert first == [44501, 13, *closed, *[50262] * (6 - len(closed))]
    written = [END] if closed in ([END], []) else [END, *closed]  # once where the text has it already
    assert second[2 : 2 + len(written) + 1] == [*written, 50262]


def test_token_lists_are_gpt2s_own(dlite, tmp_path):
    """Padding 50259 in the file, which is a token of this model: OpenAI's labels train it as they are."""
    encoding, path = get_encoding(load_config(dlite)), tmp_path / "labels.json"
    lists = {"query": [64, *[50259] * 11], "sample0": [65, *[50259] * 7], "sample1": list(range(8)), "best": 0}
    path.write_text(json.dumps([lists]))
    labels, plain = (load_labels(str(path), KIND, TASK, of) for of in (encoding, gpt2_encoding()))
    assert torch.equal(labels.queries == 50262, plain.queries == 50259) and int((labels.queries == 50259).sum()) == 0
    assert labels.responses[0].tolist() == [[65, *[50262] * 7], list(range(8))]
    convert(str(path), str(tmp_path / "again.json"), LabelToolParams(encoding=str(dlite)))
    assert json.loads((tmp_path / "again.json").read_text()) == [lists]
    path.write_text(json.dumps([lists | {"sample1": [END] * 8}]))
    with pytest.raises(UserError, match="label 0: sample1: token 50257 is none of GPT-2's own"):
        load_labels(str(path), KIND, TASK, encoding)


def test_an_encoding_that_is_none(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"query": [1], "sample0": [2], "sample1": [3], "best": 0}]))
    with pytest.raises(UserError, match="--encoding nowhere: must be gpt2, letters or a model folder"):
        convert(str(tmp_path / "x.json"), str(tmp_path / "y.json"), LabelToolParams(encoding="nowhere"))
