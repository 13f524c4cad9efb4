"""Small data sets of other people's tasks in their true formats: reviews, stories with votes, dialogues."""

import csv
import gzip
import json
from pathlib import Path

WORDS = ("slow", "bright", "odd", "warm", "loud", "plain", "wild")


def write_reviews(folder: Path, count: int = 20) -> Path:
    """As the archive aclImdb has them: `count` files in each of train/pos, train/neg, test/pos and test/neg."""
    for split in ("train", "test"):
        for side, praise in (("pos", "a delight"), ("neg", "a waste of time")):
            (folder / split / side).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                text = (
                    f"This {WORDS[n % 7]} film number {n} of {split} is {praise}.<br /><br />I saw it at {n} o'clock."
                )
                (folder / split / side / f"{n}_{9 if side == 'pos' else 2}.txt").write_text(text, encoding="utf-8")
    (folder / "train" / "unsup").mkdir(exist_ok=True)
    return folder


def story_rows(posts: int = 60, stories: int = 6) -> list[dict]:
    """Rows of prompt_responses_full.csv: of each post story n has 3 ** n votes and was written n minutes later."""
    return [
        {
            "prompt_id": f"id{post}",
            "prompt": f"[WP] A {WORDS[post % 7]} dragon knocks at door {post}.",
            "prompt_score": 100 + post,
            "prompt_created_utc": 1_583_900_000 + post,
            "response_id": f"r{post}_{n}",
            "response": f'Story {n} of post {post}.\n\nIt said: "Let me in, please."',
            "response_score": 3**n,
            "response_created_utc": 1_583_971_200 + 60 * n,
            "response_rank": stories - 1 - n,
            "num_responses": stories,
            "response_children": "['Nice.']",
        }
        for post in range(posts)
        for n in range(stories)
    ]


def write_stories_csv(path: Path, rows: list[dict] | None = None) -> Path:
    rows = story_rows() if rows is None else rows
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_posts(rows: list[dict]) -> list[dict]:
    """The same in the form of euclaise/WritingPrompts_preferences."""
    posts: dict[str, dict] = {}
    for row in rows:
        post = posts.setdefault(
            row["prompt_id"],
            {"post_title": row["prompt"], "post_scores": 1, "post_text": "", "comment_texts": [], "comment_scores": []}
            | {"comment_times": []},
        )
        post["comment_texts"].append(row["response"])
        post["comment_scores"].append(row["response_score"])
        post["comment_times"].append(str(row["response_created_utc"]))
    return list(posts.values())


def dialogue_pairs(split: str, count: int) -> list[dict]:
    """Pairs as hh-rlhf has them: every third dialogue has two turns."""
    pairs = []
    for n in range(count):
        query = f"\n\nHuman: How do I cook {WORDS[n % 7]} rice number {n} of {split}?\n\nAssistant:"
        if n % 3 == 2:
            query += " With water.\n\nHuman: How much of it?\n\nAssistant:"
        pairs.append({"chosen": f"{query} Take {n + 2} cups.", "rejected": f"{query} I do not know {n}."})
    return pairs


def write_pairs(path: Path, pairs: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_dialogues(folder: Path, count: int = 60) -> Path:
    """helpful-base with `count` pairs to train on and a third as many to test on."""
    for split, size in (("train", count), ("test", count // 3)):
        write_pairs(folder / "helpful-base" / f"{split}.jsonl.gz", dialogue_pairs(split, size))
    return folder
