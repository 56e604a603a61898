"""System metrics of a stage, by MLflow's own monitors, on a real store."""

import copy
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rskd import tracking
from rskd.config import DistillConfig, validate_config

CPU = "system/cpu_utilization_percentage"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(tmp_path_factory.mktemp("storage"))},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "a-teacher"},
        }
    )


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")


def keep_busy(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sum(range(10_000))


def metrics_of(run: tracking.Run) -> dict[str, float]:
    return MlflowClient(run.tracking_uri).get_run(run.run_id).data.metrics


def samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_long_stage_is_sampled_and_however_it_ends_that_stops(
    config: DistillConfig, error: type[BaseException] | None
):
    runs = []

    def stage() -> None:
        with tracking.stage(config, "train") as run:
            runs.append(run)
            keep_busy(1.5)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            stage()
    else:
        stage()
    assert samplers() == []
    found = metrics_of(runs[0])
    assert 0 < found[CPU] <= 100
    assert {"system/system_memory_usage_percentage", "system/disk_usage_percentage"} <= found.keys()
    history = MlflowClient(runs[0].tracking_uri).get_metric_history(runs[0].run_id, CPU)
    assert [point.step for point in history] == list(range(len(history)))


def test_a_short_stage_has_none(config: DistillConfig):
    with tracking.stage(config, "pack") as run:
        assert len(samplers()) == 1
    assert samplers() == []
    assert metrics_of(run) == {}


@pytest.mark.usefixtures("often")
def test_of_two_on_one_machine_one_samples_and_the_other_takes_over(config: DistillConfig):
    run = tracking.distillation(config)

    def names() -> set[str]:
        return {name for name in metrics_of(run) if name.startswith("system/")}

    with ExitStack() as second:
        with tracking.monitored(copy.copy(run)):
            wait_for(lambda: bool(names()))
            second.enter_context(tracking.monitored(run, by_node=False))
            time.sleep(0.5)
            assert CPU not in names()
        wait_for(lambda: CPU in names())
    assert samplers() == []


def wait_for(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("often")
def test_without_mlflow_or_its_database_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    elsewhere = tracking.Run(f"sqlite:///{tmp_path}/of-another-machine.db", "1", "a" * 32)
    away = tracking.Run("http://127.0.0.1:9", "1", "b" * 32)
    with caplog.at_level(logging.WARNING), tracking.monitored(elsewhere), tracking.monitored(away):
        wait_for(lambda: "MLflow refuses the metrics of run bbb" in caplog.text)
    assert list(tmp_path.iterdir()) == []
    assert samplers() == []


def test_workers_have_a_run_on_a_cluster_alone(config: DistillConfig):
    with tracking.stage(config, "cache") as run:
        assert tracking.for_workers(run, config) is None
        cluster = config.model_copy(update={"ray": config.ray.model_copy(update={"address": "10.0.0.1:6379"})})
        assert tracking.for_workers(run, cluster) is run
        untracked = cluster.model_copy(update={"tracking": config.tracking.model_copy(update={"enabled": False})})
        assert tracking.for_workers(run, untracked) is None
    with tracking.monitored(None):
        assert samplers() == []
