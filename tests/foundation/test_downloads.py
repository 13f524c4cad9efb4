"""Downloads against a server on loopback: resumed, verified, never half under the final name. Hazard 30."""

import hashlib
import os

import pytest

from lm_human_preferences.foundation import downloads
from lm_human_preferences.foundation.downloads import cached, download
from lm_human_preferences.foundation.errors import UserError

from web import serve

CONTENT = bytes(range(256)) * 4000  # about 1 MB


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_CHUNK", 1 << 14)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.bin").write_bytes(CONTENT)
    with serve(tmp_path / "served") as running:
        yield running


def fetch(server, folder, **more):
    return download(f"{server.url}/file.bin", folder / "file.bin", pause=0.001, **more)


def test_a_file_comes_once(server, tmp_path):
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    fetch(server, tmp_path)
    assert len(server.requests) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.bin", "served"]


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.break_after = [300_000, 400_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=300000-", "bytes=700000-"]


def test_a_later_call_goes_on_after_a_connection_that_stayed_broken(server, tmp_path):
    server.break_after = [300_000] + [0] * downloads.ATTEMPTS
    with pytest.raises(UserError, match=r"broke off after 300,000 bytes .*run the command again"):
        fetch(server, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    server.requests.clear()
    server.break_after.clear()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/file.bin", "bytes=300000-")]


def test_a_file_that_changed_meanwhile_starts_again(server, tmp_path):
    server.break_after = [300_000] + [0] * downloads.ATTEMPTS
    with pytest.raises(UserError):
        fetch(server, tmp_path)
    (server.folder / "file.bin").write_bytes(b"another content")
    server.break_after.clear()
    assert fetch(server, tmp_path).read_bytes() == b"another content"


def test_busy_servers_are_asked_again(server, tmp_path):
    server.fail = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "prepare, says",
    [
        (lambda server: server.fail.append(404), "answers 404 .*; is the address right"),
        (lambda server: server.fail.append(403), "answers 403"),
        (lambda server: server.fail.extend([500] * downloads.ATTEMPTS), "could not be reached .*500"),
        (
            lambda server: server.headers.update({"/file.bin": {"Content-Type": "text/html"}}),
            "answers with a web page, not with file.bin",
        ),
        (
            lambda server: server.headers.update({"/file.bin": {"X-Linked-Etag": "0" * 64}}),
            "SHA-256 is .*, expected 0000",
        ),
        (
            lambda server: server.headers.update({"/file.bin": {"X-Linked-Size": "12"}}),
            "1,024,000 bytes came, 12 were announced",
        ),
    ],
)
def test_what_cannot_be_had_leaves_nothing_behind(server, tmp_path, prepare, says):
    prepare(server)
    with pytest.raises(UserError, match=says):
        fetch(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["served"]


def test_a_full_disk_is_no_broken_connection(server, tmp_path):
    (tmp_path / ".file.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot be written: No space left"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1 and not (tmp_path / "file.bin").exists()


def test_a_published_md5_that_does_not_fit(server, tmp_path):
    server.published = False
    server.headers["/file.bin"] = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    with pytest.raises(UserError, match="MD5 is not the one the server publishes"):
        fetch(server, tmp_path)


def test_the_digest_that_hugging_face_sends_with_its_redirect(server, tmp_path):
    right = {"X-Linked-Etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"', "X-Linked-Size": str(len(CONTENT))}
    server.redirects["/resolve"] = (f"{server.url}/file.bin", right)
    assert download(f"{server.url}/resolve", tmp_path / "a").read_bytes() == CONTENT
    server.redirects["/resolve"] = (f"{server.url}/file.bin", right | {"X-Linked-Etag": '"' + "1" * 64 + '"'})
    with pytest.raises(UserError, match="expected 1111"):
        download(f"{server.url}/resolve", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_given_digest(server, tmp_path):
    fetch(server, tmp_path, sha256_digest=hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(UserError, match="another file"):
        download(f"{server.url}/file.bin", tmp_path / "b", "f" * 64)


def test_only_web_addresses(tmp_path):
    with pytest.raises(UserError, match="is no web address"):
        download("gs://bucket/file", tmp_path / "x")
    with pytest.raises(UserError, match="could not be reached .*refused"):
        download("http://127.0.0.1:9/file", tmp_path / "new" / "folder" / "x", pause=0.001)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to"):
        download("http://127.0.0.1:9/file", tmp_path / "file" / "x")


def test_a_cached_file_is_checked_each_time(server, tmp_path, capsys):
    url, cache = f"{server.url}/file.bin", tmp_path / "cache"
    path = cached(url, cache)
    assert (
        path == cache / server.url.removeprefix("http://").replace(":", "_") / "file.bin"
        and cached(url, cache) == path
        and len(server.requests) == 1
    )
    content = bytearray(CONTENT)
    content[1000] ^= 1
    path.write_bytes(content)
    assert cached(url, cache).read_bytes() == CONTENT and len(server.requests) == 2
    assert "fetching it again" in capsys.readouterr().err
    path.with_name("file.bin.sha256").unlink()
    cached(url, cache)
    assert len(server.requests) == 3


def test_two_processes_share_one_download(server, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(server, tmp_path), range(4)))
    assert len(server.requests) == 1 and {os.fspath(p) for p in paths} == {os.fspath(tmp_path / "file.bin")}
