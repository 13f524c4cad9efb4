"""The data sets of other people's tasks: the scripts on files of the true formats, and what they refuse."""

import gzip
import hashlib
import json
import tarfile

import pytest
from task_files import (
    WORDS,
    as_posts,
    dialogue_pairs,
    story_rows,
    write_dialogues,
    write_pairs,
    write_reviews,
    write_stories_csv,
)

from lm_human_preferences.data.label_files import load_labels
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.queries import TokenFile, read_meta
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.language.encoding import gpt2_encoding

from load_scripts import load_script, run_main
from small import run_here
from web import serve

imdb, stories, hh = (load_script(f"datasets/{name}.py") for name in ("imdb", "writing_prompts", "hh"))
SPLITS = ("train", "valid", "test")


def prepare(module, output, *words, check=True):
    return run_main(module, "--output", output, "--processes", 1, *words, check=check)


def texts(folder, split):
    file = TokenFile(folder, split)
    return [gpt2_encoding().decode(file[i].tolist()) for i in range(len(file))]


def labels(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


# --- imdb ---


def test_reviews_become_documents_openings_and_ratings(tmp_path):
    said = prepare(imdb, tmp_path / "out", "--input", write_reviews(tmp_path / "in", 40)).stdout
    reviews = {split: texts(tmp_path / "out", split) for split in SPLITS}
    assert len(reviews["test"]) == 80 and len(reviews["train"]) + len(reviews["valid"]) == 80 and reviews["valid"]
    assert all(text.endswith("o'clock.<|endoftext|>") for text in reviews["train"])
    assert all("of test" in text for text in reviews["test"])
    for split in SPLITS:
        ratings = labels(tmp_path / "out", f"ratings_{split}")
        assert [label["query"] for label in ratings] == texts(tmp_path / "out", f"queries_{split}")
        assert [label["query"] + label["responses"][0] + "<|endoftext|>" for label in ratings] == reviews[split]
        assert all(len(label["query"].split()) == 4 for label in ratings)
        assert all(label["score"] == float("delight" in label["responses"][0]) for label in ratings)
    first = [label["score"] for label in labels(tmp_path / "out", "ratings_test")[:20]]
    assert 0.2 < sum(first) / 20 < 0.8  # both sides from the beginning
    assert "ratings_train: " in said and read_meta(tmp_path / "out")["labels"]["ratings_test"] == 80


def test_a_review_of_test_is_in_no_other_split(tmp_path):
    write_reviews(tmp_path / "in")
    same = (tmp_path / "in/test/pos/3_9.txt").read_text()
    (tmp_path / "in/train/neg/again.txt").write_text(same)
    (tmp_path / "in/train/neg/short.txt").write_text("Three words only")
    said = prepare(imdb, tmp_path / "out", "--input", tmp_path / "in").stdout
    assert "left out: 1 reviews that came before" in said and "left out: 1 reviews that end before a query" in said
    assert f"{same}<|endoftext|>" in texts(tmp_path / "out", "test")
    assert f"{same}<|endoftext|>" not in texts(tmp_path / "out", "train") + texts(tmp_path / "out", "valid")


def test_any_folder_of_two_sides_is_divided_by_text(tmp_path):
    write_reviews(tmp_path / "in", 60)
    folder = tmp_path / "in/train"
    prepare(imdb, tmp_path / "out", "--input", folder, "--split", "20,20", "--words", 2)
    parts = [set(texts(tmp_path / "out", split)) for split in SPLITS]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 120 and all(parts)
    assert all(query.split()[0] == "This" for query in texts(tmp_path / "out", "queries_test"))
    said = prepare(imdb, tmp_path / "out", "--input", folder, check=False)
    assert said.returncode == 2 and "give percentages above 0 for valid and test like --split 5,10" in said.stderr


def pack(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "aclImdb")
    return path


def test_the_archive_gives_what_its_folder_gives(tmp_path, monkeypatch):
    prepare(imdb, tmp_path / "folder", "--input", write_reviews(tmp_path / "in/aclImdb"), "--limit", 30)
    (tmp_path / "served").mkdir()
    path = pack(tmp_path / "in/aclImdb", tmp_path / "served/aclImdb_v1.tar.gz")
    prepare(imdb, tmp_path / "packed", "--input", path, "--limit", 30)
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    with serve(tmp_path / "served") as server:
        words = ["--archive", "--url", f"{server.url}/{path.name}", "--limit", 30]
        other = prepare(imdb, tmp_path / "fetched", *words, check=False)
        assert other.returncode == 2 and "SHA-256 is" in other.stderr  # it is not the true one
        monkeypatch.setattr(imdb, "DIGEST", hashlib.sha256(path.read_bytes()).hexdigest())
        prepare(imdb, tmp_path / "fetched", *words)
    files = [read_meta(tmp_path / name)["files"] for name in ("folder", "packed", "fetched")]
    assert files[0] == files[1] == files[2] and len(texts(tmp_path / "folder", "test")) == 30


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-99]), "is truncated or no .tar.gz archive"),
        (lambda path: path.write_bytes(b""), "is truncated or no .tar.gz archive"),
        (lambda path: pack(path.parent / "in/train", path), "expected reviews in test/pos and test/neg"),
    ],
)
def test_archives_that_are_none(tmp_path, damage, says):
    write_reviews(tmp_path / "in")
    (tmp_path / "in/train/pos/0_9.txt").write_bytes(b"caf\xe9")
    path = pack(tmp_path / "in", tmp_path / "a.tar.gz")
    said = prepare(imdb, tmp_path / "out", "--input", path, check=False)
    assert said.returncode == 2 and "aclImdb/train/pos/0_9.txt: not UTF-8 text" in said.stderr
    (tmp_path / "in/train/pos/0_9.txt").unlink()
    damage(pack(tmp_path / "in", path))
    said = prepare(imdb, tmp_path / "out", "--input", path, check=False)
    assert said.returncode == 2 and says in said.stderr and said.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_openings_of_tokens_and_of_words_with_any_space():
    encoding = gpt2_encoding()
    assert imdb.opening("  One\ntwo  three\tfour five\nsix", 4, None) == ("One two three four", " five\nsix")
    assert imdb.opening("One two", 4, None) == ("", "")
    for text in ("This film is a delight.", "日本の映画は長い。", "x" * 400):
        for n in range(1, 6):
            query, rest = imdb.opening(text, 4, n)
            assert query + rest == text and len(encoding.encode(query)) <= n


