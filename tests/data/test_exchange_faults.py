"""Other people's label files that do not fit: strange texts, wrong records and settings, each one line."""

import json

import pytest
from exchange import ARGILLA, AXES, COMPARISON, HH, LABEL_STUDIO, NO, USER, YES, annotated, labels_of, read, write

from lm_human_preferences.commands.convert_labels import convert
from lm_human_preferences.commands.inspect_labels import LabelToolParams, inspect
from lm_human_preferences.data.exchange.forms import FORMS, LabelFile
from lm_human_preferences.data.exchange.reading import ReadingParams
from lm_human_preferences.data.label_files import label_texts, load_texts
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding

# --- what does not fit ---

LONG = "x" * 100_000


def test_long_texts_and_strange_characters(tmp_path):
    """100,000 characters, separators of Unicode, halves of surrogate pairs."""
    (tmp_path / "a.csv").write_text(f'prompt,chosen,rejected\n"a\u2028b\u0085c","{LONG}","x\ny"\n', encoding="utf-8")
    assert labels_of(tmp_path / "a.csv") == [
        {"query": "a\u2028b\u0085c", "responses": [f" {LONG}", " x\ny"], "best": 0}
    ]
    source = write(
        tmp_path / "b.jsonl", [{"prompt": "broken \ud83d", "chosen": " \ud83d\ude00 \udc00", "rejected": " b"}]
    )
    for name in ("c.jsonl", "c.csv", "c.parquet"):
        convert(source, str(tmp_path / name), LabelToolParams(to="pairs"))
        (label,) = labels_of(tmp_path / name)
        assert (label["query"], label["responses"]) == ("broken \ufffd", [" \U0001f600 \ufffd", " b"])


def test_ours_with_halves_of_surrogate_pairs_becomes_texts(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"query": "\ud83d", "responses": [" a\udc00", " b"], "best": 1}])
    convert(source, str(tmp_path / "b.jsonl"), LabelToolParams())
    assert read(tmp_path / "b.jsonl") == [{"query": "\ufffd", "responses": [" a\ufffd", " b"], "best": 1}]


def ranked(*ranks):
    """A line of Argilla's form whose answer gives the responses these ranks."""
    value = [{"value": f"response{number}", "rank": rank} for number, rank in enumerate(ranks, 1)]
    return json.dumps(ARGILLA | {"responses": {"p": [{"value": value}]}})


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "prompt,chosen,rejected\n", "has no labels"),
        ("a.csv", "prompt,chosen,rejected\nq,a\n", "row 1 (line 2): expected 3 fields"),
        ("a.csv", "prompt,chosen,chosen\nq,a,b\n", "names the column 'chosen' twice"),
        ("a.csv", 'prompt,chosen,rejected\nq,"a,b\n', "row 1 (line 2) is truncated"),
        ("a.csv", "prompt,chosen,rejected\nq,caf\xe9,b\n".encode("cp1252"), "line 2: not UTF-8"),
        ("a.csv", "prompt,chosen,rejected\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("a.csv", "prompt,answer,rating\rq,a,1\r", "a carriage return stands alone"),
        ("a.csv", "frage,antwort\nq,a\n", "row 1 (line 2): expected a query with response and score"),
        ("a.csv", "prompt,answer,rating\nq,a,good\n", "row 1 (line 2): 'rating' is 'good'; expected a number"),
        ("a.csv", "prompt,answer,rating\nq,a,inf\n", "'rating' is 'inf'; expected a number"),
        ("a.csv", "prompt,answer,rating\n ,a,1\n", "row 1 (line 2): 'prompt', the query, is empty"),
        ("a.csv", "text,rating,output\nq,1,a\n", "which field is the query?"),
        ("a.csv", "prompt,answer_1,answer_2,best\nq,a,b,3\n", "'best' is '3'; expected 1, 2, as in answer_1, answer_2"),
        ("a.csv", "prompt,answer_1,answer_2,ranking\nq,a,b,1>1\n", "names an answer twice"),
        ("a.csv", "prompt,answer_1,answer_2,share_1\nq,a,b,1\n", "expected a query with response and score"),
        ("a.jsonl", "", "has no labels"),
        ("a.jsonl", '{"prompt": "q", "chosen": "a", "rej', "line 1 is not JSON"),
        ("a.jsonl", '{"prompt": "q", "chosen": "a", "rejected": 5}', 'line 1: expected "chosen" and "rejected"'),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}', "line 1: 'chosen' and 'rejected' have no 'prompt'"),
        ("a.jsonl", '{"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}', "message 0 is not"),
        ("a.jsonl", json.dumps({"chosen": [USER, YES], "rejected": [NO]}), "do not begin with the same messages"),
        ("a.jsonl", json.dumps({"chosen": [USER | {"role": "tool"}], "rejected": [USER]}), "has the role 'tool'"),
        ("a.jsonl", '{"prompt": 3, "chosen": "a", "rejected": "b"}', "line 1: 'prompt' is 3; expected a text"),
        ("a.jsonl", '{"a": 1}', "line 1: the form of this file is not known; it has a."),
        ("a.jsonl", json.dumps(COMPARISON | {"choice": 2}), "'choice' is 2; expected a whole number from 0 to 1"),
        ("a.jsonl", json.dumps(COMPARISON | {"info": {}}), "which field is the query?"),
        ("a.jsonl", json.dumps(COMPARISON | {"summaries": [{"text": 5}] * 2}), "'text' is 5; expected a text"),
        ("a.jsonl", json.dumps(AXES | {"summary": {"text": "a"}}), "the summary has no axis 'overall'"),
        (
            "a.jsonl",
            json.dumps(ARGILLA | {"responses": {"p": [{"value": "x"}]}}),
            "is 'x'; expected response1, response2",
        ),
        ("a.jsonl", ranked(None, 1), "the answer to 'p': 'rank' is None; expected a number"),
        ("a.jsonl", ranked("first", "second"), "the answer to 'p': 'rank' is 'first'; expected a number"),
        ("a.jsonl", json.dumps(ARGILLA | {"responses": {"p": [3]}}), "the answers to 'p' are [3]; expected"),
        ("a.jsonl", json.dumps(ARGILLA | {"fields": {"prompt": "p"}}), "which field is the response?"),
        (
            "a.jsonl",
            json.dumps(ARGILLA | {"responses": {"p": [{"value": "x"}], "r": [{"value": 1}]}}),
            "which question counts, p, r?",
        ),
        ("a.jsonl", json.dumps(LABEL_STUDIO | {"annotations": 5}), "'annotations' is 5; expected a list"),
        (
            "a.jsonl",
            json.dumps(annotated({"type": "pairwise", "from_name": "pw", "value": {"selected": "up"}})),
            "the pairwise 'pw' is 'up'; expected left, right, answer1, answer2 or tie",
        ),
        ("a.jsonl", json.dumps(annotated({"type": "ranker", "value": {}})), "expected one list of"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        inspect(str(path), LabelToolParams())
    assert str(path) in str(error.value) and says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError):
        convert(str(path), str(tmp_path / "out.jsonl"), LabelToolParams())
    assert not (tmp_path / "out.jsonl").exists()


