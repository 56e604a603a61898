"""What a distillation will cost: storage, teacher time, parts and epochs, for a number of tokens.

Measured where there is a cache of this configuration, or a finished stage in MLflow, else from the defaults below;
`source` says which.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rskd import tracking
from rskd.cache.inspection import inspect
from rskd.config import DistillConfig, SamplingConfig, TeacherConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.storage import Store
from rskd.teacher.model_files import resolve_model

# From tests/bench/bench_storage.py: SmolLM2-135M on technical prose, 51,200 positions in windows of 256, 2026-11-24.
# Mean unique tokens follow a power law in the rounds (paper, Appendix C): U·(N/50)^e.
UNIQUE_AT_50_ROUNDS = {"random": 17.5, "systematic": 19.5}
UNIQUE_EXPONENT = 0.73
# Bytes for each position: the window's own ids, each unique token, each statistic.
BYTES_PER_POSITION = 1.5
BYTES_PER_COUNT = {"plain": 1.9, "compact": 1.6}
BYTES_PER_PROBABILITY = 3.15
BYTES_PER_STATISTIC = {"label_logprob": 1.9, "entropy": 1.7, "top1": 1.4}
# Sustained floating-point operations per second in a forward pass.
CPU_THREAD_FLOPS = 27e9
GPU_FLOPS = 150e12
_SPEED_DEPENDS_ON = {"micro_batch", "precision", "workers", "gpus_per_worker", "threads_per_worker"}


def estimate(config: DistillConfig, *, tokens: int | None = None) -> dict[str, Any]:
    """Costs of distilling `tokens` training tokens (those of the packed corpus by default).

    Returns corpus {tokens, windows, parts}, teacher {tokens_per_s, seconds, source}, caches {<name>: bytes,
    bytes_per_token, unique_per_token, source}, students {<name>: tokens, epochs, tokens_per_s, seconds, source}; the
    speed of a student that was not trained yet is unknown: None.

    Raises ConfigError for a teacher that does not exist, MissingOutputError without `tokens` and a packed corpus.
    """
    teacher_dir = resolve_model(config.teacher.model, revision=config.teacher.revision, teachers=config.teachers_uri)
    seq_len = config.corpus.seq_len
    tokens = tokens or PackedCorpus.open(config.corpus_uri("train")).num_rows * seq_len
    windows = math.ceil(tokens / seq_len)
    measured = tracking.measured_speed(config, "cache", None, {"teacher": config.teacher.model_dump(mode="json")})
    speed = measured or teacher_tokens_per_s(config.teacher, num_parameters(teacher_dir))
    caches = {name: _cache(config, name, sampling) for name, sampling in config.cache_samplings.items()}
    return {
        "corpus": {"tokens": tokens, "windows": windows, "parts": math.ceil(windows / config.corpus.windows_per_part)},
        "teacher": {"tokens_per_s": speed, "seconds": tokens / speed, "source": _source(measured)},
        "caches": {name: cache | {"bytes": round(tokens * cache["bytes_per_token"])} for name, cache in caches.items()},
        "students": {name: _student(config, name, tokens) for name in config.student_specs},
    }


def num_parameters(model_dir: str) -> int:
    """Parameters of a model, from its configuration alone; tied weights count once."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir)).num_parameters()


def teacher_tokens_per_s(config: TeacherConfig, num_parameters: int) -> float:
    """Tokens per second of all teacher workers, at 2 floating-point operations for each parameter and token."""
    device_flops = config.gpus_per_worker * GPU_FLOPS or config.threads_per_worker * CPU_THREAD_FLOPS
    return config.workers * device_flops / (2 * num_parameters)


def default_costs(sampling: SamplingConfig) -> tuple[float, float]:
    """Unique tokens and bytes for each position of a cache that does not exist yet; for top_p, at most."""
    fixed = BYTES_PER_POSITION + sum(BYTES_PER_STATISTIC[name] for name in sampling.statistics)
    if sampling.method in ("top_k", "top_p"):
        assert sampling.k is not None  # SamplingConfig checks it
        return float(sampling.k), sampling.k * BYTES_PER_PROBABILITY + fixed
    unique = UNIQUE_AT_50_ROUNDS[sampling.method] * (sampling.num_samples / 50) ** UNIQUE_EXPONENT
    return unique, unique * BYTES_PER_COUNT[sampling.layout] + fixed


def _cache(config: DistillConfig, name: str, sampling: SamplingConfig) -> dict[str, Any]:
    uri = config.cache_uri(name)
    found = inspect(uri) if Store(uri).exists("manifest.json") else None
    if found and found["sampling"] == sampling.model_dump(mode="json"):
        return {key: found[key] for key in ("unique_per_token", "bytes_per_token")} | {"source": "measured"}
    unique, num_bytes = default_costs(sampling)
    return {"unique_per_token": unique, "bytes_per_token": num_bytes, "source": "default"}


def _student(config: DistillConfig, name: str, tokens: int) -> dict[str, Any]:
    """Passes over `tokens`, and the time of training at the speed at which the same student was trained before."""
    spec = config.student_specs[name]
    trained = spec.train.steps * spec.train.global_batch * config.corpus.seq_len
    params = spec.model_dump(mode="json", include={"student": True, "objective": {"kind"}, "train": _SPEED_DEPENDS_ON})
    speed = tracking.measured_speed(config, "train", name, params)
    return {
        "tokens": trained,
        "epochs": trained / tokens,
        "tokens_per_s": speed,
        "seconds": trained / speed if speed else None,
        "source": _source(speed),
    }


def _source(measured: float | None) -> str:
    return "default" if measured is None else "measured"