def test_reviews_from_the_hub(tmp_path):
    write_parquet = pytest.importorskip("pyarrow.parquet").write_table
    table = pytest.importorskip("pyarrow").table
    (tmp_path / "hub").mkdir()
    for split in ("train", "test"):
        columns = {
            "text": [f"One two three {n} {split} was good." for n in range(60)],
            "label": [n % 2 for n in range(60)],
        }
        write_parquet(table(columns), tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    prepare(imdb, tmp_path / "out", "--hub", tmp_path / "hub")
    assert len(texts(tmp_path / "out", "test")) == 60 and texts(tmp_path / "out", "valid")
    assert {label["score"] for label in labels(tmp_path / "out", "ratings_train")} == {0.0, 1.0}
    assert "nothing to do" in prepare(imdb, tmp_path / "out", "--hub", tmp_path / "hub").stdout
    write_parquet(table({"text": ["a"], "label": [-1]}), tmp_path / "hub" / "test-00000-of-00001.parquet")
    said = prepare(imdb, tmp_path / "out", "--hub", tmp_path / "hub", check=False)
    assert said.returncode == 2 and "split test, row 0: expected a text in the column 'text' and 0 or 1" in said.stderr


# --- writing prompts ---


def test_stories_become_references_choices_pairs_and_ratings(tmp_path):
    source = write_stories_csv(tmp_path / "prompt_responses_full.csv")
    prepare(stories, tmp_path / "out", "--input", source, "--split", "20,20")
    prompts = {split: texts(tmp_path / "out", split) for split in SPLITS}
    assert sum(map(len, prompts.values())) == 60 and all(prompts.values())
    assert all(prompt.startswith(" A ") and prompt.endswith(".") for prompt in prompts["train"])
    for split in SPLITS:
        for prompt, reference in zip(prompts[split], texts(tmp_path / "out", f"references_{split}"), strict=True):
            post = prompt.split()[-1].rstrip(".")
            assert reference == f' Story 5 of post {post}.\n\nIt said: "Let me in, please."'
        for name, k in (("labels", 4), ("pairs", 2)):
            made = labels(tmp_path / "out", f"{name}_{split}")
            assert {label["query"] for label in made} == set(prompts[split])
            assert all(len(label["responses"]) == k for label in made)
            assert all(label["scores"][label["best"]] == max(label["scores"]) for label in made)
            counts = [sum(label["query"] == prompt for label in made) for prompt in prompts[split]]
            assert set(counts) == ({3} if k == 4 else {5})  # of 15 pairs at most 5; three stories beat three others
        ratings = labels(tmp_path / "out", f"ratings_{split}")
        assert len(ratings) == 6 * len(prompts[split])
        assert sum(label["score"] for label in ratings) == len(prompts[split])
        assert all((label["score"] == 1) == ("Story 5" in label["responses"][0]) for label in ratings)
    for name, k in (("labels", 4), ("pairs", 2)):  # in any place, as often in each
        places = [label["best"] for label in labels(tmp_path / "out", f"{name}_train")]
        assert max(abs(places.count(n) / len(places) - 1 / k) for n in range(k)) < 4 / len(places) ** 0.5 / 2
    task = TaskParams(query_length=20, response_length=30)
    assert len(load_labels(str(tmp_path / "out/labels_train.jsonl"), label_type("best_of_4"), task, gpt2_encoding()))


def prefers(score, other, minutes=0, ratio=2.0, any_age=False):
    rule = stories.Rule(ratio, any_age, 4, 5)
    return rule.prefers(stories.Story("a", score, 60.0 * minutes), stories.Story("b", other, 0.0))


def test_which_story_is_better():
    assert prefers(10, 5) and not prefers(9, 5) and prefers(9, 5, ratio=1.5) and not prefers(5, 5, ratio=1)
    assert prefers(2, -3) and not prefers(1, -3) and prefers(1, 0, ratio=1)  # fewer than one vote count as one
    assert prefers(10, 5, minutes=7) and not prefers(10, 5, minutes=-7) and prefers(10, 5, minutes=-7, any_age=True)


def test_earlier_stories_win_nothing_but_top_ratings(tmp_path):
    rows = story_rows(30)
    for row in rows:  # votes fall with time: nothing is better than anything
        row["response_created_utc"] = 1_583_971_200 - row["response_created_utc"]
    source = write_stories_csv(tmp_path / "a.csv", rows)
    said = prepare(stories, tmp_path / "out", "--input", source, "--split", "20,20", check=False)
    assert said.returncode == 2 and "the source has no label for labels_train.jsonl" in said.stderr
    assert not (tmp_path / "out").exists()
    prepare(stories, tmp_path / "out", "--input", source, "--split", "20,20", "--any_age")
    assert labels(tmp_path / "out", "pairs_train")


def test_both_forms_of_the_source_give_the_same_files(tmp_path):
    write_stories_csv(tmp_path / "a.csv")
    rows = story_rows()
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in as_posts(rows)))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = []
    for name in ("a.csv", "posts.jsonl", "rows.jsonl"):
        prepare(stories, tmp_path / "out", "--input", tmp_path / name, "--split", "20,20")
        files.append(read_meta(tmp_path / "out")["files"])
    assert files[0] == files[1] == files[2]


