"""Other people's label files: each form read, written and read again."""

import gzip

import pytest
from exchange import (
    ARGILLA,
    AXES,
    COMPARISON,
    HH,
    HH_LABELS,
    LABEL_STUDIO,
    NO,
    USER,
    YES,
    annotated,
    labels_of,
    read,
    write,
)

from lm_human_preferences.commands.convert_labels import convert
from lm_human_preferences.commands.inspect_labels import LabelToolParams, inspect
from lm_human_preferences.data.exchange.forms import WRITERS, LabelFile
from lm_human_preferences.data.exchange.reading import ReadingParams
from lm_human_preferences.data.label_files import infer_kind, load_labels, load_train_and_valid
from lm_human_preferences.data.labels import LabelParams, label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding

# --- pairs ---


def test_dialogues_become_pairs_and_the_same_labels_again(tmp_path):
    source = write(tmp_path / "hh.jsonl", HH)
    convert(source, str(tmp_path / "labels.jsonl"), LabelToolParams())
    assert read(tmp_path / "labels.jsonl") == HH_LABELS
    for end, form in ((".jsonl", "pairs"), (".parquet", "pairs"), (".json", "pairs")):
        said = convert(str(tmp_path / "labels.jsonl"), str(tmp_path / f"pairs{end}"), LabelToolParams(to=form))
        assert "3 records, form pairs" in said
        convert(str(tmp_path / f"pairs{end}"), str(tmp_path / "back.jsonl"), LabelToolParams(overwrite=True))
        assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "labels.jsonl").read_bytes()
    assert read(tmp_path / "pairs.jsonl")[0] == {
        "prompt": HH_LABELS[0]["query"],
        "chosen": " Yes, quite.",
        "rejected": " No.",
    }


