"""Label files in both forms, and the answers that each type takes. ORIGINAL details 45-48."""

import json

import pytest
import torch

from lm_human_preferences.commands.convert_labels import convert
from lm_human_preferences.commands.inspect_labels import LabelToolParams, inspect
from lm_human_preferences.data.label_files import infer_kind, load_labels, save_labels, token_label
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding

from web import serve

LETTERS, TASK = get_encoding("letters"), TaskParams(query_length=3, response_length=4, truncate_token=26)
CHOICES = [
    {"query": "ab", "responses": ["c", "defghij", "k", ""], "best": 1},
    {"query": "lmnop", "responses": ["q", "r", "s", "t"], "best": 3},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return str(path)


def test_texts_are_cut_padded_and_ended(tmp_path):
    """A response ends with the encoding's end of text where the task truncates at that; what is too long is cut."""
    batch = load_labels(write(tmp_path / "a.jsonl", CHOICES), label_type("best_of_4"), TASK, LETTERS)
    assert batch.queries.tolist() == [[0, 1, 27], [11, 12, 13]] and batch.target.tolist() == [1, 3]
    assert batch.responses[0].tolist() == [[2, 26, 27, 27], [3, 4, 5, 6], [10, 26, 27, 27], [26, 27, 27, 27]]


@pytest.mark.parametrize(
    "name, rows",
    [
        ("best_of_4", CHOICES),
        ("best_of_2", [{"query": "a", "responses": ["b", "c"], "best": 0}]),
        (
            "scalar_rating",
            [{"query": "a", "responses": ["b"], "score": -1.5}, {"query": "a", "responses": ["c"], "score": 2}],
        ),
        ("scalar_compare", [{"query": "a", "responses": ["b", "c"], "difference": 0.25}]),
        ("best_of_2", [{"query": "a", "responses": ["b", "c"], "target": [0.25, 0.75]}]),
        ("ranking_of_3", [{"query": "a", "responses": ["b", "c", "d"], "ranking": [2, 0]}]),
    ],
)
def test_both_forms_give_the_same_tensors(tmp_path, name, rows):
    kind = label_type(name)
    texts = load_labels(write(tmp_path / "a.jsonl", rows), kind, TASK, LETTERS)
    save_labels(tmp_path / "b.json", (token_label(texts, i, kind, LETTERS) for i in range(len(texts))))
    tokens = load_labels(str(tmp_path / "b.json"), kind, TASK, LETTERS)
    for field in ("queries", "responses", "target"):
        assert torch.equal(getattr(texts, field), getattr(tokens, field))


@pytest.mark.parametrize(
    "name, row, says",
    [
        (
            "best_of_4",
            {"query": "a", "responses": ["b", "c"], "best": 0},
            "label 0: best_of_4 needs 4 responses, found 2",
        ),
        ("best_of_2", {"query": "a", "responses": ["b", 5], "best": 0}, "label 0: expected"),
        ("best_of_2", {"query": ["a"], "responses": ["b", "c"], "best": 0}, "label 0: expected"),
        ("best_of_2", {"query": "a", "responses": ["b", "c"], "best": True}, "'best' is True"),
        ("best_of_2", {"query": "a", "responses": ["b", "c"], "best": -1}, "'best' is -1"),
        ("best_of_2", {"query": "", "responses": ["b", "c"], "best": 1}, "query is empty"),
        (
            "best_of_2",
            {"query": [1, 2, 3], "sample0": [1] * 4, "sample1": [1] * 5, "best": 1},
            "sample1 has 5 tokens, the task's length is 4",
        ),
        (
            "best_of_2",
            {"query": [1, 2, 3], "sample0": [1] * 4, "sample1": [1, 2, 3, 4.0], "best": 1},
            "sample1: expected a list of 4 token ids",
        ),
        ("best_of_2", "a", "expected an object"),
        (
            "best_of_2",
            {"query": [1, 2, 27], "sample0": [1] * 4, "sample1": [28] * 4, "best": 1},
            "sample1: token 28 is out of range",
        ),
        (
            "best_of_2",
            {"query": [1, 2], "sample0": [1] * 4, "sample1": [1] * 4, "best": 1},
            "query has 2 tokens, the task's length is 3",
        ),
        ("scalar_rating", {"query": "a", "responses": ["b"], "score": "good"}, "'score' is 'good'"),
        ("scalar_rating", {"query": "a", "responses": ["b"], "score": 1e39}, "'score' is 1e.39; it must be a number"),
        ("scalar_compare", {"query": "a", "responses": ["b", "c"], "difference": -(10**400)}, "'difference' is -1000"),
        ("scalar_compare", {"query": "a", "responses": ["b", "c"], "difference": float("nan")}, "'difference' is nan"),
        ("scalar_rating", {"query": "a", "responses": ["b"], "best": 0}, "the key 'score' is missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, row, says):
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=says) as error:
        load_labels(path, label_type(name), TASK, LETTERS)
    assert path in str(error.value) and "label 0" in str(error.value)


@pytest.mark.parametrize("name", ["best_of_1", "best_of_x", "best", "scalar"])
def test_unknown_types(name):
    with pytest.raises(UserError, match="must be best_of_N"):
        label_type(name)


def test_a_line_may_hold_other_line_separators(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "a\u2028b", "responses": ["c"], "score": 1}\n')
    assert len(load_labels(str(tmp_path / "a.jsonl"), label_type("scalar_rating"), TASK, LETTERS)) == 1


def test_a_file_with_too_few(tmp_path):
    path = write(tmp_path / "a.jsonl", CHOICES)
    assert len(load_labels(path, label_type("best_of_4"), TASK, LETTERS, skip=1)) == 1
    with pytest.raises(UserError, match="no labels after the first 2"):
        load_labels(path, label_type("best_of_4"), TASK, LETTERS, skip=2)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.jsonl", json.dumps(CHOICES[0]).encode() + b'\n\n{"query"\n', "a.jsonl, line 3 is not JSON"),
        ("a.jsonl", b"\n", "has no labels"),
        ("a.json", b"[]", "has no labels"),
        ("a.json", b'[{"query": ', "label 0 is truncated"),
        ("a.json", b'["caf\xe9"]', "not UTF-8"),
    ],
)
def test_files_that_hold_no_labels(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_labels(str(tmp_path / name), label_type("best_of_4"), TASK, LETTERS)


# --- what the task's lengths cut off ---


def test_what_is_cut_and_what_looks_the_same_then_is_said(tmp_path, capsys):
    rows = [
        {"query": "abcd", "responses": ["aaaab", "aaaac", "b", "c"], "best": 1},
        {"query": "abc", "responses": ["aaaab", "aaaac", "aaaad", "aaaae"], "best": 1},
        {"query": "abcde", "responses": ["a", "b", "c", "abcd"], "best": 1},
    ]
    load_labels(write(tmp_path / "a.jsonl", rows), label_type("best_of_4"), TASK, LETTERS)
    [line] = capsys.readouterr().out.splitlines()
    assert line == (
        f"{tmp_path}/a.jsonl: 2 of 3 queries are longer than --task.query_length 3 and cut there; "
        "7 of 12 responses are longer than --task.response_length 4 and cut there; "
        "2 of 3 labels show the same response twice in the first 4 tokens (--task.response_length), 1 of them no other"
    )


@pytest.mark.parametrize("name, responses", [("best_of_4", 4), ("scalar_compare", 2)])
def test_labels_that_all_show_the_same_after_the_cut_are_refused(tmp_path, name, responses):
    kind = label_type(name)
    rows = [{"query": "a", "responses": [f"aaaa{n}" for n in range(responses)], kind.answer: 1}] * 3
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        UserError, match="are all the same in the first 4 tokens .--task.response_length.: nothing can be"
    ):
        load_labels(path, kind, TASK, LETTERS)
    tokens = {"query": [1, 2, 3], **{f"sample{n}": [1] * 4 for n in range(responses)}, kind.answer: 1}
    with pytest.raises(UserError, match="nothing can be learnt"):
        load_labels(write(tmp_path / "b.json", [tokens]), kind, TASK, LETTERS)


def test_nothing_is_said_of_labels_that_fit(tmp_path, capsys):
    load_labels(write(tmp_path / "a.jsonl", [CHOICES[1] | {"query": "lmn"}]), label_type("best_of_4"), TASK, LETTERS)
    rating = {"query": "a", "responses": ["b"], "score": 1}
    load_labels(write(tmp_path / "b.jsonl", [rating, rating]), label_type("scalar_rating"), TASK, LETTERS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name, text", [("a.jsonl", "{}\n"), ("a.json", "[{}]"), ("a.json", " [{}]\n")])
def test_a_byte_order_mark_changes_nothing(tmp_path, name, text):
    """Excel, PowerShell and Notepad begin UTF-8 with it."""
    (tmp_path / name).write_text("\ufeff" + text.format(json.dumps(CHOICES[1])), encoding="utf-8")
    batch = load_labels(str(tmp_path / name), label_type("best_of_4"), TASK, LETTERS)
    assert batch.queries.tolist() == [[11, 12, 13]] and batch.target.tolist() == [3]
    assert infer_kind(str(tmp_path / name)).name == "best_of_4"


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    """Files of cut emoji, in load, inspection and conversion there and back."""
    (tmp_path / "a.jsonl").write_text(
        '{"query": "broken \\ud83d emoji", "responses": [" x\\udc00", " \\ud83d\\ude00 pair"], "best": 1}\n'
    )
    gpt2, source = get_encoding(), str(tmp_path / "a.jsonl")
    batch = load_labels(source, label_type("best_of_2"), TaskParams(query_length=6, response_length=6), gpt2)
    assert gpt2.decode(batch.queries[0].tolist()) == "broken \ufffd emoji"
    assert gpt2.decode(batch.responses[0, 0].tolist()) == " x\ufffd"
    assert gpt2.decode(batch.responses[0, 1].tolist()) == " \U0001f600 pair"
    assert "\ufffd" in inspect(source, LabelToolParams())
    convert(source, str(tmp_path / "b.json"), LabelToolParams())
    convert(str(tmp_path / "b.json"), str(tmp_path / "c.jsonl"), LabelToolParams())
    assert json.loads((tmp_path / "c.jsonl").read_text())["responses"] == [" x\ufffd", " \U0001f600 pair"]


# --- on the web ---


def test_labels_from_an_address_are_fetched_once_and_checked(tmp_path, monkeypatch):
    """Hazard 30."""
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    (tmp_path / "served" / "labels").mkdir(parents=True)
    write(
        tmp_path / "served" / "labels" / "offline.json",
        [{"query": [1, 2, 3], "sample0": [1] * 4, "sample1": [2] * 4, "best": 1}],
    )
    with serve(tmp_path / "served") as server:

        def load():
            return load_labels(f"{server.url}/labels/offline.json", label_type("best_of_2"), TASK, LETTERS)

        server.break_after = [20]
        assert load().target.tolist() == [1] and load().target.tolist() == [1]
        assert [wanted for _, wanted in server.requests] == [None, "bytes=20-"]
        stored = next((tmp_path / "datasets" / "downloads").rglob("offline.json"))
        stored.write_text("<html>an error page</html>")
        assert load().target.tolist() == [1] and len(server.requests) == 3
        with pytest.raises(UserError, match="answers 404"):
            load_labels(f"{server.url}/labels/none.json", label_type("best_of_2"), TASK, LETTERS)


# --- launch.py labels ---


def test_inspection_shows_what_is_favoured(tmp_path):
    rows = [
        {"query": [n % 26, 27, 27], "sample0": [1, 2, 3, 4], "sample1": [1, 2, 27, 27], "best": int(n % 10 == 0)}
        for n in range(400)
    ]
    page = inspect(write(tmp_path / "a.json", rows), LabelToolParams(encoding="letters"))
    assert "400 labels, best_of_2, 26 different queries" in page and "query     1.0 (1 to 1) of 3 tokens" in page
    assert (
        "best at position 0: 90.0%  <- +16 standard errors: is the order of the responses random?" in page
        and "give or take 2.5%" in page
    )
    assert "best: 3.8 tokens long, the others 2.2; it is a longest one in 90.0%, a shortest one in 10.0%" in page
    assert page.count("label ") == 5 and "best -> 1: 'bc'" in page and "'bcde'" in page
    even = [row | {"best": n % 2} for n, row in enumerate(rows)]
    assert "standard errors" not in inspect(
        write(tmp_path / "b.json", even), LabelToolParams(encoding="letters", examples=0)
    )


@pytest.mark.parametrize(
    "row, says",
    [
        ({"query": "a", "responses": ["bc"], "score": 2.5}, "score: mean 2.500, deviation 0.000, 2.5 to 2.5"),
        ({"query": "a", "responses": ["bc", "c"], "difference": -1}, "scalar_compare, 1 different queries"),
        ({"query": "a", "responses": ["b", "b"], "best": 0}, "1 labels show the same response twice"),
    ],
)
def test_inspection_of_every_type(tmp_path, row, says):
    assert says in inspect(write(tmp_path / "a.jsonl", [row]), LabelToolParams(encoding="letters"))


def test_a_correlation_with_length_is_shown(tmp_path):
    rows = [{"query": "a", "responses": ["b" * (n + 1)], "score": n} for n in range(5)]
    assert "correlation with length 1.00" in inspect(
        write(tmp_path / "a.jsonl", rows), LabelToolParams(encoding="letters")
    )


def test_texts_become_tokens_and_texts_again(tmp_path):
    rows = [
        {"query": "The film is", "responses": [" dull.", " a delight, truly.", " café", " \U0001f600"], "best": 1}
    ] * 2
    source = write(tmp_path / "a.jsonl", rows)
    assert "2 labels as lists of 3 + 6 tokens" in convert(
        source, str(tmp_path / "b.json"), LabelToolParams(end_of_text=True)
    )
    task = TaskParams(query_length=3, response_length=6)
    tokens = load_labels(str(tmp_path / "b.json"), label_type("best_of_4"), task, get_encoding())
    assert tokens.responses[0, 0].tolist() == [19222, 13, 50256, 50259, 50259, 50259]
    said = convert(str(tmp_path / "b.json"), str(tmp_path / "c.jsonl"), LabelToolParams())
    assert "2 of them encode to the same tokens again" in said and said.endswith("again")
    assert (tmp_path / "c.jsonl").read_text() == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_tokens_that_the_encoder_would_not_choose_are_counted(tmp_path):
    gpt2 = get_encoding()
    row = {
        "query": gpt2.encode("a b"),
        "sample0": gpt2.encode("i") + gpt2.encode("t"),
        "sample1": gpt2.encode("it is"),
        "best": 0,
    }
    said = convert(
        write(tmp_path / "a.json", [row, row | {"sample0": gpt2.encode("it is")}]),
        str(tmp_path / "b.jsonl"),
        LabelToolParams(),
    )
    assert "1 of them encode to the same tokens again, the others" in said


@pytest.mark.parametrize(
    "words, says",
    [
        (["inspect", "{}/none.json"], "none.json does not exist"),
        (["inspect", "{}/empty.json"], "has no labels"),
        (["inspect", "{}/strange.json"], "label 0: expected the answer in 'best'"),
        (["inspect", "{}/odd.json"], 'label 0: expected {"query": text, "responses": [text, ...]}'),
        (["inspect", "{}/a.json", "--encoding", "bytes"], "--encoding bytes: must be gpt2, letters or a model folder"),
        (["inspect", "{}/a.json", "--type", "best_of_3"], "the key 'sample2' is missing"),
        (["inspect", "{}/a.json", "--examples", "-1"], "--examples -1: must not be negative"),
        (["inspect", "{}/a.json", "--query_length", "0"], "--query_length 0: must be at least 1, or none"),
        (["convert", "{}/a.json", "{}/b.jsonl", "--response_length", "-1"], "--response_length -1: must be at least 1"),
        (["inspect", "{}/a.json", "--query_length", "7"], "query has 3 tokens, the task's length is 7"),
        (["convert", "{}/a.json", "{}/b.txt"], "must end in .json"),
        (["convert", "{}/a.json", "{}/a.json"], "exists already"),
        (["convert", "{}/a.json"], "labels takes these forms"),
        (["inspct", "{}/a.json"], "labels takes these forms"),
        (["inspect", "{}/a.json", "--exmples", "3"], "did you mean --examples?"),
    ],
)
def test_bad_words(tmp_path, capsys, monkeypatch, words, says):
    write(tmp_path / "a.json", [{"query": [1, 2, 3], "sample0": [1] * 4, "sample1": [2] * 4, "best": 1}])
    write(tmp_path / "empty.json", [])
    write(tmp_path / "strange.json", [{"query": [1], "samples": 5}])
    write(tmp_path / "odd.json", [{"query": "a", "responses": 5, "score": 1}])
    before = sorted(path.name for path in tmp_path.iterdir())
    import launch

    monkeypatch.setattr("sys.argv", ["launch.py", "labels", *(word.format(tmp_path) for word in words)])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_commands(tmp_path, capsys, monkeypatch):
    import launch

    path = write(tmp_path / "a.jsonl", [{"query": "A film", "responses": [" one", " two"], "best": 1}])
    for words, says in (
        (["inspect", path], "best -> 1: ' two'"),
        (["convert", path, str(tmp_path / "b.json")], "1 labels as lists of 2 + 1 tokens"),
        (["--help"], "inspect SOURCE | convert SOURCE OUTPUT"),
    ):
        monkeypatch.setattr("sys.argv", ["launch.py", "labels", *words])
        launch.main()
        assert says in capsys.readouterr().out


def test_distributions_and_rankings(tmp_path):
    kind, row = label_type("best_of_4"), {"query": "a", "responses": ["b", "c", "d", "e"]}
    rows = [
        row | {"target": [0.5, 0, 0.25, 0.25]},
        row | {"best": 2},
        row | {"best": 1, "target": "as before: ignored"},
    ]
    batch = load_labels(write(tmp_path / "a.jsonl", rows), kind, TASK, LETTERS)
    assert batch.target.tolist() == [[0.5, 0, 0.25, 0.25], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert batch.best.tolist() == [0, 2, 1] and infer_kind(str(tmp_path / "a.jsonl")) == kind
    one = [row | {"target": [0, 1, 0, 0.0]}, row | {"best": 3}]
    indices = load_labels(write(tmp_path / "b.jsonl", one), kind, TASK, LETTERS).target
    assert indices.tolist() == [1, 3] and indices.dtype == torch.int64  # as if both were `best`
    ranked = write(tmp_path / "c.jsonl", [row | {"ranking": [3, 1]}, row | {"ranking": [0, 1, 2, 3]}])
    assert infer_kind(ranked).name == "ranking_of_4"
    batch = load_labels(ranked, infer_kind(ranked), TASK, LETTERS)
    assert batch.target.tolist() == [[3, 1, -1, -3], [0, 1, 2, 3]] and batch.best.tolist() == [3, 0]
    assert "ranking: [3, 1]" in inspect(ranked, LabelToolParams(encoding="letters"))
    assert "target: [0.5, 0.0, 0.25, 0.25]" in inspect(str(tmp_path / "a.jsonl"), LabelToolParams(encoding="letters"))


@pytest.mark.parametrize(
    "name, answer, says",
    [
        ("best_of_4", {"target": [0.5, 0.5]}, "4 shares"),
        ("best_of_4", {"target": [0.5, 0.5, 0.5, 0]}, "sum to 1"),
        ("best_of_4", {"target": [1.5, -0.5, 0, 0]}, "from 0 to 1"),
        ("best_of_4", {"target": [True, 0, 0, 0]}, "from 0 to 1"),
        ("best_of_4", {"target": 3}, "4 shares"),
        ("ranking_of_4", {"ranking": []}, "different numbers"),
        ("ranking_of_4", {"ranking": [1, 1]}, "different numbers"),
        ("ranking_of_4", {"ranking": [0, 4]}, "from 0 to 3"),
        ("ranking_of_4", {"ranking": 2}, "must be a list"),
        ("ranking_of_4", {"best": 2}, "'ranking' is missing"),
    ],
)
def test_wrong_distributions_and_rankings(tmp_path, name, answer, says):
    path = write(tmp_path / "a.jsonl", [{"query": "a", "responses": ["b", "c", "d", "e"]} | answer])
    with pytest.raises(UserError, match=says):
        load_labels(path, label_type(name), TASK, LETTERS)
