"""What each stage runs on: the numbers in place of `auto`, from the configuration and what there is.

    config, Resources (GPUs, cores) ─► plan_teacher, plan_student, … ─► Plan ─► planned(section, plan): numbers alone
                         batch on a GPU ◄─ measure, once ◄─┘  └─► <home>/plans/<stage>.json, plans/train/<student>.json

Without a GPU the numbers are CPU defaults: one worker, 8 windows (evaluation: 4). With GPUs there is a worker for each
(of vLLM: for each `tensor_parallel` of them), as far as cores and windows go around. What is set stays as it is.
Everything but `resources_here` and the files is a pure function; `rskd.jobs.plan` asks Ray and measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rskd import records
from rskd.config import (
    DistillConfig,
    EvaluateConfig,
    GenerateConfig,
    PlannedEvaluate,
    PlannedGenerate,
    PlannedTeacher,
    PlannedTrain,
    TeacherConfig,
    TrainConfig,
)
from rskd.cores import usable_cores
from rskd.costs import Reserved
from rskd.errors import ConfigError
from rskd.storage import Store

FOLDER = "plans"  # below a distillation's, written by `rskd.jobs.plan`
DEFAULT_BATCH = {"cache": 8, "train": 8, "evaluate": 4}  # windows: on the CPU, and of vLLM
LARGEST_BATCH = 64  # windows; beyond it a GPU that is busy gets no faster
SET, AUTO, MEASURED = "set", "auto", "measured"  # where a number is from
_KEYS = {  # of the section, for workers, GPUs of each and batch
    "cache": ("workers", "gpus_per_worker", "batch_windows"),
    "train": ("workers", "gpus_per_worker", "micro_batch"),
    "evaluate": ("workers", "gpus", "batch_windows"),
    "generate": (None, "gpus", None),
}


@dataclass(frozen=True)
class Resources:
    """What a machine or a cluster has; `gpu` is the name of its GPUs, with their memory where that is known."""

    gpus: int = 0
    cores: int = 1
    gpu: str = ""
    cores_per_thread: bool = False  # whether a worker reserves a core for each thread (on a cluster), or one alone
    threads: int = 1  # of a stage that has a machine to itself


@dataclass(frozen=True)
class Plan:
    """What a stage runs on; `workers` 0 is the driver's process, `batch` None where the stage has none."""

    stage: str
    student: str  # or the model that answers; "" for a stage of none
    workers: int
    gpus_per_worker: float
    batch: int | None
    threads: int  # of a worker
    gpu: str  # the name of the GPUs; "" on the CPU
    origin: dict[str, str]  # set, auto or measured, by the key of the section

    @property
    def title(self) -> str:
        return f"{self.stage} {self.student}".strip()

    @property
    def device(self) -> str:
        """As a page says it: `8 workers × 1 GPU (NVIDIA H100)`, `1 worker × 2 threads on the CPU`."""
        workers = "this process" if self.workers == 0 else f"{self.workers} worker{'s' * (self.workers > 1)}"
        if self.gpus_per_worker:
            gpus = f"{self.gpus_per_worker:g} GPU{'s' * (self.gpus_per_worker > 1)}"
            return f"{workers} × {gpus}{f' ({self.gpu})' * bool(self.gpu)}"
        return f"{workers} × {self.threads} thread{'s' * (self.threads > 1)} on the CPU"

    @property
    def batch_said(self) -> str:
        """`micro_batch 16 (measured)`; "" where the stage has none."""
        key = _KEYS[self.stage][2]
        return "" if key is None else f"{key} {self.batch} ({self.origin[key]})"

    @property
    def line(self) -> str:
        """`train ce: 8 workers × 1 GPU (NVIDIA H100), micro_batch 16 (measured)`."""
        return f"{self.title}: {', '.join(filter(None, (self.device, self.batch_said)))}"

    def key_of(self, what: Literal["workers", "gpus"]) -> str:
        """The key of the configuration, as messages name it."""
        return f"{self._section}.{_KEYS[self.stage][0 if what == 'workers' else 1]}"

    @property
    def reserved(self) -> Reserved:
        """What it holds while it works."""
        return Reserved.by_workers(self.workers, threads=self.threads, gpus=self.gpus_per_worker)

    @property
    def params(self) -> dict[str, Any]:
        """What it puts in place of `auto`, by section and key, and its line."""
        return {self._section: self.numbers, "plan": self.line}

    @property
    def _section(self) -> str:
        return {"cache": "teacher"}.get(self.stage, self.stage)

    @property
    def numbers(self) -> dict[str, Any]:
        """By the keys of the section."""
        values = zip(_KEYS[self.stage], (self.workers, self.gpus_per_worker, self.batch))
        return {key: value for key, value in values if key is not None and value is not None}