def test_dialogues_become_messages_and_the_same_labels_again(tmp_path):
    source = write(tmp_path / "labels.jsonl", HH_LABELS[:2])
    for name in ("messages.jsonl", "messages.parquet"):
        said = convert(source, str(tmp_path / name), LabelToolParams(to="messages"))
        assert "do not read back" not in said
        convert(str(tmp_path / name), str(tmp_path / "back.jsonl"), LabelToolParams(overwrite=True))
        assert read(tmp_path / "back.jsonl") == HH_LABELS[:2]
    assert read(tmp_path / "messages.jsonl")[0] == {
        "prompt": [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Me."},
            {"role": "user", "content": "Sure?"},
        ],
        "chosen": [{"role": "assistant", "content": "Yes, quite."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    other = write(tmp_path / "other.jsonl", [{"query": "No dialogue", "responses": [" a", " b"], "best": 1}])
    said = convert(other, str(tmp_path / "d.jsonl"), LabelToolParams(to="messages"))
    assert "1 pairs of messages do not read back as the same texts" in said


LABEL = {"query": "\n\nHuman: Hi\n\nAssistant:", "responses": [" Yes", " No"], "best": 0}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Hi", "chosen": [YES], "rejected": [NO]},
        {"prompt": [USER], "chosen": "Yes", "rejected": "No"},
        {"chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}], "rejected": [USER, NO]},
        {"chosen": [USER, YES | {"content": [{"type": "text", "text": "Yes"}]}], "rejected": [USER, NO]},
    ],
)
def test_lists_of_messages_in_all_their_forms(tmp_path, record):
    assert labels_of(write(tmp_path / "a.jsonl", [record])) == [LABEL]


def test_a_chat_template_of_ones_own(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    path = write(tmp_path / "a.jsonl", [{"chosen": [system, USER, YES], "rejected": [system, USER, NO]}])
    template = r"{system}### Instruction:\n{user}\n\n### Response:\n{assistant}\n\n### End"
    assert labels_of(path, chat_template=template) == [
        {
            "query": "Be kind.### Instruction:\nHi\n\n### Response:\n",
            "responses": ["Yes\n\n### End", "No\n\n### End"],
            "best": 0,
        }
    ]
    with pytest.raises(UserError, match="a message is of system, for which --chat_template has no place"):
        labels_of(path, chat_template="{user} {assistant}")
    with pytest.raises(UserError, match="expected {user} and {assistant}"):
        labels_of(path, chat_template="{assistant} {user}")


def test_what_else_a_pair_says_is_kept(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"prompt": "p", "chosen": " a", "rejected": " b", "rater": "x", "score": 2, "margin": 1.5}],
    )
    assert labels_of(path) == [{"query": "p", "responses": [" a", " b"], "best": 0, "worker": "x", "margin": 1.5}]


def test_a_choice_among_four_becomes_three_pairs_and_the_choice_again(tmp_path):
    row = {"query": "q", "responses": [" a", " b", " c", " d"], "best": 2}
    source = write(tmp_path / "a.jsonl", [row])
    convert(source, str(tmp_path / "pairs.jsonl"), LabelToolParams(to="pairs"))
    assert [(one["chosen"], one["rejected"]) for one in read(tmp_path / "pairs.jsonl")] == [
        (" c", " a"),
        (" c", " b"),
        (" c", " d"),
    ]
    convert(str(tmp_path / "pairs.jsonl"), str(tmp_path / "b.jsonl"), LabelToolParams(merge="pairs"))
    (back,) = read(tmp_path / "b.jsonl")
    assert sorted(back["responses"]) == row["responses"] and back["responses"][back["best"]] == " c"


def test_pairs_are_merged_where_they_agree(tmp_path):
    def pairs(query, *better):
        return [{"prompt": query, "chosen": first, "rejected": second} for first, second in better]

    rows = pairs("chain", (" a", " b"), (" b", " c")) + pairs("circle", (" a", " b"), (" b", " c"), (" c", " a"))
    rows += (
        pairs("open", (" a", " b"), (" c", " b"))
        + pairs("two", (" a", " b"))
        + pairs("star", (" a", " b"), (" a", " c"))
    )
    said = convert(write(tmp_path / "a.jsonl", rows), str(tmp_path / "b.jsonl"), LabelToolParams(merge="pairs"))
    assert [label["query"] for label in read(tmp_path / "b.jsonl")] == ["chain", "star"]
    for line in (
        "1 queries are left out: their pairs contradict each other",
        "1 queries are left out: their pairs leave the best open",
        "1 queries are left out: they have another number of responses than 3",
    ):
        assert line in said


def test_no_space_is_put_into_json_unless_asked_for_and_that_is_said(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "The film is", "chosen": "good.", "rejected": " bad."}])
    file = LabelFile(path, ReadingParams())
    assert [label["responses"] for _, label in file] == [["good.", " bad."]]
    assert file.reading.notes() == [
        "1 responses follow their query without white space (--join space puts one between)"
    ]
    assert labels_of(path, join="space")[0]["responses"] == [" good.", " bad."]


# --- Stiennon et al. ---


def test_comparisons_of_summaries_keep_worker_and_confidence(tmp_path):
    source = write(tmp_path / "batch9.json", [COMPARISON])
    convert(source, str(tmp_path / "a.jsonl"), LabelToolParams())
    (label,) = read(tmp_path / "a.jsonl")
    assert label == {
        "query": "I had an accident.",
        "responses": [" car accident, need info", " other party was speeding"],
        "best": 1,
        "worker": "ikNmucwunMnYJCQpnq6ZYb57OW7NiD",
        "batch": "batch9",
        "split": "train",
        "confidence": 8,
        "policies": ["sup4", "ref"],
        "notes": ["Was it fast?", None],
        "info": {"id": "t3_2vwp1w", "title": "Any lawyers?", "subreddit": "legaladvice"},
    }
    convert(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), LabelToolParams(to="summaries"))
    assert read(tmp_path / "b.jsonl") == [COMPARISON]
    convert(str(tmp_path / "a.jsonl"), str(tmp_path / "tokens.json"), LabelToolParams())
    convert(str(tmp_path / "tokens.json"), str(tmp_path / "c.jsonl"), LabelToolParams())
    assert read(tmp_path / "c.jsonl") == [label]
    convert(str(tmp_path / "a.jsonl"), str(tmp_path / "pairs.csv"), LabelToolParams(to="pairs"))
    (pair,) = labels_of(tmp_path / "pairs.csv")
    assert (pair["worker"], pair["confidence"]) == (label["worker"], "8")
    page = inspect(source, LabelToolParams())
    assert "form      summaries" in page and "workers   1, who" in page and "confidence 8: 1" in page


