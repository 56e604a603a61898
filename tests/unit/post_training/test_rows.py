"""To which row of the paper a student belongs, and the tables of some students."""

from typing import Any

import pytest

from rskd.config import GenerateConfig, SamplingConfig, StudentSpec
from rskd.post_training.rows import Learner, learner, papers_method, set_metrics, table_7, table_8
from rskd.reproduction.beside_paper import Ours, cells, head, table_csv
from rskd.reproduction.statistics import Estimate, Interval

RANDOM = {"method": "random", "num_samples": 20}
PLUS = {"ce_weight": 0.1, "hard_easy_ratio": 2.0}


@pytest.mark.parametrize(
    ("objective", "sampling", "unique_tokens", "method"),
    [
        ({"kind": "ce"}, None, None, "ce"),
        ({"kind": "full_kd"}, None, None, "full_kd"),
        ({"kind": "full_kd", "divergence": "reverse"}, None, None, None),
        ({}, {"method": "top_k", "k": 12}, 12.0, "top_k-12"),
        ({}, {"method": "top_k", "k": 50}, None, "top_k-50"),
        ({}, {"method": "top_k", "k": 13}, 13.0, None),
        ({"residual": "ghost"}, {"method": "top_k", "k": 50}, 50.0, None),
        ({}, {"method": "top_p", "k": 50, "p": 0.9}, 12.0, None),
        ({}, RANDOM, 12.0, "random-12"),
        ({"impl": "eager"}, RANDOM | {"statistics": ["top1"]}, 11.0, "random-12"),
        ({}, {"method": "systematic", "num_samples": 20}, 13.0, "random-12"),
        ({}, RANDOM, 10.9, None),
        ({}, RANDOM, 13.1, None),
        ({}, RANDOM, None, None),
        ({}, RANDOM | {"temperature": 0.8}, 12.0, None),
        (PLUS, RANDOM, 12.4, "ratio-2-ce-0.1"),
        ({"ce_weight": 0.1}, RANDOM, 12.4, None),
        (PLUS | {"hard_percentile": 30.0}, RANDOM, 12.4, None),
    ],
)
def test_a_student_has_the_row_that_it_learned_as(
    objective: dict, sampling: dict | None, unique_tokens: float | None, method: str | None
):
    spec = StudentSpec.model_validate({"objective": objective})
    cache = SamplingConfig.model_validate(sampling) if sampling else None
    assert papers_method(spec, cache, unique_tokens) == method
    misaligned = StudentSpec.model_validate({"objective": objective, "train": {"allow_misaligned": True}})
    assert papers_method(misaligned, cache, unique_tokens) is None


STUDENTS = [
    learner("labels", StudentSpec.model_validate({"objective": {"kind": "ce"}}), SamplingConfig(), None),
    learner("ours", StudentSpec(), SamplingConfig(), 12.3),
    learner("few", StudentSpec(), SamplingConfig(num_samples=3), 2.9),
]


def test_the_label_says_what_a_student_learned_from():
    assert [student.targets for student in STUDENTS] == [
        "cross-entropy, labels",
        "KD, systematic, N = 22",
        "KD, systematic, N = 3",
    ]


def test_table_7_has_our_students_in_the_papers_rows_and_the_others_below():
    table = table_7(STUDENTS)
    figures: dict[str, Any] = {"lm_loss": Estimate(2.5, 0.01), "sft_score": Estimate(41.234, 1.5)}
    ours = {"ours": Ours("ours", 1, 0, figures, None, 12.3, 22.04)}
    rows = [dict(zip(head(table), cells(row, table, ours), strict=True)) for row in table.rows]
    assert [row["method"] for row in rows] == [
        "CE: labels (cross-entropy, labels)",
        "Top-K 12",
        "Top-K 50",
        "Random 12: ours (KD, systematic, N = 22)",
        "Random 12, with α and ratio",
        "Full KD",
        "few (KD, systematic, N = 3)",
    ]
    assert rows[3]["LM loss"] == "2.500 ± 0.010"
    assert rows[3]["0-shot score after SFT, %"] == "41.23 ± 1.50"
    assert (rows[3]["LM loss after SFT"], rows[3]["unique tokens"], rows[3]["B/token"]) == ("–", "12.3", "22.0")
    papers = [row["paper: 0-shot score after SFT, %"] for row in rows]
    assert papers == ["54.5", "57.7", "58.3", "59.4", "59.1", "58.4", "–"]
    assert "paper: LM loss after SFT" not in rows[0]


def test_two_students_of_a_method_have_a_row_each():
    pair = [Learner(name, "cross-entropy, labels", "ce") for name in ("a", "b")]
    assert [row.label for row in table_7(pair).rows][:3] == [
        "CE: a (cross-entropy, labels)",
        "CE: b (cross-entropy, labels)",
        "Top-K 12",
    ]


def test_table_8_has_a_column_for_each_set_and_says_who_rated():
    sets = {
        "d": {"kind": "dolly", "uri": "d"},
        "d again": {"kind": "dolly", "uri": "e", "limit": 5},
        "dolly": {"kind": "own", "uri": "f"},
    }
    generate = GenerateConfig.model_validate({"prompt_sets": sets})
    assert set_metrics(generate) == {"d": "dolly", "d again": "set d again", "dolly": "set dolly"}
    table = table_8(STUDENTS, generate, "judge big")
    figures: dict[str, Any] = {
        "dolly": Interval(61.24, 58.0, 64.0),
        "set dolly": Estimate(50.0, None),
        "judged": Estimate(55.62, None),
    }
    ours = {"ours": Ours("ours", 1, 0, figures, None, None, None)}
    rows = [dict(zip(head(table), cells(row, table, ours), strict=True)) for row in table.rows]
    found = next(row for row in rows if "ours" in row["method"])
    assert found["Dolly, % (judge big)"] == "61.2 [58.0, 64.0]"
    assert found["d again, % (judge big)"] == "–"
    assert found["dolly, % (judge big)"] == "50.0"
    assert found["mean over sets, % (judge big)"] == "55.6"
    assert (found["paper: Dolly, %"], found["paper: mean over sets, %"]) == ("71.3", "65.6")
    assert [row["paper: mean over sets, %"] for row in rows] == ["60.2", "58.0", "60.6", "65.6", "62.2", "–"]
    lines = table_csv([table], ours).splitlines()
    assert 'table8,"Random 12: ours (KD, systematic, N = 22)",ours,dolly,ours,61.24,,1,58.0,64.0' in lines
    assert "table8,Top-K 12,top_k-12,judged,paper,58.0,,,," in lines


def test_one_set_has_no_mean():
    generate = GenerateConfig.model_validate({"prompt_sets": {"mine": {"kind": "own", "uri": "f"}}})
    assert [column for column in head(table_8([], generate, "x")) if "mean" in column] == ["paper: mean over sets, %"]
