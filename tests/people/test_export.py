"""What a study's answers become: label files that training reads, pairs, the record, a datasheet; soft labels train."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lm_human_preferences.data.label_files import infer_kind, load_labels
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding
from lm_human_preferences.people.queue import earlier_turn, keep_answer, keep_flag, next_turn, study_of
from lm_human_preferences.people.records import ALIKE, CHOICE, RANKING, SKIP, VALIDATION, Question, Response
from lm_human_preferences.runs.tracking import read_jsonl

from small import make_world, metrics, reward_flags, run_here
from studies import make_study

LETTERS, TASK = get_encoding("letters"), TaskParams(query_length=3, response_length=4, truncate_token=26)


def lettered(number, kind="plain", wanted=1):
    """A question with tokens: query `a..`, responses `b`, `c`, `d`, `e` and an end."""
    responses = [Response("bcde"[n], "p", [n + 1, 26, 27, 27], "digest", 5) for n in range(4)]
    return Question("abc"[: 1 + number % 3], responses, kind, None, ([0, 1, 2] + [27] * 3)[:3], wanted, f"k/{number}")


def say(store, name, kind, numbers=(), sureness=None):
    """Answer the next question by the responses' numbers."""
    with store.transaction():
        turn = next_turn(store, name, study_of(store))
        body = {
            "showing": turn.showing.id,
            "kind": kind,
            "nonce": f"{name}-answers-{turn.showing.id}",
            "sureness": sureness,
        }
        body["places"] = [turn.showing.places.index(number) for number in numbers]
        keep_answer(store, name, study_of(store), body)
    return turn


def run(capsys, *words):
    capsys.readouterr()
    run_here("labels", *words)
    return capsys.readouterr().out


def test_the_export_holds_exactly_what_was_said(tmp_path, capsys):
    questions = [lettered(0, wanted=3), lettered(1), lettered(2), lettered(3), lettered(4, VALIDATION)]
    store = make_study(tmp_path / "study", questions, ["a", "b", "c"])
    for name, number in (("a", 2), ("b", 2), ("c", 0)):
        say(store, name, CHOICE, [number])
    flagged = say(store, "a", CHOICE, [1])
    with store.transaction():
        keep_flag(store, "a", {"showing": flagged.showing.id, "note": "odd"})
    say(store, "b", ALIKE)
    say(store, "c", SKIP)
    say(store, "a", CHOICE, [3])
    say(store, "b", CHOICE, [1])
    with store.transaction():
        turn = earlier_turn(store, "b", 1)
        body = {"showing": turn.showing.id, "kind": CHOICE, "nonce": "changed-answer", "replaces": turn.replaces}
        keep_answer(store, "b", study_of(store), body | {"places": [turn.showing.places.index(3)]})
    folder = tmp_path / "study/export"
    out = run(capsys, "export", str(tmp_path / "study"))
    assert f"{folder}/labels.json: 4 lines" in out and f"{folder}/validation.jsonl: 1 lines" in out
    labels = read_jsonl(folder / "labels.jsonl")
    assert [label.get("best", label.get("target")) for label in labels] == [2, 1, [0.25] * 4, 3]
    assert labels[0] == {"query": "a", "responses": ["b", "c", "d", "e"], "best": 2}
    texts, tokens = (
        load_labels(str(folder / name), label_type("best_of_4"), TASK, LETTERS)
        for name in ("labels.jsonl", "labels.json")
    )
    assert torch.equal(texts.target, tokens.target) and torch.equal(texts.responses, tokens.responses)
    pairs = read_jsonl(folder / "pairs.jsonl")
    assert len(pairs) == 9 and pairs[0] == {"prompt": "a", "chosen": "d", "rejected": "b"}
    record = read_jsonl(folder / "answers.jsonl")
    assert len(record) == 9 and [row["replaces"] for row in record][-1] == record[-2]["answer"]
    assert [row["flagged"] for row in record if row["flagged"] is not None] == ["odd"]
    assert record[0]["responses"][0] == dict(text="b", source="p", tokens=[1, 26, 27, 27], digest="digest", step=5)
    assert set(record[0]["places"]) == {0, 1, 2, 3} and record[0]["answered"] >= record[0]["shown"]
    sheet = (folder / "datasheet.md").read_text()
    assert (
        "3 people gave 8 answers to 5 questions" in sheet
        and "> # What to do" in sheet
        and "merged by `majority`" in sheet
    )
    assert "labels.jsonl: 6 lines" in run(capsys, "export", str(tmp_path / "study"), "--merge", "each")  # replaced
    assert "labels.jsonl: 4 lines" in run(capsys, "export", str(tmp_path / "study"), "--merge", "dawid_skene")
    said = run(capsys, "inspect", str(tmp_path / "study"))
    assert "8 that hold, 1 replaced, of 3 labellers" in said and "flagged: 'odd'" in said
    assert "labels     4 plain questions" in said
    assert "a: 3 answers" in run(capsys, "quality", str(tmp_path / "study"))