def test_confidences_are_counted_in_their_order(tmp_path):
    rows = [COMPARISON | {"extra": {"confidence": sure}} for sure in (9, 10, 2, 9)]
    assert "confidence 2: 1, 9: 2, 10: 1" in inspect(write(tmp_path / "a.jsonl", rows), LabelToolParams())


def test_lines_and_other_queries_of_summaries(tmp_path):
    path = write(tmp_path / "batch9.jsonl", [COMPARISON | {"worker": None, "extra": {}}])
    (label,) = labels_of(path, query_template=r"SUBREDDIT: r/{subreddit}\nTITLE: {title}\nPOST: {post}\nTL;DR:")
    assert label["query"] == "SUBREDDIT: r/legaladvice\nTITLE: Any lawyers?\nPOST: I had an accident.\nTL;DR:"
    assert "worker" not in label and "confidence" not in label and label["info"] == COMPARISON["info"]


def test_axes_become_ratings(tmp_path):
    path = write(tmp_path / "axis.jsonl", [AXES, AXES | {"summary": AXES["summary"] | {"axes": {"overall": None}}}])
    file = LabelFile(path, ReadingParams())
    ((_, label),) = file
    assert (label["query"], label["responses"], label["score"], label["worker"]) == (
        "He was sent off.",
        ["Sent off."],
        3,
        "qo6W",
    )
    assert file.reading.notes() == [
        "1 responses follow their query without white space (--join space puts one between)",
        "1 records are left out: they have no rating of 'overall'",
    ]
    assert infer_kind(path).name == "scalar_rating"
    convert(write(tmp_path / "b.jsonl", [AXES]), str(tmp_path / "c.jsonl"), LabelToolParams(axis="accuracy"))
    assert read(tmp_path / "c.jsonl")[0]["score"] == 5
    convert(str(tmp_path / "c.jsonl"), str(tmp_path / "d.jsonl"), LabelToolParams(to="summaries"))
    assert read(tmp_path / "d.jsonl") == [AXES]


# --- Argilla, Label Studio ---

CHOSEN = {"query": "The film is", "responses": [" dull.", " a delight."]}


@pytest.mark.parametrize(
    "ranks, answer",
    [
        ((10, 2, 3), {"ranking": [1, 2, 0]}),
        (("10", "2", "3"), {"ranking": [1, 2, 0]}),
        ((1, 1, 1), None),
        ((1, 1, 2), None),
        ((1, 1), None),
    ],
)
def test_argillas_ranks(tmp_path, ranks, answer):
    """Where some are alike none of ours says it, and that is counted."""
    fields = {"prompt": "The film is", "response1": "dull.", "response2": "a delight.", "response3": "long."}
    value = [{"value": f"response{number}", "rank": rank} for number, rank in enumerate(ranks, 1)]
    record = {"fields": fields, "responses": {"order": [{"value": value, "status": "submitted"}]}}
    file = LabelFile(write(tmp_path / "a.json", [record]), ReadingParams())
    asked = {"query": "The film is", "responses": [" dull.", " a delight.", " long."]}
    assert [label for _, label in file] == ([] if answer is None else [asked | answer])
    left = ["1 records are left out: a ranking has ties"]
    assert [note for note in file.reading.notes() if "left out" in note] == (left if answer is None else [])


