"""Small data sets of the paper's tasks in their true formats."""

import json
from pathlib import Path

from load_scripts import load_script

cnndm = load_script("datasets/cnndm.py")


def write_stories(folder: Path, stories: dict[str, dict[str, str]]) -> Path:
    """stories: split -> address -> content of the .story file."""
    for split, files in stories.items():
        (folder / "url_lists").mkdir(parents=True, exist_ok=True)
        (folder / "url_lists" / cnndm.LIST_OF[split]).write_text("".join(f"{url}\n" for url in files))
        for url, content in files.items():
            path = folder / cnndm.story_path(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return folder


def some_stories(count: int = 3) -> dict[str, dict[str, str]]:
    story = (
        "London (CNN) -- Number {n} of {split} said it's so.\n\nA second paragraph follows.\n\n"
        "@highlight\n\nFirst thing\n\n@highlight\n\nSecond thing {n}\n"
    )
    return {
        split: {
            f"http://www.{('cnn.com', 'dailymail.co.uk')[n % 2]}/{split}{n}": story.format(n=n, split=split)
            for n in range(count)
        }
        for split in ("train", "valid", "test")
    }


def write_posts(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid"):
        rows = [
            {
                "id": f"t3_{n}",
                "subreddit": "advice",
                "content": f" Post {n} of {name}.\n\n\n\nIt \u2018goes\u2019 on. ",
                "summary": f"it goes on {n}\n",
            }
            for n in range(count)
        ]
        (folder / f"{name}-subset.json").write_text(json.dumps(rows))
    return folder
