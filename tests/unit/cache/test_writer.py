from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from made_caches import make_corpus, make_head, make_part

from rskd import records
from rskd.cache.inspection import inspect
from rskd.cache.manifest import CacheManifest, newest_manifest, record_name
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.errors import CacheMismatchError, CorruptPartError, MissingOutputError
from rskd.storage import Store


def _files(uri: str) -> dict[str, bytes]:
    return {str(path.relative_to(uri)): path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()}


def _commit(uri, corpus, **options):
    writer = CacheWriter(uri, manifest_head=make_head())
    for part in corpus:
        writer.commit_part(part.index, make_part(part, **options), corpus_sha256=part.sha256)
    return writer


def test_the_order_of_parts_does_not_show(cache, tmp_path):
    other = str(tmp_path / "other")
    _commit(other, reversed(make_corpus())).finish(make_corpus())
    assert _files(other) == _files(cache.uri)


def test_a_rerun_goes_on_with_what_is_committed(cache, tmp_path):
    other, corpus = str(tmp_path / "other"), make_corpus()
    _commit(other, corpus[:2])
    assert inspect(other)["parts"] == 2
    writer = CacheWriter(other, manifest_head=make_head())
    assert writer.committed_parts(corpus) == {0, 1}
    with pytest.raises(MissingOutputError, match=r"3 of 5 parts are missing, part-00002 first: run rskd cache"):
        writer.finish(corpus)
    _commit(other, corpus[2:]).finish(corpus)
    assert _files(other) == _files(cache.uri)


def test_finishing_twice_writes_one_manifest(cache):
    before = _files(cache.uri)
    manifest = CacheWriter(cache.uri, manifest_head=make_head()).finish(make_corpus())
    assert manifest.generation == 0
    assert _files(cache.uri) == before


def test_two_writers_of_a_part_end_with_one_winner(tmp_path):
    uri, corpus = str(tmp_path / "cache"), make_corpus()

    def commit(seed: int):
        writer = CacheWriter(uri, manifest_head=make_head())
        return [writer.commit_part(p.index, make_part(p, seed=seed), corpus_sha256=p.sha256) for p in corpus]

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(commit, range(4)))
    assert all(outcome == outcomes[0] for outcome in outcomes)  # all saw the winners
    manifest = CacheWriter(uri, manifest_head=make_head()).finish(corpus)
    assert list(manifest.parts) == outcomes[0]
    report = verify(uri)
    assert report.ok
    assert len(report.orphans) == 3 * len(corpus)  # what the losers wrote
    assert verify(uri, repair=True).removed == report.orphans
    assert verify(uri).orphans == []


def test_a_grown_corpus_adds_a_generation(cache):
    *whole, last = make_corpus(7)
    corpus = [*make_corpus(5), *(replace(part, first_row=part.first_row - 1) for part in [*whole[5:], last])]
    writer = CacheWriter(cache.uri, manifest_head=make_head(corpus__fingerprint="d" * 64, corpus__parts=7))
    assert writer.committed_parts(corpus) == set(range(5))
    for part in corpus[5:]:
        writer.commit_part(part.index, make_part(part), corpus_sha256=part.sha256)
    assert LogitCache.open(cache.uri).num_rows == 59  # generation 0 until the next one is written
    manifest = writer.finish(corpus)
    assert manifest.generation == 1
    assert manifest.corpus["fingerprint"] == "d" * 64
    assert LogitCache.open(cache.uri).num_rows == 59 + 12 + 11
    assert manifest.totals["tokens"] == sum(manifest.histograms["num_unique"]["counts"])
    assert verify(cache.uri).ok
    assert CacheManifest.from_dict(records.read(Store(cache.uri), "manifest.json") or {}).totals["rows"] == 59


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("sampling__num_samples", 50, r"sampling\.num_samples=22, not 50"),
        ("teacher__fingerprint", "0" * 64, r"teacher\.fingerprint='fff.*', not '000"),
        ("teacher__dtype", "bfloat16", r"teacher\.dtype='float32', not 'bfloat16'"),
        ("corpus__seq_len", 16, r"corpus\.seq_len=8, not 16"),
        ("tokenizer__vocab_size", 301, r"tokenizer\.vocab_size=300, not 301"),
    ],
)
def test_a_cache_of_something_else_is_not_continued(cache, change, value, message):
    with pytest.raises(CacheMismatchError, match=message + ".*choose another name"):
        CacheWriter(cache.uri, manifest_head=make_head(**{change: value}))


def test_where_the_same_weights_lie_does_not_matter(cache):
    head = make_head(teacher__model="/elsewhere/tiny", teacher__engine_version="6")
    assert CacheWriter(cache.uri, manifest_head=head).committed_parts(make_corpus()) == set(range(5))


def test_another_teacher_is_called_by_its_name(cache):
    with pytest.raises(CacheMismatchError, match=r"teacher\.model='tiny', not 'large'"):
        CacheWriter(cache.uri, manifest_head=make_head(teacher__model="large", teacher__fingerprint="0" * 64))


def test_windows_that_changed_are_not_continued(cache):
    corpus = make_corpus()
    corpus[3] = replace(corpus[3], sha256="0" * 64)
    writer = CacheWriter(cache.uri, manifest_head=make_head())
    for step in (writer.committed_parts, writer.finish):
        with pytest.raises(CacheMismatchError, match=r"part-00003 of cache .* was made from other windows"):
            step(corpus)


def test_a_committed_part_without_its_file_is_named(cache):
    manifest = newest_manifest(Store(cache.uri))
    assert manifest is not None
    Store(cache.uri).remove(manifest.parts[2].file)
    with pytest.raises(CorruptPartError, match=r"part-00002 .* missing or truncated: run rskd verify --repair"):
        CacheWriter(cache.uri, manifest_head=make_head()).committed_parts(make_corpus())


def test_manifest_and_records_say_where_they_come_from(cache):
    store = Store(cache.uri)
    manifest = newest_manifest(store)
    assert manifest is not None
    assert manifest.digest == records.digest(manifest.to_dict())
    assert CacheManifest.from_dict(manifest.to_dict()) == manifest
    record = records.read(store, record_name(4))
    assert record is not None
    assert (record["file"], record["rows"], record["first_row"]) == (manifest.parts[4].file, 11, 48)
    assert store.size(record["file"]) == record["bytes"]
    assert record["file"] == f"parts/part-00004-{record['sha256'][:12]}.parquet"
    assert b"/" not in store.read("manifest.json").replace(b"parts/part", b"")  # no path