@pytest.mark.parametrize(
    "record, labels",
    [
        (ARGILLA, [CHOSEN | {"best": 1, "worker": "anna"}, CHOSEN | {"best": 0, "worker": "ben"}]),
        (
            ARGILLA["fields"]
            | {
                "id": "1",
                "preference.responses": ["response2", "response1"],
                "preference.responses.users": ["anna", "ben"],
                "preference.responses.status": ["submitted", "discarded"],
            },
            [CHOSEN | {"best": 1, "worker": "anna"}],
        ),
        (  # version 1, as data sets of the hub have it
            {
                "prompt": "The film is",
                "response-1": "dull.",
                "response-2": "a delight.",
                "rank": [
                    {
                        "user_id": "anna",
                        "value": [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}],
                        "status": "submitted",
                    }
                ],
            },
            [CHOSEN | {"ranking": [1, 0], "worker": "anna"}],
        ),
        (  # version 1, as records
            ARGILLA
            | {"responses": [{"user_id": "anna", "status": "submitted", "values": {"which": {"value": "response-2"}}}]},
            [CHOSEN | {"best": 1, "worker": "anna"}],
        ),
        (
            ARGILLA | {"responses": {"preference": [{"value": "tie", "user_id": None}]}},
            [CHOSEN | {"target": [0.5, 0.5]}],
        ),
        (
            {
                "fields": {"instruction": "The film is", "response": "dull."},
                "responses": {"quality": [{"value": 4, "user_id": "anna"}]},
            },
            [{"query": "The film is", "responses": [" dull."], "score": 4.0, "worker": "anna"}],
        ),
        (ARGILLA | {"responses": {}}, []),
    ],
)
def test_argillas_exports(tmp_path, record, labels):
    assert labels_of(write(tmp_path / "a.json", [record]), format="argilla") == labels
    if labels:
        assert labels_of(tmp_path / "a.json") == labels


@pytest.mark.parametrize(
    "record, labels",
    [
        (LABEL_STUDIO, [CHOSEN | {"best": 1, "worker": "5"}]),
        (
            annotated({"type": "choices", "from_name": "c", "to_name": "prompt", "value": {"choices": ["Answer 1"]}}),
            [CHOSEN | {"best": 0, "worker": "a@b.c"}],
        ),
        (
            annotated({"type": "choices", "from_name": "c", "to_name": "prompt", "value": {"choices": ["Tie"]}}),
            [CHOSEN | {"target": [0.5, 0.5], "worker": "a@b.c"}],
        ),
        (annotated(), []),
        (
            {
                "data": {
                    "prompt": "The film is",
                    "items": [{"id": "one", "body": "dull."}, {"id": "two", "body": "a delight."}],
                },
                "annotations": [
                    {"result": [{"type": "ranker", "value": {"ranker": {"_": ["two", "one"], "bad": []}}}]}
                ],
            },
            [CHOSEN | {"ranking": [1, 0]}],
        ),
        (
            {
                "data": {"prompt": "The film is", "response": "dull."},
                "annotations": [{"result": [{"type": "rating", "value": {"rating": 2}}], "completed_by": 5}],
            },
            [{"query": "The film is", "responses": [" dull."], "score": 2.0, "worker": "5"}],
        ),
        (  # JSON-MIN
            LABEL_STUDIO["data"] | {"id": 7, "annotator": 5, "annotation_id": 1, "comparison": "left"},
            [CHOSEN | {"best": 0, "worker": "5"}],
        ),
    ],
)
def test_label_studios_exports(tmp_path, record, labels):
    assert labels_of(write(tmp_path / "a.json", [record])) == labels


def test_label_studios_csv(tmp_path):
    (tmp_path / "a.csv").write_text(
        "annotation_id,annotator,answer1,answer2,comparison,id,prompt\n1,5,dull.,a delight.,right,7,The film is\n"
    )
    assert labels_of(tmp_path / "a.csv") == [CHOSEN | {"best": 1, "worker": "5"}]


