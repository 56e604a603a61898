import errno
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


def test_unknown_protocol():
    with pytest.raises(ConfigError, match="protocol gs is not supported: use a local path or s3://bucket"):
        Store("gs://bucket")


def test_absolute_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("a").absolute_uri == str(Path(tmp_path, "a"))