def test_posts_from_the_hub(tmp_path):
    write_table = pytest.importorskip("pyarrow.parquet").write_table
    table = pytest.importorskip("pyarrow").Table
    (tmp_path / "hub").mkdir()
    write_table(table.from_pylist(as_posts(story_rows())), tmp_path / "hub/train-00000-of-00001.parquet")
    prepare(stories, tmp_path / "out", "--hub", tmp_path / "hub", "--split", "20,20", "--stories", 3)
    assert len(texts(tmp_path / "out", "train")) == 3 * len(set(texts(tmp_path / "out", "train")))
    assert len(texts(tmp_path / "out", "test")) == len(set(texts(tmp_path / "out", "test")))
    prepare(stories, tmp_path / "file", "--input", write_stories_csv(tmp_path / "a.csv"), "--split", "20,20")
    assert labels(tmp_path / "out", "labels_train") == labels(tmp_path / "file", "labels_train")


def test_what_is_no_story_is_left_out_and_said(tmp_path):
    rows = story_rows(40)
    for row in rows:
        if row["response_id"].endswith("_4"):
            row["response"] = "[deleted]"
        if row["response_id"].endswith("_0"):
            row["response"] = "**Off-Topic Discussion**: All top-level comments must be a story."
        if row["response_id"].endswith("_2"):
            row["response"] = rows[3]["response"]  # as story 3 of the first post
    source = write_stories_csv(tmp_path / "a.csv", rows)
    said = prepare(stories, tmp_path / "out", "--input", source, "--split", "20,20").stdout
    assert "left out: 40 stories that are empty, deleted or removed" in said
    assert "left out: 40 comments of the moderators' bot" in said
    assert "left out: 1 stories that stand there twice" in said
    assert "deleted" not in (tmp_path / "out/ratings_train.jsonl").read_text()


