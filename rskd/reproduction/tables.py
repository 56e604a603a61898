"""The paper's tables of language models, row by row, each with the method that makes it here.

Figures are the paper's: LM loss in nats, everything else in percent. A row without any is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rskd.reproduction.methods import CE_WEIGHTS, MISALIGNED, OURS, RATIOS, SIZES

TASKS = {
    "arc_easy": "ARC easy, %",
    "hellaswag": "HellaSwag, %",
    "lambada_openai": "LAMBADA OpenAI, %",
    "lambada_standard": "LAMBADA standard, %",
    "piqa": "PIQA, %",
}
METRICS = {
    "lm_loss": "LM loss",
    "pct": "% CE to full KD",
    "ece": "ECE, %",
    "acceptance": "acceptance, %",
    **TASKS,
    "score": "0-shot score, %",
    "sft_score": "0-shot score after SFT, %",
    "sft_lm_loss": "LM loss after SFT",
}
SETS = {  # of Table 8, by the kind of a set of prompts
    "dolly": "Dolly, %",
    "self_inst": "SelfInst, %",
    "vicuna": "Vicuna, %",
    "s_ni": "S-NI, %",
    "un_ni": "UnNI, %",
    "judged": "mean over sets, %",
}


@dataclass(frozen=True)
class Row:
    label: str
    method: str  # of METHODS, or the name of a student (`rskd.post_training`)
    paper: Mapping[str, str] = field(default_factory=dict)  # by metric, as printed


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    setting: str  # of the paper
    rows: tuple[Row, ...]
    seeds: int
    ours: Mapping[str, str] | None = None  # our columns by metric, where they are not those that the paper prints


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
_LARGE = "8B teacher, 3B student, 100B tokens"
_PLUS = "ratio-2-ce-0.1"  # of Table 9, the paper's best

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
        "L1, full KD | full_kd-l1 |",
        "MSE, full KD | full_kd-mse |",
        "Reverse KL, full KD | full_kd-reverse |",
        "Forward + reverse KL, full KD | full_kd-forward_reverse |",
        "Forward KL, full KD | full_kd |",
    ),
    seeds=1,
)

TABLE_13 = Table(
    "table13",
    "Table 13: contexts of teacher and student",
    "3B teacher, 300M student; shuffle seeds different and same, the teacher's windows of 1,024 and of 4,096 tokens",
    _rows(
        "lm_loss pct",
        f"Different | {MISALIGNED} | 2.760 79",
        "Same | random-12 | 2.749 96",
        "Online | full_kd | - 100",
    ),
    seeds=3,
)

FIGURE_4 = Table(
    "figure4",
    "Figure 4: students of other sizes",
    "8B teacher; students of 100M to 3B; downstream scores, in a plot",
    (
        *(Row(f"CE, {size}", f"ce-{size}") for size in SIZES),
        *(Row(f"Random 12, {size}", f"{OURS}-{size}") for size in SIZES),
        Row("CE", "ce"),
        Row("Random 12", OURS),
    ),
    seeds=1,
)

TABLE_6 = Table(
    "table6",
    "Table 6: 100B tokens",
    "3B teacher, 300M student, 100B tokens",
    _rows(
        "lm_loss ece acceptance score",
        "CE | ce | 2.48 0.7 64.6 45.0",
        "Random 12 | random-12 | 2.48 0.3 65.7 46.2",
        "Full KD | full_kd | 2.48 0.4 65.8 46.2",
    ),
    seeds=1,
)

TABLE_7 = Table(
    "table7",
    "Table 7: a large student",
    _LARGE,
    _rows(
        "lm_loss ece acceptance score sft_score",
        "CE | ce | 2.37 0.3 71.1 55.6 54.5",
        "Top-K 12 | top_k-12 | 2.50 4.7 73.0 56.6 57.7",
        "Top-K 50 | top_k-50 | 2.40 1.8 73.1 57.1 58.3",
        "Random 12 | random-12 | 2.35 0.2 73.2 57.5 59.4",
        f"Random 12, with α and ratio | {_PLUS} | 2.32 1.7 73.5 57.9 59.1",
        "Full KD | full_kd | 2.34 0.2 73.4 57.5 58.4",
    ),
    seeds=1,
)

# None of TABLES: a reproduction trains students, whose answers `flows.post_train` has rated.
TABLE_8 = Table(
    "table8",
    "Table 8: answers of tuned students, rated",
    f"{_LARGE}; Llama 3.1 405B Instruct as judge",
    _rows(
        "dolly self_inst vicuna s_ni un_ni judged",
        "CE | ce | 64.2 64.6 49.1 62.4 60.4 60.2",
        "Top-K 12 | top_k-12 | 59.0 60.9 48.9 63.4 58.0 58.0",
        "Top-K 50 | top_k-50 | 65.4 63.4 53.1 62.6 58.3 60.6",
        "Random 12 | random-12 | 71.3 73.1 58.2 63.8 61.4 65.6",
        "Full KD | full_kd | 66.1 66.1 56.9 60.7 61.0 62.2",
    ),
    seeds=1,
)

TABLE_19 = Table(
    "table19",
    "Table 19: downstream tasks, without fine-tuning",
    _LARGE,
    _rows(
        "arc_easy hellaswag lambada_openai lambada_standard piqa score",
        "CE | ce | 64.90 56.35 45.64 38.31 72.58 55.56",
        "Top-K 12 | top_k-12 | 65.07 57.04 47.76 39.86 73.50 56.65",
        "Top-K 50 | top_k-50 | 65.66 57.80 47.88 40.87 73.50 57.14",
        "Random 12 | random-12 | 66.29 58.93 47.47 40.99 73.83 57.50",
        f"Random 12, with α and ratio | {_PLUS} | 68.14 60.82 46.83 39.80 73.99 57.92",
        "Full KD | full_kd | 66.08 58.76 48.01 40.71 73.88 57.49",
    ),
    seeds=1,
)

TABLES = {
    table.name: table
    for table in (
        TABLE_1,
        TABLE_2,
        TABLE_5,
        TABLE_9,
        TABLE_10,
        TABLE_12,
        TABLE_13,
        FIGURE_4,
        TABLE_6,
        TABLE_7,
        TABLE_19,
    )
}


def cells(tables: Iterable[Table], more_seeds: Mapping[str, int]) -> list[tuple[str, int]]:
    """Method and seed of every student that these tables need, each once, the first seed of all first.

    A method of `more_seeds` has so many where its table has less.
    """
    tables = list(tables)
    rows = [(row.method, table.seeds) for table in tables for row in table.rows]
    wanted = {(method, seed) for method, least in rows for seed in range(max(least, more_seeds.get(method, 0)))}
    order = [row.method for table in tables for row in table.rows]
    return sorted(wanted, key=lambda cell: (cell[1], order.index(cell[0])))
