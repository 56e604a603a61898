"""Requests and files at scale are those that the formats make."""

import pytest

from rskd.estimate.growth import at_scale


def test_a_trillion_tokens():
    found = at_scale(
        parts=953_675, num_caches=2, cache_bytes=22 * 10**12, epochs=1.0, seq_len=4096, windows_per_part=256
    )
    assert found["files"] == 2 * 953_675 * 3
    assert found["part_bytes"] == pytest.approx(23.07e6, rel=1e-3)
    assert found["manifest_kind"] == "pages"
    assert found["requests"]["cache_put"] == 2 * 2 * 953_675  # a data file of one upload, and its record
    assert found["requests"]["train_get"] == 16 * 953_675 + 953_675  # a row group of 2^16 positions at a time
    assert found["restart"]["requests"] == 2 * (953_675 + 1908)
    assert 1000 < found["driver"]["memory_mib"] < 1300


def test_few_parts_are_in_the_manifest_itself():
    found = at_scale(parts=4, num_caches=1, cache_bytes=400 * 2**20, epochs=2.0, seq_len=1024, windows_per_part=64)
    assert found["manifest_kind"] == "manifest"
    assert found["requests"]["cache_put"] == 4 * (2 + 1)  # 100 MiB in uploads of 50
    assert found["requests"]["train_get"] == 2 * 4 + 4
