import pytest

from rskd.reproduction.report import _cells_of, _head
from rskd.reproduction.results import _ours
from rskd.reproduction.tables import FIGURE_4, TABLE_7, TABLE_19, Table

ENDS = {"ce": {0: 3.0, 1: 3.1}, "full_kd": {0: 2.0, 1: 2.1}}


def record(loss: float, **more) -> dict:
    return {"metrics": {"lm_loss": loss, "ece": 0.01, "acceptance": 0.5}, "parameters": 1000, **more}


def tasks(arc: float, piqa: float) -> dict:
    return {"arc_easy": {"acc_norm": {"value": arc}, "acc": {"value": 0.0}}, "piqa": {"acc": {"value": piqa}}}


def test_units_are_the_papers_and_a_diverged_student_counts_for_nothing_but_itself():
    ours = _ours("random-12", {0: record(2.5), 1: {"diverged": "loss is nan"}}, ENDS, (11.9, 22.0))
    assert (ours.seeds, ours.diverged, ours.parameters) == (2, 1, 1000)
    means = {name: estimate.mean for name, estimate in ours.metrics.items()}
    assert means == pytest.approx({"lm_loss": 2.5, "ece": 1.0, "acceptance": 50.0, "pct": 50.0})
    assert ours.metrics["lm_loss"].standard_error is None


def test_tasks_count_with_their_normalised_accuracy_and_their_mean_is_the_score():
    seeds = {0: record(2.5, tasks=tasks(0.6, 0.7)), 1: record(2.6, tasks=tasks(0.4, 0.7))}
    means = {name: estimate.mean for name, estimate in _ours("random-12", seeds, ENDS, (None, None)).metrics.items()}
    assert means["arc_easy"] == pytest.approx(50.0)
    assert means["piqa"] == pytest.approx(70.0)
    assert means["score"] == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (TABLE_7, {"LM loss", "ECE, %", "acceptance, %", "0-shot score, %"}),
        (TABLE_19, {"ARC easy, %", "HellaSwag, %", "0-shot score, %"}),
        (FIGURE_4, {"LM loss", "acceptance, %"}),
    ],
)
def test_a_row_has_a_cell_for_each_column_and_what_was_not_measured_is_a_dash(table: Table, columns: set[str]):
    head = _head(table)
    assert columns <= set(head)
    row = next(row for row in table.rows if row.method == "random-12")
    ours = _ours("random-12", {0: record(2.5)}, ENDS, (11.9, 22.0))
    cells = dict(zip(head, _cells_of(row, table, {"random-12": ours}), strict=True))
    assert cells["seeds"] == "1"
    assert cells["unique tokens"] == "11.9"
    assert cells.get("LM loss", "2.500") == "2.500"
    assert cells.get("0-shot score, %", "–") == "–"
    assert len(_cells_of(row, table, {})) == len(head)
