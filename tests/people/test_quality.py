"""What is said of labellers and of a study: recorded numbers, planted clickers found, honest people left alone."""

import json
import random

import numpy as np
import pytest

from lm_human_preferences.judging.judges import FunctionJudge
from lm_human_preferences.people.merging import answer_distribution, dawid_skene, merged
from lm_human_preferences.people.quality import alpha, at_least, describe, quality, wilson, win_rate
from lm_human_preferences.people.questions import authors_of
from lm_human_preferences.people.queue import next_turn, study_of
from lm_human_preferences.people.records import GOLD, VALIDATION, Answer, Judgement, Question, Response, Showing
from lm_human_preferences.people.simulated import Simulated, answer_of, answer_open, parse_simulated

from studies import ROOT, make_study, question

DIGEST = "digest"
RECORDED = ROOT / "tests/data/people"


def judgement(number, labeller, question, value, kind="choice", repeat=False, question_kind="plain", **more):
    """more: `note` and `sureness`."""
    showing = Showing(number, question, labeller, [0, 1, 2, 3], repeat, 10.0 * number)
    answer = Answer(kind, value, more.get("sureness"))
    return Judgement(number, answer, showing, question_kind, DIGEST, 10.0 * number + 4, None, more.get("note"))


# --- recorded numbers ---


@pytest.fixture(scope="module")
def recorded():
    """tests/data/people/labels.npz: crowd-kit 1.4.2's and krippendorff 0.9.0's numbers, with their settings."""
    with np.load(RECORDED / "labels.npz") as file:
        return {name: file[name] for name in file.files}, json.loads((RECORDED / "labels.json").read_text())


