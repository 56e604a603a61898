import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rskd.cache.loader import BLOCK_GROUPS, CacheBatch, CacheLoader, EpochOrder
from rskd.cache.reader import LogitCache
from rskd.errors import ConfigError, CorruptPartError

BATCH, STEPS_PER_EPOCH = 9, 6  # of 59 rows: 5 are left over


class Corpus:
    """A packed corpus in memory, and the groups that were read of it."""

    uri = "memory"

    def __init__(self, rows: int, group: int = 16):
        starts = np.arange(0, rows, group)
        self.num_rows = rows
        self.group_rows = np.stack([starts, np.minimum(group, rows - starts)], axis=1)
        self.reads: list[list[int]] = []

    def read_groups(self, groups):
        self.reads.append(list(groups))
        row_ids = np.concatenate([np.arange(first, first + rows) for first, rows in self.group_rows[groups]])
        input_ids = (row_ids[:, None] * 10 + np.arange(9)).astype(np.int32)
        return SimpleNamespace(row_ids=row_ids, input_ids=input_ids, has_loss=None)


def _take(loader: CacheLoader, steps: int) -> list[CacheBatch]:
    return list(itertools.islice(loader, steps))


def _rows(batches: list[CacheBatch]) -> list[list[int]]:
    return [batch.row_ids.tolist() for batch in batches]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_global_batches_do_not_depend_on_the_world_size(cache, world_size):
    reader = LogitCache.open(cache.uri)
    whole = _take(CacheLoader(reader, global_batch=BATCH), 8)
    ranks = [
        _take(CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH, rank=rank, world_size=world_size), 8)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        slices = [batches[step] for batches in ranks]
        sizes = [len(piece.row_ids) for piece in slices]
        assert max(sizes) - min(sizes) <= 1
        for field in ("row_ids", "input_ids", "labels"):
            assert torch.equal(torch.cat([getattr(piece, field) for piece in slices]), getattr(batch, field))
        dense = torch.cat([piece.targets.to_dense(300) for piece in slices if piece.targets])
        assert batch.targets is not None
        assert torch.equal(dense, batch.targets.to_dense(300))
        assert torch.equal(
            torch.cat([piece.statistics["label_logprob"] for piece in slices]), batch.statistics["label_logprob"]
        )


def test_an_epoch_has_every_row_once_but_for_the_remainder(cache):
    loader = CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH)
    assert loader.steps_per_epoch == STEPS_PER_EPOCH
    batches = _take(loader, 2 * STEPS_PER_EPOCH)
    for epoch in (0, 1):
        rows = np.concatenate(_rows(batches[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]))
        assert len(set(rows)) == len(rows) == BATCH * STEPS_PER_EPOCH
        assert set(rows) <= set(range(59))
    assert [batch.epoch for batch in batches] == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH
    assert [batch.step for batch in batches] == list(range(2 * STEPS_PER_EPOCH))


def test_order_depends_on_seed_and_epoch(cache):
    reader = LogitCache.open(cache.uri)
    first = _rows(_take(CacheLoader(reader, global_batch=BATCH), 2 * STEPS_PER_EPOCH))
    assert first[:STEPS_PER_EPOCH] != first[STEPS_PER_EPOCH:]
    assert _rows(_take(CacheLoader(reader, global_batch=BATCH, seed=1), STEPS_PER_EPOCH)) != first[:STEPS_PER_EPOCH]
    assert _rows(_take(CacheLoader(reader, global_batch=BATCH), 2 * STEPS_PER_EPOCH)) == first


def test_batches_are_the_rows_of_the_cache(cache):
    reader = LogitCache.open(cache.uri)
    for batch in _take(CacheLoader(reader, global_batch=BATCH), 3):
        rows = reader.read_rows(batch.row_ids)
        assert torch.equal(torch.cat([batch.input_ids, batch.labels[:, -1:]], 1), rows.input_ids)
        assert torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1])
        assert batch.targets is not None
        assert rows.targets is not None
        assert torch.equal(batch.targets.ids, rows.targets.ids)
        assert torch.equal(batch.targets.weights, rows.targets.weights)


def test_a_corpus_has_the_order_of_the_cache_made_from_it(cache):
    batches = _take(CacheLoader(Corpus(59, group=4), global_batch=BATCH), 8)
    assert _rows(batches) == _rows(_take(CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH), 8))
    assert batches[0].targets is None
    assert torch.equal(batches[0].labels, batches[0].row_ids[:, None] * 10 + torch.arange(1, 9))


