"""CNN and Daily Mail articles with their highlights, for the task cnndm.

    python datasets/cnndm.py                   cnn_dailymail 3.0.0 from the Hugging Face hub
    python datasets/cnndm.py --input FOLDER    the original's files: cnn/stories/*.story and dailymail/stories/*.story

The first needs the package datasets. The .story files are those of K. M. Hermann et al. 2015 (two archives on
https://cs.nyu.edu/~kcho/DMQA/). Which articles belong to which split is said by the lists all_train.txt, all_val.txt
and all_test.txt of their addresses: in FOLDER, in FOLDER/url_lists, or else fetched from OpenAI. A story's file is
named after the SHA-1 of its address. What is written (S is each of train, valid, test):

    S.bin, S.idx.npy              token file: the articles, cleaned as the original cleans them
    references_S.bin, .idx.npy    token file: the highlights, document by document, which supervised training learns to
                                  write; empty for a story that has none
    meta.json                     source, counts and digests

The hub's version has lost its line breaks, and a query of this task ends with one. So a break is put after each
sentence there, as most paragraphs of these articles are a sentence long. For the original's queries themselves, use the
.story files.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.documents import Document, SplitRule
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_dataset
from lm_human_preferences.data.queries import downloads_folder
from lm_human_preferences.data.sources import fingerprint, hub_fingerprint, hub_rows, read_text
from lm_human_preferences.foundation.downloads import cached
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.judging.text_metrics import sentences

HUB, CONFIG = "abisee/cnn_dailymail", "3.0.0"
LISTS = "https://openaipublic.blob.core.windows.net/lm-human-preferences/datasets/cnndm/url_lists"
LIST_OF = {"train": "all_train.txt", "valid": "all_val.txt", "test": "all_test.txt"}
ON_HUB = {"train": "train", "valid": "validation", "test": "test"}


# --- cleaning ---


def clean_up_start(text: str) -> str:
    """An article without its byline, place and time of update. Original: datasets/cnndm.py clean_up_start,
    peculiarities included.

    A text that begins with the letters By loses its first two lines ("Bye now." too); the last character of an update's
    line is sought among 0-5 and |, since the original's brackets around years hold single characters.
    """
    if text.startswith("By"):
        text = "\n".join(text.split("\n")[2:])
    text = re.split(r"\(CNN\) +--", text)[-1]
    text = text[:100].split("(CNN)")[-1] + text[100:]
    text = re.split(r"UPDATED: +\d\d:\d\d.*[0-5|]", text)[-1]
    text = text.replace("‘", "'").replace("’", "'")
    return re.sub(r"^and \w+\n", "", text).strip()


def clean(text: str) -> str:
    """The article in a story as the original's queries have it. Original: datasets/cnndm.py cnndm_generator."""
    import ftfy

    text = re.sub(r"\n{3,}", "\n\n", ftfy.fix_text(clean_up_start(text)))
    return text.split("@highlight")[0].strip()


def clean_reference(text: str) -> str:
    """Highlights, one a line, with the space that follows the prompt's colon; nothing for nothing."""
    import ftfy

    lines = [stripped for line in ftfy.fix_text(text).split("\n") if (stripped := line.strip())]
    return " " + "\n".join(lines) if lines else ""


def with_paragraphs(article: str) -> str:
    """An article of the hub's version with line breaks again.

    That version joined all lines with spaces and ended a line that had no closing mark with " ."; such marks are
    breaks, and each sentence begins a paragraph.
    """
    lines = re.split(r" \.(?: |$)", article)
    return "\n\n".join(sentence for line in lines for sentence in sentences(line)) + "\n"


# --- sources ---


def split_story(story: str) -> tuple[str, str]:
    """Article and highlights (a line each) of a .story file; "" where it has none."""
    article, *highlights = story.split("@highlight")
    return article, "\n".join(highlights)


def story_path(url: str) -> str:
    """Where the story of an address lies, below the folder of all stories. Original: datasets/cnndm.py."""
    publisher = "cnn" if "www.cnn.com" in url else "dailymail" if "www.dailymail.co.uk" in url else None
    if publisher is None:
        raise UserError(f"{url!r} is no address of an article: expected www.cnn.com or www.dailymail.co.uk in it")
    return f"{publisher}/stories/{hashlib.sha1(url.encode()).hexdigest()}.story"


def find_list(folder: Path, split: str) -> Path:
    """The list of a split's addresses: on disk, or fetched."""
    for place in (folder, folder / "url_lists"):
        if (place / LIST_OF[split]).is_file():
            return place / LIST_OF[split]
    return cached(f"{LISTS}/{LIST_OF[split]}", downloads_folder())


def from_stories(folder: Path, lists: dict[str, Path], rule: SplitRule, limit: int | None) -> Iterator[Document]:
    """The stories in the lists' order. UserError names the first that is missing or no text."""
    for split, path in lists.items():
        urls = [line.strip() for line in read_text(path).splitlines() if line.strip()][:limit]
        for number, url in enumerate(tqdm(urls, desc=split, unit="story", disable=None), 1):
            story = folder / story_path(url)
            if not story.is_file():
                raise UserError(
                    f"{path}, line {number}: {url} has no story {story}; fetch both archives of stories, or take the "
                    "hub's version"
                )
            content = read_text(story)
            article, highlights = split_story(content)
            if article.strip():  # some stories are known to have none
                yield Document(
                    rule.of(url, split), content, highlights
                )  # `clean` cuts the highlights off after the start is cleaned


def from_hub(name: str, config: str | None, rule: SplitRule, limit: int | None) -> Iterator[Document]:
    for split, theirs in ON_HUB.items():
        for row in hub_rows(name, config, theirs, None, ("article", "highlights"), limit):
            yield Document(rule.of(row["article"], split), with_paragraphs(row["article"]), row["highlights"])


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", type=Path, metavar="FOLDER", help="folder with cnn/stories and dailymail/stories, instead of the hub"
    )
    parser.add_argument(
        "--hub",
        metavar="NAME",
        default=HUB,
        help=f"data set on the Hugging Face hub, or a folder of its files (default: {HUB})",
    )
    add_arguments(parser, "cnndm", "source")
    arguments = parser.parse_args()
    rule = check_arguments(arguments)
    recipe = Recipe(
        2,
        "the articles belong to their publishers",
        ("train", "valid", "test"),
        references=True,
        needed_reference="highlight (what follows @highlight in a .story file)",
        clean=clean,
        clean_reference=clean_reference,
    )
    if arguments.input is not None:
        if not arguments.input.is_dir():
            raise UserError(f"--input {arguments.input}: expected a folder with cnn/stories and dailymail/stories")
        lists = {split: find_list(arguments.input, split) for split in LIST_OF}
        source = {"stories": fingerprint(arguments.input)} | {path.name: fingerprint(path) for path in lists.values()}
        prepare_dataset(recipe, arguments, source, lambda: from_stories(arguments.input, lists, rule, arguments.limit))
    else:
        config = None if Path(arguments.hub).is_dir() else CONFIG
        source = {arguments.hub: hub_fingerprint(arguments.hub, CONFIG)}
        prepare_dataset(recipe, arguments, source, lambda: from_hub(arguments.hub, config, rule, arguments.limit))


if __name__ == "__main__":
    main()
