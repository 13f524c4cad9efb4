"""A small stand-in for what datasets/movies.py makes: rated sentences, and choices among them."""

import json
from pathlib import Path


def write_rated_sentences(folder: Path, each: int = 20) -> Path:
    """Sentences of which one word decides the rating, `each` of a word in each split, and choices among those of valid
    and test, in `folder`.
    """
    folder.mkdir()
    words = {"good": 3, "fine": 1, "dull": -2, "bad": -3}
    rows = [
        {"id": number, "split": split, "text": f"the film is {word} {i}.", "rating": float(value), "ratings": [value]}
        for number, (split, i, word, value) in enumerate(
            (split, i, word, value)
            for split in ("train", "valid", "test")
            for i in range(each)
            for word, value in words.items()
        )
    ]
    (folder / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("valid", "test"):
        ids = [row["id"] for row in rows if row["split"] == split]
        labels = [{"best": 0, "ids": ids[start : start + 4]} for start in range(0, len(ids), 4)]
        (folder / f"labels_{split}.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    return folder
