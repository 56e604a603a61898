"""Batches for training, in an order that does not depend on who reads them.

    (row groups, seed, epoch) ─► order of rows ─► global batch of a step ─► slice of a rank ─► row groups ─► CacheBatch

The order permutes the row groups of the whole source, then the rows within blocks of groups: a step reads the groups of
one block or two, and each group is read once an epoch. Every random number is keyed (`rskd.rng`), so any step of any
epoch can be computed by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from rskd.cache.rows import CacheRows, RowGroup
from rskd.errors import ConfigError
from rskd.rng import permutation
from rskd.sparse_targets import IGNORE_INDEX, SparseTargets

BLOCK_GROUPS = 16  # groups whose rows are mixed: what a rank holds in memory, twice at the step between two blocks
PREFETCH = 4  # batches made ahead


class Windows(Protocol):
    """Rows of a packed corpus: int64 [R], int32 [R, S+1], and bool [R, S], None where all positions have a loss."""

    @property
    def row_ids(self) -> np.ndarray: ...
    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def has_loss(self) -> np.ndarray | None: ...


class WindowSource(Protocol):
    """A LogitCache or a PackedCorpus."""

    @property
    def uri(self) -> str: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def group_rows(self) -> np.ndarray: ...
    def read_groups(self, groups: np.ndarray, /) -> list[RowGroup] | Windows: ...


@dataclass(frozen=True)
class CacheBatch:
    """The slice of one rank of the global batch of one step: b windows of S positions."""

    step: int  # counted over all epochs
    epoch: int
    row_ids: Tensor  # int64 [b]
    input_ids: Tensor  # int64 [b, S]
    labels: Tensor  # int64 [b, S]: the token after each position; IGNORE_INDEX where there is no loss
    targets: SparseTargets | None  # [b, S, K]; None where the source is a corpus
    statistics: dict[str, Tensor]  # each [b, S]
    masked: bool = False  # whether there may be positions without a loss

    def pin_memory(self) -> CacheBatch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            targets=self.targets and self.targets.pin_memory(),
            statistics={name: values.pin_memory() for name, values in self.statistics.items()},
        )


class EpochOrder:
    """The order of all rows in one epoch, a pure function of (group_rows, seed, epoch); a block at a time."""

    def __init__(self, group_rows: np.ndarray, *, seed: int, epoch: int):
        self._seed = seed
        self._stream = epoch << 32  # the low word is 0 for the groups, else 1 + the block
        self._groups = permutation(len(group_rows), seed=seed, stream=self._stream).numpy()
        self._sizes = group_rows[self._groups, 1]
        ends = np.cumsum(self._sizes)
        starts = range(0, len(ends), BLOCK_GROUPS)
        self._block_starts = np.array([ends[start - 1] if start else 0 for start in starts])
        self._block = lru_cache(2)(self._permuted_block)  # a step's rows are in one block or two

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Group and place within it of the rows at [start, stop) of the order; int64 [stop - start] each."""
        first = int(np.searchsorted(self._block_starts, start, side="right")) - 1
        last = int(np.searchsorted(self._block_starts, stop, side="left"))
        blocks = [self._block(block) for block in range(first, last)]
        window = slice(start - self._block_starts[first], stop - self._block_starts[first])
        groups, places = (np.concatenate(columns)[window] for columns in zip(*blocks))
        return groups, places

    def block_groups(self, row: int) -> np.ndarray:
        """The groups whose rows are mixed with that at `row` of the order."""
        block = int(np.searchsorted(self._block_starts, row, side="right")) - 1
        return self._groups[block * BLOCK_GROUPS : (block + 1) * BLOCK_GROUPS]

    def _permuted_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        members = slice(block * BLOCK_GROUPS, (block + 1) * BLOCK_GROUPS)
        sizes = self._sizes[members]
        shuffled = permutation(int(sizes.sum()), seed=self._seed, stream=self._stream + 1 + block).numpy()
        group = np.repeat(self._groups[members], sizes)
        place = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return group[shuffled], place[shuffled]


