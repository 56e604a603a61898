from pathlib import Path

import numpy as np
import pytest
from made_caches import make_corpus, make_head, make_part

from rskd.cache.reader import LogitCache
from rskd.cache.writer import CacheWriter
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError


def test_rows_come_in_the_order_asked_for(cache):
    reader = LogitCache.open(cache.uri)
    wanted = np.random.default_rng(0).permutation(59)
    rows = reader.read_rows(np.concatenate([wanted, wanted[:3]]))
    windows = np.concatenate([data.input_ids for data in cache.data])
    counts = np.concatenate([(data.values > 0).sum(-1) for data in cache.data])
    np.testing.assert_array_equal(rows.row_ids, [*wanted, *wanted[:3]])
    np.testing.assert_array_equal(rows.input_ids, windows[rows.row_ids])
    assert rows.targets is not None
    np.testing.assert_array_equal(rows.targets.num_unique, counts[rows.row_ids])
    np.testing.assert_allclose(rows.targets.mass, 1, rtol=1e-6)
    logprob = np.concatenate([data.statistics["label_logprob"] for data in cache.data])
    np.testing.assert_allclose(rows.statistics["label_logprob"], logprob[rows.row_ids], rtol=1e-3)


def test_groups_partition_the_rows(cache):
    reader = LogitCache.open(cache.uri)
    first, rows = reader.group_rows.T
    np.testing.assert_array_equal(np.repeat(first, rows) + np.concatenate([np.arange(n) for n in rows]), np.arange(59))
    assert rows.tolist() == [4] * 14 + [3]
    assert reader.read_groups([14, 0, 5]).row_ids.tolist() == [56, 57, 58, 0, 1, 2, 3, 20, 21, 22, 23]


def test_facts(cache):
    reader = LogitCache.open(cache.uri)
    assert (reader.num_rows, reader.num_tokens, reader.seq_len, reader.vocab_size) == (59, 59 * 8, 8, 300)


@pytest.mark.parametrize("rows", [[59], [-1], []])
def test_rows_that_are_not_there(cache, rows):
    with pytest.raises(ConfigError, match="it has 59"):
        LogitCache.open(cache.uri).read_rows(rows)


def test_an_unfinished_cache_is_refused_unless_asked_for(tmp_path):
    uri, corpus = str(tmp_path / "cache"), make_corpus()
    writer = CacheWriter(uri, manifest_head=make_head())
    for part in (corpus[3], corpus[1]):
        writer.commit_part(part.index, make_part(part), corpus_sha256=part.sha256)
    with pytest.raises(MissingOutputError, match=r"unfinished \(2 of 5 parts\): run rskd cache"):
        LogitCache.open(uri)
    reader = LogitCache.open(uri, allow_partial=True)
    assert reader.read_rows([40, 12]).row_ids.tolist() == [40, 12]
    with pytest.raises(ConfigError, match="row 30 "):
        reader.read_rows([12, 30])


def test_a_cache_that_was_begun_is_refused(tmp_path):
    uri = str(tmp_path / "cache")
    CacheWriter(uri, manifest_head=make_head())
    with pytest.raises(MissingOutputError, match=r"unfinished \(0 of 5 parts\)"):
        LogitCache.open(uri)


def test_no_cache(tmp_path):
    with pytest.raises(MissingOutputError, match="does not exist: run rskd cache"):
        LogitCache.open(str(tmp_path / "cache"))


def _part_path(reader: LogitCache, index: int) -> Path:
    return Path(reader.uri, reader.manifest.parts[index].file)


def test_a_changed_part_is_named_before_a_row_comes_out(cache):
    reader = LogitCache.open(cache.uri)
    path = _part_path(reader, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert reader.read_rows([0, 50]).row_ids.tolist() == [0, 50]
    with pytest.raises(CorruptPartError, match=r"part-00003 of cache .*sha256 differs\): run rskd verify --repair"):
        reader.read_rows([0, 40])


def test_a_page_that_changes_after_the_part_was_checked_is_seen(cache, monkeypatch):
    monkeypatch.setattr("rskd.cache.reader._OPEN_PARTS", 1)
    reader = LogitCache.open(cache.uri)
    reader.read_rows([36])
    path = _part_path(reader, 3)
    column = reader._files[3].metadata.row_group(2).column(4)
    reader.read_rows([0])  # closes part 3
    with path.open("r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size - 5)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptPartError, match=r"part-00003 of cache .* cannot be read \("):
        reader.read_rows([44])


def test_a_missing_part_is_named(cache):
    reader = LogitCache.open(cache.uri)
    _part_path(reader, 4).unlink()
    with pytest.raises(CorruptPartError, match=r"part-00004 of cache .* is missing"):
        reader.read_rows([58])


def test_more_parts_than_may_be_open(cache, monkeypatch):
    monkeypatch.setattr("rskd.cache.reader._OPEN_PARTS", 2)
    reader = LogitCache.open(cache.uri)
    assert reader.read_rows(range(59)).row_ids.tolist() == list(range(59))
    assert len(reader._files) == 2
    assert reader.read_rows([0, 58, 30]).row_ids.tolist() == [0, 58, 30]