def test_a_query_that_is_told_and_missing_is_one_line_for_messages_too(tmp_path):
    for chosen, rejected in (("a", "b"), ([USER, YES], [USER, NO])):
        path = write(tmp_path / "a.jsonl", [{"chosen": chosen, "rejected": rejected}])
        with pytest.raises(UserError, match="line 1: the field 'Frage' is missing; it has chosen, rejected"):
            inspect(str(path), LabelToolParams(columns="query=Frage"))


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"format": "excel"}, "--format excel: must be auto, ours, summaries"),
        ({"join": "comma"}, "--join comma: must be auto, space, none"),
        ({"query_template": "{subject}"}, "the field 'subject' is missing; it has prompt, chosen, rejected"),
        ({"to": "excel"}, "--to excel: must be ours, summaries"),
        ({"merge": "all"}, "--merge all: must be pairs, raters, ratings"),
        ({"merge": "ratings"}, "--merge ratings takes ratings"),
        ({"format": "summaries"}, 'line 1: expected "info"'),
        ({"format": "label_studio"}, 'line 1: expected "data"'),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, says):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": " a", "rejected": " b"}])
    with pytest.raises(UserError) as error:
        convert(source, str(tmp_path / "b.jsonl"), LabelToolParams(**settings))
    assert says in str(error.value) and not (tmp_path / "b.jsonl").exists()


def test_each_form_is_named_in_the_help():
    help = next(field for field in ReadingParams.__dataclass_fields__.values() if field.name == "format").metadata[
        "help"
    ]
    assert all(name in help for name in FORMS)


ODD = (None, 5, -1.5, True, "", "x", [], {}, [None], [{}], {"value": None})
RECORDS = [
    HH[0],
    {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    COMPARISON,
    AXES,
    ARGILLA,
    ARGILLA | {"responses": [{"user_id": "anna", "status": "submitted", "values": {"which": {"value": "response-2"}}}]},
    ARGILLA["fields"] | {"preference.responses": ["response2"], "preference.responses.users": ["anna"]},
    LABEL_STUDIO,
    annotated({"type": "ranker", "value": {"ranker": {"_": ["two", "one"]}}})
    | {"data": {"prompt": "p", "items": [{"id": "one", "body": "a"}, {"id": "two", "body": "b"}]}},
    {"prompt": "p", "answer_1": "a", "answer_2": "b", "best": 1},
    {"prompt": "p", "answer_1": "a", "answer_2": "b", "ranking": [1, 2]},
    {"prompt": "p", "answer_1": "a", "answer_2": "b", "share_1": 1, "share_2": 2},
    {"prompt": "p", "answer": "a", "rating": 2},
]


def broken(value):
    """The value with one thing in it, at any depth, replaced by each odd one or left out."""
    yield from ODD
    if isinstance(value, dict):
        for name in value:
            yield {other: value[other] for other in value if other != name}
            for one in broken(value[name]):
                yield value | {name: one}
    if isinstance(value, list):
        for place in range(len(value)):
            for one in broken(value[place]):
                yield [*value[:place], one, *value[place + 1 :]]


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_a_record_with_anything_wrong_in_it_is_labels_or_one_line(tmp_path, number):
    path, lines = tmp_path / "a.jsonl", 0
    form = LabelFile(write(path, [RECORDS[number]])).form
    for record in broken(RECORDS[number]):
        if not isinstance(record, dict):
            continue
        write(path, [record])
        try:
            list(label_texts(LabelFile(path, ReadingParams(format=form))))
        except UserError as error:
            lines += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert lines > 5


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "prompt,chosen,rejected\nThe film is,a delight,dull\n"),
        ("a.csv", "query,response\nThe film is, a delight\n"),
        ("a.jsonl", json.dumps({"prompt": "The film is", "chosen": " a delight", "rejected": " dull"})),
        ("a.jsonl", json.dumps({"query": "The film is", "responses": [" dull", " a delight"], "best": 1})),
        ("a.csv", "prompt,answer,rating\nThe film is,a delight,3\n"),
    ],
)
def test_given_responses_are_read_from_every_form(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    gpt2 = get_encoding()
    queries, responses = load_texts(str(tmp_path / name), TaskParams(query_length=4, response_length=4), gpt2)
    assert (gpt2.decode(queries[0].tolist()), gpt2.decode(responses[0].tolist())) == ("The film is", " a delight")
