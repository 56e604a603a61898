"""Memory on paper is near what tests/bench/bench_sharding.py measured, and says what fits."""

import pytest
from transformers import LlamaConfig

from rskd.estimate.memory import GIB, memory_of

CONFIG = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=12, vocab_size=8192)
PARAMETERS = 47_200_000


@pytest.mark.parametrize(
    ("workers", "checkpointed", "measured_mib"),
    [(1, False, 1126), (1, True, 801), (2, False, 908), (2, True, 516)],  # two windows of 512, fp32, 2026-11-27
)
def test_it_is_near_what_was_measured(workers: int, checkpointed: bool, measured_mib: float):
    found = _memory(seq_len=512, workers=workers, checkpointed=checkpointed, value_bytes=4)
    assert (found["state_bytes"] + 2 * found["window_bytes"]) / 2**20 == pytest.approx(measured_mib, rel=0.16)


def test_what_fits_grows_with_memory_workers_and_checkpointing():
    def windows(workers: int, checkpointed: bool, gib: float) -> int:
        found = _memory(seq_len=4096, workers=workers, checkpointed=checkpointed, value_bytes=2, gpu_bytes=gib * GIB)
        return found["windows_that_fit"]

    assert windows(1, False, 0.5) == 0
    assert 0 < windows(1, False, 4) < windows(8, False, 4) < windows(8, True, 4)
    assert _memory(seq_len=8, workers=1, checkpointed=False, value_bytes=2)["windows_that_fit"] is None


def _memory(**settings):
    return memory_of(CONFIG, PARAMETERS, **{"gpu_bytes": None} | settings)