@pytest.mark.parametrize("setting", ["iter1", "iter3", "default", "converged"])
@pytest.mark.parametrize("table, labels", [("two", 2), ("four", 4)])
def test_dawid_and_skene_as_crowd_kit(recorded, table, labels, setting):
    arrays, settings = recorded
    how = settings["dawid_skene"][table][setting]
    found = dawid_skene(arrays[f"{table}/answers"], labels, how["n_iter"], how["tol"])
    name = f"{table}/dawid_skene_{setting}"
    for part in ("posterior", "prior", "errors"):
        np.testing.assert_allclose(getattr(found, part), arrays[f"{name}/{part}"], rtol=0, atol=1e-9)
    if f"{name}/bound" in arrays:
        assert len(found.bounds) == how["iterations"]
        np.testing.assert_allclose(found.bounds, arrays[f"{name}/bound"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("case", ["textbook", "random", "two_raters", "single_answers", "perfect"])
def test_krippendorffs_alpha(recorded, case):
    arrays, _ = recorded
    rows = arrays[f"alpha/{case}/table"]
    table = [{str(one): int(label) for one, label in enumerate(column) if label >= 0} for column in rows.T]
    assert alpha(table) == pytest.approx(float(arrays[f"alpha/{case}/alpha"]), abs=1e-9)


def test_alpha_where_there_is_none():
    assert alpha([{"a": 1}]) is None and alpha([]) is None
    assert alpha([{"a": 1, "b": 1}]) is None


def test_several_answers_as_a_distribution(recorded):
    arrays, settings = recorded
    for target, votes in zip(arrays["votes/target"], settings["votes"], strict=True):
        answers = [Answer("alike" if len(vote) > 1 else "choice", vote) for vote in votes]
        found = np.mean([answer_distribution(answer, 4) for answer in answers], axis=0)
        np.testing.assert_allclose(found, target, atol=1e-12)


def test_ways_of_merging():
    said = [judgement(1, "a", 7, [2]), judgement(2, "b", 7, [2]), judgement(3, "c", 7, [0])]
    said += [judgement(4, "a", 8, [1]), judgement(5, "b", 8, [3]), judgement(6, "a", 9, [], "skip")]
    said += [judgement(7, "a", 7, [1], repeat=True), judgement(8, "a", 5, [0, 1, 2, 3], "alike")]
    found = merged(said, 4, "majority")
    assert list(found) == [7, 8, 5]
    assert found[7].tolist() == [0, 0, 1, 0] and found[8].tolist() == [0, 0.5, 0, 0.5]
    assert found[5].tolist() == [0.25] * 4
    np.testing.assert_allclose(merged(said, 4, "each")[7], [1 / 3, 0, 2 / 3, 0])
    skilled = merged(said, 4, "dawid_skene")
    assert set(skilled) == {7, 8, 5} and all(target.sum() == pytest.approx(1) for target in skilled.values())
    assert skilled[7].argmax() == 2 and skilled[5].tolist() == [0.25] * 4


def test_who_is_not_sure_says_less():
    assert answer_distribution(Answer("choice", [1], 3), 2).tolist() == [0, 1]
    np.testing.assert_allclose(answer_distribution(Answer("choice", [1], 1), 2), [1 / 3, 2 / 3])
    np.testing.assert_allclose(answer_distribution(Answer("ranking", [2, 0, 1], 2), 3), [1 / 9, 1 / 9, 7 / 9])


def test_a_majority_that_was_not_sure():
    """The most people win however sure the others were; the label is as flat as they say, as of one alone."""
    said = [judgement(n, name, 7, [place], sureness=sure) for n, name, place, sure in ((1, "a", 2, 1), (2, "b", 2, 2))]
    said += [judgement(3, "c", 7, [0], sureness=3), judgement(4, "a", 8, [1], sureness=1)]
    found = merged(said, 4, "majority")
    np.testing.assert_allclose(found[7], np.array([0, 0, 0.5, 0]) + 0.5 / 4)
    np.testing.assert_allclose(found[8], answer_distribution(Answer("choice", [1], 1), 4))
    assert merged([judgement(1, "a", 7, [2], sureness=3)], 4, "majority")[7].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("responses", [2, 3, 4, 5])
def test_whoever_chooses_at_random_prefers_neither_side(responses):
    """Of an odd number of responses one more is the reference's or the policy's, each as often."""
    shares = []
    for number in range(4000):
        authors = authors_of(number, VALIDATION, responses, 2, in_turn=False)
        assert authors == sorted(authors) and {0, 1} == set(authors)
        written = [Response(str(j), ("reference", "policy")[author]) for j, author in enumerate(authors)]
        asked = {1: Question("q", written, VALIDATION, id=1)}
        every = [judgement(1, "a", 1, [j], question_kind=VALIDATION) for j in range(responses)]
        shares.append(np.mean([win_rate(asked, [one]).value for one in every]))
    assert abs(np.mean(shares) - 0.5) < 4 * 0.5 / responses / 4000**0.5 + 1e-12


# --- labellers ---


def test_figures_by_hand():
    questions = {
        number: Question("q", [Response(text, "p") for text in (" a", " bbb", " cc", " d")], id=number)
        for number in (1, 2, 3)
    }
    questions[2] = Question("g", questions[2].responses, GOLD, 3, id=2)
    written = [Response(one.text, who) for one, who in zip(questions[3].responses, ["r", "r", "p", "p"], strict=True)]
    questions[3] = Question("v", written, VALIDATION, id=3)
    said = [
        judgement(1, "a", 1, [1]),
        judgement(2, "b", 1, [1]),
        judgement(3, "c", 1, [0], note="odd"),
        judgement(4, "a", 2, [3], question_kind=GOLD),
        judgement(5, "a", 3, [2], question_kind=VALIDATION),
        judgement(6, "b", 3, [0, 1, 2, 3], "alike", question_kind=VALIDATION),
        judgement(7, "c", 3, [0], question_kind=VALIDATION),
        judgement(8, "a", 1, [2], repeat=True),
        judgement(9, "b", 2, [], "skip", question_kind=GOLD),
    ]
    found = quality(questions, said)
    a, b, c = found.labellers
    assert (a.answers, a.usable, a.alike, a.flagged, a.median_seconds) == (4, 4, 0, 0, 4.0)
    assert (b.answers, b.usable, b.alike, c.flagged) == (3, 2, 1, 1)
    assert [share.value for share in a.places] == [0, 0.25, 0.5, 0.25]
    assert a.longest.value == 0.25 and a.gold.value == 1 and b.gold is None and a.repeats.value == 0
    assert a.agreement.value == 0.25 and a.agreement.cases == 2  # half of question 1's others, none of question 3's
    assert found.win_rate.value == 0.5 and found.win_rate.cases == 1  # of (1 + 0.5 + 0) / 3
    assert found.shared == 2 and found.agreement.value == pytest.approx(1 / 6)
    assert [(one.id, counts) for one, counts in found.divided] == [
        (3, {"all alike": 1, "response 1": 1, "response 3": 1}),
        (1, {"response 1": 1, "response 2": 2}),
    ]
    text = describe(found)
    assert "a: 4 answers" in text and "9 answers to 3 questions, 2 of them by several people" in text


def test_no_answers_at_all():
    found = quality({}, [])
    assert found.labellers == [] and found.alpha is None and "0 answers" in describe(found)


def test_intervals():
    assert wilson(0, 0) is None
    share = wilson(8, 10)
    assert (
        share.value == 0.8
        and share.low == pytest.approx(0.4902, abs=1e-4)
        and share.high == pytest.approx(0.9433, abs=1e-4)
    )
    assert at_least(0, 10, 0.25) == pytest.approx(1) and at_least(10, 10, 0.25) == pytest.approx(0.25**10)


def planted(folder, seed):
    """Ten people answer 60 questions each, every question by all: eight honest ones with 30% noise, one who clicks at
    random, one who takes the first card.
    """
    draw = random.Random(seed)
    questions = [
        Question(f"{n}", [Response(f" {draw.random()}", "p") for _ in range(4)], wanted=10, key=f"{n}")
        for n in range(60)
    ]
    names = [f"honest {n}" for n in range(8)] + ["clicker", "first"]
    store = make_study(folder, questions, names)
    store.connection.execute("PRAGMA synchronous=OFF")
    judge = FunctionJudge("number", lambda queries, texts: [float(text) for text in texts])
    kinds = {"clicker": Simulated(judge, noise=1.0, seed=seed), "first": Simulated(judge, first=1.0, seed=seed)}
    with store.transaction():
        for name in names:
            people = kinds.get(name, Simulated(judge, noise=0.3, seed=seed))
            while turn := next_turn(store, name, study_of(store)):
                scores = [float(response.text) for response in turn.question.responses]
                store.answer(
                    turn.showing.id, answer_of(people, name, turn, scores, "choose"), "d", f"{turn.showing.id}"
                )
    return store


def test_the_planted_ones_are_named_and_no_honest_one(tmp_path):
    """In 20 seeded studies, after 60 answers each."""
    for seed in range(20):
        store = planted(tmp_path / str(seed), seed)
        found = quality({one.id: one for one in store.questions()}, store.judgements())
        assert {one.name for one in found.labellers if one.named} == {"clicker", "first"}, seed
        assert all(one.answers == 60 for one in found.labellers)
        (first,) = [one for one in found.labellers if one.name == "first"]
        assert "takes card 1 in 100%" in first.named[0]
        assert 0.2 < found.alpha < 0.6
        store.close()


def test_dawid_and_skene_weigh_the_clicker_down(tmp_path):
    """Where majority is right, and more often."""
    right = {"majority": 0, "dawid_skene": 0}
    for seed in range(3):
        store = planted(tmp_path / str(seed), seed)
        questions = {one.id: one for one in store.questions()}
        said = [
            one for one in store.judgements() if one.showing.labeller in ("honest 0", "clicker", "first", "honest 1")
        ]
        for how in right:
            for number, target in merged(said, 4, how).items():
                best = max(range(4), key=lambda n: float(questions[number].responses[n].text))
                right[how] += target[best] if how == "majority" else target.argmax() == best
    assert right["dawid_skene"] >= right["majority"] > 90


# --- simulated people ---


def test_simulated_people_answer_what_is_open(tmp_path):
    store = make_study(tmp_path, [question(n, wanted=2) for n in range(20)], repeat_share=0.1)
    judge = FunctionJudge("letters", lambda queries, texts: [float(" response d" in text) for text in texts])
    people = Simulated(judge, people=3)
    assert answer_open(store, people, 5) == 5 and len(store.judgements()) == 5
    assert len(people.scores) == 20  # the judge reads what waits at once
    store.add_questions([question(20, wanted=2)])
    answer_open(store, people)
    assert store.count_open() == 0 and answer_open(store, people) == 0
    assert {one.showing.labeller for one in store.judgements()} == {"simulated-1", "simulated-2", "simulated-3"}
    assert {one.answer.value[0] for one in store.judgements()} == {3}


def test_the_line_that_describes_simulated_people():
    import torch

    from lm_human_preferences.foundation.errors import UserError

    found = parse_simulated("simulated:lexicon?noise=0.3&first=0.1&people=5", 7, torch.device("cpu"))
    assert (found.noise, found.first, found.people, found.seed) == (0.3, 0.1, 5, 7) and len(found.names) == 5
    for wrong in ("lexicon", "simulated:lexicon?noise=x", "simulated:lexicon?noise=0.9&first=0.2",
                  "simulated:lexicon?people=0", "simulated:lexicon?speed=3", "simulated:nobody"):  # fmt: skip
        with pytest.raises(UserError):
            parse_simulated(wrong, 0, torch.device("cpu"))