Measure = Callable[[int, Plan], int]  # the largest batch that fits: of so many windows at most, for the rest of a plan


def resources_here() -> Resources:
    """Of this machine, as far as this process may use it."""
    import torch

    count = torch.cuda.device_count()
    cores = usable_cores()
    if count == 0:
        return Resources(cores=cores, threads=cores)
    device = torch.cuda.get_device_properties(0)
    return Resources(count, cores, f"{device.name}, {device.total_memory / 2**30:.0f} GiB", threads=cores)


def plan_teacher(config: DistillConfig, there: Resources, measure: Measure) -> Plan:
    """Of the stage `cache`. Raises ConfigError for a model that is spread over more GPUs than there are."""
    teacher = config.teacher
    each = teacher.tensor_parallel if teacher.engine == "vllm" else 1
    if teacher.gpus_per_worker == "auto" and 0 < there.gpus < each:
        raise ConfigError(f"teacher.tensor_parallel={each} needs as many GPUs, but there is {there.gpus}: lower it")
    gpus = _gpus(teacher.gpus_per_worker, there, each)
    workers = teacher.workers
    if workers == "auto":
        workers = _workers(there, gpus, teacher.threads_per_worker) if config.ray.enabled else 1
    found = _plan("cache", "", teacher, workers, gpus, teacher.threads_per_worker, there)
    engines_own = teacher.engine == "vllm"
    cap = 0 if engines_own else min(LARGEST_BATCH, config.corpus.windows_per_part)
    return _with_batch(found, teacher.batch_windows, cap, measure)


