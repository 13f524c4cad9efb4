"""Token files: round trip, damage; streams of queries: positions, prefixes. Hazards 26, 27; DESIGN's data formats and invariant 2."""

import numpy as np
import pytest
import torch

from lm_human_preferences.distributed import generator_for
from lm_human_preferences.errors import UserError
from lm_human_preferences.queries import QueryStream, TokenFile, open_queries, read_meta, write_meta, write_token_file

DOCUMENTS = [[1, 2, 3], [], [65535], [7] * 40]


@pytest.fixture
def folder(tmp_path):
    write_meta(tmp_path / "data", source="us", licence="none", splits={"train": write_token_file(tmp_path / "data", "train", DOCUMENTS)})
    return tmp_path / "data"


def test_round_trip(folder):
    file = TokenFile(folder, "train")
    assert [file[i].tolist() for i in range(len(file))] == DOCUMENTS
    entry = read_meta(folder)["splits"]["train"]
    assert (entry["documents"], entry["tokens"]) == (4, 44) and len(entry["sha256_bin"]) == 64


def test_a_token_that_does_not_fit_leaves_the_old_file(folder):
    before = (folder / "train.bin").read_bytes()
    with pytest.raises(ValueError, match="document 1 has a token outside"):
        write_token_file(folder, "train", [[1], [65536]])
    assert (folder / "train.bin").read_bytes() == before and len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage, says", [
    (lambda folder: (folder / "train.bin").unlink(), "train.bin does not exist"),
    (lambda folder: (folder / "train.idx.npy").unlink(), "train.idx.npy does not exist"),
    (lambda folder: (folder / "train.bin").write_bytes(b"\0" * 86), "holds 43 tokens, but its index says 44"),
    (lambda folder: (folder / "train.bin").write_bytes(b"\0" * 90), "holds 45 tokens, but its index says 44"),
    (lambda folder: (folder / "train.idx.npy").write_bytes(b"no array"), "is damaged"),
    (lambda folder: (folder / "train.idx.npy").write_bytes((folder / "train.idx.npy").read_bytes()[:-4]), "is damaged"),
    (lambda folder: np.save(folder / "train.idx.npy", np.array([0, 9, 5, 44])), "never fall"),
])
def test_damaged_token_files(folder, damage, says):
    damage(folder)
    with pytest.raises(UserError, match=says):
        TokenFile(folder, "train")


def make_stream(position=(0, 0)) -> QueryStream:
    documents = [np.array([n, n]) for n in range(10)]
    stream = QueryStream(documents, length=2, padding_token=99,
                         order=lambda epoch: torch.randperm(10, generator=generator_for(3, "test", epoch)).numpy())
    stream.position = position
    return stream


def test_a_stream_goes_on_from_its_position():
    stream = make_stream()
    stream.batch(13)
    position = stream.position
    assert torch.equal(make_stream(position).batch(20), stream.batch(20))


def test_every_epoch_has_every_document_once_in_another_order():
    stream = make_stream()
    epochs = [stream.batch(10)[:, 0] for _ in range(3)]
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_prefix_chooses_the_files(tmp_path):
    for split, tokens in (("train", [1]), ("queries_train", [2])):
        write_token_file(tmp_path / "data", split, [tokens])
    assert open_queries(str(tmp_path / "data"), "train")[0].tolist() == [1]
    assert open_queries(f"{tmp_path / 'data'}:queries_", "train")[0].tolist() == [2]
    with pytest.raises(UserError, match="queries_valid.bin does not exist"):
        open_queries(f"{tmp_path / 'data'}:queries_", "valid")


def test_documents_without_a_query_are_one_clear_line():
    with pytest.raises(UserError):
        QueryStream([np.array([1, 2])], length=2, padding_token=99, start_token=5).batch(1)
