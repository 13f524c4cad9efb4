"""`launch.py evaluate` on a very small world: its figures against plain computations, the same files twice, its
refusals; judges as rewards.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_human_preferences.commands import command_line
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.precision import choose_precision
from lm_human_preferences.data.queries import TokenFile, write_token_file
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.evaluation import given_logprobs, per_token_kl
from lm_human_preferences.language.encoding import LetterEncoding, get_encoding
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import save_model
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel

from classifiers import save_classifier
from encoders import write_judge
from params import EXPERIMENTS
from small import CONFIG, PAD, QUERY, RESPONSE, flags, launch, make_world, policy_flags, run_here

SCORES = (
    "def vowels(queries, responses):\n    return [sum(c in 'aeiou' for c in r) for r in responses]\n\n"
    "def rude(queries, responses):\n    return [None] * len(responses)\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a second policy, other/, a reward model, reward/, and a module of functions."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    other = GPT2(CONFIG).initialise(generator_for(0, "test/other"))
    with torch.no_grad():
        other.wte.weight.mul_(10)  # far from uniform
    save_model(folder / "other", other)
    reward = RewardModel(GPT2(CONFIG).initialise(generator_for(0, "test/reward")))
    reward.head.initialise(generator_for(0, "test/head"))
    reward.save(folder / "reward")
    (folder / "vowel_scores.py").write_text(SCORES)
    return folder


@pytest.fixture(autouse=True)
def in_the_world(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", [*sys.path])


def words_for(world: Path, **changes) -> list[str]:
    values = (
        dict(
            task__query_dataset=world / "data",
            task__query_length=QUERY,
            task__response_length=RESPONSE,
            task__truncate_token=26,
            task__truncate_after=1,
            task__policy__temperature=0.7,
            policies=f"a={world / 'model'},b={world / 'other'}",
            samples=30,
            split="valid",
            save_dir=world / "runs",
            device="cpu",
            precision="float32",
            micro_batch=8,
        )
        | changes
    )
    return ["movies", *flags(**{name: value for name, value in values.items() if value is not None})]


def refused(*words) -> str:
    with pytest.raises(UserError) as caught:
        run_here("evaluate", *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def results(folder: Path) -> tuple[dict, list[dict]]:
    rows = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    return json.loads((folder / "result.json").read_text()), rows


def test_twice_the_same_files(world, capsys):
    """In a process of its own too, and in other micro-batches the same responses."""
    judges = f"{world / 'reward'},vowels=vowel_scores:vowels"
    run_here("evaluate", *words_for(world, judges=judges, experiment="one", texts=world / "labels.json"))
    printed = capsys.readouterr().out
    launch("evaluate", *words_for(world, judges=judges, experiment="two", texts=world / "labels.json"), cwd=world)
    for name in ("result.json", "evaluation.jsonl"):
        assert (world / "runs/one" / name).read_bytes() == (world / "runs/two" / name).read_bytes()
    assert (
        "score of vowels" in printed
        and "b against a under reward" in printed
        and "perplexity of the given texts" in printed
    )
    run_here("evaluate", *words_for(world, judges=judges, experiment="one", micro_batch=30, overwrite="on"))
    answers = [
        [[side["response"] for side in row["policies"].values()] for row in results(world / "runs" / name)[1]]
        for name in ("one", "two")
    ]
    assert answers[0] == answers[1]


@torch.no_grad()
def test_figures(world):
    """Against plain computations from the lines of evaluation.jsonl and the models."""
    run_here(
        "evaluate",
        *words_for(
            world, judges=f"{world / 'reward'},vowels=vowel_scores:vowels", experiment="figures", overwrite="on"
        ),
    )
    result, rows = results(world / "runs/figures")
    encoding, reward = LetterEncoding(), RewardModel.load(world / "reward")
    policies = {
        name: Policy.load(world / folder, QueryFormatter([], []), 0.7)
        for name, folder in (("a", "model"), ("b", "other"))
    }
    assert (
        result["reference"] == "a"
        and result["queries"] == len(rows) == 30
        and len({row["document"] for row in rows}) == 30
    )
    documents = TokenFile(world / "data", "valid")
    for name, figures in result["policies"].items():
        total_kl = nll = entropy = 0.0
        for row in rows:
            answer = row["policies"][name]
            query = documents[row["document"]][:-1][:QUERY].astype(np.int64).tolist()  # without the mark at its end
            query = torch.tensor([query + [PAD] * (QUERY - len(query))])
            assert row["query"] == encoding.decode([token for token in query[0].tolist() if token != 26])
            text = encoding.encode(
                answer["response"]
            )  # lacks the end-of-text token, 26, which may stand at the end and at the first place
            response = torch.tensor(
                [[26] * (answer["length"] - len(text) - answer["valid"]) + text + [26] * answer["valid"]]
            )
            assert response.shape[1] <= len(text) + 2
            padded = torch.nn.functional.pad(response, (0, RESPONSE - response.shape[1]), value=PAD)
            assert answer["scores"]["reward"] == pytest.approx(reward(query, padded).item(), abs=1e-5)
            assert answer["scores"]["vowels"] == sum(c in "aeiou" for c in answer["response"])
            token_kl = answer.get("token_kl", [0.0] * answer["length"])
            own, theirs = policies[name].analyze(query, response), policies["a"].analyze(query, response)
            plain = policies["a"].analyze(query, response, temperature=1.0)
            np.testing.assert_allclose(token_kl, (own.logprobs - theirs.logprobs)[0].numpy(), rtol=0, atol=6e-4)
            if "token_kl" in answer:
                assert (
                    len(answer["token_ends"]) == answer["length"]
                    and answer["token_ends"][-1] == len(answer["response"])
                    and name == "b"
                )
            total_kl, nll = total_kl + float((own.logprobs - theirs.logprobs).sum()), nll - float(plain.logprobs.sum())
            entropy += float(own.entropies.sum())
        lengths = [row["policies"][name]["length"] for row in rows]
        tokens = sum(lengths)
        assert figures["kl_per_token"]["mean"] == pytest.approx(total_kl / tokens, abs=1e-5)
        assert figures["perplexity"]["mean"] == pytest.approx(np.exp(nll / tokens), rel=1e-4)
        assert figures["entropy"]["mean"] == pytest.approx(entropy / tokens, rel=1e-4)
        assert figures["length"]["mean"] == pytest.approx(np.mean(lengths))
        assert figures["kl"]["mean"] == pytest.approx(np.mean([row["policies"][name]["kl"] for row in rows]), abs=1e-6)
        assert figures["no_valid_end"]["mean"] == pytest.approx(
            np.mean([not row["policies"][name]["valid"] for row in rows])
        )
        assert all(
            interval["low"] <= interval["mean"] <= interval["high"]
            for interval in figures.values()
            if "low" in interval
        )
        assert not any(key.startswith(("rouge", "copied", "text_")) for key in figures)
    assert result["policies"]["a"]["kl"] == {"mean": 0, "low": 0, "high": 0}
    for win in result["wins"]:
        scores = [
            [row["policies"][name]["scores"][win["judge"]] for row in rows] for name in (win["policy"], win["against"])
        ]
        assert win["share"]["mean"] == pytest.approx(
            np.mean([(x > y) + 0.5 * (x == y) for x, y in zip(*scores, strict=True)])
        )


def test_where_the_kl_lies():
    """Characters whose bytes are spread over tokens end with the last of these; an end-of-text token adds no character,
    unless as its mark.
    """
    encoding = get_encoding()
    tokens = encoding.encode(" naïve 😀!") + [encoding.end_of_text]
    padded, kl = torch.tensor(tokens + [encoding.padding_token] * 3), torch.arange(len(tokens) + 3) / 3 - 1
    found = per_token_kl(padded, kl, encoding)
    assert found["token_kl"] == [round(i / 3 - 1, 3) + 0.0 for i in range(len(tokens))]
    pieces = [" naïve 😀!"[begin:end] for begin, end in itertools.pairwise([0, *found["token_ends"]])]
    assert (
        "".join(pieces) == " naïve 😀!"
        and pieces[-1] == ""
        and pieces[-2] == "!"
        and "😀" in pieces[-3]
        and all("\ufffd" not in piece for piece in pieces)
    )
    assert per_token_kl(padded, kl, encoding, marks=True)["token_ends"][-1] == len(" naïve 😀!<|endoftext|>")
    assert per_token_kl(padded, torch.full((len(padded),), 4e-4), encoding) == {}


def test_a_page_of_it(world):
    """`report` of the results: figures, tables, samples of all policies with their KL under the words; texts are
    escaped.
    """
    run_here(
        "evaluate",
        *words_for(world, judges=f"{world / 'reward'},vowels=vowel_scores:vowels", experiment="page", samples=12),
    )
    rows = results(world / "runs/page")[1]
    rows[0]["policies"]["b"]["response"] = rows[0]["query"] = "<script>alert(1)</script>"
    rows[0]["policies"]["b"].pop("token_kl")  # as in files of before it was kept
    (world / "runs/page/evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_here("report", "page", "--save_dir", world / "runs", "--samples", 10)
    text = (world / "runs/page/report/index.html").read_text()
    assert (
        "The first 10 of 12 queries" in text
        and text.count('class="card" data-v') == 10
        and "vowels, b less a" in text
        and '<i class="p' in text
    )
    assert (
        "<script>alert" not in text
        and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
        and text.count("<figure>") == 3
    )
    assert "score of vowels" in text and "b against a <small>under reward" in text and "task.query_length" in text
    assert {path.name for path in (world / "runs/page/report").glob("*.png")} == {
        "scores.png",
        "frontier.png",
        "wins.png",
    }
    for wrong, says in (
        (("page", "--samples", -1), "--samples -1: must not be negative"),
        (("page", "--sample", 1), "did you mean --samples?"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            run_here("report", *wrong, "--save_dir", world / "runs")
    (world / "runs/page/result.json").unlink()
    with pytest.raises(UserError, match="has no result.json: run evaluate again"):
        run_here("report", "page", "--save_dir", world / "runs")


def test_given_texts(world):
    """Choices, ratings and plain texts give the same perplexity; padding and micro-batches change nothing."""
    labels = [json.loads(line) for line in (world / "labels.jsonl").read_text().splitlines()]
    (world / "texts.jsonl").write_text(
        "".join(json.dumps({"query": row["query"], "response": row["responses"][row["best"]]}) + "\n" for row in labels)
    )
    (world / "rated.jsonl").write_text(
        "".join(
            json.dumps({"query": row["query"], "responses": [row["responses"][row["best"]]], "score": 0.5}) + "\n"
            for row in labels
        )
    )
    found = []
    for number, name in enumerate(("labels.json", "labels.jsonl", "texts.jsonl", "rated.jsonl")):
        run_here(
            "evaluate",
            *words_for(world, texts=world / name, experiment=f"texts{number}", samples=4, task__truncate_token=25),
        )
        found.append(results(world / f"runs/texts{number}")[0]["policies"])
    assert (
        found[0]["a"]["text_perplexity"]
        == found[1]["a"]["text_perplexity"]
        == found[2]["a"]["text_perplexity"]
        == found[3]["a"]["text_perplexity"]
        != found[0]["b"]["text_perplexity"]
    )
    policy = Policy.load(world / "model", QueryFormatter([], []), 0.7)
    queries, responses = torch.tensor([[1, 2], [3, PAD], [4, 5]]), torch.tensor([[6, 7, 8], [9, PAD, PAD], [1, 2, PAD]])
    with torch.no_grad():
        logprobs = given_logprobs(policy, queries, responses, PAD, choose_precision("cpu", "float32"), 2)
        for row in range(3):
            n = int((responses[row] != PAD).sum())
            alone = policy.analyze(queries[row : row + 1], responses[row : row + 1, :n], temperature=1.0).logprobs[0]
            torch.testing.assert_close(logprobs[row], torch.nn.functional.pad(alone, (0, 3 - n)), rtol=0, atol=1e-5)


def test_summaries(world, capsys):
    """Where the data set has references: ROUGE, lead-3 and copying, each query against its own document's reference."""
    pytest.importorskip("rouge_score")
    valid = TokenFile(world / "data", "valid")
    data = world / "summaries"
    write_token_file(data, "valid", [valid[i].tolist() for i in range(len(valid))])
    write_token_file(
        data, "references_valid", [valid[i][:QUERY].tolist() for i in range(len(valid))]
    )  # the query itself: lead-3 is perfect
    run_here("evaluate", *words_for(world, task__query_dataset=data, experiment="summaries"))
    result, rows = results(world / "runs/summaries")
    assert all(row["reference"] == row["query"] for row in rows)
    assert result["baselines"]["lead_3"]["rouge_1"] == {"mean": 1, "low": 1, "high": 1}
    figures = result["policies"]["b"]
    assert {
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "copied_sentences",
        "copied_1_grams",
        "copied_responses",
        "copied_lead_3",
        "copied_from",
    } <= figures.keys()
    assert sum(figures["copied_from_tenths"]) in (0, pytest.approx(1)) and figures["rouge_1"]["mean"] < 1
    assert "lead-3" in capsys.readouterr().out
    write_token_file(data, "references_valid", [[1], [2]])
    assert "has 2 documents, valid.bin has 40" in refused(*words_for(world, task__query_dataset=data, experiment="bad"))


