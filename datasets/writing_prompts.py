"""Stories that people on r/WritingPrompts wrote to a prompt, with the votes for each, for the task writing_prompts.

    python datasets/writing_prompts.py                 prompt_responses_full.csv of rewardsignal/reddit_writing_prompts
    python datasets/writing_prompts.py --input FILE    the same file on disk, or .jsonl with either form's columns
    python datasets/writing_prompts.py --hub euclaise/WritingPrompts_preferences    a post a row, with its comments

The last needs the package datasets. The file has a row a story, with the columns prompt_id, prompt, response,
response_score and response_created_utc; it is held in memory whole. The other form has a row a post, with post_title,
comment_texts, comment_scores and comment_times. "[WP]" before a prompt is taken off, since the task puts "Writing
Prompt:" there; other marks, as [EU], stay. What is written (S is each of train, valid, test, divided by a hash of the
prompt):

    S.bin, S.idx.npy              token file: the prompts
    references_S.bin, .idx.npy    token file: the story with the most votes to each prompt, for train_sft; with
                                  --stories N the N best, each with its prompt, in the train split
    labels_S.jsonl                the best of K stories to one prompt (--choices 4)
    pairs_S.jsonl                 the better of two
    ratings_S.jsonl               single stories: 1 for the one with the most votes, 0 for every other
    meta.json                     source, counts and digests

A story is better than another if it has at least --ratio times its votes (2) and was not written before it: what is
there first is seen by more people, so that many votes for an earlier story may say that it is earlier and no more
(--any_age takes it all the same). The rule is that of SHP (K. Ethayarajh et al. 2022), and so is --uses: at most 5
labels of a kind are made of one prompt.
"""

import argparse
import hashlib
import math
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.documents import Document, SplitRule
from lm_human_preferences.data.exchange.reading import whole_characters
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_labelled_dataset
from lm_human_preferences.data.prepared_labels import PreparedLabels
from lm_human_preferences.data.queries import downloads_folder
from lm_human_preferences.data.sources import fingerprint, hub_fingerprint, hub_records
from lm_human_preferences.foundation.downloads import cached
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.records import read_records
from lm_human_preferences.foundation.tables import read_table

ADDRESS = "https://huggingface.co/datasets/rewardsignal/reddit_writing_prompts/resolve/main/prompt_responses_full.csv"
SPLITS = ("train", "valid", "test")
COLUMNS = ("prompt_id", "prompt", "response", "response_score", "response_created_utc")
POST_COLUMNS = ("post_title", "comment_texts", "comment_scores", "comment_times")
GONE = ("", "[deleted]", "[removed]")  # what Reddit shows of a comment that is no longer there
MODERATOR = re.compile(r"\W*off-topic discussion", re.IGNORECASE)  # the comment that the subreddit's bot begins with


class Story(NamedTuple):
    """One comment on a post."""

    text: str
    score: float  # votes for it less votes against it
    time: float  # seconds since 1970


class Post(NamedTuple):
    """A prompt and the stories written to it, as the source has them."""

    prompt: str
    stories: list[Story]


class Rule(NamedTuple):
    """When one story is better than another, and how many labels are made of a prompt."""

    ratio: float
    any_age: bool
    choices: int
    uses: int

    def prefers(self, story: Story, other: Story) -> bool:
        """Whether the votes say that `story` is better than `other`. Fewer votes than one count as one."""
        enough = story.score > other.score and story.score >= self.ratio * max(other.score, 1)
        return enough and (self.any_age or story.time >= other.time)


# --- sources ---


def posts_of_file(path: Path, limit: int | None) -> Iterator[Post]:
    """The posts of a file in either form: a row a story (.csv, .jsonl), or a row a post (.jsonl)."""
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
        records: Iterator[tuple[str, Any]]
        if ".csv" in path.suffixes:
            records = read_table(path, COLUMNS, progress=bar.update)
        else:
            records = read_records(path, progress=bar.update)
        first = next(records, None)
        if first is None:
            raise UserError(f"{path} is empty: expected rows with {', '.join(COLUMNS)}")
        records = islice(_again(first, records), limit)
        if isinstance(first[1], dict) and "post_title" in first[1]:
            yield from (post_of(where, row) for where, row in records)
        else:
            yield from posts_of_stories(records)


