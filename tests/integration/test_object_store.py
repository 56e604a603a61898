"""Stores and caches on a real object store."""

import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made_caches import make_corpus, make_head, make_part, write_cache

from rskd.cache.inspection import inspect
from rskd.cache.loader import CacheLoader
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.storage import Store


@pytest.fixture
def uri(object_store) -> str:
    return f"{object_store.make_bucket()}/run/caches/default"


def test_files(uri):
    store = Store(uri)
    store.check_writable()
    assert store.sizes(recursive=True) == {}
    large = np.random.default_rng(0).bytes(101 * 2**20)  # in three parts: s3fs splits what has 100 MiB or more
    store.write("parts/large", large)
    store.write("a", b"first")
    store.write("a", b"0123456789")
    assert store.read("parts/large") == large
    assert store.read("a", 2, 5) == b"234"
    with store.open("parts/large") as file:
        file.seek(60_000_000)
        assert file.read(5) == large[60_000_000:60_000_005]
    assert store.list() == ["a"]
    assert store.sizes(recursive=True) == {"a": 10, "parts/large": len(large)}
    store.remove("a")
    store.remove("a")
    assert not store.exists("a")
    for read in (store.read, store.size, store.open):
        with pytest.raises(MissingOutputError, match=f"{uri}/a does not exist"):
            read("a")


def test_a_completion_that_is_asked_for_twice(uri):
    """As when the answer to the first was lost on its way."""
    store, large, asked = Store(uri), bytes(100 * 2**20), []
    store.check_writable()

    def again(attempts: int, **_):
        asked.append(attempts)
        return 0 if attempts == 1 else None

    event = "needs-retry.s3.CompleteMultipartUpload"
    store.fs._s3.meta.events.register_first(event, again, unique_id="test")
    try:
        store.write("parts/large", large)
    finally:
        store.fs._s3.meta.events.unregister(event, unique_id="test")
    assert asked == [1, 2]
    assert store.read("parts/large") == large


def test_repair_ends_unfinished_uploads(uri):
    write_cache(uri)
    store = Store(uri)
    bucket, _, folder = store.path.partition("/")
    for key in (f"{folder}/parts/part-00001-abc.parquet", "another/cache/parts/part-00000-abc.parquet"):
        upload = store.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
        store.fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"half")
    report = verify(uri, repair=True)
    assert report.ok
    assert report.removed == ["parts/part-00001-abc.parquet"]
    assert [upload["Key"] for upload in store.fs.list_multipart_uploads(bucket)] == [key]
    LogitCache.open(uri)
    assert Store(f"s3://{bucket}").abort_uploads() == [key]
    assert store.fs.list_multipart_uploads(bucket) == []


def test_create_has_one_winner(uri):
    store = Store(uri)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda index: store.create("commit", b"%d" % index), range(64)))
    assert sum(won) == 1
    assert store.read("commit") == b"%d" % won.index(True)


def test_a_cache_is_the_same_as_on_a_local_disk(uri, tmp_path):
    local = str(tmp_path / "cache")
    write_cache(local)
    write_cache(uri)
    names = Store(local).sizes(recursive=True)
    assert Store(uri).sizes(recursive=True) == names
    for name in names:
        assert Store(uri).read(name) == Store(local).read(name)
    assert verify(uri).ok
    assert inspect(uri) == inspect(local)
    for ours, theirs in zip(*(itertools.islice(_loader(place), 8) for place in (uri, local))):
        assert ours.row_ids.tolist() == theirs.row_ids.tolist()
        assert ours.targets.to_dense(300).equal(theirs.targets.to_dense(300))


def _loader(uri: str) -> CacheLoader:
    return CacheLoader(LogitCache.open(uri), global_batch=9)


def test_two_writers_of_every_part(uri):
    corpus = make_corpus()

    def commit(seed: int):
        writer = CacheWriter(uri, manifest_head=make_head())
        return [writer.commit_part(p.index, make_part(p, seed=seed), corpus_sha256=p.sha256) for p in corpus]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(commit, range(2))
    assert first == second
    assert CacheWriter(uri, manifest_head=make_head()).finish(corpus).parts == tuple(first)
    report = verify(uri, repair=True)
    assert report.ok
    assert len(report.removed) == len(corpus)


def test_a_changed_part_is_named(uri):
    write_cache(uri)
    cache, store = LogitCache.open(uri), Store(uri)
    name = cache.manifest.parts[3].file
    data = bytearray(store.read(name))
    data[1000] ^= 1
    store.write(name, bytes(data))
    with pytest.raises(CorruptPartError, match="part-00003"):
        cache.read_rows([40])
    assert [problem["part"] for problem in verify(uri).problems] == ["part-00003"]


@pytest.mark.parametrize(
    "change",
    [
        {"AWS_SECRET_ACCESS_KEY": "wrong-secret"},
        {"AWS_ACCESS_KEY_ID": "AKUNKNOWN"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    ],
    ids=["wrong secret", "unknown key", "nobody listens"],
)
@pytest.mark.parametrize(
    "call", ["check_writable()", "read('a')", "exists('a')", "sizes()", "sizes(recursive=True)", "create('a', b'')"]
)
def test_a_store_that_refuses(object_store, uri, change, call):
    """In a process of its own, since s3fs keeps its sessions."""
    code = f"from rskd.storage import Store; Store({uri!r}).{call}"
    environment = {**os.environ, **change}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    message = done.stderr.strip().splitlines()[-1]
    bucket = uri.split("/")[2]
    assert message.startswith("rskd.errors.StoreAccessError: object store")
    assert environment["AWS_ENDPOINT_URL"] in message
    assert bucket in message
    for secret in (environment["AWS_SECRET_ACCESS_KEY"], environment["AWS_ACCESS_KEY_ID"], object_store.secret_key):
        assert secret not in done.stderr
    assert time.monotonic() - started < 20


def test_an_outage_is_waited_for(object_store, uri, caplog):
    """By a process that has used the store, and by one that starts during the outage and was told that it is there."""
    store = Store(uri)
    store.write("a", b"before")
    code = f"from rskd.storage import Store; s = Store({uri!r}); s.expect(); print(s.read('a'))"
    with ThreadPoolExecutor(8) as pool:
        with object_store.killed():
            newcomer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            read, written = pool.submit(store.read, "a"), pool.submit(store.write, "b", b"during")
            created, listed = pool.submit(store.create, "a", b"again"), pool.submit(store.list)
            time.sleep(4)
            assert not any(call.done() for call in (read, written, created, listed))
        assert read.result() == b"before"
        assert created.result() is False
        assert "a" in listed.result()
        written.result()
    assert store.read("b") == b"during"
    assert newcomer.communicate(timeout=60)[0].strip() == "b'before'"
    assert "waiting up to 5 minutes" in caplog.text