def test_reference_outside_the_policies(world):
    run_here(
        "evaluate",
        *words_for(world, policies=f"b={world / 'other'}", reference=world / "model", experiment="outside", samples=10),
    )
    run_here(
        "evaluate",
        *words_for(
            world, policies=f"b={world / 'other'},a={world / 'model'}", reference="a", experiment="inside", samples=10
        ),
    )
    outside, inside = (results(world / "runs" / name)[0] for name in ("outside", "inside"))
    assert outside["policies"]["b"] == inside["policies"]["b"] and outside["policies"]["b"]["kl"]["mean"] != 0


def test_people(world, capsys):
    """The sheet that evaluate writes, filled in, is a judge of the same evaluation."""
    sheet = world / "sheet.jsonl"
    run_here("evaluate", *words_for(world, people_sheet=sheet, experiment="people"))
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert len(rows) == 30 and 0 < sum(row["policies"] == ["b", "a"] for row in rows) < 30
    assert list(rows[0]) == ["query", "first", "second", "choice", "policies"]
    for row in rows[:20]:
        row["choice"] = "first" if row["policies"][0] == "b" else "second"
    sheet.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_here("evaluate", *words_for(world, judges=f"choices:{sheet}", experiment="judged"))
    win = results(world / "runs/judged")[0]["wins"][0]
    assert win["judge"] == "people" and win["queries"] >= 20
    assert (
        win["policy"] == "b" and win["share"]["mean"] > 0.8 and "b against a under people: " in capsys.readouterr().out
    )
    assert "exists already" in refused(*words_for(world, people_sheet=sheet, experiment="again"))
    assert "has no choice about these responses" in refused(
        *words_for(world, judges=f"choices:{sheet}", experiment="again", seed=2)
    )
    assert not (world / "runs/again").exists()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(policies=None), "nothing to evaluate: give --policies"),
        (dict(policies="model"), "--policies model: expected NAME=PATH"),
        (dict(policies="a=model,a=other"), "the name a twice"),
        (dict(policies="a=nowhere"), "there is no run or model folder 'nowhere'"),
        (
            dict(policies="a=model,c=gpt2"),
            "c (gpt2) has the encoding gpt2, 50257 tokens, the reference a has letters, 27 tokens",
        ),
        (dict(reference="nowhere"), "there is no run or model folder 'nowhere'"),
        (dict(judges="nobody"), "there is no judge 'nobody'"),
        (dict(judges="vowel_scores:vowels,vowel_scores:vowels"), "the name vowel_scores:vowels twice"),
        (dict(judges="vowel_scores:rude"), "vowel_scores:rude returned None"),
        (dict(samples=41), "has only 40 documents with a query"),
        (dict(samples=0), "--samples and --micro_batch must be at least 1"),
        (dict(timeout=0), "--timeout 0: must lie between 1 and 1e+06 seconds"),
        (dict(split="tset"), "tset.bin does not exist"),
        (dict(task__response_length=60), "context is 64"),
        (dict(texts="nowhere.jsonl"), "the file of texts nowhere.jsonl does not exist"),
        (dict(texts="comparisons.json"), 'row 0: expected {"query": text, "response": text}'),
        (dict(people_sheet="sheet.txt"), "must end in .jsonl or .json"),
        (dict(people_sheet="runs/bad/sheet.jsonl"), "keep sheets elsewhere"),
        (dict(people_sheet="sheet2.jsonl", policies="a=model"), "give at least two"),
        (dict(task__penalty_reward_value=2), "has no part in evaluate"),
        (dict(policy="x"), "unknown parameter --policy"),
        (dict(save_dir="/proc/nowhere"), "cannot write to /proc/nowhere"),
        (dict(device="tpu"), "must be auto, cpu, cuda"),
    ],
)
def test_refusals(world, changes, says):
    if not (world / "gpt2").exists():
        save_model(
            world / "gpt2",
            GPT2(GPT2Config(n_ctx=16, n_embd=4, n_head=1, n_layer=1)).initialise(generator_for(0, "test")),
        )
    assert says in refused(*words_for(world, experiment="bad", **changes))
    assert not (world / "runs/bad").exists()


