"""Token files: round trip, damage; streams of queries: positions, prefixes. Hazards 26, 27; DESIGN's data formats and
invariant 2.
"""

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.data.queries import (
    QueryStream,
    TokenFile,
    check_split,
    query_stream,
    read_meta,
    select_query,
    write_meta,
    write_token_file,
)
from lm_human_preferences.data.tasks import TaskParams
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding

DOCUMENTS = [[1, 2, 3], [], [65535], [7] * 40]


@pytest.fixture
def folder(tmp_path):
    write_meta(
        tmp_path / "data",
        source="us",
        licence="none",
        splits={"train": write_token_file(tmp_path / "data", "train", DOCUMENTS)},
    )
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


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda folder: (folder / "train.bin").unlink(), "train.bin does not exist"),
        (lambda folder: (folder / "train.idx.npy").unlink(), "train.idx.npy does not exist"),
        (lambda folder: (folder / "train.bin").write_bytes(b"\0" * 86), "holds 43 tokens, but its index says 44"),
        (lambda folder: (folder / "train.bin").write_bytes(b"\0" * 89), "holds 44.5 tokens, but its index says 44"),
        (lambda folder: (folder / "train.bin").write_bytes(b"\0" * 90), "holds 45 tokens, but its index says 44"),
        (lambda folder: (folder / "train.idx.npy").write_bytes(b"no array"), "is damaged"),
        (
            lambda folder: (folder / "train.idx.npy").write_bytes((folder / "train.idx.npy").read_bytes()[:-4]),
            "is damaged",
        ),
        (lambda folder: np.save(folder / "train.idx.npy", np.array([0, 9, 5, 44])), "never fall"),
        (lambda folder: np.save(folder / "train.idx.npy", np.array([1, 44])), "start at 0"),
        (lambda folder: np.save(folder / "train.idx.npy", np.array([0.0, 44.0])), "int64 offsets"),
        (lambda folder: write_token_file(folder, "train", []), "train.bin holds no document"),
        (
            lambda folder: np.save(folder / "train.idx.npy", np.array([0, 44], dtype=object), allow_pickle=True),
            "is damaged",
        ),
    ],
)
def test_damaged_token_files(folder, damage, says):
    damage(folder)
    with pytest.raises(UserError, match=says):
        TokenFile(folder, "train")


@pytest.mark.parametrize("bit", [1, 64, 128])
def test_a_damaged_index_is_a_user_error_wherever_it_lies(folder, bit):
    """Or it does not show: no byte of the header, once changed, leads to anything else."""
    index = folder / "train.idx.npy"
    content = index.read_bytes()
    for place in range(128):
        index.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            assert TokenFile(folder, "train")[3].tolist() == DOCUMENTS[3]
        except UserError as error:
            assert "prepare the data set again" in str(error) and "\n" not in str(error)


