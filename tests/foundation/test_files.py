"""Files and folders that appear whole or not at all: at the end of links too; JSON as people's editors write it."""

import json
import os
import shutil

import pytest

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import (
    atomic_file,
    atomic_folder,
    make_folder,
    read_json,
    read_json_object,
    remove_folder,
    remove_leftovers,
    write_json,
)


def test_a_file_is_written_at_the_end_of_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link, end = tmp_path / "a.json", tmp_path / "disk/b.json"
    link.symlink_to(end)
    for number in (1, 2):  # the file at the link's end is made, then replaced
        write_json(link, number)
        assert link.is_symlink() and json.loads(end.read_text()) == number
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["b.json"]


def test_a_folder_is_written_at_the_end_of_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link, end = tmp_path / "a", tmp_path / "disk/b"
    link.symlink_to(end)
    for name in ("first", "second"):
        with atomic_folder(link) as temporary:
            (temporary / name).touch()
        assert link.is_symlink() and [path.name for path in end.iterdir()] == [name]
    assert list((tmp_path / "disk").iterdir()) == [end]


def test_removing_and_making_a_folder_leaves_a_link(tmp_path):
    (tmp_path / "disk/b").mkdir(parents=True)
    (tmp_path / "disk/b/old").touch()
    (tmp_path / "a").symlink_to("disk/b")  # relative
    for _ in range(2):
        remove_folder(tmp_path / "a")
        assert (tmp_path / "a").is_symlink() and list((tmp_path / "disk").iterdir()) == []
        make_folder(tmp_path / "a")
        assert (tmp_path / "a").is_symlink() and list((tmp_path / "disk/b").iterdir()) == []


def test_a_link_to_a_disk_that_is_not_there(tmp_path):
    """Nothing is made in its place."""
    (tmp_path / "a").symlink_to(tmp_path / "unmounted/b")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("a", "loop"):
        for opened in (atomic_file, atomic_folder):
            with pytest.raises(UserError, match="is a link to .*, which is not there"), opened(tmp_path / name):
                pass
        with pytest.raises(UserError, match="which is not there"):
            make_folder(tmp_path / name)
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("name", ["x" * 300, "file/x", "file", "nul\0"])
def test_folders_that_cannot_be(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to .*; choose another folder"):
        make_folder(tmp_path / name)


@pytest.mark.parametrize("opened", [atomic_file, atomic_folder])
def test_names_that_are_too_long(tmp_path, opened):
    with pytest.raises(UserError, match="cannot write .*File name too long"), opened(tmp_path / ("x" * 250)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + '{"é": 1}'.encode())
    assert read_json(tmp_path / "a.json") == read_json_object(tmp_path / "a.json") == {"é": 1}


@pytest.mark.parametrize(
    "text, holds",
    [("[1]", "a list"), ('"a"', "a text"), ("3", "a number"), ("true", "true or false"), ("null", "null")],
)
def test_json_of_another_shape(tmp_path, text, holds):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a.json holds {holds}, not a JSON object"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_what_is_not_json(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match="is not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_json_of_words_that_the_locale_could_not_decode(tmp_path):
    """Under LC_ALL=C a command's words arrive as bytes in disguise; half a surrogate pair may come from a model."""
    write_json(tmp_path / "a.json", ["caf\udcc3\udca9"])
    assert read_json(tmp_path / "a.json") == ["café"]
    for text in ("\ud800", "\udcc3"):
        write_json(tmp_path / "a.json", [text])
        assert read_json(tmp_path / "a.json") == [text]


def test_a_folder_that_was_being_replaced_survives_the_end_of_its_process(tmp_path, monkeypatch):
    """Killed between the two renames: neither the old folder nor the new one has the name, and the old one is whole."""
    folder = tmp_path / "lm"
    folder.mkdir()
    (folder / "old").write_text("whole")
    rename = os.rename

    def killed(source, target):
        if target == folder:
            raise KeyboardInterrupt  # nothing that follows is done
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as temporary:
        (temporary / "new").write_text("not published")
    monkeypatch.undo()
    assert not folder.exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lm"] and (folder / "old").read_text() == "whole"


def test_a_folder_that_was_being_deleted_is_gone(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    remove_folder(folder)
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