@pytest.mark.parametrize(
    "prompt, folded",
    [
        ("[WP] A door opens.", " A door opens."),
        (" [wp]A door\n opens. ", " A door opens."),
        ("(WP) A door [WP] opens.", " A door [WP] opens."),
        ("[EU] A door opens.", " [EU] A door opens."),
        ("[WP] \n", ""),
    ],
)
def test_the_mark_of_a_prompt_is_taken_off(prompt, folded):
    assert stories.fold(prompt) == folded


def test_times_as_numbers_and_dates():
    assert stories.time_of("1583971200", "") == stories.time_of(1583971200.0, "") == 1583971200
    assert stories.time_of("2020-03-12T00:00:00", "") == stories.time_of("2020-03-12 00:00:00+00:00", "") == 1583971200


# --- helpful ---


def test_dialogues_become_prompts_answers_and_labels(tmp_path):
    said = prepare(hh, tmp_path / "out", "--input", write_dialogues(tmp_path / "in", 90)).stdout
    prompts = {split: texts(tmp_path / "out", split) for split in SPLITS}
    assert len(prompts["train"]) + len(prompts["valid"]) == 90 and len(prompts["test"]) == 30 and prompts["valid"]
    assert prompts["test"][0] == "How do I cook slow rice number 0 of test?"
    assert texts(tmp_path / "out", "references_test")[:3] == ["Take 2 cups.", "Take 3 cups.", "With water."]
    assert texts(tmp_path / "out", "chosen_test") == [pair["chosen"] for pair in dialogue_pairs("test", 30)]
    plain, marked = (labels(tmp_path / "out", f"{name}_test") for name in ("labels", "dialogues"))
    assert plain[0] == {"query": prompts["test"][0], "responses": ["Take 2 cups.", "I do not know 0."], "best": 0}
    assert plain[2]["query"] == f"{prompts['test'][2]}\n\nAssistant: With water.\n\nHuman: How much of it?"
    for label, pair in zip(marked, dialogue_pairs("test", 30), strict=True):
        assert [label["query"] + text for text in label["responses"]] == [pair["chosen"], pair["rejected"]]
        assert label["query"].endswith("\n\nAssistant:")
    assert "labels_test: 30 labels" in said and "dialogues_train: " in said


