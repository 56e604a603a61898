"""The copy differs in its windows alone, and is refused by everything that is not told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_caches import write_cache

from rskd.cache.loader import CacheLoader
from rskd.cache.misaligned import misaligned_copy
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.errors import CorruptPartError


@pytest.fixture
def copied(tmp_path: Path) -> tuple[str, str]:
    aligned, misaligned = str(tmp_path / "aligned"), str(tmp_path / "misaligned")
    write_cache(aligned)
    misaligned_copy(aligned, misaligned, seed=1)
    return aligned, misaligned


def test_loader_reader_and_verify_refuse_it(copied: tuple[str, str]):
    aligned, misaligned = copied
    assert len(list(zip(range(2), CacheLoader(LogitCache.open(aligned), global_batch=4)))) == 2
    with pytest.raises(CorruptPartError, match="other windows than"):
        next(iter(CacheLoader(LogitCache.open(misaligned), global_batch=4)))
    with pytest.raises(CorruptPartError, match="other windows than"):
        LogitCache.open(misaligned).read_rows([0])
    assert verify(aligned).ok
    assert not verify(misaligned).ok


def test_targets_stay_and_every_window_moves(copied: tuple[str, str]):
    rows = np.arange(12)
    ours = LogitCache.open(copied[0]).read_rows(rows)
    theirs = LogitCache.open(copied[1], allow_misaligned=True).read_rows(rows)
    assert ours.targets is not None
    assert theirs.targets is not None
    assert torch.equal(ours.targets.ids, theirs.targets.ids)
    assert torch.equal(ours.targets.weights, theirs.targets.weights)
    assert not (ours.input_ids == theirs.input_ids).all(1).any()
    assert sorted(map(tuple, ours.input_ids.tolist())) == sorted(map(tuple, theirs.input_ids.tolist()))
