"""Records of other people's label files, and how the tests write and read such files."""

import json

from lm_human_preferences.data.exchange.forms import LabelFile
from lm_human_preferences.data.exchange.reading import ReadingParams

HH = [
    {
        "chosen": "\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Sure?\n\nAssistant: Yes, quite.",
        "rejected": "\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Sure?\n\nAssistant: No.",
    },
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away\u2028now."},
    {
        "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
        "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: E\n\nAssistant: F",
    },
]
HH_LABELS = [
    {
        "query": "\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Sure?\n\nAssistant:",
        "responses": [" Yes, quite.", " No."],
        "best": 0,
    },
    {"query": "\n\nHuman: Hi\n\nAssistant:", "responses": [" Hello!", " Go away\u2028now."], "best": 0},
    {
        "query": "\n\nHuman: A\n\nAssistant:",
        "responses": [" B\n\nHuman: C\n\nAssistant: D", " B\n\nHuman: E\n\nAssistant: F"],
        "best": 0,
    },
]
COMPARISON = {
    "info": {"id": "t3_2vwp1w", "post": "I had an accident.", "title": "Any lawyers?", "subreddit": "legaladvice"},
    "summaries": [
        {"text": " car accident, need info", "policy": "sup4", "note": "Was it fast?"},
        {"text": " other party was speeding", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "ikNmucwunMnYJCQpnq6ZYb57OW7NiD",
    "batch": "batch9",
    "split": "train",
    "extra": {"confidence": 8},
}
AXES = {
    "info": {"id": "167f80", "site": "dailymail", "title": "Sissoko faces action", "article": "He was sent off."},
    "split": "test",
    "summary": {"text": "Sent off.", "policy": "ref", "note": "x", "axes": {"overall": 3, "accuracy": 5}},
    "worker": "qo6W",
    "batch": "cnndm1",
}
ARGILLA = {
    "id": "1",
    "fields": {"prompt": "The film is", "response1": "dull.", "response2": "a delight."},
    "metadata": {},
    "suggestions": {},
    "responses": {"preference": [{"value": "response2", "user_id": "anna"}, {"value": "response1", "user_id": "ben"}]},
    "vectors": {},
}
LABEL_STUDIO = {
    "id": 7,
    "data": {"prompt": "The film is", "answer1": "dull.", "answer2": "a delight."},
    "annotations": [
        {
            "id": 1,
            "completed_by": 5,
            "was_cancelled": False,
            "result": [
                {"type": "pairwise", "value": {"selected": "right"}, "from_name": "pw", "to_name": "answer1,answer2"}
            ],
        },
        {"id": 2, "completed_by": 6, "was_cancelled": True, "result": []},
    ],
}
USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes"), ("assistant", "No"))
)


def annotated(*results):
    return LABEL_STUDIO | {"annotations": [{"completed_by": {"id": 5, "email": "a@b.c"}, "result": list(results)}]}


def write(path, records):
    """Records as JSON lines, or as a list where the name ends in .json."""
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records) if lines else json.dumps(records))
    return str(path)


def read(path):
    return [json.loads(line) for line in open(path, encoding="utf-8", newline="\n")]


def labels_of(path, **settings):
    return [label for _, label in LabelFile(path, ReadingParams(**settings))]
