from pathlib import Path

import numpy as np
import pytest

from rskd import records
from rskd.config import DistillConfig, validate_config
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.evaluation import results
from rskd.evaluation.window_values import MEANS, WindowValues, to_parquet
from rskd.storage import Store


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(tmp_path)},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "some/teacher"},
        }
    )


def values(loss: float) -> WindowValues:
    means = {metric: np.array([loss, loss + 1]) for metric in MEANS}
    bins = np.ones((2, 3))
    return WindowValues(np.arange(2), means, bins.astype(int), bins / 2, bins.astype(int))


def write(config: DistillConfig, loss: float = 3.0) -> str:
    """Write an evaluation of one student; returns the name of its file of single windows."""
    store = Store(config.home)
    file = results.write_table(store, results.WINDOW_VALUES, to_parquet({"teacher": values(2.0), "a": values(loss)}))
    recipe = {"teacher": {"fingerprint": "abc", "dtype": "float32"}, "corpus": "held-out"}
    evaluation = {"recipe": recipe, "tokenizer": "words", results.WINDOW_VALUES: file}
    records.write(store, "evaluation.json", evaluation)
    results.remove_older_tables(store, evaluation)
    return file["file"]


def test_reads_what_was_measured_and_of_what(config: DistillConfig):
    write(config)
    measured = results.read_measured(config)
    assert list(measured) == ["teacher", "a"]
    found = measured["a"]
    assert (found.tokenizer, found.teacher, found.held_out) == ("words", "abc in float32", "held-out")
    assert found.values.means["lm_loss"].tolist() == [3.0, 4.0]


def test_a_new_evaluation_replaces_the_file_of_the_older(config: DistillConfig):
    first = write(config)
    Store(config.home).write("evaluation/speculative.json", b"{}")
    second = write(config, loss=5.0)
    assert first != second
    assert [f"evaluation/{name}" for name in Store(config.home).list("evaluation")] == [
        "evaluation/speculative.json",
        second,
    ]
    assert write(config, loss=5.0) == second


def test_says_what_is_missing_and_what_is_damaged(config: DistillConfig):
    with pytest.raises(MissingOutputError, match=r"evaluation\.json does not exist: run rskd evaluate"):
        results.read_measured(config)
    name = write(config)
    file = Path(config.home, name)
    data = file.read_bytes()
    file.write_bytes(data[:-9] + b"x" + data[-8:])
    with pytest.raises(CorruptPartError, match=rf"{name} is not what was written .* remove it and run rskd evaluate"):
        results.read_measured(config)
    file.unlink()
    with pytest.raises(MissingOutputError, match=f"{name} is missing: run rskd evaluate"):
        results.read_measured(config)
    store = Store(config.home)
    evaluation = records.read(store, "evaluation.json")
    assert evaluation is not None
    assert results.missing_table(store, evaluation) == name
    del evaluation[results.WINDOW_VALUES]
    records.write(store, "evaluation.json", evaluation)
    with pytest.raises(MissingOutputError, match="an older rskd wrote it: remove it and run rskd evaluate"):
        results.read_measured(config)
    assert results.missing_table(store, evaluation) is None  # so it is not evaluated again
