"""Work on Ray, which is running: rows through tasks or a pool of actors, and tasks that say how far they are.

An error of rskd that a worker raised is raised here.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from rskd.config import DistillConfig, RayConfig
from rskd.errors import ConfigError, explained_by
from rskd.interrupts import pause
from rskd.jobs.cache_worker import CacheRun, TeacherWorker

Row = dict[str, Any]
Update = TypeVar("Update")

_SECONDS_BETWEEN_LOOKS = 0.5
_LOOKS_UNTIL_SAID = 10

_logger = logging.getLogger(__name__)


def flat_map(task: Callable[[Row], Iterator[Row]], rows: list[Row]) -> Iterator[Row]:
    """What `task` yields for each row, a Ray Data task a row, in the order in which they come."""
    yield from _rows(_dataset(rows).flat_map(task))


def map_by_teachers(config: DistillConfig, run: CacheRun, tasks: list[Row], *, threads: int) -> Iterator[Row]:
    """What a pool of TeacherWorker, of so many threads each, returns for each task, as soon as it does."""
    teacher = run.teacher
    resources = worker_resources(
        config.ray, "teacher", teacher.workers, threads=teacher.threads_per_worker, gpus=teacher.gpus_per_worker
    )
    pool = ActorPoolStrategy(
        size=teacher.workers,
        max_tasks_in_flight_per_actor=threads,
        max_concurrent_calls_per_actor=threads,
        enable_true_multi_threading=True,
    )
    worker: Any = TeacherWorker  # Ray's types know functions alone
    done = _dataset(tasks).map(
        worker,
        fn_constructor_args=(run,),
        compute=pool,
        num_cpus=resources["CPU"],
        num_gpus=resources["GPU"],
        runtime_env=run.runtime_env,
    )
    yield from _rows(done)


def follow(
    work: Callable[..., Iterator[Update]], *args: Any, gpus: float, runtime_env: dict[str, Any] | None = None
) -> Iterator[Update]:
    """What `work(*args)` yields in a task with so many GPUs, in an environment of its own where one is given."""
    return (update for _, update in follow_each(work, [args], gpus=gpus, runtime_env=runtime_env))


def follow_each(
    work: Callable[..., Iterator[Update]],
    calls: Sequence[tuple[Any, ...]],
    *,
    gpus: float,
    runtime_env: dict[str, Any] | None = None,
) -> Iterator[tuple[int, Update]]:
    """What `work(*args)` yields for each of `calls`, with its index, as it comes; each is a task, as in `follow`.

    Tasks that find no room wait for others to end. Where one fails, or nobody listens any more, all are cancelled.
    """
    task: Any = _yielded.options(num_cpus=1, num_gpus=gpus, runtime_env=runtime_env, scheduling_strategy="SPREAD")
    running: dict[Any, int] = {task.remote(work, *args): index for index, args in enumerate(calls)}
    try:
        while running:
            ready: Any = ray.wait([*running], num_returns=1)[0]
            [updates] = ready
            reference: Any = next(updates, None)
            if reference is None:
                del running[updates]
            else:
                yield running[updates], ray.get(reference)
    finally:
        for updates in running:
            ray.cancel(updates)


@ray.remote(num_returns="streaming")
def _yielded(work: Callable[..., Iterator[Any]], *args: Any) -> Iterator[Any]:
    yield from work(*args)


def worker_resources(config: RayConfig, stage: str, workers: int, *, threads: int, gpus: float) -> dict[str, float]:
    """CPUs and GPUs that each of `workers` reserves.

    On a cluster a worker reserves its threads; on one machine, which the workers share, one logical CPU. There what is
    missing never comes: ConfigError, naming the workers of section `stage`; what others hold, as students side by side,
    is waited for. On a cluster Ray queues, and what it queues makes the cluster grow.
    """
    per_worker = {"CPU": float(threads if config.address else 1), "GPU": gpus}
    needed = {resource: amount * workers for resource, amount in per_worker.items()}
    if config.address is None:
        there = ray.cluster_resources()
        for resource, amount in needed.items():
            if amount > there.get(resource, 0):
                raise ConfigError(
                    f"{stage}.workers={workers} need {amount:g} {resource} but this machine has "
                    f"{there.get(resource, 0):g}: lower {stage}.{'workers' if workers > 1 else 'gpus_per_worker'}"
                )
        _wait_until_free(needed, stage)
    return per_worker


def _wait_until_free(needed: dict[str, float], stage: str) -> None:
    """Wait for others to end; it is said once, unless they are about to."""
    for look in itertools.count():
        free = ray.available_resources()
        lacking = {name: amount for name, amount in needed.items() if amount > free.get(name, 0)}
        if not lacking:
            return
        if look == _LOOKS_UNTIL_SAID:
            wanted = " and ".join(f"{amount:g} {name}" for name, amount in lacking.items())
            _logger.warning("%s waits for %s, which other work holds", stage, wanted)
        pause(_SECONDS_BETWEEN_LOOKS)


def _dataset(rows: list[Row]) -> Dataset:
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _rows(dataset: Dataset) -> Iterator[Row]:
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise explained_by(error) or error from None