class CacheLoader(IterableDataset[CacheBatch]):
    """Iterates over the batches of one rank for ever, epoch after epoch; a thread makes them ahead.

    Step s of an epoch is rows [s·B, (s+1)·B) of its order, the remainder is dropped, and rank r has a contiguous slice
    of them, so the global batches are equal for any `world_size`. `DataLoader(loader, batch_size=None, num_workers=n)`
    gives the same batches from n processes; `state_dict` counts those of an iterator in this process alone.
    `pin_memory`, which needs a GPU, puts batches where copies to it need not be waited for.

    `cache` may be a packed corpus, which has no targets. Raises ConfigError for one smaller than B.
    """

    def __init__(
        self,
        cache: WindowSource,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_step: int = 0,
        pin_memory: bool = False,
    ):
        if cache.num_rows < global_batch:
            raise ConfigError(
                f"global_batch={global_batch} exceeds the {cache.num_rows} windows of {cache.uri}: lower it"
            )
        if not 0 <= rank < world_size <= global_batch:
            raise ConfigError(f"rank {rank} of world_size={world_size} has no window of global_batch={global_batch}")
        self.steps_per_epoch = cache.num_rows // global_batch
        self._cache = cache
        self._group_rows = cache.group_rows
        self._seed = seed
        self._global_batch = global_batch
        self._slice = [global_batch * edge // world_size for edge in (rank, rank + 1)]
        self._step = start_step
        self._pin_memory = pin_memory
        self._order: tuple[int, EpochOrder] | None = None
        self._groups: dict[int, RowGroup] = {}  # of the block in which the last batch ended

    def state_dict(self) -> dict[str, int]:
        """Epoch and step within it of the batch after the last one that was handed out."""
        epoch, step = divmod(self._step, self.steps_per_epoch)
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, be it with another world size."""
        self._step = state["epoch"] * self.steps_per_epoch + state["step"]

    def __iter__(self) -> Iterator[CacheBatch]:
        worker = get_worker_info()  # DataLoader takes from its workers in turn
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        steps = count(self._step + first, stride)
        pool = ThreadPoolExecutor(1, "cache-loader")
        try:
            ahead = deque(pool.submit(self._batch, step) for step in islice(steps, PREFETCH))
            while True:
                batch = ahead.popleft().result()
                ahead.append(pool.submit(self._batch, next(steps)))
                self._step = batch.step + 1
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, step: int) -> CacheBatch:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, EpochOrder(self._group_rows, seed=self._seed, epoch=epoch)
        start, stop = (step_in_epoch * self._global_batch + edge for edge in self._slice)
        rows = self._gather(*self._order[1].rows(start, stop))
        labels = rows.input_ids[:, 1:]
        if rows.loss_mask is not None:
            labels = labels.masked_fill(~rows.loss_mask, IGNORE_INDEX)
        later = self._order[1].block_groups(stop - 1).tolist()
        self._groups = {group: self._groups[group] for group in later if group in self._groups}
        batch = CacheBatch(
            step=step,
            epoch=epoch,
            row_ids=rows.row_ids,
            input_ids=rows.input_ids[:, :-1],
            labels=labels,
            targets=rows.targets,
            statistics=rows.statistics,
            masked=rows.loss_mask is not None,
        )
        return batch.pin_memory() if self._pin_memory else batch

    def _gather(self, groups: np.ndarray, places: np.ndarray) -> CacheRows:
        """Rows by group and place; reads the groups that are not in memory."""
        missing = np.array([group for group in np.unique(groups).tolist() if group not in self._groups], np.int64)
        if len(missing):
            self._keep(missing, self._cache.read_groups(missing))
        return CacheRows.of([(self._groups[group], place) for group, place in zip(groups.tolist(), places.tolist())])

    def _keep(self, groups: np.ndarray, found: list[RowGroup] | Windows) -> None:
        if not isinstance(found, list):
            edges = np.cumsum(self._group_rows[groups, 1])[:-1]
            columns = (found.row_ids, found.input_ids, found.has_loss)
            pieces = zip(*([None] * len(groups) if column is None else np.split(column, edges) for column in columns))
            found = [RowGroup(row_ids, input_ids, loss_mask=has_loss) for row_ids, input_ids, has_loss in pieces]
        self._groups.update(zip(groups.tolist(), found))
