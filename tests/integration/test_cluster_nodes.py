"""Stages on a real Ray of several nodes, of which some die: what is written equals an undisturbed run's.

Each worker takes the CPUs of a whole node, so that two of them are on two nodes.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from clusters import Cluster
from prefect.testing.utilities import prefect_test_harness

from flows.cache_logits import cache_logits as cache_flow
from rskd.config import DistillConfig, RayConfig
from rskd.jobs.cache import cache_logits
from rskd.jobs.train import train_student
from rskd.storage import Store
from rskd.student.checkpoint import LOG_FILE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(scope="module")
def undisturbed(make_clustered: Callable[..., DistillConfig]) -> DistillConfig:
    """A distillation that was cached in one process and trained on both nodes."""
    config = make_clustered("undisturbed")
    cache_logits(_in_process(config))
    assert train_student(config)["steps"] == 20
    return config


def test_a_node_dies_while_caching_and_another_joins(
    undisturbed: DistillConfig, make_clustered: Callable[..., DistillConfig], cluster: Cluster
):
    config = make_clustered("cached-in-spite")
    with _Started(cache_logits, config) as running:
        _wait(running, lambda: len(_commits(config)) >= 3)
        cluster.kill("b")
        at_the_kill = len(_commits(config))
        cluster.add_node("b", cpus=2)
        summary = running.result(200)["default"]
    assert at_the_kill < summary["parts"]
    assert _files(config.cache_uri("default")) == _files(undisturbed.cache_uri("default"))


def test_a_node_dies_while_training_and_another_joins(
    undisturbed: DistillConfig, make_clustered: Callable[..., DistillConfig], cluster: Cluster
):
    config = make_clustered("trained-in-spite")
    cache_logits(_in_process(config))
    with _Started(train_student, config) as running:
        _wait(running, lambda: _checkpoints(config))
        cluster.kill("b")
        cluster.add_node("b", cpus=2)
        running.result(250)
    assert _losses(config) == _losses(undisturbed)
    student = "model.safetensors"
    assert Store(config.student_uri("default")).read(student) == Store(undisturbed.student_uri("default")).read(student)


def test_the_head_dies_while_caching_and_the_flow_goes_on(
    undisturbed: DistillConfig, make_clustered: Callable[..., DistillConfig], cluster: Cluster
):
    """Its nodes end with it, and its jobs are forgotten; the stage's next attempt goes on from committed parts."""
    config = make_clustered("headless")
    with prefect_test_harness(server_startup_timeout=120), _Started(cache_flow, config) as running:
        _wait(running, lambda: len(_commits(config)) >= 3)
        cluster.kill_all()
        before = {name: Store(config.cache_uri("default")).modified(f"parts/{name}") for name in _commits(config)}
        cluster.start_head()
        cluster.add_node("a", cpus=2)
        cluster.add_node("b", cpus=2)
        summary = running.result(250)["default"]
    assert len(before) < summary["parts"]
    assert (
        before.items()
        <= {name: Store(config.cache_uri("default")).modified(f"parts/{name}") for name in before}.items()
    )
    assert _files(config.cache_uri("default")) == _files(undisturbed.cache_uri("default"))
    jobs = [name for name in Store(config.home).list("jobs") if ".result." not in name]
    assert [name[-6:] for name in jobs] == ["1.json", "2.json"], jobs


def _in_process(config: DistillConfig) -> DistillConfig:
    return config.model_copy(
        update={
            "ray": RayConfig(enabled=False),
            "teacher": config.teacher.model_copy(update={"workers": 1}),
        }
    )


class _Started:
    """A stage at work in a thread."""

    def __init__(self, stage: Callable[[DistillConfig], Any], config: DistillConfig):
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(stage, config)

    def __enter__(self) -> Future[Any]:
        return self._running

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False)


def _wait(running: Future[Any], condition: Callable[[], object]) -> None:
    while not condition():
        assert not running.done(), running.result()
        time.sleep(0.05)


def _commits(config: DistillConfig) -> list[str]:
    return [name for name in Store(config.cache_uri("default")).list("parts") if name.endswith(".json")]


def _checkpoints(config: DistillConfig) -> list[str]:
    names = Store(config.checkpoints_uri("default")).sizes(recursive=True)
    return [name for name in names if name.endswith("trainer.json")]


def _files(uri: str) -> dict[str, bytes]:
    store = Store(uri)
    return {name: store.read(name) for name in store.sizes(recursive=True)}


def _losses(config: DistillConfig) -> list[float]:
    log = Store(config.student_uri("default")).read(LOG_FILE)
    return [json.loads(line)["loss"] for line in log.splitlines()]
