from pathlib import Path

import duckdb
import numpy as np
import pytest

from rskd.evaluation.window_values import MEANS, METRICS, WindowValues, from_parquet, to_parquet


def made(seed: int, num_windows: int = 5, num_bins: int = 15) -> WindowValues:
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 9, (num_windows, num_bins))
    return WindowValues(
        window=np.arange(num_windows),
        means={metric: rng.random(num_windows) for metric in MEANS},
        count=count,
        confidence=count * rng.random((num_windows, num_bins)),
        correct=rng.binomial(count, 0.5),
    )


def test_every_value_comes_back_and_the_bytes_repeat():
    models = {"teacher": made(0), "t=0.8 é": made(1), "one bin": made(2, num_bins=1)}
    data = to_parquet(models)
    assert to_parquet(models) == data
    back = from_parquet(data)
    assert list(back) == list(models)
    for name, values in models.items():
        for key in ("window", "count", "confidence", "correct"):
            mine, theirs = getattr(values, key), getattr(back[name], key)
            assert np.array_equal(mine, theirs), key
            assert mine.dtype == theirs.dtype, key
        assert all(np.array_equal(values.means[metric], back[name].means[metric]) for metric in MEANS)


def test_any_tool_reads_one_row_a_model_and_window(tmp_path: Path):
    file = tmp_path / "windows.parquet"
    file.write_bytes(to_parquet({"teacher": made(0), "a": made(1)}))
    query = f"select count(*), avg(lm_loss), sum(list_sum(bin_count)) from '{file}' where model = 'a'"
    [(rows, loss, tokens)] = duckdb.sql(query).fetchall()
    assert (rows, tokens) == (5, made(1).count.sum())
    assert loss == pytest.approx(made(1).means["lm_loss"].mean())


def test_metrics_are_those_of_all_tokens():
    values = WindowValues(
        window=np.array([0, 1]),
        means={metric: np.array([1.0, 4.0]) for metric in MEANS},
        count=np.array([[2, 0], [2, 2]]),
        confidence=np.array([[0.5, 0.0], [0.75, 1.75]]),
        correct=np.array([[1, 0], [0, 2]]),
    )
    assert {metric: values.metric(metric) for metric in METRICS} == {
        "lm_loss": 3.0,  # (2 · 1 + 4 · 4) / 6
        "top1_agreement": 3.0,
        "acceptance": 3.0,
        "kl_to_teacher": 3.0,
        "ece": 0.5 / 6,  # |1 - 1.25| + |2 - 1.75|
    }