def make_stream(position=(0, 0)) -> QueryStream:
    documents = [np.array([n, n]) for n in range(10)]
    stream = QueryStream(
        documents,
        length=2,
        padding_token=99,
        order=lambda epoch: torch.randperm(10, generator=generator_for(3, "test", epoch)).numpy(),
    )
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


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_slices_of_all_ranks_are_the_batches_of_one(tmp_path, size):
    """Each rank opens the files itself; documents of several lengths, and batches over the ends of epochs."""
    write_token_file(tmp_path / "data", "train", [[n] * (1 + n % 3) for n in range(10)])
    task = TaskParams(query_dataset=str(tmp_path / "data"), query_length=2)
    streams = [query_stream(task, get_encoding("letters"), 5, "policy") for _ in range(size + 1)]
    for _ in range(4):
        expected = streams[-1].batch(8)
        parts = [streams[rank].batch(8)[World(rank, size).share(8, "--batch_size")] for rank in range(size)]
        assert {len(part) for part in parts} == {8 // size} and torch.equal(torch.cat(parts), expected)
    assert {stream.position for stream in streams} == {(3, 2)}
    with pytest.raises(UserError, match="--batch_size 7 does not divide by the 4 ranks"):
        World(0, 4).share(7, "--batch_size")


def test_a_prefix_chooses_the_files(tmp_path):
    for split, tokens in (("train", [1]), ("queries_train", [2])):
        write_token_file(tmp_path / "data", split, [tokens])

    def first(name, split):
        task = TaskParams(query_dataset=name, query_length=1)
        return query_stream(task, get_encoding("letters"), 0, "test", split).batch(1)

    assert first(str(tmp_path / "data"), "train").tolist() == [[1]]
    assert first(f"{tmp_path / 'data'}:queries_", "train").tolist() == [[2]]
    with pytest.raises(UserError, match="queries_valid.bin does not exist"):
        first(f"{tmp_path / 'data'}:queries_", "valid")


def test_the_mark_of_a_documents_end_is_not_a_part_of_a_query(tmp_path):
    """Short prompts, whole documents, cut ones, and one that is nothing but the mark."""
    gpt2 = get_encoding()
    prompts = ["The film number 14 is", "Yes", "One two three four five six seven eight nine", ""]
    write_token_file(tmp_path / "data", "train", [[*gpt2.encode(prompt), gpt2.end_of_text] for prompt in prompts])
    task = TaskParams(query_dataset=str(tmp_path / "data"), query_length=8)
    queries = query_stream(task, gpt2, 0, "test").batch(3).tolist()
    assert sorted(gpt2.decode(query) for query in queries) == sorted(
        [*prompts[:2], "One two three four five six seven eight"]
    )
    assert all(gpt2.end_of_text not in query for query in queries)


def test_a_mark_behind_the_window_or_asked_for_changes_nothing():
    tokens = np.array([5, 3, 9, 9])
    assert select_query(tokens, None, None, 4, end_of_text=9).tolist() == [5, 3]
    assert select_query(np.array([5, 9, 3]), None, None, 2, end_of_text=9).tolist() == [5]  # cut just behind a mark
    assert select_query(tokens, None, 3, 4, end_of_text=9).tolist() == [5, 3]
    assert select_query(tokens, None, 9, 4, end_of_text=9).tolist() == [5, 3, 9, 9]  # --task.end_text names it
    assert select_query(tokens, 3, None, 4, end_of_text=9).tolist() == [5, 3]  # the last token: nothing would remain
    assert select_query(tokens, None, None, 4).tolist() == [5, 3, 9, 9]


def test_a_split_is_looked_for_before_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("LMHP_HOME", str(tmp_path))
    for split in ("train", "valid", "queries_train"):
        write_token_file(tmp_path / "datasets" / "mine", split, [[1]])
    (tmp_path / "datasets" / "mine" / "queries_test.idx.npy").touch()  # half a split is none
    check_split("mine", "valid", "--evaluation.split")
    check_split(f"{tmp_path}/datasets/mine:queries_", "train", "--evaluation.split")
    for dataset, split, says in (
        ("mine", "test", "--evaluation.split test: the data set mine has no such split; it has queries_train, train, "),
        (
            "mine:queries_",
            "test",
            "--evaluation.split test: the data set mine:queries_ has no such split; it has train",
        ),
        ("yours", "test", "the data set yours does not exist: prepare it first .python datasets/corpus.py"),
    ):
        with pytest.raises(UserError, match=says):
            check_split(dataset, split, "--evaluation.split")
    with pytest.raises(
        UserError, match="test.bin does not exist: the data set's splits are queries_train, train, valid"
    ):
        TokenFile(tmp_path / "datasets" / "mine", "test")


def test_documents_without_a_query_are_one_clear_line():
    for documents in ([np.array([1, 2])], [np.array([], dtype=np.uint16)]):
        with pytest.raises(UserError, match="--task.start_text"):
            QueryStream(documents, length=2, padding_token=99, start_token=5).batch(1)
