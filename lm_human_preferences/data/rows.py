"""Token files as rows of inputs and labels for supervised training."""

from pathlib import Path

import numpy as np
import torch

from lm_human_preferences.data.queries import TokenFile, select_query
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, check_task, response_ends, single_token
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.language.gpt2 import GPT2Config

ROWS = ("packed", "documents", "references")  # what a training may ask for; `single` serves measuring alone


def make_rows(
    folder: Path, split: str, kind: str, block: int, model: GPT2Config, task: TaskParams | None = None
) -> "Rows | ReferenceRows":
    """One split's rows for a model. Raises UserError if they exceed its context or vocabulary, or if there are none."""
    file = TokenFile(folder, split)
    encoding = get_encoding(model)
    file.check_encoding(encoding)
    file.check_vocabulary(model.n_vocab)
    if kind == "references":
        if task is None:
            raise ValueError("rows of references need the task that formats them")
        check_task(task, encoding, model.n_ctx)
        return ReferenceRows(file, TokenFile(folder, f"references_{split}"), task, encoding)
    if block > model.n_ctx:
        raise UserError(f"--data.block {block} is longer than the model's context of {model.n_ctx}")
    return Rows(file, kind, block, model.padding_token)


class Rows:
    """A token file as rows of `block` inputs and labels, both int64; labels and inputs beyond a document's end are
    padding. `single` rows are a document each, up to `block` + 1 of its tokens; those of less than two are left out.
    """

    def __init__(self, file: TokenFile, kind: str, block: int, padding_token: int):
        self.file, self.block, self.padding = file, block, padding_token
        self.learnt = file.tokens  # what labels are drawn from
        if kind == "packed":
            self.starts = np.arange(0, len(file.tokens) - block, block)
            self.ends = self.starts + block + 1
        elif kind == "single":
            long = np.diff(file.offsets) > 1
            self.starts = file.offsets[:-1][long]
            self.ends = np.minimum(file.offsets[1:][long], self.starts + block + 1)
        else:  # whole documents while they fit; a document longer than the row goes on in rows of its own
            self.starts, self.ends = _pack_documents(file.offsets, block)
        if not len(self.starts):
            raise UserError(
                f"{file.folder / file.split}.bin holds {len(file.tokens)} tokens, too few for one row of --data.block "
                f"{block}"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of these rows, int64 [len(rows), block] each."""
        places = self.starts[rows, None] + np.arange(self.block + 1)
        inside, last = places < self.ends[rows, None], len(self.file.tokens) - 1
        found = self.file.tokens[places.clip(max=last)].astype(np.int64)
        tokens = torch.from_numpy(np.where(inside, found, self.padding))
        return tokens[:, :-1], tokens[:, 1:]


def _pack_documents(offsets: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last-but-one token of each row: runs of whole documents of at most `block` + 1 tokens."""
    starts, ends, start, end = [], [], 0, 0
    for document_start, document_end in zip(offsets[:-1], offsets[1:], strict=True):
        if end > start and document_end - start > block + 1:
            starts.append(start)
            ends.append(end)
            start = document_start
        end = document_end
        while end - start > block + 1:
            starts.append(start)
            ends.append(start + block + 1)
            start += block
    if end - start > 1:
        starts.append(start)
        ends.append(end)
    return np.array(starts), np.array(ends)


class ReferenceRows:
    """Queries with their references: what a policy would see, then what people wrote, closed by the first token that
    ends responses of the task.

    A row is prefix + query + padding + suffix + reference, just as in policy training; labels are padding but for the
    reference, so that only it is learnt. A reference longer than the task's response is cut and not closed. Documents
    without a query or a reference are left out.
    """

    def __init__(self, file: TokenFile, references: TokenFile, task: TaskParams, encoding: Encoding):
        if len(file) != len(references):
            raise UserError(
                f"{file.folder}: {file.split} has {len(file)} documents, {references.split} {len(references)}: "
                "prepare the data set again"
            )
        references.check_encoding(encoding)
        self.file, self.references, self.task, self.padding = file, references, task, encoding.padding_token
        self.end_of_text = encoding.end_of_text
        self.learnt = references.tokens
        self.formatter = QueryFormatter.of(task, encoding)
        self.ends = list(response_ends(task, encoding).tokens[:1])
        self.start, self.end = (
            single_token(task.start_text, encoding, "start_text"),
            single_token(task.end_text, encoding, "end_text"),
        )
        self.documents = np.array(
            [i for i in range(len(file)) if len(references[i]) and len(self._query(i))], dtype=np.int64
        )
        if not len(self.documents):
            raise UserError(
                f"{file.folder}: no document of {file.split} has both a query and a reference; look at "
                "--task.start_text and --task.end_text, and whether the source has references"
            )
        self.block = (
            self.formatter(torch.zeros(1, task.query_length, dtype=torch.int64)).shape[1] + task.response_length - 1
        )

    def _query(self, document: int) -> np.ndarray:
        """The document's query, empty where it has none."""
        query = select_query(self.file[document], self.start, self.end, self.task.query_length, self.end_of_text)
        return query if query is not None else np.zeros(0, np.uint16)

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of these rows, int64 [len(rows), block] each."""
        queries = torch.full((len(rows), self.task.query_length), self.padding)
        references = torch.full((len(rows), self.task.response_length), self.padding)
        for i, row in enumerate(rows):
            document = self.documents[row]
            query = self._query(document)
            queries[i, : len(query)] = torch.from_numpy(query.astype(np.int64))
            reference = np.concatenate([self.references[document].astype(np.int64), self.ends])[
                : self.task.response_length
            ]
            references[i, : len(reference)] = torch.from_numpy(reference.astype(np.int64))
        contexts = self.formatter(queries)
        tokens = torch.cat([contexts, references], dim=1)
        labels = tokens[:, 1:].clone()
        labels[:, : contexts.shape[1] - 1] = self.padding
        return tokens[:, :-1], labels