def test_results_are_not_replaced_by_accident(world):
    run_here("evaluate", *words_for(world, samples=4))
    assert (world / "runs/evaluate_movies/config.json").exists()
    assert "evaluate_movies exists already; give another name with --experiment, or --overwrite" in refused(
        *words_for(world, samples=4)
    )
    assert "cannot be a run's name" in refused(*words_for(world, experiment="../x"))
    (world / "runs/training").mkdir()
    (world / "runs/training/config.json").write_text('{"stage": "train_policy"}')
    assert "holds no results of evaluate" in refused(*words_for(world, experiment="training", overwrite="on"))


def test_help_is_true(capsys):
    run_help = command_line.prepare(["evaluate", "cnndm", "--help"], EXPERIMENTS)
    text = capsys.readouterr().out
    assert (
        run_help is None
        and "--task.query_length 500" in text
        and "penalty_reward_value" not in text
        and "hf:PATH_OR_NAME" in text
    )


# --- judges as rewards ---


@pytest.mark.parametrize(
    "source",
    [
        dict(rewards__function="vowel_scores:vowels"),
        dict(rewards__trained_model="hf:classifier#quality"),
        dict(rewards__trained_model="embeddings:judge"),
    ],
)
def test_a_policy_learns_from_a_judge(world, source):
    """A function, a classifier, an encoder: truncation and penalty as with a reward model; the scores are the judge's
    own, not normalised.
    """
    name = next(iter(source.values())).partition(":")[0]
    if name == "hf":
        save_classifier(world / "classifier", ["quality"])
    elif name == "embeddings":
        write_judge(world / "judge")
    run_here(
        "train_policy",
        "movies",
        name,
        *policy_flags(world),
        *flags(**source, task__penalty_reward_value=-7, evaluation__samples=40),
    )
    _, rows = results(world / "runs" / name)
    from lm_human_preferences.judging.judges import load_judge

    judge = load_judge(next(iter(source.values())))
    for side in ("before", "after"):
        expected = judge.score([row["query"] for row in rows], [row[side] for row in rows])
        assert all(
            row[f"score_{side}"] in (-7, pytest.approx(score, abs=1e-5))
            for row, score in zip(rows, expected, strict=True)
        )
        assert any(row[f"score_{side}"] != -7 for row in rows)
    assert (world / "runs" / name / "policy/model.safetensors").exists() and not (
        world / "runs" / f"{name}_reward"
    ).exists()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(rewards__function="vowel_scores:vowels", rewards__trained_model="reward"), "exclude each other"),
        (dict(rewards__function="vowel_scores:nothing"), "has no function nothing"),
        (dict(rewards__function="vowels"), "not module:function"),
        (dict(rewards__trained_model="hf:nowhere/at/all"), "cannot be loaded as a sequence classifier"),
    ],
)
def test_rewards_refused(world, changes, says):
    with pytest.raises(UserError) as caught:
        run_here("train_policy", "movies", "bad", *policy_flags(world), *flags(**changes))
    assert says in str(caught.value) and "\n" not in str(caught.value) and not (world / "runs/bad").exists()