def test_rankings_and_sureness_are_exported(tmp_path, capsys):
    store = make_study(tmp_path / "study", [lettered(n) for n in range(3)], ["a"], mode="rank", sureness=True)
    say(store, "a", RANKING, [3, 1, 0, 2])
    say(store, "a", RANKING, [2])
    say(store, "a", RANKING, [0, 1], sureness=2)
    run(capsys, "export", str(tmp_path / "study"))
    labels = read_jsonl(tmp_path / "study/export/labels.jsonl")
    assert [label.get("ranking") for label in labels] == [[3, 1, 0, 2], [2], None]
    assert labels[2]["target"] == pytest.approx([0.75, 1 / 12, 1 / 12, 1 / 12])
    assert len(read_jsonl(tmp_path / "study/export/pairs.jsonl")) == 6 + 3 + 3
    run(capsys, "export", str(tmp_path / "study"), "--merge", "majority")
    labels = read_jsonl(tmp_path / "study/export/labels.jsonl")
    assert [label.get("best") for label in labels] == [3, 2, None]
    assert labels[2]["target"] == pytest.approx([0.75, 1 / 12, 1 / 12, 1 / 12])


def test_what_cannot_be_exported_is_one_line(tmp_path):
    make_study(tmp_path / "study", [lettered(0)], ["a"])
    for words, said in (
        (("export", str(tmp_path / "study")), "no answers to learn from yet"),
        (("export", str(tmp_path / "nothing")), "there is no study"),
        (("quality", str(tmp_path / "nothing")), "there is no study"),
        (("export", str(tmp_path / "study"), "extra"), "takes these forms"),
        (("quality", str(tmp_path / "study"), "--mergee", "each"), "did you mean --merge"),
    ):
        with pytest.raises(UserError, match=said):
            run_here("labels", *words)
    say(Study := make_study(tmp_path / "other", [lettered(0)], ["a"]), "a", CHOICE, [1])
    with pytest.raises(UserError, match="must be majority, each, dawid_skene"):
        run_here("labels", "export", str(Study.path.parent), "--merge", "vote")
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match="holds no export"):
        run_here("labels", "export", str(Study.path.parent), "--output", str(tmp_path / "full"))


# --- training on them ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def trained(world, name, change, kind="best_of_4"):
    """The weights and metrics of a reward model on labels that `change` makes of the world's."""
    labels = [json.loads(line) for line in (world / "labels.jsonl").read_text().splitlines()]
    path = world / f"{name}.jsonl"
    path.write_text("".join(json.dumps(change(label)) + "\n" for label in labels))
    assert infer_kind(str(path)) == label_type(kind)
    words = [*reward_flags(world), "--labels.source", str(path), "--labels.type", kind]
    run_here("train_reward", "movies", name, *words)
    tensors = load_file(world / f"runs/{name}/reward_model/model.safetensors")
    return tensors, metrics(world / f"runs/{name}")


def with_answer(label, **answer):
    return {key: value for key, value in label.items() if key != "best"} | answer


def test_one_hot_targets_train_bit_for_bit_as_indices(world):
    plain = trained(world, "plain", lambda label: label)
    one_hot = trained(
        world, "onehot", lambda label: with_answer(label, target=[float(n == label["best"]) for n in range(4)])
    )
    assert all(torch.equal(plain[0][name], one_hot[0][name]) for name in plain[0]) and plain[1] == one_hot[1]


def test_distributions_and_rankings_train(world):
    def soft(label):
        return with_answer(label, target=[0.7 if number == label["best"] else 0.1 for number in range(4)])

    def ranked(label):
        return with_answer(label, ranking=[label["best"], (label["best"] + 1) % 4])

    for change, kind in ((soft, "best_of_4"), (ranked, "ranking_of_4")):
        _, rows = trained(world, change.__name__, change, kind)
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert losses[-1] < losses[0] and 0 <= rows[-1]["validation/accuracy"] <= 1