def _again(first: tuple[str, Any], records: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    yield first
    yield from records


def posts_of_stories(records: Iterable[tuple[str, Any]]) -> Iterator[Post]:
    """Posts in the order of their first story. UserError names the row that is not as it should be."""
    posts: dict[str, Post] = {}
    for where, row in records:
        if not isinstance(row, dict) or any(row.get(name) is None for name in COLUMNS[:1] + COLUMNS[3:]):
            raise UserError(f"{where}: expected an object with {', '.join(COLUMNS)}")
        prompt, response = row.get("prompt") or "", row.get("response") or ""
        for name, value in (("prompt", prompt), ("response", response)):
            if not isinstance(value, str):
                raise UserError(f"{where}: {name!r} is {str(value)[:40]!r}; expected a text")
        score = number(row["response_score"], f"{where}: 'response_score'")
        story = Story(
            whole_characters(response), score, time_of(row["response_created_utc"], f"{where}: 'response_created_utc'")
        )
        posts.setdefault(str(row["prompt_id"]), Post(whole_characters(prompt), [])).stories.append(story)
    yield from posts.values()


def post_of(where: str, row: Any) -> Post:
    """A row of a post with its comments. UserError if it is not as it should be."""
    if not isinstance(row, dict) or not isinstance(row.get("post_title"), str):
        raise UserError(f"{where}: expected an object with {', '.join(POST_COLUMNS)}")
    columns = [row.get(name) for name in POST_COLUMNS[1:]]
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        raise UserError(f"{where}: expected lists of one length in {', '.join(POST_COLUMNS[1:])}")
    stories = []
    for n, (text, score, time) in enumerate(zip(*columns, strict=True)):
        if not isinstance(text, str):
            raise UserError(f"{where}: comment_texts {n} is {str(text)[:40]!r}; expected a text")
        stories.append(
            Story(
                whole_characters(text),
                number(score, f"{where}: comment_scores {n}"),
                time_of(time, f"{where}: comment_times {n}"),
            )
        )
    return Post(whole_characters(row["post_title"]), stories)


def number(value: object, what: str) -> float:
    """A finite number, perhaps as text. UserError begins with `what`."""
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{what} is {str(value)[:40]!r}; expected a number")
    return found


def time_of(value: object, what: str) -> float:
    """Seconds since 1970, from such a number or a date as 2020-03-13T12:00:00, in UTC where it names no zone."""
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        try:
            date = datetime.fromisoformat(value)
        except ValueError:
            raise UserError(f"{what} is {value[:40]!r}; expected a date as 2020-03-13T12:00:00") from None
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    return number(value, what)


# --- documents and labels ---


def fold(prompt: str) -> str:
    """A prompt on one line without the mark [WP], with the space that follows the task's "Writing Prompt:"; "" for
    nothing.
    """
    words = re.sub(r"^\s*[\[({]\s*WP\s*[\])}]\s*", "", prompt, flags=re.IGNORECASE).split()
    return " ".join(["", *words])


def response(story: Story) -> str:
    """A story with the space that follows the task's "Response:"."""
    return f" {story.text.strip()}"


def kept(post: Post, labels: PreparedLabels) -> list[Story]:
    """The stories that are stories, the one with the most votes first; of equal ones the earlier. No text twice."""
    stories: dict[str, Story] = {}
    for story in sorted(post.stories, key=lambda story: (-story.score, story.time)):
        text = story.text.strip()
        if text in GONE:
            labels.leave_out("stories that are empty, deleted or removed")
        elif MODERATOR.match(text):
            labels.leave_out("comments of the moderators' bot")
        elif stories.setdefault(text, story) is not story:
            labels.leave_out("stories that stand there twice")
    return list(stories.values())


def choices_of(prompt: str, stories: list[Story], rule: Rule, n: int) -> Iterator[dict[str, Any]]:
    """Labels best_of_n: a story and n - 1 others that it is better than, in any order; each winner's losers serve it
    once. At most `rule.uses` of them. Which, and in which order, depends on the texts alone.
    """
    digests = {story.text: hashlib.sha1(f"{prompt}\n{story.text}".encode()).digest() for story in stories}
    order = sorted(stories, key=lambda story: digests[story.text])
    found = []
    for winner in stories:
        losers = [story for story in order if rule.prefers(winner, story)]
        found += [(winner, *losers[i : i + n - 1]) for i in range(0, len(losers) - n + 2, n - 1)]

    def drawn(*texts: str) -> bytes:
        return hashlib.sha1(b"".join(digests[text] for text in texts)).digest()

    found.sort(key=lambda group: drawn(*(story.text for story in group)))
    for winner, *losers in found[: rule.uses]:
        texts = [story.text for story in (winner, *losers)]
        shown = sorted((winner, *losers), key=lambda story: drawn(*texts, story.text))
        yield {
            "query": prompt,
            "responses": [response(story) for story in shown],
            "best": shown.index(winner),
            "scores": [story.score for story in shown],
        }


def documents(
    posts: Iterable[Post], split_rule: SplitRule, rule: Rule, stories: int, labels: PreparedLabels
) -> Iterator[Document]:
    """Each prompt with its best story; labels go to the label files. A prompt that came before is left out."""
    seen = set()
    for post in posts:
        prompt = fold(post.prompt)
        found = kept(post, labels)
        if not prompt or not found or prompt in seen:
            labels.leave_out("prompts that came before" if prompt in seen else "posts without a prompt or a story")
            continue
        seen.add(prompt)
        split = split_rule.of(prompt, "train")
        for story in found[: stories if split == "train" else 1]:
            yield Document(split, prompt, response(story))
        for name, n in (("labels", rule.choices), ("pairs", 2)):
            for label in choices_of(prompt, found, rule, n):
                labels.add(f"{name}_{split}", label)
        for place, story in enumerate(found if len(found) > 1 else []):
            label = {"query": prompt, "responses": [response(story)], "score": float(place == 0)}
            labels.add(f"ratings_{split}", label)


def check_rule(rule: Rule, stories: int) -> None:
    """Raises UserError, naming the option, for numbers that cannot work."""
    if not 1 <= rule.ratio < math.inf:
        raise UserError(f"--ratio {rule.ratio}: expected a number from 1 up")
    for name, value, least in (("choices", rule.choices, 2), ("uses", rule.uses, 1), ("stories", stories, 1)):
        if value < least:
            raise UserError(f"--{name} {value}: expected a number from {least} up")


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="FILE", help="a file of stories or posts, instead of a download")
    parser.add_argument("--url", default=ADDRESS, help="download the file of stories from this address (a mirror)")
    parser.add_argument(
        "--hub",
        metavar="NAME",
        help="take a data set of posts on the Hugging Face hub instead (euclaise/WritingPrompts_preferences), or a "
        "folder of its files",
    )
    parser.add_argument(
        "--ratio", type=float, default=2.0, metavar="X", help="times the votes that make a story better (default: 2)"
    )
    parser.add_argument(
        "--any_age", action="store_true", help="a story written before the other may be the better one too"
    )
    parser.add_argument("--choices", type=int, default=4, metavar="K", help="stories in a choice (default: 4)")
    parser.add_argument("--uses", type=int, default=5, metavar="N", help="labels of a kind of a prompt (default: 5)")
    parser.add_argument(
        "--stories", type=int, default=1, metavar="N", help="stories to a prompt for train_sft (default: 1)"
    )
    add_arguments(parser, "writing_prompts", "5,5")
    arguments = parser.parse_args()
    split_rule = check_arguments(arguments)
    if not split_rule.valid or not split_rule.test:
        raise UserError(
            f"--split {arguments.split}: the prompts have no splits of their own; give percentages above 0 for valid "
            "and test like 5,5"
        )
    rule = Rule(arguments.ratio, arguments.any_age, arguments.choices, arguments.uses)
    check_rule(rule, arguments.stories)
    recipe = Recipe(
        1,
        "the prompts and stories belong to their authors",
        SPLITS,
        references=True,
        labels=tuple(f"{name}_{split}" for name in ("labels", "pairs", "ratings") for split in SPLITS),
    )
    if arguments.hub is not None:
        if arguments.input is not None:
            raise UserError("--input and --hub exclude each other; give one of them")
        source = {arguments.hub: hub_fingerprint(arguments.hub, None)}
    else:
        path = arguments.input or cached(arguments.url, downloads_folder())
        if not path.is_file():
            raise UserError(f"--input {path}: expected a file, .csv or .jsonl")
        source = {path.name: fingerprint(path)}

    def posts() -> Iterator[Post]:
        if arguments.hub is None:
            return posts_of_file(path, arguments.limit)
        return (post_of(*row) for row in hub_records(arguments.hub, None, "train", None, arguments.limit))

    prepare_labelled_dataset(
        recipe,
        arguments,
        source,
        lambda labels: documents(posts(), split_rule, rule, arguments.stories, labels),
        rule=rule._asdict(),
        stories=arguments.stories,
    )


if __name__ == "__main__":
    main()
