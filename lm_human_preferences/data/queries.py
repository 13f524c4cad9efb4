"""Token files on disk, and the deterministic batches of queries that training draws from them.

A token file is three files in `datasets/<name>/`: `<split>.bin` (uint16 tokens of all documents, one after the other),
`<split>.idx.npy` (int64 offsets, n + 1 of them; document i is tokens[offsets[i]:offsets[i + 1]]) and `meta.json`.

Original: language/datasets.py, lm_tasks.py make_query_sampler, datasets/*.py.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.tasks import TaskParams, single_token
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file, read_json, sha256, write_json
from lm_human_preferences.foundation.root import project_root
from lm_human_preferences.language.added_tokens import AddedToken
from lm_human_preferences.language.encoding import Encoding, describe_encoding

Entry = dict[str, int | str]  # what meta.json says of a split
Splits = dict[str, Entry]  # by the split's name


def datasets_folder() -> Path:
    """Where data sets lie that are given by name: `datasets/` below the project's root, which LMHP_HOME can move."""
    return project_root() / "datasets"


def downloads_folder() -> Path:
    """Where files lie that were fetched from the web, by host and path."""
    return datasets_folder() / "downloads"


class TokenFile:
    """One split of a data set, memory-mapped: `file[i]` is document i as a uint16 array, in O(1)."""

    def __init__(self, folder: Path, split: str):
        """Raises UserError when a file is missing, or when index and tokens do not agree."""
        self.folder, self.split = Path(folder), split
        tokens, index = self.folder / f"{split}.bin", self.folder / f"{split}.idx.npy"
        for path in (tokens, index):
            if not path.is_file():
                there = splits_of(self.folder)
                raise UserError(
                    f"{path} does not exist: "
                    + (
                        f"the data set's splits are {', '.join(there)}"
                        if there
                        else f"prepare the data set first ({preparation_command(self.folder.name)})"
                    )
                )
        try:
            self.offsets = np.load(index, allow_pickle=False)
        except Exception:  # of many kinds: numpy parses the header as Python
            raise UserError(f"{index} is damaged: prepare the data set again") from None
        o = self.offsets
        if o.dtype != np.int64 or o.ndim != 1 or len(o) < 1 or o[0] != 0 or (np.diff(o) < 0).any():
            raise UserError(
                f"{index} is damaged (int64 offsets must start at 0 and never fall): prepare the data set again"
            )
        if len(o) == 1:
            raise UserError(
                f"{tokens} holds no document: prepare the data set again, from a source that has some for the split "
                f"{split}"
            )
        have, want = tokens.stat().st_size / 2, int(self.offsets[-1])
        if have != want:
            raise UserError(f"{tokens} holds {have:.12g} tokens, but its index says {want}: prepare the data set again")
        self.tokens = np.memmap(tokens, dtype=np.uint16, mode="r", shape=(want,)) if want else np.zeros(0, np.uint16)

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raises UserError if a token lies outside a vocabulary of that size: the file was made with another
        encoding.
        """
        highest = int(self.tokens.max(initial=0))
        if highest >= n_vocab:
            raise UserError(
                f"{self.folder / self.split}.bin holds token {highest}, but the model's vocabulary has {n_vocab}: "
                "wrong encoding"
            )

    def check_encoding(self, encoding: Encoding) -> None:
        """Raises UserError unless the tokens stand for the same texts in this encoding: the file was made with it, or
        without some of the tokens that it has beside GPT-2's.
        """
        meta = read_meta(self.folder) if (self.folder / "meta.json").exists() else {}
        name, added = meta.get("encoding", encoding.name), added_tokens_in(meta, self.folder)
        if name != encoding.name:
            raise UserError(
                f"{self.folder} has the encoding {name}, but the model has {describe_encoding(encoding)}: prepare the "
                "data set again"
            )
        if unknown := [token for token in added if token not in encoding.added_tokens]:
            texts = ", ".join(f"{token.text!r} as {token.id}" for token in unknown)
            raise UserError(
                f"{self.folder} is encoded with the added token{'s' if len(unknown) > 1 else ''} {texts}, which the "
                f"model ({describe_encoding(encoding)}) has not; prepare it again, with --encoding MODEL for its own"
            )
        self.check_vocabulary(encoding.n_vocab)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]


def dataset_folder(dataset: str | Path) -> Path:
    """The folder of a data set given by path or by its name in datasets/."""
    return Path(dataset) if Path(dataset).is_dir() else datasets_folder() / dataset


def preparation_command(name: str) -> str:
    """How a user gets the data set `name`: its script, or one of those for texts of their own."""
    if (datasets_folder() / f"{name}.py").exists():
        return f"python datasets/{name}.py"
    if name == "own":
        return "python datasets/prompts.py --input FILE"
    return f"python datasets/corpus.py --input FOLDER --name {name}"


def splits_of(folder: Path, prefix: str = "") -> list[str]:
    """The splits of a data set whose token files are both there, in order of name; with `prefix` those that begin with
    it, without it.
    """
    names = sorted(path.name.removesuffix(".idx.npy") for path in Path(folder).glob("*.idx.npy"))
    return [
        name.removeprefix(prefix) for name in names if name.startswith(prefix) and (folder / f"{name}.bin").is_file()
    ]


def check_split(dataset: str, split: str, flag: str) -> None:
    """UserError, naming the flag and the splits that there are, unless the data set has this split.

    dataset: as --task.query_dataset has it, perhaps with :prefix. To be called before a training whose end needs the
    split.
    """
    name, _, prefix = dataset.partition(":")
    folder = dataset_folder(name)
    there = splits_of(folder, prefix)
    if split in there:
        return
    if not there:
        raise UserError(f"the data set {dataset} does not exist: prepare it first ({preparation_command(folder.name)})")
    raise UserError(f"{flag} {split}: the data set {dataset} has no such split; it has {', '.join(there)}")


class TokenFileWriter:
    """Writes one split document by document; both files appear, whole, when the `with` block ends well."""

    def __init__(self, folder: Path, split: str):
        self.folder, self.split, self.offsets = Path(folder), split, [0]

    def __enter__(self) -> "TokenFileWriter":
        with ExitStack() as stack:
            path = stack.enter_context(atomic_file(self.folder / f"{self.split}.bin"))
            self._index = stack.enter_context(atomic_file(self.folder / f"{self.split}.idx.npy"))
            self._tokens = stack.enter_context(open(path, "wb"))
            self._stack = stack.pop_all()
        return self

    def add(self, document: Sequence[int] | np.ndarray) -> None:
        """Append a document's tokens. Raises ValueError for a token that does not fit into uint16."""
        array = np.asarray(document)
        if array.dtype != np.uint16:
            array = array.astype(np.int64)
            if array.size and (array.min() < 0 or array.max() > 65535):
                raise ValueError(f"document {len(self.offsets) - 1} has a token outside 0..65535")
        self._tokens.write(array.astype(np.uint16).tobytes())
        self.offsets.append(self.offsets[-1] + array.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with open(self._index, "wb") as file:
                np.save(file, np.array(self.offsets, dtype=np.int64))
        self._stack.__exit__(kind, error, trace)

    def entry(self) -> Entry:
        """What `meta.json` says of the split: documents, tokens, SHA-256 of both files."""
        return {
            "documents": len(self.offsets) - 1,
            "tokens": self.offsets[-1],
            "sha256_bin": sha256(self.folder / f"{self.split}.bin"),
            "sha256_idx": sha256(self.folder / f"{self.split}.idx.npy"),
        }


def write_token_file(folder: Path, split: str, documents: Iterable[Sequence[int]]) -> Entry:
    """Write one split atomically; returns its entry for `meta.json`. Raises ValueError for a token that does not fit
    into uint16.
    """
    with TokenFileWriter(folder, split) as writer:
        for document in documents:
            writer.add(document)
    return writer.entry()


def write_meta(
    folder: Path, *, source: str, licence: str, splits: Splits, encoding: str = "gpt2", **more: object
) -> None:
    """`meta.json` of a data set: where it is from, under which licence, and counts and digests of its splits."""
    write_json(
        Path(folder) / "meta.json",
        {"source": source, "licence": licence, "encoding": encoding, "splits": splits, **more},
    )


def added_tokens_in(meta: dict[str, Any], folder: Path) -> tuple[AddedToken, ...]:
    """The tokens beside GPT-2's that a data set was encoded with, as its meta.json lists them. UserError if it cannot
    be such a list.
    """
    try:
        return tuple(AddedToken(**token) for token in meta.get("added_tokens", ()))
    except TypeError:
        raise UserError(f"{folder}/meta.json: added_tokens is damaged: prepare the data set again") from None


def added_tokens_entry(encoding: Encoding) -> dict[str, Any]:
    """What meta.json says of tokens beside GPT-2's; nothing where there are none."""
    fields = ("id", "text", "lstrip", "rstrip", "single_word", "normalized")
    tokens = [{name: getattr(token, name) for name in fields} for token in encoding.added_tokens]
    return {"added_tokens": tokens} if tokens else {}


def read_meta(folder: Path) -> dict[str, Any]:
    """What `write_meta` wrote. Raises UserError if it is missing or damaged."""
    meta = read_json(Path(folder) / "meta.json")
    if not isinstance(meta, dict):
        raise UserError(f"{folder}/meta.json is damaged: prepare the data set again")
    return meta


def select_query(
    tokens: np.ndarray, start_token: int | None, end_token: int | None, length: int, end_of_text: int | None = None
) -> np.ndarray | None:
    """The query in a document, without padding, or None if the document has none and is skipped.

    After the first start token -> cut to `length` -> up to and including the last end token in that window. A start
    token that is the document's very last token does not trim (nothing would remain). `end_of_text` marks the end of
    documents of language-model training; it is not a part of a query, or the policy would begin another text instead of
    going on with this one. Original: language/datasets.py Dataset.tf_dataset, whose data sets have no such marks.
    """
    if end_token != end_of_text:
        tokens = _without_last(tokens, end_of_text)
    if start_token is not None:
        places = np.flatnonzero(tokens == start_token)
        if not len(places):
            return None
        if places[0] + 1 < len(tokens):
            tokens = tokens[places[0] + 1 :]
    window = tokens[:length]
    if end_token is not None:
        places = np.flatnonzero(window == end_token)
        if not len(places):
            return None
        return window[: places[-1] + 1]
    return _without_last(window, end_of_text)


def _without_last(tokens: np.ndarray, token: int | None) -> np.ndarray:
    """`tokens` without those at their end that are `token`."""
    size = len(tokens)
    while size and tokens[size - 1] == token:
        size -= 1
    return tokens[:size]


class Documents(Protocol):
    """Documents by number: a TokenFile, or a list of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


class QueryStream:
    """An endless, deterministic stream of queries: every document once an epoch, documents without a query skipped.

    Batches run over the ends of epochs and nothing is dropped. `order(epoch)` gives the documents' order; `position`
    (epoch, place) is all its state, so that a resumed run goes on with the next query. Each rank reads the whole stream
    and takes its slice of a batch. Original: language/datasets.py and lm_tasks.py make_query_sampler, except that there
    every epoch has the same order.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        length: int,
        padding_token: int,
        start_token: int | None = None,
        end_token: int | None = None,
        end_of_text: int | None = None,
        order: Callable[[int], Sequence[int] | np.ndarray] | None = None,
    ):
        self.documents, self.length, self.padding_token = documents, length, padding_token
        self.start_token, self.end_token, self.end_of_text = start_token, end_token, end_of_text
        self.order = functools.lru_cache(maxsize=1)(order or (lambda epoch: range(len(documents))))
        self.position = (0, 0)

    def batch(self, size: int) -> torch.Tensor:
        """The next `size` queries, int64 [size, length], padded on the right. Raises UserError if no document has a
        query.
        """
        return self.batch_with_documents(size)[0]

    def batch_with_documents(self, size: int) -> tuple[torch.Tensor, list[int]]:
        """`batch`, and the number of the document that each query is from."""
        result, numbers = torch.full((size, self.length), self.padding_token, dtype=torch.int64), []
        for row in range(size):
            query, document = self._next()
            result[row, : len(query)] = torch.from_numpy(query.astype(np.int64))
            numbers.append(document)
        return result, numbers

    def _next(self) -> tuple[np.ndarray, int]:
        epoch, place = self.position
        barren = 0  # documents without a query since the last one that had one
        while True:
            if place >= len(self.documents):
                epoch, place = epoch + 1, 0
            if barren > len(self.documents):
                raise UserError(
                    "no document of the query data set has a query: look at --task.start_text, --task.end_text, "
                    "--task.query_length"
                )
            document = int(self.order(epoch)[place])
            query = select_query(
                self.documents[document], self.start_token, self.end_token, self.length, self.end_of_text
            )
            place, barren = place + 1, barren + 1
            if query is not None and len(query):
                self.position = (epoch, place)
                return query, document


def dataset_split(task: TaskParams, split: str) -> tuple[Path, str]:
    """Folder and name of the token file that a split of the task's queries is."""
    folder, _, prefix = task.query_dataset.partition(":")
    return dataset_folder(folder), f"{prefix}{split}"


def query_stream(task: TaskParams, encoding: Encoding, seed: int, purpose: str, split: str = "train") -> QueryStream:
    """The task's queries of a split, in an order drawn for each epoch from the run's seed and the stream's purpose.

    Raises UserError if the data set is missing, damaged or of another encoding.
    """
    folder, name = dataset_split(task, split)
    documents = TokenFile(folder, name)
    documents.check_encoding(encoding)
    return QueryStream(
        documents,
        length=task.query_length,
        padding_token=encoding.padding_token,
        start_token=single_token(task.start_text, encoding, "start_text"),
        end_token=single_token(task.end_text, encoding, "end_text"),
        end_of_text=encoding.end_of_text,
        order=lambda epoch: torch.randperm(
            len(documents), generator=generator_for(seed, f"{purpose}/queries", epoch)
        ).numpy(),
    )
