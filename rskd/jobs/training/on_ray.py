"""Training by Ray Train: workers (DDP), restarts, checkpoints that upload while training goes on.

TorchTrainer ─► train_worker on each rank ─► checkpoints
                      └─► queue of the metrics of every step ─► record
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Thread

from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import (
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from rskd import tracking
from rskd.config import RayConfig
from rskd.errors import RskdError, first_line
from rskd.interrupts import result_of
from rskd.jobs.failures import GiveUpOnExplainedErrors
from rskd.jobs.metrics import Live
from rskd.jobs.on_ray import worker_resources
from rskd.jobs.ray_session import ensure_ray
from rskd.jobs.training.checkpoints import finished, newest_whole, tidy, unused_name
from rskd.jobs.training.run import TrainingRun
from rskd.jobs.training.worker import train_worker
from rskd.storage import Store
from rskd.student.trainer import Log


def train_on_ray(
    run: TrainingRun,
    checkpoints: Store,
    record: Log,
    *,
    name: str,
    config: RayConfig,
    tracked: tracking.Run | None,
    live: Live,
) -> Store:
    """Train from the newest whole checkpoint of the run `name`, or from the start; returns the last one.

    Two checkpoints are kept. A lost worker counts against `max_failures`; what rskd explains is raised at once.
    Machines of workers are monitored on `tracked`, where it is given.
    """
    with newest_whole(checkpoints, name, remove_damaged=True):
        pass  # a damaged one is reported here, where somebody reads it, and not by a worker
    tidy(checkpoints, name)
    ensure_ray(config)
    with _queue_to(record) as updates:
        work = partial(train_worker, run, updates, checkpoints.absolute_uri, name, tracked)
        _fit(run, work, checkpoints, name=name, config=config, live=live)
    tidy(checkpoints, name)
    return finished(checkpoints, name)[-1]


def _fit(
    run: TrainingRun, work: Callable[[], None], checkpoints: Store, *, name: str, config: RayConfig, live: Live
) -> None:
    train = run.train
    resources = worker_resources(
        config, "train", train.workers, threads=train.threads_per_worker, gpus=train.gpus_per_worker
    )
    trainer = TorchTrainer(
        work,
        scaling_config=ScalingConfig(
            num_workers=train.workers, use_gpu=train.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=unused_name(checkpoints, name),
            storage_path=checkpoints.path,
            storage_filesystem=None if checkpoints.is_local else PyFileSystem(FSSpecHandler(checkpoints.fs)),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[GiveUpOnExplainedErrors(checkpoints.uri, live, train.max_failures, run.remedy)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        _in_thread(trainer.fit)
    except TrainingFailedError as error:
        raise _explained(error) from error


def _in_thread(work: Callable[[], object]) -> None:
    """Do `work` in a thread, and wait for it where an interrupt is heard.

    Of the main thread, `fit` would take ctrl-C for itself, and other interrupts may get lost in Ray's C++ code.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, name="fit", daemon=True).start()
    result_of(done)


def _explained(error: TrainingFailedError) -> RskdError:
    """What ended the run: the error that no restart fixes, or the last of more failures than `max_failures`."""
    if isinstance(error, ControllerError):
        causes = [error.controller_failure]
    else:
        causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    known = next((cause for cause in causes if isinstance(cause, RskdError)), None)
    if known is not None:
        return known
    return RskdError(
        f"training failed after its restarts, at last with {type(causes[0]).__name__} ({first_line(causes[0])}): "
        "run it again to go on from the newest checkpoint, or raise train.max_failures"
    )


@contextmanager
def _queue_to(record: Log) -> Iterator[Queue]:
    """A queue whose records a thread hands to `record` as they come."""
    updates = Queue(actor_options={"num_cpus": 0})

    def follow() -> None:
        while (metrics := updates.get()) is not None:
            record(metrics.pop("step"), metrics)

    with ThreadPoolExecutor(1, "metrics") as pool:
        following = pool.submit(follow)
        try:
            yield updates
        finally:
            updates.put(None)
            following.result()
            updates.shutdown()
