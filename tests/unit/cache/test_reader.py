from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from made_caches import SEQ_LEN, make_corpus, make_head, make_part

from rskd.cache.codec import PartData
from rskd.cache.manifest import read_commit, record_name
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError
from rskd.sparse_targets import SparseTargets
from rskd.storage import Store


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
    found = [group.row_ids.tolist() for group in reader.read_groups([14, 0, 5])]
    assert found == [[56, 57, 58], [0, 1, 2, 3], [20, 21, 22, 23]]


def test_facts(cache):
    reader = LogitCache.open(cache.uri)
    assert (reader.num_rows, reader.num_tokens, reader.seq_len, reader.vocab_size) == (59, 59 * 8, 8, 300)


def test_a_vocabulary_of_262_144_and_300_rounds(tmp_path):
    vocab, rounds, corpus = 262_144, 300, make_corpus(parts=1, rows=4)
    head = make_head(tokenizer__vocab_size=vocab, sampling__num_samples=rounds, sampling__statistics=[])
    rng = np.random.default_rng(0)
    shape = (corpus[0].rows, SEQ_LEN, rounds)
    ids = np.sort(rng.integers(0, vocab, shape), axis=-1)
    ids[..., :100] = vocab - 1
    unique = np.concatenate([ids[..., :1] == ids[..., :1], ids[..., 1:] != ids[..., :-1]], axis=-1)
    values = unique.astype(np.int64)
    values[..., 0] += rounds - values.sum(-1)
    windows = rng.integers(0, vocab, (corpus[0].rows, SEQ_LEN + 1), dtype=np.int32)
    writer = CacheWriter(str(tmp_path), manifest_head=head)
    data = PartData(np.arange(corpus[0].rows), windows, ids.astype(np.int32), values, {})
    writer.commit_part(0, data, corpus_sha256=corpus[0].sha256)
    writer.finish(corpus)
    assert verify(str(tmp_path)).ok
    targets = LogitCache.open(str(tmp_path)).read_rows(range(corpus[0].rows)).targets
    expected = SparseTargets(torch.from_numpy(ids), torch.from_numpy(values / rounds).float())
    assert torch.allclose(targets.to_dense(vocab), expected.to_dense(vocab))
    assert int(targets.ids.max()) == vocab - 1


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
        reader.read_rows([0, *range(36, 48)])


def test_a_byte_that_changes_after_the_part_was_opened_is_seen(cache):
    reader = LogitCache.open(cache.uri)
    reader.read_rows([36])
    path = _part_path(reader, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptPartError, match=r"part-00003 of cache .*sha256 differs"):
        reader.read_rows(range(36, 48))


def test_a_changed_commit_record_is_named(cache):
    reader = LogitCache.open(cache.uri)
    part = reader.manifest.parts[2]
    writer = CacheWriter(cache.uri, manifest_head=make_head())
    (Path(cache.uri) / record_name(2)).unlink()
    writer.commit_part(2, make_part(make_corpus()[2], seed=9), corpus_sha256=part.corpus_sha256)
    with pytest.raises(CorruptPartError, match=r"part-00002 of cache .* has another commit record than the manifest"):
        reader.read_rows([24])


def test_a_row_costs_its_row_group_and_the_footer(cache, monkeypatch):
    reader = LogitCache.open(cache.uri)
    read = Counter()
    original = Store.read

    def counted(store, name, *bounds):
        data = original(store, name, *bounds)
        read[name] += len(data)
        return data

    monkeypatch.setattr(Store, "read", counted)
    part = reader.manifest.parts[1]
    segments = read_commit(Store(cache.uri), 1).segments
    footer = segments[-1].end - segments[-2].end
    read.clear()
    reader.read_rows([16, 18, 19])
    assert read == {part.file: segments[1].end - segments[0].end + footer, record_name(1): read[record_name(1)]}
    reader.read_rows([17])
    assert read[part.file] == 2 * (segments[1].end - segments[0].end) + footer


def test_a_missing_part_is_named(cache):
    reader = LogitCache.open(cache.uri)
    _part_path(reader, 4).unlink()
    with pytest.raises(CorruptPartError, match=r"part-00004 of cache .* is missing"):
        reader.read_rows([58])


def test_more_parts_than_stay_open(cache, monkeypatch):
    monkeypatch.setattr("rskd.cache.reader._OPEN_PARTS", 2)
    reader = LogitCache.open(cache.uri)
    assert reader.read_rows(range(59)).row_ids.tolist() == list(range(59))
    assert reader.read_rows([0, 58, 30]).row_ids.tolist() == [0, 58, 30]
