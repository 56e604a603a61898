"""The paper's tables of language models, row by row, each with the method that makes it here.

Figures are the paper's: LM loss in nats, everything else in percent. A row without any is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rskd.reproduction.methods import CE_WEIGHTS, OURS, RATIOS

METRICS = {"lm_loss": "LM loss", "pct": "% CE to full KD", "ece": "ECE, %", "acceptance": "acceptance, %"}


@dataclass(frozen=True)
class Row:
    label: str
    method: str  # of METHODS
    paper: Mapping[str, str] = field(default_factory=dict)  # by metric, as printed


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    setting: str  # of the paper
    rows: tuple[Row, ...]
    seeds: int


def _rows(metrics: str, *rows: str) -> tuple[Row, ...]:
    """One row a line: label | method | figures, in the order of `metrics`; `-` where the paper has none."""
    names = metrics.split()
    found = []
    for line in rows:
        label, method, figures = (part.strip() for part in line.split("|"))
        paper = {name: figure for name, figure in zip(names, figures.split()) if figure != "-"}
        found.append(Row(label, method, paper))
    return tuple(found)


_SMALL = "3B teacher, 300M student, 10B tokens"

TABLE_1 = Table(
    "table1",
    "Table 1: top-k KD",
    _SMALL,
    _rows(
        "lm_loss pct ece",
        "CE | ce | 2.81 0 1.2",
        "Top-K 3 | top_k-3 | 3.04 -395 10.6",
        "Top-K 5 | top_k-5 | 2.96 -253 7.7",
        "Top-K 12 | top_k-12 | 2.87 -99 4.7",
        "Top-K 25 | top_k-25 | 2.82 -21 3.2",
        "Top-K 50 | top_k-50 | 2.80 5 2.2",
        "Top-p 0.98, K = 100 | top_p | 2.78 47 1.7",
        "Top-K 57 | top_k-57 | 2.79 32 2.0",
        "Top-K 100 | top_k-100 | 2.77 55 1.1",
        "Top-K 300 | top_k-300 | 2.76 77 1.5",
        "Full KD | full_kd | 2.75 100 0.7",
    ),
    seeds=3,
)

TABLE_2 = Table(
    "table2",
    "Table 2: fixes for top-k",
    _SMALL,
    _rows(
        "lm_loss pct ece",
        "CE | ce | 2.81 0 1.2",
        "Label smoothing, K = 50 | smooth-50 | 2.85 -73 0.4",
        "Ghost token, K = 50 | ghost-50 | 2.77 59 0.4",
        "Naive fix, K = 1 | label-1 | 2.81 -5 7.1",
        "Naive fix, K = 5 | label-5 | 2.78 44 4.4",
        "Naive fix, K = 10 | label-10 | 2.77 61 3.3",
        "Naive fix, K = 20 | label-20 | 2.76 73 2.3",
        "Naive fix, K = 50 | label-50 | 2.76 83 1.3",
        "Naive fix, K = 100 | label-100 | 2.75 97 1.2",
        "Full KD | full_kd | - 100 0.7",
    ),
    seeds=3,
)

TABLE_5 = Table(
    "table5",
    "Table 5: random sampling KD, and systematic sampling",
    _SMALL,
    _rows(
        "lm_loss ece acceptance",
        "CE | ce | 2.81 0.4 59.95",
        "Random 2.4 | random-2.4 | 2.77 1.0 61.47",
        "Random 5.0 | random-5 | 2.75 1.1 61.83",
        "Random 12.1 | random-12 | 2.75 0.8 61.85",
        "Random 24.5 | random-24.5 | 2.75 1.1 61.93",
        "Random 57.0 | random-57 | 2.74 0.9 61.97",
        "Systematic 2.4 | systematic-2.4 |",
        "Systematic 5 | systematic-5 |",
        "Systematic 12 | systematic-12 |",
        "Systematic 24.5 | systematic-24.5 |",
        "Full KD | full_kd | 2.75 0.7 62.02",
    ),
    seeds=3,
)

_PCT_9 = {
    1.0: "101 111 95 98",
    1.5: "124 121 120 111",
    2.0: "116 124 125 112",
}

TABLE_9 = Table(
    "table9",
    "Table 9: weight of CE, and learning-rate ratio of hard to easy tokens",
    "8B teacher, 300M student",
    tuple(
        Row(
            f"ratio {ratio:g}, α = {ce:g}",
            OURS if (ratio, ce) == (1.0, 0.0) else f"ratio-{ratio:g}-ce-{ce:g}",
            {"pct": figure},
        )
        for ratio in RATIOS
        for ce, figure in zip(CE_WEIGHTS, _PCT_9[ratio].split(), strict=True)
    ),
    seeds=1,
)

TABLE_10 = Table(
    "table10",
    "Table 10: temperature of the proposal, 57 unique tokens",
    _SMALL,
    _rows(
        "lm_loss ece acceptance",
        "t = 0 | proposal-0 | ∞",
        "t = 0.8 | proposal-0.8 | 2.74 0.7 61.9",
        "t = 1 | random-57 | 2.75 0.8 61.8",
        "t = 1.2 | proposal-1.2 | 2.74 0.8 61.9",
    ),
    seeds=1,
)

TABLE_12 = Table(
    "table12",
    "Table 12: divergences",
    "8B teacher, 300M student, 10B tokens",
    _rows(
        "lm_loss",
        "CE | ce | 2.81",
        "L1 | divergence-l1 | ∞",
        "MSE | divergence-mse | 5.38",
        "Reverse KL | divergence-reverse | 3.37",
        "Forward + reverse KL | divergence-forward_reverse | 2.78",
        "Forward KL | random-12 | 2.75",
    ),
    seeds=1,
)

TABLES = {table.name: table for table in (TABLE_1, TABLE_2, TABLE_5, TABLE_9, TABLE_10, TABLE_12)}


def cells(tables: Mapping[str, Table]) -> list[tuple[str, int]]:
    """Method and seed of every student that these tables need, each once, the first seed of all first."""
    wanted = {(row.method, seed) for table in tables.values() for row in table.rows for seed in range(table.seeds)}
    order = [row.method for table in tables.values() for row in table.rows]
    return sorted(wanted, key=lambda cell: (cell[1], order.index(cell[0])))
