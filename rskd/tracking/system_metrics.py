"""CPU, memory, disk, network and GPUs of the machines that a stage works on, in MLflow under `system/…`.

    monitored ─► a thread ─► lock of this run on this machine ─► MLflow's own monitors, every 10 s ─► Run.metrics

The numbers are the machine's, so of all processes of a run that share it one alone samples, and another takes over when
that ends. MLflow is imported and the first sample taken after some ten seconds: a short stage has none, and pays
nothing. GPUs are there where `nvidia-ml-py` is installed. Samples are sent as all metrics are: nothing that is wrong
with MLflow stops a stage.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rskd.config import DistillConfig
from rskd.errors import first_line
from rskd.file_lock import file_lock
from rskd.tracking.connection import client_of, is_absent

if TYPE_CHECKING:
    from rskd.tracking.runs import Run

_INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"  # seconds, MLflow's own variable
_SECONDS_TO_END = 5.0

_logger = logging.getLogger(__name__)


def for_workers(run: Run, config: DistillConfig) -> Run | None:
    """The run that workers on other machines log to; None where there are none, or no tracking."""
    is_cluster = config.ray.enabled and config.ray.address is not None
    return run if config.tracking.enabled and is_cluster else None


@contextmanager
def monitored(run: Run | None, *, by_node: bool = True) -> Iterator[None]:
    """Sample this machine within the block; `by_node` puts its name into those of the metrics, `system/<node>/…`."""
    if run is None:
        yield
        return
    stop = threading.Event()
    own = copy.copy(run)  # with a buffer of its own, which the stage never waits for
    prefix = f"system/{socket.gethostname()}/" if by_node else "system/"
    thread = threading.Thread(target=_monitor, args=(own, prefix, stop), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_SECONDS_TO_END)


def _monitor(run: Run, prefix: str, stop: threading.Event) -> None:
    """Wait for this machine's turn to sample, and sample."""
    lock = Path(tempfile.gettempdir()) / f"rskd-{run.run_id}.lock"
    try:
        seconds = float(os.environ.get(_INTERVAL) or 10)
        while not stop.wait(seconds):
            try:
                with file_lock(lock, _give_up):
                    _sample(run, prefix, stop, seconds)
            except BlockingIOError:  # another process samples this machine
                continue
    except ImportError:  # vLLM's environment has no MLflow
        pass
    except Exception as error:
        _logger.warning("no system metrics of run %s (%s)", run.run_id, first_line(error))


def _give_up() -> None:
    raise BlockingIOError


def _sample(run: Run, prefix: str, stop: threading.Event, seconds: float) -> None:
    if is_absent(run.tracking_uri):  # it is on the driver's machine
        return
    client_of(run.tracking_uri)
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id, tracking_uri=run.tracking_uri)
    monitor.collect_metrics()  # the first load of the CPU means nothing: it is measured between two calls
    step = 0
    while not stop.wait(seconds):
        for source in monitor.monitors:
            source.clear_metrics()
        monitor.collect_metrics()
        run.metrics({f"{prefix}{name}": value for name, value in monitor.aggregate_metrics().items()}, step)
        step += 1
    run.flush()
