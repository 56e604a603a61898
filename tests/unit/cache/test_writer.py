from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_caches import make_corpus, make_head, make_part

from rskd import records
from rskd.cache.codec import to_table
from rskd.cache.inspection import inspect
from rskd.cache.layout import Layout
from rskd.cache.manifest import CacheManifest, newest_manifest, record_name
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter, teacher_loss
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
        ("teacher__fingerprint", "0" * 64, r"teacher\.model=tiny, not tiny \(as it is now\)"),
        ("teacher__dtype", "bfloat16", r"teacher\.dtype=float32, not bfloat16"),
        ("corpus__seq_len", 16, r"corpus\.seq_len=8, not 16"),
        ("tokenizer__vocab_size", 301, r"tokenizer\.vocab_size=300, not 301"),
    ],
)
def test_a_cache_of_something_else_is_not_continued(cache, change, value, message):
    with pytest.raises(CacheMismatchError, match=message + ".*choose another name"):
        CacheWriter(cache.uri, manifest_head=make_head(**{change: value}))


def test_a_cache_without_parts_begins_again_with_another_teacher(tmp_path):
    uri = str(tmp_path / "cache")
    CacheWriter(uri, manifest_head=make_head(teacher__fingerprint="0" * 64))
    CacheWriter(uri, manifest_head=make_head())
    assert inspect(uri)["teacher"]["fingerprint"] == make_head()["teacher"]["fingerprint"]


def test_where_the_same_weights_lie_does_not_matter(cache):
    head = make_head(teacher__model="/elsewhere/tiny", teacher__engine_version="6")
    assert CacheWriter(cache.uri, manifest_head=head).committed_parts(make_corpus()) == set(range(5))


def test_another_teacher_is_called_by_its_name(cache):
    with pytest.raises(CacheMismatchError, match=r"teacher\.model=tiny, not large"):
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


def test_the_manifest_has_the_teachers_mean_loss(cache):
    loss = -np.mean([data.statistics["label_logprob"].astype(np.float64).sum() for data in cache.data]) * 5 / (59 * 8)
    manifest = LogitCache.open(cache.uri).manifest
    assert manifest.totals["teacher_lm_loss"] == manifest.teacher_lm_loss == pytest.approx(loss, rel=1e-12)
    assert inspect(cache.uri)["teacher_lm_loss"] == manifest.teacher_lm_loss
    for part, data in zip(manifest.parts, cache.data):
        assert part.teacher_loss == pytest.approx(-data.statistics["label_logprob"].astype(np.float64).sum())


def test_the_loss_is_kept_though_the_statistic_is_not_stored(cache, tmp_path):
    uri, corpus = str(tmp_path / "other"), make_corpus()
    writer = CacheWriter(uri, manifest_head=make_head(sampling__statistics=[]))
    for part in corpus:
        writer.commit_part(part.index, make_part(part), corpus_sha256=part.sha256)
    manifest = writer.finish(corpus)
    assert manifest.teacher_lm_loss == LogitCache.open(cache.uri).manifest.teacher_lm_loss
    assert LogitCache.open(uri).read_rows([0]).statistics == {}
    assert verify(uri).ok


def test_a_label_that_the_teacher_rules_out_leaves_a_number():
    logprob = np.array([[-1.5, -np.inf], [-0.5, -2.0]], np.float32)
    assert teacher_loss(logprob) == 10_004.0


def _write_old_cache(uri: str, parts: int) -> None:
    """Parts without a loss under a head that says nothing of BOS: what was written before either was recorded."""
    writer = CacheWriter(uri, manifest_head=make_head())
    for part in make_corpus()[:parts]:
        table = to_table(make_part(part), Layout.of(make_head()))
        writer.commit_table(part.index, table, corpus_sha256=part.sha256)


def test_an_old_cache_opens_and_verifies_and_has_no_loss(tmp_path):
    uri = str(tmp_path / "cache")
    _write_old_cache(uri, 5)
    with_bos = make_head(corpus__bos="none", corpus__bos_ids=[])
    manifest = CacheWriter(uri, manifest_head=make_head()).finish(make_corpus())
    assert "teacher_loss" not in records.read(Store(uri), record_name(0))
    assert all("teacher_loss" not in part for part in records.read(Store(uri), "manifest.json")["parts"])
    assert (manifest.teacher_lm_loss, "teacher_lm_loss" in manifest.totals) == (None, False)
    assert (inspect(uri)["teacher_lm_loss"], inspect(uri)["bos"]) == (None, "none")
    assert verify(uri).ok
    assert CacheWriter(uri, manifest_head=with_bos).finish(make_corpus()) == manifest
    assert newest_manifest(Store(uri)) == manifest


def test_half_an_old_cache_is_gone_on_with(tmp_path):
    uri, corpus = str(tmp_path / "cache"), make_corpus()
    _write_old_cache(uri, 2)
    with_bos = make_head(corpus__bos="none", corpus__bos_ids=[])
    writer = CacheWriter(uri, manifest_head=with_bos)
    assert writer.committed_parts(corpus) == {0, 1}
    for part in corpus[2:]:
        writer.commit_part(part.index, make_part(part), corpus_sha256=part.sha256)
    manifest = writer.finish(corpus)
    assert [part.teacher_loss is None for part in manifest.parts] == [True, True, False, False, False]
    assert manifest.teacher_lm_loss is None
    assert verify(uri).ok


def test_another_bos_is_a_mismatch_of_an_old_cache_too(tmp_path):
    uri = str(tmp_path / "cache")
    _write_old_cache(uri, 1)
    with pytest.raises(CacheMismatchError, match=r"made with corpus\.bos=none, not document"):
        CacheWriter(uri, manifest_head=make_head(corpus__bos="document", corpus__bos_ids=[1]))
