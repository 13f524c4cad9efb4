"""Posts on Reddit that carry a TL;DR, for the task tldr.

    python datasets/tldr.py                       OpenAI's selection, fetched from its public address
    python datasets/tldr.py --input FOLDER        train-subset.json and valid-subset.json on disk
    python datasets/tldr.py --hub webis/tldr-17 --split 1,1    all posts, with summaries, from the Hugging Face hub

(the last needs the package datasets).

Each file is a list of objects (or one a line) with the post in `content`; where `summary` is there too, it becomes the
reference that supervised training learns to write. The posts are those of M. Völske et al. 2017, "TL;DR: Mining Reddit
to learn automatic summarization". What is written (S is each of train, valid, test; as in the original, test is the
same as valid):

    S.bin, S.idx.npy              token file: the posts, cleaned as the original cleans them
    references_S.bin, .idx.npy    token file: the summaries, document by document; empty where there is none
    meta.json                     source, counts and digests
"""

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from lm_human_preferences.data.documents import Document, SplitRule
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_dataset
from lm_human_preferences.data.queries import downloads_folder
from lm_human_preferences.data.sources import fingerprint, hub_fingerprint, hub_rows
from lm_human_preferences.foundation.downloads import cached
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.records import read_records

ADDRESS = "https://openaipublic.blob.core.windows.net/lm-human-preferences/tldr"
HUB, REVISION = "webis/tldr-17", "refs/convert/parquet"  # the hub's own conversion: the data set itself is a script
FILES = {"train": "train-subset.json", "valid": "valid-subset.json"}


def clean(text: str) -> str:
    """A post as the original's queries have it. Original: datasets/tldr.py."""
    import ftfy

    return re.sub(r"\n{3,}", "\n\n", ftfy.fix_text(text)).strip()


def clean_reference(text: str) -> str:
    """A summary with the space that follows the prompt's colon; nothing for nothing."""
    text = clean(text)
    return f" {text}" if text else ""


def posts(files: dict[str, Path], rule: SplitRule, limit: int | None) -> Iterator[Document]:
    """All posts. UserError names file and record of one that is not as it should be."""
    for own, path in files.items():
        with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=own, disable=None) as bar:
            for where, record in islice(read_records(path, progress=bar.update), limit):
                if not isinstance(record, dict) or not isinstance(record.get("content"), str):
                    raise UserError(f"{where}: expected an object with the post's text in 'content'")
                summary = record.get("summary", "")
                if not isinstance(summary, str):
                    raise UserError(f"{where}: 'summary' is {summary!r}; expected a text")
                split = rule.of(record["content"], own)
                yield Document(split, record["content"], summary)
                if rule.valid is None and own == "valid":
                    yield Document("test", record["content"], summary)


def from_hub(name: str, revision: str | None, rule: SplitRule, limit: int | None) -> Iterator[Document]:
    for row in hub_rows(name, None, "train", revision, ("content", "summary"), limit):
        yield Document(rule.of(row["content"], "train"), row["content"], row["summary"])


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FOLDER",
        help="folder with train-subset.json and valid-subset.json, instead of downloading them",
    )
    parser.add_argument("--url", default=ADDRESS, help="download the two files from this address instead (a mirror)")
    parser.add_argument(
        "--hub",
        metavar="NAME",
        help=f"take a data set on the Hugging Face hub with columns content and summary instead ({HUB}), "
        "or a folder of its files",
    )
    add_arguments(parser, "tldr", "source")
    arguments = parser.parse_args()
    rule = check_arguments(arguments)
    recipe = Recipe(
        1,
        "the posts belong to their authors",
        ("train", "valid", "test"),
        references=True,
        clean=clean,
        clean_reference=clean_reference,
    )
    if arguments.hub is not None:
        if arguments.input is not None:
            raise UserError("--input and --hub exclude each other; give one of them")
        if not rule.valid or not rule.test:
            raise UserError(
                f"--split {arguments.split}: the hub's posts have no splits of their own; give percentages above 0 for "
                "valid and test like 1,1"
            )
        revision = REVISION if arguments.hub == HUB else None
        source = {arguments.hub: hub_fingerprint(arguments.hub, revision)}
        prepare_dataset(recipe, arguments, source, lambda: from_hub(arguments.hub, revision, rule, arguments.limit))
        return
    if arguments.input is None:
        files = {split: cached(f"{arguments.url}/{name}", downloads_folder()) for split, name in FILES.items()}
    else:
        files = {split: arguments.input / name for split, name in FILES.items()}
        for path in files.values():
            if not path.is_file():
                raise UserError(f"--input {arguments.input} holds no {path.name}")
    prepare_dataset(
        recipe,
        arguments,
        {path.name: fingerprint(path) for path in files.values()},
        lambda: posts(files, rule, arguments.limit),
    )


if __name__ == "__main__":
    main()