# --- rows ---


@pytest.mark.parametrize(
    "table, labels",
    [
        (
            "prompt,answer,rating\nThe film is,dull.,2\n",
            [{"query": "The film is", "responses": [" dull."], "score": 2.0}],
        ),
        (
            "Frage;Answer;Score\nDer Film ist;öde.;2,5\n",
            [{"query": "Der Film ist", "responses": [" öde."], "score": 2.5}],
        ),
        (
            "prompt\tchosen\trejected\nThe film is\ta delight.\tdull.\n",
            [{**CHOSEN, "responses": CHOSEN["responses"][::-1], "best": 0}],
        ),
        ("prompt,answer_1,answer_2,best\nThe film is,dull.,a delight.,2\n", [CHOSEN | {"best": 1}]),
        (
            "Prompt,Answer A,Answer B,Winner,Rater\nThe film is,dull.,a delight.,b,x\n",
            [CHOSEN | {"best": 1, "worker": "x"}],
        ),
        ("prompt,answer_0,answer_1,best\nThe film is,dull.,a delight.,answer_1\n", [CHOSEN | {"best": 1}]),
        ("prompt,answer_1,answer_2,best\nThe film is,dull.,a delight.,tie\n", [CHOSEN | {"target": [0.5, 0.5]}]),
        ("prompt,answer_1,answer_2,best\nThe film is,dull.,a delight.,\n", []),
        ("prompt,answer_1,answer_2,ranking\nThe film is,dull.,a delight.,2 > 1\n", [CHOSEN | {"ranking": [1, 0]}]),
        (
            "prompt,answer_1,answer_2,votes_1,votes_2\nThe film is,dull.,a delight.,1,3\n",
            [CHOSEN | {"target": [0.25, 0.75]}],
        ),
    ],
)
def test_tables(tmp_path, table, labels):
    columns = "query=Frage" if table.startswith("Frage") else ""
    for name, content in (
        ("a.csv", table.encode()),
        ("b.csv", b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode()),
        ("c.csv.gz", gzip.compress(table.encode())),
        ("d", table.encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert labels_of(tmp_path / name, columns=columns) == labels


def test_columns_say_what_is_what(tmp_path):
    (tmp_path / "a.csv").write_text("frage,gut,schlecht,note\nq,a,b,3\n")
    assert labels_of(tmp_path / "a.csv", columns="query=frage,response=gut,score=note")[0] == {
        "query": "q",
        "responses": [" a"],
        "score": 3.0,
        "schlecht": "b",
    }
    assert labels_of(tmp_path / "a.csv", format="pairs", columns="query=frage,chosen=gut,rejected=schlecht")[0][
        "responses"
    ] == [" a", " b"]
    with pytest.raises(UserError, match="--columns frage: expected ROLE=NAME"):
        labels_of(tmp_path / "a.csv", columns="frage")


def test_several_raters_become_one_label(tmp_path):
    (tmp_path / "a.csv").write_text(
        "prompt,answer_1,answer_2,best,rater\np,x,y,1,ann\np,y,x,2,bob\np,x,y,2,cid\nq,x,y,2,ann\nq,x,y,2,bob\n"
    )
    convert(str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl"), LabelToolParams(merge="raters"))
    first, second = read(tmp_path / "b.jsonl")
    assert first["target"] == pytest.approx([2 / 3, 1 / 3]) and first["raters"] == 3 and "worker" not in first
    assert second == {"query": "q", "responses": [" x", " y"], "best": 1, "raters": 2}
    page = inspect(str(tmp_path / "a.csv"), LabelToolParams(examples=0))
    assert "2 labels repeat an earlier one" in page and "workers   3, who gave 2 labels at most" in page
    assert "1 questions have more than one answer, in 3 labels that contradict each other" in page


def test_ratings_are_averaged_and_become_pairs(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer,rating\np,x,1\np,x,2\np,y,4\np,z,1.5\nq,x,5\n")
    convert(str(tmp_path / "a.csv"), str(tmp_path / "means.jsonl"), LabelToolParams(merge="raters"))
    assert [label["score"] for label in read(tmp_path / "means.jsonl")] == [1.5, 4, 1.5, 5]
    said = convert(str(tmp_path / "a.csv"), str(tmp_path / "pairs.jsonl"), LabelToolParams(merge="ratings"))
    assert [label["responses"] for label in read(tmp_path / "pairs.jsonl")] == [[" y", " x"], [" y", " z"]]
    assert "1 queries are left out: only one response is rated" in said


# --- all forms, all ends ---

CHOICE = {"query": "q", "responses": [" a", " b"], "best": 1, "worker": "anna"}
RATING = {"query": "q", "responses": [" a"], "score": 2.5, "worker": "anna"}
RANKED = {"query": "q", "responses": [" a", " b", " c"], "ranking": [2, 0, 1], "worker": "anna"}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("end", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("label", [CHOICE, RATING, RANKED], ids=["choice", "rating", "ranking"])
def test_what_is_written_is_read_back(tmp_path, form, end, label):
    """Or refused in one line where the form has no place for it."""
    source, target = write(tmp_path / "a.jsonl", [label] * 2), str(tmp_path / f"b{end}")
    try:
        convert(source, target, LabelToolParams(to=form))
    except UserError as error:
        nested = form in ("argilla", "label_studio") and end in (".csv", ".parquet")
        nested |= form in ("messages", "summaries") and end == ".csv"
        no_place = (form in ("pairs", "messages") and label is RATING) or (form == "summaries" and label is RANKED)
        assert (nested or no_place) and "\n" not in str(error) and not (tmp_path / f"b{end}").exists()
        return
    back = labels_of(target)
    if form in ("pairs", "messages"):
        pairs = [(one["responses"][one["best"]], one["responses"][1 - one["best"]]) for one in back]
        assert pairs == ([(" b", " a")] * 2 if label is CHOICE else [(" a", " b"), (" c", " a"), (" c", " b")] * 2)
    else:
        assert [{name: one[name] for name in label} for one in back] == [label] * 2


def test_parquet_needs_a_package_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1....")
    with pytest.raises(UserError, match=r"a\.parquet is damaged or no parquet file"):
        labels_of(tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        labels_of(tmp_path / "a.parquet")


# --- in training ---


def test_training_reads_such_files(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "The film is,a delight,dull and very very long\n" * 5)
    params = LabelParams(type="best_of_2", num_train=4, source=str(tmp_path / "a.csv"))
    task = TaskParams(query_length=3, response_length=3)
    train, valid = load_train_and_valid(params, label_type("best_of_2"), task, get_encoding())
    assert (len(train), len(valid)) == (4, 1)
    assert get_encoding().decode(train.responses[0, 0].tolist()) == " a delight"
    assert "5 of 10 responses are longer than --task.response_length 3 and cut there" in capsys.readouterr().out
    assert len(load_labels(params.source, label_type("best_of_2"), task, get_encoding(), skip=3)) == 2


def test_lengths_that_do_not_fit_are_counted_by_convert(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "one two three", "chosen": " a b c", "rejected": " a"}])
    said = convert(source, str(tmp_path / "b.jsonl"), LabelToolParams(query_length=2, response_length=2))
    assert "1 queries are longer than --query_length 2 and cut there" in said
    assert "1 responses are longer than --response_length 2 and cut there" in said
    assert read(tmp_path / "b.jsonl") == [{"query": "one two", "responses": [" a b", " a"], "best": 0}]


def test_the_numbers_to_train_with_are_said(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": f" {n}", "rejected": " x"} for n in range(100)])
    said = convert(source, str(tmp_path / "b.jsonl"), LabelToolParams())
    assert "to train on 64 and measure on 36" in said and "--labels.type best_of_2 --labels.num_train 64" in said
