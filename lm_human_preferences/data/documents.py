"""Documents of text on their way into token files: divided into splits, cleaned, encoded by several processes, written.

What the scripts in datasets/ do to each document; what they do around it is in `preparation.py`.
"""

import functools
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm_human_preferences.data.queries import Splits, TokenFileWriter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import Encoding, gpt2_encoding

_BATCH_CHARACTERS = (
    400_000  # of text that a process takes at once: small enough to share out, large enough to be worth sending
)


class Document(NamedTuple):
    """One document of a split. `reference` is what people wrote in answer to it, a summary say; None where the data set
    has none.
    """

    split: str
    text: str
    reference: str | None = None


Clean = Callable[[str], str]
Encoded = tuple[str, np.ndarray, np.ndarray | None]  # a document's split, its tokens and those of its reference, uint16


def unchanged(text: str) -> str:
    return text


def encoded(
    documents: Iterable[Document],
    clean: Clean = unchanged,
    clean_reference: Clean = unchanged,
    end_of_text: bool = False,
    processes: int = 0,
    open_ended: Collection[str] = (),
    encoding: Encoding | None = None,
) -> Iterator[Encoded]:
    """(split, tokens, tokens of the reference) of each document, in order, as uint16 arrays; documents that are empty
    once cleaned are left out. With `end_of_text` they are closed by it, but for those of the splits `open_ended`.

    The cleaning and encoding run in `processes` processes (0: one a core); the two cleaning functions must be
    importable by name. encoding: None is GPT-2's own.
    """
    work = functools.partial(
        _encode_batch,
        encoding=encoding or gpt2_encoding(),
        clean=clean,
        clean_reference=clean_reference,
        end_of_text=end_of_text,
        open_ended=frozenset(open_ended),
    )
    processes = processes or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    batches = _batches(iter(documents))
    if processes == 1:
        for batch in batches:
            yield from work(batch)
        return
    with ProcessPoolExecutor(processes) as pool:
        waiting: deque[Future[list[Encoded]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > 2 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(
    documents: list[Document],
    encoding: Encoding,
    clean: Clean,
    clean_reference: Clean,
    end_of_text: bool,
    open_ended: frozenset[str],
) -> list[Encoded]:
    result = []
    for split, text, reference in documents:
        whole = clean(text)
        parts = [whole] if encoding.added_tokens else pieces(whole)  # a cut could go through an added token
        tokens = list(itertools.chain.from_iterable(encoding.encode(part) for part in parts))
        if not tokens:
            continue
        if end_of_text and split not in open_ended:
            tokens.append(encoding.end_of_text)
        answer = None if reference is None else np.array(encoding.encode(clean_reference(reference)), np.uint16)
        result.append((split, np.array(tokens, np.uint16), answer))
    return result


def pieces(text: str, size: int = 50_000) -> Iterator[str]:
    """A long text in pieces whose tokens, one after the other, are those of the whole; short pieces are encoded faster.

    It is cut before blank lines: what precedes them ends there in GPT-2's pattern too.
    """
    start = 0
    while len(text) - start > size:
        cut = text.find("\n\n", start + size)
        while cut != -1 and text[cut - 1].isspace():
            cut = text.find("\n\n", cut + 1)
        if cut == -1:
            break
        yield text[start:cut]
        start = cut
    yield text[start:]


def write_splits(
    folder: Path,
    encoded_documents: Iterable[Encoded],
    splits: Sequence[str],
    references: bool = False,
    others: Sequence[str] = (),
) -> Splits:
    """The token file of each split, and `references_<split>` beside it, document by document; the token files `others`
    have no references. Returns what meta.json says of them.
    """
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(TokenFileWriter(folder, name))
            for name in (
                *(name for split in splits for name in (split, *([f"references_{split}"] if references else []))),
                *others,
            )
        }
        for split, tokens, reference in encoded_documents:
            writers[split].add(tokens)
            if references and split not in others:
                writers[f"references_{split}"].add([] if reference is None else reference)
    return {name: writer.entry() for name, writer in writers.items()}


# --- splits ---


def hash_percent(text: str) -> float:
    """A number in [0, 100) that depends on the text alone, to divide documents by."""
    return int(hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10_000 / 100


class SplitRule(NamedTuple):
    """`source` keeps the source's own splits; two percentages divide all documents by a hash of their text."""

    valid: float | None = None
    test: float | None = None

    @classmethod
    def parse(cls, text: str) -> "SplitRule":
        if text == "source":
            return cls()
        try:
            valid, test = (float(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"--split {text}: expected source, or percentages for valid and test like 1,1") from None
        if not (valid >= 0 and test >= 0 and valid + test < 100):
            raise UserError(
                f"--split {text}: the percentages for valid and test must not be negative and leave something to train "
                "on"
            )
        return cls(valid, test)

    def of(self, text: str, own: str) -> str:
        """The split of a document whose split in the source is `own`."""
        if self.valid is None or self.test is None:
            return own
        percent = hash_percent(text)
        return "valid" if percent < self.valid else "test" if percent < self.valid + self.test else "train"

    def with_valid(self, text: str, own: str, percent: float) -> str:
        """As `of`; where the source's own splits hold and none of them is for validation, `percent` of its train split,
        by a hash of `text`, becomes one.
        """
        split = self.of(text, own)
        return "valid" if self.valid is None and own == "train" and hash_percent(text) < percent else split
