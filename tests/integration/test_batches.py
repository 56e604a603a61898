"""The search of the largest batch, by the stages' own work on the CPU; where a GPU would run out of memory is data."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import STAGES, tiny_settings, write_texts

from rskd.config import DistillConfig, RayConfig, validate_config
from rskd.errors import ConfigError
from rskd.jobs import cache, evaluate, train
from rskd.jobs.plan import Trial, plan_stage
from rskd.lineage.inputs import Inputs
from rskd.plan import Plan, Resources, plan_evaluation, planned_evaluate, planned_teacher, planned_train
from rskd.progress import show_announcements
from rskd.storage import Store

ONE_GPU = Resources(gpus=1, cores=2, gpu="a GPU, 1 GiB")
HERE = RayConfig(enabled=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> DistillConfig:
    """Packed, cached and trained."""
    root = tmp_path_factory.mktemp("batches")
    write_texts(root / "text")
    config = validate_config(
        tiny_settings(root, tiny_teacher_dir, train={"global_batch": 4}, corpus={"eval_windows": 4})
    )
    for stage in ("pack", "cache", "train"):
        STAGES[stage](config)
    return config


def test_the_work_of_each_stage_can_be_tried(config: DistillConfig):
    inputs = Inputs(config)
    run_by, _, _ = cache._prepare(config)
    on_cpu = {"workers": 1, "gpus_per_worker": 0.0, "batch": 1}
    blank = Plan("cache", "", threads=1, gpu="", origin={}, **on_cpu)
    teacher = cache.teacher_trial(run_by(planned_teacher(config.teacher, blank)))
    spec, run_by, _ = train._prepare(inputs, "default")
    student = train.student_trial(run_by(planned_train(spec.train, replace(blank, stage="train"))))
    corpus = evaluate.open_held_out(inputs)
    settings = planned_evaluate(config.evaluate, replace(blank, stage="evaluate"))
    run = evaluate.evaluation_run(config, corpus, inputs.teacher_dir, ["default"], settings)
    for trial in (teacher, student, evaluate._trial(run)):
        for size in (1, 2, 4):
            trial(size)


def test_what_was_measured_is_said_kept_and_taken_again(tmp_path: Path, config: DistillConfig, capsys):
    show_announcements()
    home, tried = Store(str(tmp_path)), []

    def make_trial(fits: int) -> Trial:
        def trial(size: int) -> None:
            tried.append(size)
            if size > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return trial

    def plan(fits: int, **of: str) -> Plan:
        resolve = partial(plan_evaluation, config, "")
        return plan_stage(resolve, ONE_GPU, HERE, home, of=of, trial=lambda plan: partial(make_trial, fits))

    assert plan(5, model="a").numbers == {"workers": 1, "gpus": 1.0, "batch_windows": 4}
    assert tried == [1, 2, 4, 8]
    assert json.loads((tmp_path / "plans" / "evaluate.json").read_text())["measured"] == {
        "batch": 4,
        "of": {"model": "a", "cap": 64, "gpu": "a GPU, 1 GiB", "gpus": 1.0},
    }
    assert plan(64, model="a").batch == 4  # whatever would fit now
    assert len(tried) == 4
    assert plan(2, model="b").batch == 2
    with pytest.raises(ConfigError, match="evaluate: not even one window fits on the GPU"):
        plan(0, model="c")
    last = "plan: evaluate: 1 worker × 1 GPU (a GPU, 1 GiB), batch_windows 2 (measured)"
    assert last in capsys.readouterr().err.splitlines()


def test_gpus_that_are_not_there(tmp_path: Path, config: DistillConfig):
    wanting = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"gpus": 64})})
    with pytest.raises(ConfigError, match=r"^evaluate\.gpus=64 but this machine has 1: lower evaluate\.gpus$"):
        plan_stage(partial(plan_evaluation, wanting, ""), ONE_GPU, HERE, Store(str(tmp_path)))


def test_a_run_on_the_cpu_keeps_its_plan(config: DistillConfig):
    plans = {path.stem: json.loads(path.read_text()) for path in Path(config.home, "plans").rglob("*.json")}
    assert plans["cache"]["plan"]["batch"] == 8
    assert plans["cache"]["measured"] is None
    assert plans["default"]["plan"] == {
        "stage": "train",
        "student": "default",
        "workers": 0,
        "gpus_per_worker": 0.0,
        "batch": 8,
        "threads": 1,
        "gpu": "",
        "origin": {"workers": "set", "gpus_per_worker": "auto", "micro_batch": "auto"},
    }