def plan_student(config: DistillConfig, student: str, there: Resources, measure: Measure) -> Plan:
    """Of the stage `train`. Raises ConfigError for a loss that needs a GPU where there is none."""
    spec = config.student_spec(student)
    train = spec.train
    gpus = _gpus(train.gpus_per_worker, there)
    if spec.objective.impl == "triton" and not gpus:
        raise ConfigError(f"impl=triton of student {student} needs a GPU, and there is none: set impl=auto")
    workers = train.workers
    if workers == "auto":
        at_once = min(1 if train.at_once == "auto" else train.at_once, len(config.student_specs))
        share = replace(there, gpus=there.gpus // at_once, cores=there.cores // at_once)
        alike = min(_workers(share, gpus, train.threads_per_worker), train.global_batch)
        workers = alike if config.ray.enabled else 0
    found = _plan("train", student, train, workers, gpus, train.threads_per_worker, there)
    if train.sharding == "full" and train.micro_batch == "auto" and gpus:
        return replace(found, batch=1)  # what fits would have to be tried by all workers at once
    cap = min(LARGEST_BATCH, -(-train.global_batch // max(1, workers)))
    return _with_batch(found, train.micro_batch, cap, measure)


def students_at_once(config: DistillConfig, students: Sequence[str], there: Resources) -> int:
    """How many are trained at the same time: `train.at_once`, or as many as there are GPUs for; 1 on the CPU."""
    if config.train.at_once != "auto":
        return min(config.train.at_once, len(students))
    plans = [plan_student(config, student, there, lambda cap, plan: cap) for student in students]
    if any(plan.workers == 0 or not plan.gpus_per_worker for plan in plans):
        return 1
    gpus = max(plan.reserved.gpus for plan in plans)
    cores = max(plan.workers * (plan.threads if there.cores_per_thread else 1) for plan in plans)
    return max(1, min(len(students), int(there.gpus / gpus), there.cores // cores))


def plan_evaluation(config: DistillConfig, student: str, there: Resources, measure: Measure) -> Plan:
    """Of the stage `evaluate`; with a student's name, of an evaluation of that alone."""
    evaluate = config.evaluate
    gpus, workers = _gpus(evaluate.gpus, there), evaluate.workers
    if workers == "auto":
        workers = _workers(replace(there, cores_per_thread=False), gpus, 1) if config.ray.enabled else 1
    threads = there.threads if there.cores_per_thread else max(1, there.threads // workers)
    found = _plan("evaluate", student, evaluate, workers, gpus, threads, there)
    return _with_batch(found, evaluate.batch_windows, LARGEST_BATCH, measure)


def plan_generation(settings: GenerateConfig, model: str, there: Resources) -> Plan:
    """Of the stage `generate`."""
    return _plan("generate", model, settings, 1, _gpus(settings.gpus, there), there.threads, there)


def planned_teacher(teacher: TeacherConfig, plan: Plan) -> PlannedTeacher:
    """The section with the numbers of its plan, as the next three."""
    return PlannedTeacher(**dict(teacher) | plan.numbers)


def planned_train(train: TrainConfig, plan: Plan) -> PlannedTrain:
    return PlannedTrain(**dict(train) | plan.numbers)


def planned_evaluate(evaluate: EvaluateConfig, plan: Plan) -> PlannedEvaluate:
    return PlannedEvaluate(**dict(evaluate) | plan.numbers)


def planned_generate(generate: GenerateConfig, plan: Plan) -> PlannedGenerate:
    return PlannedGenerate(**dict(generate) | plan.numbers)


def largest_that_fits(trial: Callable[[int], object], cap: int) -> int | None:
    """The largest power of two <= `cap` for which `trial` does not run out of memory; None if 1 does.

    Doubles from 1 on, so the trial that fails is the last.
    """
    import torch

    fits, size = None, 1
    while size <= cap:
        try:
            trial(size)
        except torch.OutOfMemoryError:
            break
        fits, size = size, 2 * size
    return fits


def record_plan(home: Store, plan: Plan, measured: Mapping[str, Any] | None) -> None:
    """Keep a plan beside the outputs, with the batch that was `measured`, now or before, and what that depends on."""
    folder, file = home.child(FOLDER), _file(plan.stage, plan.student)
    if measured is None:
        measured = (records.read(folder, file) or {}).get("measured")
    records.write(folder, file, {"plan": asdict(plan), "measured": measured})


def recorded_batch(home: Store, stage: str, student: str, of: Mapping[str, Any] | None = None) -> int | None:
    """The batch that was measured for a stage, whatever for or for `of` alone; None where none was."""
    found = records.read(home.child(FOLDER), _file(stage, student))
    measured = found and found["measured"]
    return measured["batch"] if measured and (of is None or measured["of"] == of) else None


def recorded_plans(home: Store) -> list[Plan]:
    """The last plan of every stage that has worked, in the order of the stages."""
    folder = home.child(FOLDER)
    found = [records.read(folder, file) for file in folder.sizes(recursive=True) if file.endswith(".json")]
    plans = [Plan(**record["plan"]) for record in found if record is not None]
    return sorted(plans, key=lambda plan: (list(_KEYS).index(plan.stage), plan.student))


def _gpus(wanted: float | str, there: Resources, each: int = 1) -> float:
    return float(wanted) if wanted != "auto" else float(each if there.gpus else 0)


def _workers(there: Resources, gpus: float, threads: int) -> int:
    """As many as GPUs and cores go around for, one core left to who reads and writes; 1 on the CPU."""
    if not gpus:
        return 1
    by_cores = (there.cores - 1) // (threads if there.cores_per_thread else 1)
    return max(1, min(int(there.gpus / gpus), by_cores))


def _plan(
    stage: str,
    student: str,
    section: TeacherConfig | TrainConfig | EvaluateConfig | GenerateConfig,
    workers: int,
    gpus: float,
    threads: int,
    there: Resources,
) -> Plan:
    """A plan without its batch."""
    origin = {key: AUTO if getattr(section, key) == "auto" else SET for key in _KEYS[stage] if key is not None}
    return Plan(stage, student, workers, gpus, None, threads, there.gpu if gpus else "", origin)


def _with_batch(plan: Plan, wanted: int | str, cap: int, measure: Measure) -> Plan:
    """`cap` 0: the engine has batches of its own."""
    if wanted != "auto":
        return replace(plan, batch=int(wanted))
    if not plan.gpus_per_worker or not cap:
        return replace(plan, batch=DEFAULT_BATCH[plan.stage])
    key = _KEYS[plan.stage][2]
    return replace(plan, batch=measure(cap, plan), origin=plan.origin | {str(key): MEASURED})


def _file(stage: str, student: str) -> str:
    return f"{stage}/{student}.json" if student else f"{stage}.json"