@pytest.mark.parametrize("done", [0, 4, STEPS_PER_EPOCH, 8])
def test_resume_goes_on_where_batches_were_handed_out(cache, done):
    whole = _rows(_take(CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH), 12))
    loader = CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH)
    batches = iter(loader)
    for _ in range(done):
        next(batches)
    state = loader.state_dict()
    assert state == {"epoch": done // STEPS_PER_EPOCH, "step": done % STEPS_PER_EPOCH}
    resumed = CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH)
    resumed.load_state_dict(state)
    assert _rows(_take(resumed, 12 - done)) == whole[done:]
    started = CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH, start_step=done)
    assert _rows(_take(started, 12 - done)) == whole[done:]


def test_a_run_of_eight_ranks_goes_on_with_three(cache):
    def batches(step: int, world_size: int, steps: int) -> list[list[int]]:
        ranks = [
            CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for loader in ranks:
            loader.load_state_dict({"epoch": 0, "step": step})
        taken = [_rows(_take(loader, steps)) for loader in ranks]
        assert {loader.state_dict()["step"] for loader in ranks} == {step + steps}
        return [list(itertools.chain(*pieces)) for pieces in zip(*taken)]

    whole = _rows(_take(CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH), 5))
    assert [*batches(0, 8, 3), *batches(3, 3, 2)] == whole


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_reading_processes(cache, num_workers):
    whole = _take(CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH, start_step=2), 7)
    loader = CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH, start_step=2)
    read = _take(DataLoader(loader, batch_size=None, num_workers=num_workers), 7)
    assert [batch.step for batch in read] == list(range(2, 9))
    assert _rows(read) == _rows(whole)
    assert all(torch.equal(one.targets.weights, other.targets.weights) for one, other in zip(read, whole))


def test_an_epoch_reads_no_group_twice():
    corpus = Corpus(16 * 100)
    _take(CacheLoader(corpus, global_batch=20), 76)  # of 80; four more may have been made ahead
    read = list(itertools.chain(*corpus.reads))
    assert len(read) == len(set(read)) > 90


def test_a_restart_reads_the_blocks_of_its_step_alone():
    corpus = Corpus(16 * 1000)
    next(iter(CacheLoader(corpus, global_batch=8, start_step=1500)))
    assert len(set(itertools.chain(*corpus.reads))) <= 2 * BLOCK_GROUPS


def test_rows_are_well_mixed():
    """The place of a row in the order says nothing of its row id: |Spearman's ρ| within 4 standard errors of 0."""
    group_rows = Corpus(16 * 1000).group_rows
    groups, places = EpochOrder(group_rows, seed=0, epoch=0).rows(0, 16_000)
    rows = group_rows[groups, 0] + places
    np.testing.assert_array_equal(np.sort(rows), np.arange(16_000))
    groups_seen = groups[::256]
    rho = np.corrcoef(groups_seen, np.arange(len(groups_seen)))[0, 1]
    assert abs(rho) < 4 / np.sqrt(len(groups_seen))
    neighbours = np.abs(np.diff(rows)) < 16
    assert neighbours.mean() < 0.1  # 15 of 255 rows of a block are of the same group


def test_any_window_of_the_order_is_part_of_the_whole():
    order = EpochOrder(Corpus(1000).group_rows, seed=3, epoch=2)
    whole = np.stack(order.rows(0, 1000))
    for start, stop in ((0, 1), (255, 257), (999, 1000), (100, 900), (256, 512)):
        np.testing.assert_array_equal(np.stack(order.rows(start, stop)), whole[:, start:stop])


def test_a_corrupt_part_stops_the_consumer(cache):
    reader = LogitCache.open(cache.uri)
    path = f"{cache.uri}/{reader.manifest.parts[1].file}"
    with open(path, "r+b") as file:  # noqa: PTH123
        file.write(b"????")
    with pytest.raises(CorruptPartError, match="part-00001"):
        _take(CacheLoader(reader, global_batch=BATCH), STEPS_PER_EPOCH)


def test_the_thread_ends_with_the_iterator(cache):
    batches = iter(CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH))
    next(batches)
    assert any(thread.name.startswith("cache-loader") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("cache-loader") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 60}, "global_batch=60 exceeds the 59 windows"),
        ({"global_batch": 2, "world_size": 3}, "rank 0 of world_size=3"),
        ({"global_batch": 4, "rank": 2, "world_size": 2}, "rank 2 of world_size=2"),
    ],
)
def test_batches_that_cannot_be(cache, options, message):
    with pytest.raises(ConfigError, match=message):
        CacheLoader(LogitCache.open(cache.uri), **options)
