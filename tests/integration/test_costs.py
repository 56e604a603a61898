"""What a distillation costs, over all attempts: beside the outputs, in MLflow, in summaries and in the report."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_runs import STAGES, tiny_settings, write_texts

from rskd import records
from rskd.config import DistillConfig, validate_config
from rskd.cores import usable_cores
from rskd.costs import Reserved, recorded_costs
from rskd.errors import CorruptPartError
from rskd.jobs.at_work import at_work, costs_of
from rskd.jobs.report import summary_page, write_report
from rskd.jobs.train import train_student
from rskd.lineage.status import status
from rskd.progress import Standing, watched_by
from rskd.storage import Store
from rskd.tracking.connection import tracking_uri_of

STEPS, BATCH, SEQ_LEN, THREADS = 4, 2, 16, 2
PRICES = {"price_per_core_hour": 1.2}


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> Callable[..., DistillConfig]:
    """A function from changed sections to a config of one distillation, which is packed and cached."""
    root = tmp_path_factory.mktemp("costs")
    write_texts(root / "text")

    def make(**sections) -> DistillConfig:
        train = {"steps": STEPS, "checkpoint_every": 1, "threads_per_worker": THREADS}
        settings = {"train": train, "costs": PRICES} | sections
        return validate_config(tiny_settings(root, tiny_teacher_dir, tracking={"enabled": True}, **settings))

    for stage in ("pack", "cache"):
        STAGES[stage](make())
    return make


def stop_at(step: int) -> Callable[[Standing], None]:
    def watch(standing: Standing) -> None:
        if standing.done == step:
            raise KeyboardInterrupt

    return watch


def test_costs_of_a_resumed_training_add_up(make_config: Callable[..., DistillConfig]):
    config = make_config()
    with watched_by(stop_at(2)), pytest.raises(KeyboardInterrupt):
        train_student(config)
    stopped = costs_of(config, "train", "default")
    assert stopped is not None
    assert (stopped["tokens"], stopped["bytes_written"]) == (2 * BATCH * SEQ_LEN, 0)
    trained = train_student(config)
    cost = trained["cost"]
    assert cost["tokens"] == (2 + 3) * BATCH * SEQ_LEN  # the second step had no checkpoint yet
    assert cost["bytes_written"] == sum(
        file["bytes"]
        for file in (records.read(Store(config.student_uri("default")), "rskd.json") or {})["files"].values()
    )
    assert cost["seconds"] > stopped["seconds"] > 0
    assert cost["core_seconds"] == pytest.approx(THREADS * cost["seconds"])
    assert cost["gpu_seconds"] == 0
    assert cost["money"] == pytest.approx(cost["core_seconds"] / 3600 * 1.2)
    assert train_student(config) == trained | {"skipped": True}

    client = MlflowClient(tracking_uri_of(config))
    attempts = client.search_runs(["1"], "tags.`rskd.stage` = 'train'", order_by=["attributes.start_time"])
    assert [run.info.status for run in attempts] == ["KILLED", "FINISHED"]
    for name in ("tokens", "seconds", "core_seconds", "money"):
        assert math.fsum(run.data.metrics[f"cost/{name}"] for run in attempts) == pytest.approx(cost[name])


def test_with_other_settings_the_sum_begins_anew_and_prices_change_nothing(make_config: Callable[..., DistillConfig]):
    train_student(make_config())
    before = recorded_costs(Store(make_config().home))
    dearer = make_config(costs={"price_per_core_hour": 2.4})
    assert train_student(dearer)["skipped"]
    cost = costs_of(dearer, "train", "default")
    assert cost is not None
    assert cost["money"] == pytest.approx(2 * before["train default"].priced(make_config().costs).money or 0)

    changed = make_config(train={"steps": 1, "threads_per_worker": 1, "lr": 0.01})
    cost = train_student(changed)["cost"]
    assert cost["tokens"] == BATCH * SEQ_LEN
    assert cost["core_seconds"] == pytest.approx(cost["seconds"])
    assert recorded_costs(Store(changed.home))["cache"] == before["cache"]
    train_student(make_config())


def test_evaluation_report_and_parent_show_them(make_config: Callable[..., DistillConfig]):
    config = make_config()
    train_student(config)
    assert "cost" not in STAGES["evaluate"](config)  # its keys are names of models
    costs = recorded_costs(Store(config.home))
    assert list(costs) == ["pack", "cache", "train default", "evaluate"]
    assert costs["evaluate"].tokens == 2 * SEQ_LEN
    assert costs["evaluate"].core_seconds == pytest.approx(usable_cores() * costs["evaluate"].seconds)
    assert costs["cache"].bytes_written > costs["pack"].bytes_written > 0

    page = Path(write_report(config)).read_text()
    assert "<h2>Costs</h2>" in page
    assert f"{costs['train default'].core_seconds:,.1f}" in page
    assert "Prices: 1.2 a core-hour." in page
    assert "| total |" in summary_page(config)
    assert [one.state for one in status(make_config(costs={"price_per_core_hour": 9.0}))] == ["done"] * 5

    client = MlflowClient(tracking_uri_of(config))
    [parent] = client.search_runs(["1"], "tags.`rskd.stage` = 'distillation'")
    core_seconds = math.fsum(one.core_seconds for one in costs.values())
    assert parent.data.metrics["core_seconds"] == pytest.approx(core_seconds)
    assert parent.data.metrics["money"] == pytest.approx(core_seconds / 3600 * 1.2)
    assert parent.data.metrics["gpu_seconds"] == 0
    assert "| evaluate |" in parent.data.tags["mlflow.note.content"]


def test_what_still_stands_goes_on_and_a_failure_counts(tmp_path: Path, tiny_teacher_dir: Path):
    config = validate_config(tiny_settings(tmp_path, tiny_teacher_dir))

    def attempt(error: Exception | None = None, **makes: str) -> dict:
        with at_work(config, "evaluate", reserves=Reserved(cores=3, gpus=1), makes=makes) as work:
            work.add(tokens=5, bytes_written=7)
            if error is not None:
                raise error
        return costs_of(config, "evaluate") or {}

    with pytest.raises(ValueError, match="broken"):
        attempt(ValueError("broken"), a="1", b="1")
    assert attempt(a="1", b="2")["tokens"] == 10
    assert attempt(b="2", c="1")["bytes_written"] == 21
    found = attempt(b="3", c="2")
    assert (found["tokens"], found["money"]) == (5, None)
    assert found["core_seconds"] == pytest.approx(3 * found["gpu_seconds"])


def test_a_damaged_record_is_reported_before_the_work(tmp_path: Path, tiny_teacher_dir: Path):
    config = validate_config(tiny_settings(tmp_path, tiny_teacher_dir))
    file = Path(config.home, "costs", "pack.json")
    file.parent.mkdir(parents=True)
    file.write_text('{"tokens":5}')
    write_texts(tmp_path / "text")
    with pytest.raises(CorruptPartError, match=rf"{file} is not what was written .*: remove it and rerun"):
        STAGES["pack"](config)
    assert not Path(config.home, "corpus").exists()


def test_costs_that_cannot_be_written_are_warned_about(
    tmp_path: Path, tiny_teacher_dir: Path, caplog: pytest.LogCaptureFixture
):
    config = validate_config(tiny_settings(tmp_path, tiny_teacher_dir))
    Path(config.home).mkdir(parents=True)
    with at_work(config, "pack", reserves=Reserved(1), makes={}):
        Path(config.home, "costs").write_text("a file in place of the folder")
    assert "costs of pack.json are not fully recorded" in caplog.text
