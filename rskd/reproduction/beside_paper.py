"""Our figures beside the paper's: the cells of a table, as pages and notebooks show them.

Table, {method: Ours} ─┬─► head, cells ─► Markdown, HTML
                       └─► table_csv
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rskd.cache.manifest import CacheManifest
from rskd.reproduction.statistics import Estimate, Interval
from rskd.reproduction.tables import METRICS, SETS, Row, Table

_DIGITS = dict.fromkeys(METRICS, 2) | {"lm_loss": 3, "sft_lm_loss": 3, "pct": 0} | dict.fromkeys(SETS, 1)
_OWN_DIGITS = 1  # of a column that the paper has not
_WITHOUT_A_PAPER = ("lm_loss", "acceptance")  # what a table shows of which the paper prints no figure


@dataclass(frozen=True)
class Ours:
    """What our students of one method came to, over their seeds; metrics in the paper's units."""

    method: str
    seeds: int
    diverged: int
    metrics: Mapping[str, Estimate | Interval]
    parameters: int | None  # of the student; None where all diverged
    unique_tokens: float | None
    bytes_per_token: float | None


def cache_facts(manifest: CacheManifest) -> tuple[float, float]:
    """Unique tokens and bytes of a position of a cache."""
    totals = manifest.totals
    return totals["samples"] / totals["tokens"], totals["bytes"] / totals["tokens"]


def head(of: Table) -> list[str]:
    """What the columns of `cells` are."""
    papers = (_LABELS[metric] for metric in _papers_metrics(of))
    return ["method", *_columns(of).values(), "unique tokens", "B/token", *(f"paper: {label}" for label in papers)]


def cells(row: Row, of: Table, ours: Mapping[str, Ours]) -> list[str]:
    """The texts of a row; `–` where nothing was measured or printed."""
    columns = _columns(of)
    found = ours.get(row.method)
    paper = [row.paper.get(metric, "–") for metric in _papers_metrics(of)]
    if found is None:
        return [row.label, *("–" for _ in columns), "–", "–", *paper]
    measured = ["∞" if found.diverged == found.seeds else _shown(found.metrics.get(m), m) for m in columns]
    return [row.label, *measured, _number(found.unique_tokens), _number(found.bytes_per_token), *paper]


def table_csv(tables: Sequence[Table], ours: Mapping[str, Ours]) -> str:
    """One line for each row, metric and source (ours, paper); low and high are the ends of a 95% interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "method", "metric", "source", "value", "standard_error", "seeds", "low", "high"])
    for each in tables:
        for row in each.rows:
            found = ours.get(row.method)
            for metric, figure in _figures(found, each):
                facts = [figure.mean, *_uncertainty(figure, found.seeds if found else None)]
                writer.writerow([each.name, row.label, row.method, metric, "ours", *facts])
            for metric, printed in row.paper.items():
                writer.writerow([each.name, row.label, row.method, metric, "paper", printed, *[None] * 4])
    return out.getvalue()


_LABELS = {**METRICS, **SETS}


def _columns(of: Table) -> Mapping[str, str]:
    """The columns of our figures, by metric."""
    return of.ours if of.ours is not None else {metric: _LABELS[metric] for metric in _papers_metrics(of)}


def _papers_metrics(of: Table) -> list[str]:
    """The metrics that the paper prints for a table, in our order."""
    return [m for m in _LABELS if any(m in row.paper for row in of.rows)] or list(_WITHOUT_A_PAPER)


def _figures(found: Ours | None, of: Table) -> list[tuple[str, Estimate | Interval]]:
    """All that was measured; of a table with columns of its own, what they show."""
    metrics = found.metrics if found else {}
    return [(name, figure) for name, figure in metrics.items() if of.ours is None or name in of.ours]


def _uncertainty(figure: Estimate | Interval, seeds: int | None) -> list[float | None]:
    """Standard error, seeds, and ends of the interval, as far as they are known."""
    if isinstance(figure, Interval):
        return [None, seeds, figure.low, figure.high]
    return [figure.standard_error, seeds, None, None]


def _shown(figure: Estimate | Interval | None, metric: str) -> str:
    digits = _DIGITS.get(metric, _OWN_DIGITS)
    if figure is None:
        return "–"
    if isinstance(figure, Interval):
        return f"{figure.mean:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
    error = "" if figure.standard_error is None else f" ± {figure.standard_error:.{digits}f}"
    return f"{figure.mean:.{digits}f}{error}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
