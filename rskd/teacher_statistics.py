"""What a cache can keep of the teacher's distribution at each position, beside the targets: one table for every stage.

Needs nothing but the standard library.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

StatisticName = Literal["label_logprob", "entropy", "top1"]


class Bins(NamedTuple):
    """Equal bins of a histogram: bin i counts values in [low + i·width, low + (i+1)·width), at most `count` of them."""

    low: float
    width: float
    count: int


class Statistic(NamedTuple):
    """One statistic: how it is stored, shown, and what it costs."""

    stored: Literal["float16", "int32"]  # type of the column
    bytes_per_position: float  # compressed; tests/bench/bench_storage.py, 2026-11-24
    label: str
    bins: Bins | None  # None: an id, which has no order

    @property
    def is_id(self) -> bool:
        """Whether it is a token id rather than a number in nats."""
        return self.stored == "int32"


STATISTICS: dict[StatisticName, Statistic] = {
    "label_logprob": Statistic("float16", 1.9, "log-probability of the label, nats", Bins(-32.0, 1 / 16, 512)),
    "entropy": Statistic("float16", 1.7, "entropy of the teacher, nats", Bins(0.0, 1 / 16, 256)),
    "top1": Statistic("int32", 1.4, "likeliest token", None),
}
assert tuple(STATISTICS) == get_args(StatisticName)
