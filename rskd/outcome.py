"""What a command found, and how a terminal shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rskd.cache.histogram import Histogram

_MOST_BARS, _BAR_WIDTH = 24, 50  # of a histogram


@dataclass(frozen=True)
class Outcome:
    """What a command found: data for --json, a table and histograms for people, and the exit code."""

    data: dict[str, Any]
    title: str
    rows: dict[str, Any] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    exit_code: int = 0

    def show(self) -> None:
        """Print the table and the histograms for people."""
        table = Table(title=self.title, title_justify="left", show_header=False)
        for key, value in (self.rows or self.data).items():
            table.add_row(
                key, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
            )
        Console().print(table, *_drawn(self.histograms))


def _drawn(histograms: dict[str, Histogram]) -> list[Table]:
    from rskd.cache.histogram import LABELS

    return [_bars(label, histograms[name]) for name, label in LABELS.items() if name in histograms]


def _bars(label: str, histogram: Histogram) -> Table:
    """A histogram, a row for a few bins with their share of all positions."""
    from rskd.cache.histogram import grouped

    bins = grouped(histogram, _MOST_BARS)
    width, counts = bins["width"], bins["counts"]
    last = 1 if histogram["width"] == 1 else 0  # of whole numbers: 8 to 11 are four
    table = Table(title=f"\nshare of positions by {label}", title_justify="left", show_header=False, box=None)
    for column in ("right", "left", "right"):
        table.add_column(justify=column)
    for index, count in enumerate(counts):
        start = bins["low"] + index * width
        values = f"{start:g}" if width == last else f"{start:g} to {start + width - last:g}"
        table.add_row(values, Bar(max(counts), 0, count, width=_BAR_WIDTH), f"{count / sum(counts):.1%}")
    return table