def test_the_first_short_prompts_each_once(tmp_path):
    pairs = dialogue_pairs("train", 30)
    long = pairs[0] | {name: text.replace("cook", "c" * 90) for name, text in pairs[0].items()}
    write_pairs(tmp_path / "in/train.jsonl", [long, *pairs, *pairs])
    write_pairs(tmp_path / "in/test.jsonl", dialogue_pairs("test", 6))
    prepare(hh, tmp_path / "out", "--input", tmp_path / "in", "--prompts", 10)
    held_out = texts(tmp_path / "out", "valid")
    expected = [f"How do I cook {word} rice number {n} of train?" for n, word in enumerate((WORDS * 5)[:30])]
    assert texts(tmp_path / "out", "train") == [prompt for prompt in expected if prompt not in held_out][:10]
    assert len(texts(tmp_path / "out", "chosen_train")) + len(texts(tmp_path / "out", "chosen_valid")) == 61


def test_dialogues_that_give_no_label_are_counted(tmp_path):
    asked = "\n\nHuman: Who are you?\n\nAssistant:"
    odd = [
        {"chosen": f"{asked} Me.\n\nHuman: So?\n\nAssistant: Yes.", "rejected": f"{asked} You."},
        {"chosen": f"{asked} Me.", "rejected": f"{asked} Me."},
        {"chosen": f"{asked} Me.", "rejected": f"{asked} "},
        {"chosen": f"{asked.replace('you', 'you ' * 300)} Me.", "rejected": f"{asked.replace('you', 'you ' * 300)} I."},
        {"chosen": f"{asked} Me.", "rejected": "\n\nHuman: Why?\n\nAssistant: So."},
    ]
    write_pairs(tmp_path / "in/test.jsonl", dialogue_pairs("test", 6))
    train = [*odd, *dialogue_pairs("train", 60), dialogue_pairs("test", 1)[0]]
    write_pairs(tmp_path / "in/train.jsonl", train)
    prepare(hh, tmp_path / "out", "--input", tmp_path / "in")
    assert read_meta(tmp_path / "out")["left_out"] == {
        "pairs of dialogues that part before their last answer, as labels": 2,
        "pairs of equal dialogues, as labels": 1,
        "pairs with an empty answer, as labels": 1,
        "pairs with more than 256 tokens before the last answer, as labels": 1,
        "pairs of train that begin as one of test does": 1,
    }
    counts = read_meta(tmp_path / "out")["labels"]
    assert counts["labels_train"] + counts["labels_valid"] == 60


# --- of all three ---


@pytest.mark.parametrize("script", ["writing_prompts", "hh"])
def test_half_characters_are_replaced(tmp_path, script):
    """JSON can hold half a surrogate pair, a file of texts cannot."""
    if script == "hh":
        pairs = [pair | {"chosen": pair["chosen"] + " \ud83d"} for pair in dialogue_pairs("train", 60)]
        write_pairs(tmp_path / "in/train.jsonl", pairs)
        write_pairs(tmp_path / "in/test.jsonl", dialogue_pairs("test", 6))
        prepare(hh, tmp_path / "out", "--input", tmp_path / "in")
    else:
        rows = [row | {"response": row["response"] + " \ud83d"} for row in story_rows()]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare(stories, tmp_path / "out", "--input", tmp_path / "a.jsonl", "--split", "20,20")
    made = labels(tmp_path / "out", "labels_train")
    assert all(any(text.endswith(" \ufffd") for text in label["responses"]) for label in made)


