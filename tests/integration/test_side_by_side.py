"""Students side by side by Ray Train on the CPU: as if one after the other; one that fails stops none of the others."""

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny_runs import STAGES, tiny_settings, write_texts

from rskd.config import DistillConfig, validate_config
from rskd.jobs.train import train_student
from rskd.jobs.train_all import train_all
from rskd.student.trainer import NonFiniteError
from rskd.tracking.connection import tracking_uri_of

pytestmark = pytest.mark.usefixtures("ray_local")

TRAIN = {"steps": 6, "global_batch": 4, "checkpoint_every": 2, "workers": 1}


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path):
    """A function from students and settings of training to the config of one packed and cached distillation."""
    root = tmp_path_factory.mktemp("side_by_side")
    write_texts(root / "text")

    def make(students: dict[str, Any], **train: Any) -> DistillConfig:
        on_ray = {"ray": {"enabled": True}, "tracking": {"enabled": True}}
        return validate_config(tiny_settings(root, tiny_teacher_dir, students=students, train=TRAIN | train, **on_ray))

    for stage in ("pack", "cache"):
        STAGES[stage](make({"a": {}}))
    return make


def weights(config: DistillConfig, student: str) -> bytes:
    return Path(config.student_uri(student), "model.safetensors").read_bytes()


def statuses(config: DistillConfig) -> dict[str, str]:
    """Of the newest run of each student in MLflow, and of the distillation's."""
    client = MlflowClient(tracking_uri_of(config))
    found = client.search_runs(["1"], order_by=["attributes.start_time ASC"])
    tags = ("rskd.student", "rskd.stage")
    return {next(run.data.tags[tag] for tag in tags if tag in run.data.tags): run.info.status for run in found}


@pytest.mark.e2e
def test_they_end_as_those_trained_one_after_the_other(make_config):
    kinds = {"kd": {}, "ce": {"objective": {"kind": "ce"}}}
    together = make_config({f"{name} together": spec for name, spec in kinds.items()}, at_once=2)
    alone = make_config({f"{name} alone": spec for name, spec in kinds.items()}, at_once=1)
    both = threading.Barrier(2, timeout=60)

    def train(config: DistillConfig, student: str) -> dict[str, Any]:
        both.wait()  # which one after the other would not pass
        return train_student(config, student)

    found = train_all(together, list(together.student_specs), train)
    one_by_one = train_all(alone, list(alone.student_specs), train_student)
    for name in kinds:
        assert weights(together, f"{name} together") == weights(alone, f"{name} alone")
        assert found[f"{name} together"]["loss"] == one_by_one[f"{name} alone"]["loss"]
    again = train_all(together, list(together.student_specs), train_student)
    assert all(summary["skipped"] for summary in again.values())


@pytest.mark.slow
def test_one_that_fails_is_named_when_all_have_ended(make_config):
    config = make_config({"good": {}, "bad": {"train": {"lr": 1e30, "min_lr": 0.0, "weight_decay": 1e30}}}, at_once=2)
    with pytest.raises(NonFiniteError, match=r"^student bad: .* is not finite at step"):
        train_all(config, ["bad", "good"], train_student)
    assert weights(config, "good")
    assert not Path(config.student_uri("bad"), "model.safetensors").exists()
    found = statuses(config)
    assert (found["good"], found["bad"], found["distillation"]) == ("FINISHED", "FAILED", "FAILED")


@pytest.mark.slow
def test_a_student_waits_for_the_cores_that_another_holds(make_config):
    """Each needs three of the four logical CPUs, at the least, that a local Ray has."""
    import ray

    cores = int(ray.cluster_resources()["CPU"])
    workers = cores // 2 + 1
    students = {name: {"train": {"workers": workers, "global_batch": workers}} for name in ("first", "second")}
    config = make_config(students, at_once=2, steps=2)
    found = train_all(config, ["first", "second"], train_student)
    assert [summary["steps"] for summary in found.values()] == [2, 2]
    assert weights(config, "first") == weights(config, "second")
