"""A stage that runs here or as a job on a cluster, as its configuration says. Light: Ray is imported by a job alone."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from rskd.config import DistillConfig, RayConfig
from rskd.config.cluster import is_jobs_api

P = ParamSpec("P")
T = TypeVar("T")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Caller:
    """Who submits jobs: a run that may die and be started again under the same id, and where their logs go."""

    run: Callable[[], str | None] = lambda: None  # its id; who asks it may wait
    say: Callable[[str], None] = _to_stderr


_caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 (it is frozen)


@contextmanager
def submitted_by(caller: Caller) -> Iterator[None]:
    """Jobs that are submitted within the block are those of `caller`."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def jobs_address(ray: RayConfig) -> str | None:
    """Where stages are submitted to; None where they run in this process.

    The configuration comes before RAY_ADDRESS, which Ray's own client prefers.
    """
    address = ray.address or os.environ.get("RAY_ADDRESS", "")
    return address if ray.enabled and is_jobs_api(address) else None


def on_cluster(stage: Callable[Concatenate[DistillConfig, P], T]) -> Callable[Concatenate[DistillConfig, P], T]:
    """`stage`, which runs as a job where its configuration names a cluster's Jobs API."""

    @functools.wraps(stage)
    def run(config: DistillConfig, *args: P.args, **kwargs: P.kwargs) -> T:
        address = jobs_address(config.ray)
        if address is None:
            return stage(config, *args, **kwargs)
        from rskd.jobs.cluster.submit import run_as_job

        given = inspect.signature(stage).bind(config, *args, **kwargs)
        given.apply_defaults()
        return run_as_job(address, stage, list(given.arguments.values()), _caller.get())

    return run