def test_files_from_a_mirror_are_fetched_once(tmp_path, monkeypatch):
    write_dialogues(tmp_path / "served")
    write_stories_csv(tmp_path / "served/full.csv")
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    with serve(tmp_path / "served") as server:
        server.break_after = [200]
        prepare(hh, tmp_path / "hh", "--url", server.url)
        prepare(hh, tmp_path / "again", "--url", server.url)
        prepare(stories, tmp_path / "stories", "--url", f"{server.url}/full.csv", "--split", "20,20")
        assert [wanted for _, wanted in server.requests] == [None, "bytes=200-", None, None]
    assert labels(tmp_path / "hh", "labels_train") == labels(tmp_path / "again", "labels_train") != []
    assert hh.ADDRESS.startswith("https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/")


# --- refusals ---


def _write(path, content):
    path.write_bytes(content)


ROW = {**story_rows(1, 1)[0]}
CASES = [
    (imdb, lambda f: _write(f / "train/pos/0_9.txt", b"caf\xe9"), "train/pos/0_9.txt: not UTF-8 text"),
    (
        imdb,
        lambda f: _write(f / "test/neg/1_2.txt", b" \n"),
        "test/neg/1_2.txt: expected a review, found an empty file",
    ),
    (imdb, lambda f: (f / "test/neg").rename(f / "test/negative"), "holds no folder test/neg: expected train/pos"),
    (imdb, lambda f: [p.unlink() for p in (f / "train/pos").iterdir()], "train/pos holds no review: expected .txt"),
    (stories, lambda f: _write(f, b""), "a.csv is empty: expected a first line with the columns prompt_id, prompt"),
    (stories, lambda f: _write(f, f.read_bytes()[:-60]), "row 360 (line 1079) is truncated: the file ends within it"),
    (stories, lambda f: _write(f, f.read_bytes()[:-14]), "row 360 (line 1079): expected 11 fields"),
    (stories, lambda f: _write(f, f.read_bytes().replace(b"dragon", b"drag\xf6n", 1)), "a.csv, line 2: not UTF-8"),
    (stories, lambda f: _write(f, b"id,text\n1,a\n"), "a.csv: expected the columns prompt_id, prompt, response"),
    (
        stories,
        lambda f: write_stories_csv(f, [ROW | {"response_score": "many"}]),
        "a.csv, row 1 (line 2): 'response_score' is 'many'; expected a number",
    ),
    (
        stories,
        lambda f: write_stories_csv(f, [ROW | {"response_created_utc": "2020-13-01"}]),
        "'response_created_utc' is '2020-13-01'; expected a date",
    ),
    (stories, lambda f: write_stories_csv(f, [ROW]), "the source has no document for the split"),
    (hh, lambda f: _write(f / "helpful-base/train.jsonl.gz", b""), "no document for the split train"),
    (
        hh,
        lambda f: _write(f / "helpful-base/test.jsonl.gz", (f / "helpful-base/test.jsonl.gz").read_bytes()[:-9]),
        "test.jsonl.gz is damaged",
    ),
    (
        hh,
        lambda f: _write(f / "helpful-base/train.jsonl.gz", gzip.compress(b'{"chosen": "caf\xe9"}\n')),
        "train.jsonl.gz, line 1: not UTF-8",
    ),
    (
        hh,
        lambda f: write_pairs(f / "helpful-base/train.jsonl.gz", [{"prompt": "a", "chosen": "b"}]),
        "train.jsonl.gz, line 1: expected an object with two dialogues, 'chosen' and 'rejected'",
    ),
    (
        hh,
        lambda f: write_pairs(f / "helpful-base/train.jsonl.gz", [{"chosen": "b", "rejected": "c"}]),
        r"line 1: expected dialogues that begin with '\n\nHuman:', found 'b'",
    ),
    (hh, lambda f: (f / "helpful-base/test.jsonl.gz").unlink(), "holds no helpful-base/test.jsonl.gz"),
]
SOURCES = {
    imdb: lambda folder: write_reviews(folder / "in", 30),
    stories: lambda folder: write_stories_csv(folder / "a.csv"),
    hh: lambda folder: write_dialogues(folder / "in"),
}


