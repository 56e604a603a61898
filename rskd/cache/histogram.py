"""Histograms of fixed bins, as plain JSON, so that those of the parts add up to that of the cache.

A histogram is {"low", "width", "counts"}: bin i counts values in [low + i·width, low + (i+1)·width); values beyond the
ends are in the outer bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rskd.teacher_statistics import STATISTICS, Bins

Histogram = dict[str, Any]

# Trailing empty bins are left out. Unique tokens have a bin for each number.
_BINS = {
    "num_unique": Bins(0.0, 1.0, 2**16),
    **{name: statistic.bins for name, statistic in STATISTICS.items() if statistic.bins is not None},
}
LABELS = {
    "num_unique": "unique tokens at a position",
    **{name: statistic.label for name, statistic in STATISTICS.items() if name in _BINS},
}


def histogram(name: str, values: np.ndarray) -> Histogram | None:
    """Histogram of num_unique or of a statistic; None for one that has no order (top1)."""
    if name not in _BINS:
        return None
    low, width, bins = _BINS[name]
    index = np.clip((values.astype(np.float32) - low) / width, 0, bins - 1).astype(np.int64)
    return {"low": low, "width": width, "counts": np.bincount(index.ravel()).tolist()}


def add_up(parts: Iterable[dict[str, Histogram]]) -> dict[str, Histogram]:
    """Sum over parts, name by name."""
    by_name: dict[str, list[Histogram]] = {}
    for part in parts:
        for name, one in part.items():
            by_name.setdefault(name, []).append(one)
    return {name: ones[0] | {"counts": _sum([one["counts"] for one in ones])} for name, ones in by_name.items()}


def percentile(histogram: Histogram, percent: float) -> float:
    """The value below which `percent` of 100 values lie, linear within a bin."""
    counts = np.asarray(histogram["counts"], np.float64)
    edges = histogram["low"] + histogram["width"] * np.arange(len(counts) + 1)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return float(np.interp(percent / 100 * below[-1], below, edges))


def grouped(histogram: Histogram, most: int) -> Histogram:
    """The same values in at most `most` bins, each of 2^n old ones, from the first that holds a value on."""
    counts = np.asarray(histogram["counts"], np.int64)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return histogram | {"counts": []}
    size = 1
    while filled[-1] // size - filled[0] // size >= most:
        size *= 2
    first = filled[0] // size * size
    starts = np.arange(first, filled[-1] + 1, size)
    return {
        "low": histogram["low"] + first * histogram["width"],
        "width": size * histogram["width"],
        "counts": np.add.reduceat(counts, starts).tolist(),
    }


def _sum(lists: list[list[int]]) -> list[int]:
    total = np.zeros(max(map(len, lists)), np.int64)
    for counts in lists:
        total[: len(counts)] += np.asarray(counts, np.int64)  # one may be empty
    return total.tolist()
