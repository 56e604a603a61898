import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rskd.errors import ConfigError, MissingOutputError, StoreAccessError
from rskd.storage import Store


def test_write_read_and_list(tmp_path):
    store = Store(str(tmp_path / "root"))
    store.write("a/b.txt", b"first")
    store.write("a/b.txt", b"0123456789")
    store.write("c.txt", b"")
    assert store.read("a/b.txt") == b"0123456789"
    assert store.read("a/b.txt", 2, 5) == b"234"
    with store.open("a/b.txt") as file:
        file.seek(8)
        assert file.read() == b"89"
    assert store.size("a/b.txt") == 10
    assert store.list() == ["c.txt"]
    assert store.sizes(recursive=True) == {"a/b.txt": 10, "c.txt": 0}
    assert store.list("nothing") == []
    assert store.child("a").list() == ["b.txt"]


def test_links_are_listed_as_what_they_point_to(tmp_path):
    store = Store(str(tmp_path / "root"))
    store.write("a/file", b"0123")
    (tmp_path / "root" / "b").symlink_to("a")
    (tmp_path / "root" / "c").symlink_to("a/file")
    (tmp_path / "root" / "nowhere").symlink_to("missing")
    (tmp_path / "root" / "a" / "up").symlink_to("..")
    assert store.sizes() == {"c": 4, "nowhere": 0}
    assert store.sizes(recursive=True) == {"a/file": 4, "b/file": 4, "c": 4, "nowhere": 0}


def test_create_has_one_winner(tmp_path):
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda index: store.create("commit", b"%d" % index), range(64)))
    assert sum(won) == 1
    assert store.read("commit") == b"%d" % won.index(True)
    assert store.sizes(temporary=True).keys() == {"commit"}


_NO_LINKS = """
import errno, os, sys, time
def link(*_):
    raise OSError(errno.EPERM, "Operation not permitted")
os.link = link
from rskd.storage import Store
root, number, start = sys.argv[1:]
time.sleep(max(0, float(start) - time.time()))
print(Store(root).create("commit", (number * 100_000).encode()))
"""


def test_create_without_hard_links_has_one_winner_among_processes(tmp_path):
    start = str(time.time() + 5)
    writers = [
        subprocess.Popen([sys.executable, "-c", _NO_LINKS, tmp_path, str(number), start], stdout=subprocess.PIPE)
        for number in range(10, 42)
    ]
    won = [writer.communicate()[0].strip() == b"True" for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 32
    assert sum(won) == 1
    store = Store(str(tmp_path))
    assert store.read("commit") == (str(10 + won.index(True)) * 100_000).encode()
    assert store.sizes(temporary=True).keys() == {"commit"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_storage_without_hard_links(tmp_path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr("os.link", refuse)
    store = Store(str(tmp_path))
    store.check_writable()
    assert list(tmp_path.iterdir()) == []
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda index: store.create("commit", b"%d" % index), range(64)))
    assert store.read("commit") == b"%d" % won.index(True)
    assert sum(won) == 1


def test_a_writer_without_hard_links_that_is_killed_leaves_no_half_file(tmp_path):
    code = """
import errno, os, signal, sys
from pathlib import Path
def link(*_):
    raise OSError(errno.EPERM, "Operation not permitted")
os.link = link
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from rskd.storage import Store
Store(sys.argv[1]).create("commit", b"data")
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    store = Store(str(tmp_path))
    assert store.list() == []
    assert store.create("commit", b"other")
    assert store.read("commit") == b"other"


def test_a_storage_that_overwrites_what_it_should_create_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "create", lambda self, name, data: self.write(name, data) or True)
    with pytest.raises(ConfigError, match=r"storage\.root: .* overwrites a file"):
        Store(str(tmp_path)).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_files_of_writers_that_died(tmp_path):
    store = Store(str(tmp_path))
    (tmp_path / ".tmp-died").write_bytes(b"half")
    assert store.list() == []
    assert store.sizes(temporary=True) == {".tmp-died": 4}


def test_remove(tmp_path):
    store = Store(str(tmp_path))
    store.write("a", b"")
    store.remove("a")
    store.remove("a")
    assert not store.exists("a")


@pytest.mark.parametrize("read", [Store.read, Store.size, Store.open])
def test_what_is_not_there_is_missing(tmp_path, read):
    with pytest.raises(MissingOutputError, match="a/b does not exist"):
        read(Store(str(tmp_path)), "a/b")


@pytest.mark.parametrize("root", ["/proc/a", "/dev/null/a"])
def test_a_root_that_cannot_be_written(root):
    with pytest.raises(ConfigError, match=r"storage\.root: .*choose another root"):
        Store(root).check_writable()
    with pytest.raises(StoreAccessError, match=f"{root}/x cannot be written"):
        Store(root).write("x", b"")


def test_a_writable_root_is_left_as_it_was(tmp_path):
    Store(str(tmp_path)).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreAccessError, match="No space left on device"):
        Store(str(tmp_path)).create("a", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["s3://", "s3:///"])
def test_an_object_store_without_a_bucket(uri: str):
    with pytest.raises(ConfigError, match=f"storage {uri} names no bucket: write s3://bucket"):
        Store(uri)


def test_a_root_of_other_bytes_than_utf8(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"storage\.root: .*/caf\\udce9 is not UTF-8"):
        Store(f"{tmp_path}/{os.fsdecode(bytes([99, 97, 102, 233]))}").check_writable()
    assert not list(tmp_path.iterdir())


def test_unknown_protocol():
    with pytest.raises(ConfigError, match="protocol gs is not supported: use a local path or s3://bucket"):
        Store("gs://bucket")


def test_absolute_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("a").absolute_uri == str(Path(tmp_path, "a"))