@pytest.mark.parametrize("module, damage, says", CASES, ids=[f"{case[0].__name__}-{n}" for n, case in enumerate(CASES)])
def test_bad_sources_are_one_line(tmp_path, module, damage, says):
    source = SOURCES[module](tmp_path)
    damage(source)
    words = ["--split", "20,20"] if module is stories else []
    said = prepare(module, tmp_path / "out", "--input", source, *words, check=False)
    assert said.returncode == 2 and says in said.stderr
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_posts_that_are_not_posts(tmp_path):
    post = as_posts(story_rows(1))[0]
    for change, says in (
        ({"comment_scores": [1]}, "line 1: expected lists of one length in comment_texts"),
        ({"comment_texts": "a story"}, "line 1: expected lists of one length"),
        ({"comment_texts": [None] * 6}, "line 1: comment_texts 0 is 'None'; expected a text"),
        ({"comment_scores": [True] * 6}, "line 1: comment_scores 0 is 'True'; expected a number"),
        ({"comment_times": ["noon"] * 6}, "line 1: comment_times 0 is 'noon'; expected a number"),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(post | change) + "\n")
        said = prepare(stories, tmp_path / "out", "--input", tmp_path / "a.jsonl", check=False)
        assert said.returncode == 2 and says in said.stderr and said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "module, words, says",
    [
        (imdb, ["--words", "0"], "--words 0: expected a number from 1 up"),
        (imdb, ["--input", __file__], "is truncated or no .tar.gz archive"),
        (imdb, ["--input", __file__, "--archive"], "exclude each other"),
        (stories, ["--ratio", "0.5"], "--ratio 0.5: expected a number from 1 up"),
        (stories, ["--choices", "1"], "--choices 1: expected a number from 2 up"),
        (stories, ["--split", "source"], "the prompts have no splits of their own"),
        (stories, ["--hub", "a", "--input", __file__], "exclude each other"),
        (hh, ["--subset", "kind-base"], "--subset kind-base: expected helpful-base"),
        (hh, ["--prompts", "0"], "--prompts 0: expected a number from 1 up"),
        (hh, ["--input", "nowhere"], "--input nowhere does not exist"),
    ],
)
def test_bad_words(tmp_path, module, words, says):
    said = prepare(module, tmp_path / "out", *words, check=False)
    assert said.returncode == 2 and says in said.stderr and not (tmp_path / "out").exists()


# --- there and back ---


def convert(source, output, *words):
    run_here("labels", "convert", source, output, *words)
    return output


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_dialogues_become_pairs_and_labels_again(tmp_path, ending):
    """The file itself as `labels convert` reads it, the script's labels, and these as chosen and rejected and back."""
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    prepare(hh, tmp_path / "out", "--input", write_dialogues(tmp_path / "in"))
    ours = tmp_path / "out/dialogues_test.jsonl"
    direct = convert(tmp_path / "in/helpful-base/test.jsonl.gz", tmp_path / "direct.jsonl")
    assert direct.read_text() == ours.read_text()
    for name, words in (("dialogues", []), ("labels", ["--join", "none"])):
        made = tmp_path / f"out/{name}_test.jsonl"
        pairs = convert(made, tmp_path / f"{name}.{ending}", "--to", "pairs")
        assert convert(pairs, tmp_path / f"{name}_back.jsonl", *words).read_text() == made.read_text()
    if ending == "jsonl":
        query = labels(tmp_path / "out", "dialogues_test")[2]["query"]
        pair = json.loads((tmp_path / "dialogues.jsonl").read_text().splitlines()[2])
        assert pair == {"prompt": query, "chosen": " Take 4 cups.", "rejected": " I do not know 2."}
