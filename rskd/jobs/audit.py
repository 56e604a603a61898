"""Audit a cache by either engine: here, or by a Ray task in the environment of vLLM."""

from __future__ import annotations

from typing import Any

import ray
import torch
from ray.exceptions import RayError

from rskd.cache.reader import LogitCache
from rskd.config import RayConfig
from rskd.cores import usable_cores
from rskd.errors import explained_by
from rskd.evaluation.audit import AuditReport, audit_cache, teacher_directory
from rskd.jobs.ray_session import ensure_ray
from rskd.jobs.vllm_environment import VllmEnvironment
from rskd.models.files import check_model
from rskd.storage import Store


def audit(uri: str, teacher_model: str, *, engine: str, python: str | None, **options: Any) -> AuditReport:
    """`audit_cache(uri, teacher_model, engine=engine, **options)`; `python` is the interpreter that vllm is in.

    Raises what `audit_cache` raises, and ConfigError where vLLM's environment is missing.
    """
    if engine == "transformers":
        return audit_cache(uri, teacher_model, **options)
    environment = VllmEnvironment.find(python)
    check_model(teacher_model)
    directory = teacher_directory(LogitCache.open(uri), teacher_model)
    ensure_ray(RayConfig())
    task: Any = ray.remote(audit_cache).options(
        runtime_env=environment.runtime_env(threads=usable_cores()),
        num_gpus=int(torch.cuda.is_available()),
    )
    try:
        return ray.get(task.remote(Store(uri).absolute_uri, directory, engine=engine, **options))
    except RayError as error:
        raise explained_by(error) or error from None
