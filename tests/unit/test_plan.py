"""The plan of each stage, from a configuration and what there is; GPUs are data here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rskd.config import DistillConfig, validate_config
from rskd.costs import Reserved
from rskd.errors import ConfigError, CorruptPartError
from rskd.plan import (
    Plan,
    Resources,
    largest_that_fits,
    plan_evaluation,
    plan_generation,
    plan_student,
    plan_teacher,
    planned_teacher,
    planned_train,
    record_plan,
    recorded_batch,
    recorded_plans,
)
from rskd.storage import Store

CPU = Resources(cores=4, threads=2)
EIGHT = Resources(gpus=8, cores=64, gpu="NVIDIA H100, 80 GiB", threads=64)


def config_of(**sections: Any) -> DistillConfig:
    minimal = {"name": "n", "corpus": {"source": {"kind": "python_docs"}}, "teacher": {"model": "m"}}
    return validate_config(minimal | sections)


def never(cap: int, plan: Plan) -> int:
    raise AssertionError(f"measured for {plan}")


def measured(cap: int, plan: Plan) -> int:
    assert plan.gpus_per_worker
    return min(cap, 16)


def test_without_a_gpu_the_numbers_are_what_they_were_before_auto():
    config = config_of()
    teacher, student = plan_teacher(config, CPU, never), plan_student(config, "default", CPU, never)
    assert teacher.numbers == {"workers": 1, "gpus_per_worker": 0.0, "batch_windows": 8}
    assert student.numbers == {"workers": 1, "gpus_per_worker": 0.0, "micro_batch": 8}
    assert plan_evaluation(config, "", CPU, never).numbers == {"workers": 1, "gpus": 0.0, "batch_windows": 4}
    assert teacher.line == "cache: 1 worker × 2 threads on the CPU, batch_windows 8 (auto)"
    assert student.reserved == Reserved(cores=2)


def test_without_ray_everything_is_in_this_process():
    config = config_of(ray={"enabled": False})
    assert plan_student(config, "default", CPU, never).numbers["workers"] == 0
    with_gpu = plan_student(config, "default", EIGHT, measured)
    assert with_gpu.numbers == {"workers": 0, "gpus_per_worker": 1.0, "micro_batch": 16}
    assert plan_teacher(config, EIGHT, measured).numbers["workers"] == 1
    assert with_gpu.reserved.gpus == 1


def test_a_worker_for_each_gpu():
    config = config_of(train={"global_batch": 6}, corpus={"source": {"kind": "python_docs"}, "windows_per_part": 4})
    teacher, student = plan_teacher(config, EIGHT, measured), plan_student(config, "default", EIGHT, measured)
    assert teacher.numbers == {"workers": 8, "gpus_per_worker": 1.0, "batch_windows": 4}  # of a part of 4 windows
    assert student.numbers == {"workers": 6, "gpus_per_worker": 1.0, "micro_batch": 1}  # of a global batch of 6
    evaluation = plan_evaluation(config, "", EIGHT, measured)
    assert evaluation.numbers == {"workers": 8, "gpus": 1.0, "batch_windows": 16}
    assert teacher.line == "cache: 8 workers × 1 GPU (NVIDIA H100, 80 GiB), batch_windows 4 (measured)"
    assert teacher.params == {"teacher": teacher.numbers, "plan": teacher.line}


def test_what_is_set_stays():
    teacher = {"model": "m", "workers": 2, "batch_windows": 3}
    config = config_of(teacher=teacher, train={"workers": 2, "gpus_per_worker": 0, "micro_batch": 5})
    plan = plan_teacher(config, EIGHT, never)
    assert plan.numbers == {"workers": 2, "gpus_per_worker": 1.0, "batch_windows": 3}
    assert plan.origin == {"workers": "set", "gpus_per_worker": "auto", "batch_windows": "set"}
    assert planned_teacher(config.teacher, plan).batch_windows == 3
    student = plan_student(config, "default", EIGHT, never)
    assert student.numbers == {"workers": 2, "gpus_per_worker": 0.0, "micro_batch": 5}
    assert planned_train(config.train, student).model_dump() == config.train.model_dump()


@pytest.mark.parametrize(
    ("there", "workers"),
    [
        (Resources(gpus=8, cores=4), 3),  # a core each, one left over
        (Resources(gpus=8, cores=16, cores_per_thread=True), 7),  # of two threads each
        (Resources(gpus=8, cores=2, cores_per_thread=True), 1),
    ],
)
def test_workers_are_as_many_as_cores_go_around_for(there: Resources, workers: int):
    assert plan_teacher(config_of(), there, measured).workers == workers


def test_vllm_has_a_worker_for_each_model_that_is_spread_over_gpus():
    config = config_of(teacher={"model": "m", "engine": "vllm", "tensor_parallel": 4})
    plan = plan_teacher(config, EIGHT, never)
    assert plan.numbers == {"workers": 2, "gpus_per_worker": 4.0, "batch_windows": 8}
    assert planned_teacher(config.teacher, plan).gpus_per_worker == 4
    assert plan_teacher(config, CPU, never).gpus_per_worker == 0
    with pytest.raises(ConfigError, match="tensor_parallel=4 needs as many GPUs, but there is 1: lower it"):
        plan_teacher(config, Resources(gpus=1, cores=8), never)


def test_a_kernel_for_gpus_needs_one():
    config = config_of(objective={"impl": "triton"})
    assert plan_student(config, "default", EIGHT, measured).gpus_per_worker == 1
    with pytest.raises(ConfigError, match="impl=triton of student default needs a GPU, and there is none"):
        plan_student(config, "default", CPU, never)


def test_generation_has_a_gpu_where_there_is_one():
    sets = {"own": {"kind": "own", "uri": "prompts.jsonl"}}
    settings = config_of(generate={"prompt_sets": sets}).generate
    assert settings is not None
    assert plan_generation(settings, "ce", EIGHT).line == "generate ce: 1 worker × 1 GPU (NVIDIA H100, 80 GiB)"
    assert plan_generation(settings, "ce", CPU).line == "generate ce: 1 worker × 2 threads on the CPU"


@pytest.mark.parametrize(("room", "cap", "found"), [(100, 64, 64), (37, 64, 32), (1, 64, 1), (0, 64, None), (9, 6, 4)])
def test_the_largest_power_of_two_that_fits(room: int, cap: int, found: int | None):
    tried = []

    def trial(size: int) -> None:
        tried.append(size)
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(trial, cap) == found
    assert tried == [2**n for n in range(len(tried))]
    assert all(size <= room for size in tried[:-1])  # the first that fails is the last


def test_another_error_is_none_of_memory():
    def trial(size: int) -> None:
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        largest_that_fits(trial, 8)


def test_plans_are_kept_with_the_batch_that_was_measured(tmp_path: Path):
    home, config = Store(str(tmp_path)), config_of(students={"a": {}, "b": {}})
    assert recorded_plans(home) == []
    teacher = plan_teacher(config, EIGHT, measured)
    students = [plan_student(config, name, EIGHT, measured) for name in ("b", "a")]
    needs = {"teacher": {"model": "m"}, "gpu": EIGHT.gpu}
    record_plan(home, teacher, {"of": needs, "batch": 16})
    for plan in students:
        record_plan(home, plan, None)
    assert recorded_plans(home) == [teacher, *reversed(students)]
    assert recorded_batch(home, "cache", "", needs) == 16
    assert recorded_batch(home, "cache", "", needs | {"gpu": "another"}) is None
    assert recorded_batch(home, "train", "a") is None
    record_plan(home, plan_teacher(config, CPU, never), None)  # a run on the CPU forgets nothing
    assert recorded_batch(home, "cache", "", needs) == 16
    file = tmp_path / "plans" / "cache.json"
    file.write_bytes(file.read_bytes().replace(b":16", b":64"))
    with pytest.raises(CorruptPartError, match=r"plans/cache\.json"):
        recorded_batch(home, "cache", "", needs)
