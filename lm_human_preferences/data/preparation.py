"""What the scripts in datasets/ have in common: options, a recipe, files that appear whole, nothing done twice."""

import argparse
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lm_human_preferences.data.documents import Clean, Document, SplitRule, encoded, unchanged, write_splits
from lm_human_preferences.data.prepared_labels import PreparedLabels
from lm_human_preferences.data.queries import Splits, added_tokens_entry, datasets_folder, write_meta
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import make_folder, read_json, sha256
from lm_human_preferences.language.model_folders import encoding_named


class Recipe(NamedTuple):
    """What a preparation script has of its own; `prepare_dataset` does the rest."""

    version: int  # raise it whenever the same source would give different files
    licence: str
    splits: tuple[str, ...]
    references: bool = False
    others: tuple[str, ...] = ()  # further token files, without references and ends of texts; splits of documents too
    labels: tuple[str, ...] = ()  # label files, named without .jsonl; those of a split `train` must not stay empty
    needed_reference: str = ""  # what a reference is, where a split in which no document has one is an error
    end_of_text: bool = False
    clean: Clean = unchanged
    clean_reference: Clean = unchanged


def add_arguments(parser: argparse.ArgumentParser, name: str, split: str) -> None:
    """The options that all scripts have; `split` is the default rule."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=datasets_folder() / name,
        help=f"folder to write to (default: datasets/{name})",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="read the first N documents of each of the source's splits only"
    )
    parser.add_argument(
        "--split",
        metavar="RULE",
        default=split,
        help=f"source: the source's own splits; or VALID,TEST: percentages by a hash of the text (default: {split})",
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="processes that clean and encode (default: one a core)"
    )
    add_encoding_argument(parser)
    parser.add_argument("--force", action="store_true", help="make everything again even where it is complete")


def add_encoding_argument(parser: argparse.ArgumentParser) -> None:
    """The option of which `encoding_named` makes an encoding."""
    parser.add_argument(
        "--encoding",
        metavar="MODEL",
        default="gpt2",
        help="a model folder, whose added tokens are looked for in the texts (default: GPT-2's own encoding, which "
        "serves models with added tokens too)",
    )


def check_arguments(arguments: argparse.Namespace) -> SplitRule:
    """The rule of splitting. Raises UserError for arguments that cannot work, before anything is read."""
    for name in ("limit", "processes"):
        value = getattr(arguments, name)
        if value is not None and value < (name == "limit"):
            raise UserError(
                f"--{name} {value}: expected {'a number from 1 up' if name == 'limit' else 'a number from 0 up'}"
            )
    if getattr(arguments, "input", None) is not None and not arguments.input.exists():
        raise UserError(f"--input {arguments.input} does not exist")
    check_writable(arguments.output)
    return SplitRule.parse(arguments.split)


def prepare_dataset(
    recipe: Recipe,
    arguments: argparse.Namespace,
    source: dict[str, str],
    documents: Callable[[], Iterable[Document]],
    **settings: object,
) -> None:
    """Make the data set in `arguments.output`, or do nothing where it is there already.

    source: what was read, by name (paths with their fingerprints, addresses); settings: what else the result depends
    on. Raises UserError if a split would have no document, or lack all of the references that it needs.
    """
    prepare_labelled_dataset(recipe, arguments, source, lambda labels: documents(), **settings)


def prepare_labelled_dataset(
    recipe: Recipe,
    arguments: argparse.Namespace,
    source: dict[str, str],
    documents: Callable[[PreparedLabels], Iterable[Document]],
    **settings: object,
) -> None:
    """`prepare_dataset` for a source of documents and labels: `documents` adds the labels to the recipe's label files
    while it yields the documents. UserError too if a label file of a training split would be empty.
    """
    about = {"recipe": recipe.version, "limit": arguments.limit, "split": arguments.split, "inputs": source} | settings
    encoding = encoding_named(arguments.encoding)
    added = added_tokens_entry(encoding)
    if not arguments.force and is_complete(arguments.output, {"added_tokens": None} | about | added):
        print(f"nothing to do: {arguments.output} is complete (--force makes it again)")
        return

    def write(folder: Path) -> tuple[Splits, PreparedLabels]:
        with PreparedLabels(folder, recipe.labels) as labels:
            rows = encoded(
                documents(labels),
                recipe.clean,
                recipe.clean_reference,
                recipe.end_of_text,
                arguments.processes,
                recipe.others,
                encoding,
            )
            splits = write_splits(folder, rows, recipe.splits, recipe.references, recipe.others)
        for split in (*recipe.splits, *recipe.others):
            if not splits[split]["documents"]:
                raise UserError(
                    f"the source has no document for the split {split}; give more of it, or another --split than "
                    f"{arguments.split}"
                )
            if recipe.needed_reference and split in recipe.splits and not splits[f"references_{split}"]["tokens"]:
                raise UserError(f"no document of the split {split} has a {recipe.needed_reference}")
        for name, count in labels.counts.items():
            if not count and name.endswith("train"):
                raise UserError(
                    f"the source has no label for {name}.jsonl{_reasons(labels)}; give more of it, or other options"
                )
        counted: dict[str, Any] = (
            {"labels": dict(labels.counts), "left_out": dict(labels.left_out)} if recipe.labels else {}
        )
        write_meta(
            folder,
            source=", ".join(source),
            licence=recipe.licence,
            splits=splits,
            **about,
            **added,
            **counted,
            files=file_digests(folder),
        )
        return splits, labels

    splits, labels = publish_dataset(arguments.output, write)
    for name, counts in splits.items():
        print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    for line in labels.notes():
        print(line)


def _reasons(labels: PreparedLabels) -> str:
    """What was left out, most of it first, for a message."""
    return "".join(f", {count:,} {reason}" for reason, count in labels.left_out.most_common(3))


# --- writing whole, once ---


def check_writable(folder: Path) -> None:
    """UserError, before any work is done, where `folder` cannot be made or written to; nothing is made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"cannot write to {folder}: {there} is a file; choose another folder with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: no permission; choose another folder with --output")


def publish_dataset(output: Path, write: Callable[[Path], Any]) -> Any:
    """What `write` makes in the empty folder it is given appears in `output`, files whole, meta.json last; returns its
    result.

    A run that was cut short is thus seen and repeated. What else lies in `output` stays.
    """
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    make_folder(output)
    staging = Path(tempfile.mkdtemp(dir=output, prefix=".new."))
    try:
        result = write(staging)
        for path in sorted(staging.iterdir(), key=lambda path: (path.name == "meta.json", path.name)):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(path, output / path.name)
        new = []
    except OSError as error:
        raise UserError(
            f"cannot write to {output}: {error.strerror or error}; make room or choose another folder with --output"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in itertools.takewhile(lambda folder: not any(folder.iterdir()), new):
            folder.rmdir()
    return result


def is_complete(output: Path, about: dict[str, Any]) -> bool:
    """Whether `output` holds what `about` describes, every file with the digest that meta.json gives for it."""
    try:
        meta = read_json(output / "meta.json")
        return all(meta.get(key) == value for key, value in about.items()) and all(
            (output / name).is_file() and sha256(output / name) == digest for name, digest in meta["files"].items()
        )
    except (UserError, KeyError, AttributeError, OSError):
        return False


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, for meta.json's `files`."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}
