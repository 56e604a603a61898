"""What a distillation will cost: storage, teacher and student time, money, for a number of tokens.

Measured where there is a cache of this configuration, or a finished stage in MLflow. Fitted, for the unique tokens of a
cache that does not exist, where `probe` ran the teacher on a few windows. Else from the defaults below. `source` says
which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from rskd import tracking
from rskd.cache.inspection import inspect
from rskd.config import DistillConfig, PlannedTeacher, SamplingConfig
from rskd.corpus.packed_corpus import MANIFEST_FILE
from rskd.costs import COSTS, Reserved
from rskd.estimate.growth import at_scale
from rskd.estimate.memory import student_memory
from rskd.estimate.probe import probed_laws
from rskd.evaluation.unique_tokens import PowerLaw
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.lineage.student import EXECUTION
from rskd.models.load import num_head_parameters, num_parameters
from rskd.plan import (
    DEFAULT_BATCH,
    Plan,
    Resources,
    plan_student,
    plan_teacher,
    planned_teacher,
    planned_train,
    recorded_batch,
    resources_here,
)
from rskd.storage import Store
from rskd.teacher_statistics import STATISTICS

# From tests/bench/bench_storage.py: SmolLM2-135M on CPython's documentation, 51,200 positions in windows of 256,
# 2026-11-24. Mean unique tokens by rounds (paper, Appendix C).
UNIQUE_TOKENS = {"random": PowerLaw(1.05, 0.719), "systematic": PowerLaw(1.135, 0.727)}
# Bytes for each position: the window's own ids, each unique token.
BYTES_PER_POSITION = 1.5
BYTES_PER_COUNT = {"plain": 1.9, "compact": 1.6}
BYTES_PER_PROBABILITY = 3.15
BYTES_PER_WEIGHT = 4.7  # rskd.reproduction at cpu-small, V = 4,096, 2026-11-25
# Sustained floating-point operations per second in a forward pass.
CPU_THREAD_FLOPS = 27e9
GPU_FLOPS = 150e12
_CORES_PER_GPU = 8  # of machines that one rents
_SPEED_DEPENDS_ON = EXECUTION - {"checkpoint_every", "max_failures", "at_once"} | {"precision"}


def estimate(
    config: DistillConfig, *, tokens: int | None = None, gpus: int | None = None, gpu_memory_gib: float | None = None
) -> dict[str, Any]:
    """Costs of distilling `tokens` training tokens (those of the packed corpus by default).

    `gpus` plans for a cluster of so many, of `gpu_memory_gib` each, in place of what this machine has.

    Of conversations, storage and the teacher's output head scale with the share of tokens that have a loss in the
    packed corpus; before there is one, all count.

    Returns corpus {tokens, windows, parts; loss_tokens of conversations}, teacher {tokens_per_s, source, and COSTS},
    caches {<name>: bytes, bytes_per_token, unique_per_token, source}, students {<name>: tokens, epochs, tokens_per_s,
    source, COSTS, and `memory` (`student_memory`)}, `break_even` (see there) and `scale` (`at_scale`); the speed of a
    student that was not trained yet, and its costs, are unknown: None.

    Raises ConfigError for a teacher that does not exist, MissingOutputError without `tokens` and a packed corpus.
    """
    inputs, there = Inputs(config), _there(gpus)
    seq_len = config.corpus.seq_len
    if tokens is None:
        with inputs_first(config):
            tokens = open_corpus(inputs, "train").num_rows * seq_len
    windows = math.ceil(tokens / seq_len)
    plan = _teacher_plan(config, there)
    planned = planned_teacher(config.teacher, plan)
    measured = tracking.measured_speed(config, "cache", None, {"teacher": planned.model_dump(mode="json")})
    loss_share = _loss_share(inputs)
    speed = measured or teacher_tokens_per_s(planned, _parameters_per_token(inputs, loss_share))
    teacher = {
        "tokens_per_s": speed,
        **_costs(config, plan.reserved, tokens / speed),
        "source": _source(measured),
    }
    laws = probed_laws(config)
    samplings = config.cache_samplings.items()
    caches = {name: _cache(config, name, sampling, laws, loss_share) for name, sampling in samplings}
    of_chat = {"loss_tokens": round(tokens * loss_share)} if config.corpus.kind == "chat" else {}
    caches = {name: cache | {"bytes": round(tokens * cache["bytes_per_token"])} for name, cache in caches.items()}
    parts = math.ceil(windows / config.corpus.windows_per_part)
    students = {name: _student(inputs, name, tokens, there, gpu_memory_gib) for name in config.student_specs}
    trained = max(students.values(), key=lambda student: student["tokens"])["tokens"]
    cache_bytes = max(cache["bytes"] for cache in caches.values())
    return {
        "corpus": {"tokens": tokens, "windows": windows, "parts": parts, **of_chat},
        "teacher": teacher,
        "caches": caches,
        "students": students,
        "break_even": break_even(config, tokens=tokens, tokens_per_s=speed, reserved=plan.reserved),
        "scale": at_scale(
            parts=parts,
            num_caches=len(caches),
            cache_bytes=cache_bytes,
            epochs=trained / tokens,
            seq_len=seq_len,
            windows_per_part=config.corpus.windows_per_part,
        ),
    }


def break_even(
    config: DistillConfig, *, tokens: int, tokens_per_s: float, reserved: Reserved | None = None
) -> dict[str, Any] | None:
    """From where on a cache is cheaper than a teacher online; None where no student learns from a cache.

    Cached, the teacher runs once over the `tokens` of the corpus. Online it runs over each token that a student trains
    on, steps·global_batch·seq_len of them, for each student again. At the same speed and on the same machines:

        cached = tokens / tokens_per_s        online = Σ_students steps·global_batch·seq_len / tokens_per_s

    Returns `students`, the least whole number n of students of the configured (mean) tokens T for which n·T > tokens;
    `epochs`, the passes over the corpus of each of the n configured students beyond which n·epochs > 1, so 1/n; and
    `cached` and `online`, the COSTS for the configured students of a teacher that has `reserved` its machines (this one
    by default). Training comes on top of both, alike.
    """
    specs = config.student_specs.items()
    trained = [_trained_tokens(config, name) for name, spec in specs if spec.objective.kind == "sparse_kd"]
    if not trained:
        return None
    reserved = reserved or _teacher_plan(config, resources_here()).reserved
    return {
        "students": tokens * len(trained) // sum(trained) + 1,
        "epochs": 1 / len(trained),
        "cached": _costs(config, reserved, tokens / tokens_per_s),
        "online": _costs(config, reserved, sum(trained) / tokens_per_s),
    }


def teacher_tokens_per_s(config: PlannedTeacher, num_parameters: float) -> float:
    """Tokens per second of all teacher workers, at 2 floating-point operations for each parameter and token."""
    device_flops = config.gpus_per_worker * GPU_FLOPS or config.threads_per_worker * CPU_THREAD_FLOPS
    return config.workers * device_flops / (2 * num_parameters)


def predicted_costs(
    sampling: SamplingConfig, laws: Mapping[str, PowerLaw], loss_share: float = 1.0
) -> tuple[float, float]:
    """Unique tokens and bytes for each position of a cache that does not exist yet, where that share has a loss.

    At most, for top_p and for random sampling at another temperature than 1, whose law nobody fitted.
    """
    unique, bytes_per_entry = _predicted_entries(sampling, laws)
    statistics = sum(STATISTICS[name].bytes_per_position for name in sampling.statistics)
    return loss_share * unique, loss_share * (unique * bytes_per_entry + statistics) + BYTES_PER_POSITION


def _predicted_entries(sampling: SamplingConfig, laws: Mapping[str, PowerLaw]) -> tuple[float, float]:
    """Unique tokens where there is a loss, and the bytes of each."""
    if sampling.method in ("top_k", "top_p"):
        assert sampling.k is not None  # SamplingConfig checks it
        return float(sampling.k), BYTES_PER_PROBABILITY
    if sampling.temperature != 1:
        return float(sampling.num_samples), BYTES_PER_WEIGHT
    return laws[sampling.method].unique_tokens(sampling.num_samples), BYTES_PER_COUNT[sampling.layout]


def _loss_share(inputs: Inputs) -> float:
    """Of positions; 1 for texts, and for conversations that are not packed yet."""
    config = inputs.config
    if config.corpus.kind != "chat" or not Store(config.corpus_uri("train")).exists(MANIFEST_FILE):
        return 1.0
    return open_corpus(inputs, "train").manifest.shares["loss_share"]


def _parameters_per_token(inputs: Inputs, loss_share: float) -> float:
    """Of the teacher, with those of its output head as often as it runs."""
    options = {"trust_remote_code": inputs.config.teacher.trust_remote_code}
    total = num_parameters(inputs.teacher_dir, **options)
    return total if loss_share == 1 else total - (1 - loss_share) * num_head_parameters(inputs.teacher_dir, **options)


def _cache(
    config: DistillConfig,
    name: str,
    sampling: SamplingConfig,
    laws: Mapping[str, PowerLaw] | None,
    loss_share: float,
) -> dict[str, Any]:
    uri = config.cache_uri(name)
    found = inspect(uri) if Store(uri).exists("manifest.json") else None
    wanted = sampling.model_dump(mode="json")
    if found and (found["sampling"], found["teacher"]["model"]) == (wanted, config.teacher.model):
        return {key: found[key] for key in ("unique_per_token", "bytes_per_token")} | {"source": "measured"}
    unique, num_bytes = predicted_costs(sampling, laws or UNIQUE_TOKENS, loss_share)
    fitted = laws is not None and sampling.method in laws and sampling.temperature == 1
    return {"unique_per_token": unique, "bytes_per_token": num_bytes, "source": "fitted" if fitted else "default"}


def _student(inputs: Inputs, name: str, tokens: int, there: Resources, gpu_memory_gib: float | None) -> dict[str, Any]:
    """Passes over `tokens`, the time of training at the speed at which the same student was trained, and memory."""
    config = inputs.config
    spec, trained = config.student_specs[name], _trained_tokens(config, name)
    plan = plan_student(config, name, there, partial(_batch, config))
    memory = student_memory(inputs, spec, workers=max(1, plan.workers), gpu_memory_gib=gpu_memory_gib)
    params = spec.model_dump(mode="json", include={"student": True, "objective": {"kind"}})
    params["train"] = planned_train(spec.train, plan).model_dump(mode="json", include=_SPEED_DEPENDS_ON)
    speed = tracking.measured_speed(config, "train", name, params)
    return {
        "tokens": trained,
        "epochs": trained / tokens,
        "tokens_per_s": speed,
        **_costs(config, plan.reserved, trained / speed if speed else None),
        "source": _source(speed),
        "memory": memory,
    }


def _trained_tokens(config: DistillConfig, student: str) -> int:
    train = config.student_specs[student].train
    return train.steps * train.global_batch * config.corpus.seq_len


def _there(gpus: int | None) -> Resources:
    """What is planned for: this machine, since a cluster is not asked, or so many GPUs with cores for each."""
    here = resources_here()
    return here if gpus is None else Resources(gpus=gpus, cores=_CORES_PER_GPU * gpus + 1, threads=here.threads)


def _teacher_plan(config: DistillConfig, there: Resources) -> Plan:
    return plan_teacher(config, there, partial(_batch, config))


def _batch(config: DistillConfig, cap: int, plan: Plan) -> int:
    """What was measured for a stage; nothing is measured for an estimate."""
    return recorded_batch(Store(config.home), plan.stage, plan.student) or min(cap, DEFAULT_BATCH[plan.stage])


def _costs(config: DistillConfig, reserved: Reserved, seconds: float | None) -> dict[str, float | None]:
    """COSTS of holding something for so many seconds; None where these are not known."""
    if seconds is None:
        return dict.fromkeys(COSTS)
    priced = reserved.costs(seconds).priced(config.costs)
    return {name: getattr(priced, name) for name in COSTS}


def _source(measured: float | None) -> str:
    return "default" if measured is None else "measured"
