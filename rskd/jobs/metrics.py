"""Live metrics of the stages, through Ray's own to Prometheus (dashboards/README.md); nothing where Ray does not run.

    at_work ─► exported ─┬─ attempts, failures, a heartbeat and how far the stage is: of every stage
                         └─► Live.set, Live.add ◄─ the jobs ─► ray.util.metrics ─► ray_rskd_… ─► Prometheus: rskd_…

Labels are the distillation, the stage and the student (empty for stages of none): a few series, however long it runs.
A call costs microseconds. Ray exports every ten seconds and when a process ends, and drops values that are not finite.
It keeps counters, but forgets a gauge that nobody set for twenty seconds: so a stage at work sets its gauges again and
again, and what is missing in Prometheus has ended.
"""

from __future__ import annotations

import functools
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from rskd.progress import Standing, watched_by

Kind = Literal["counter", "gauge"]
LABELS = ("distillation", "stage", "student")
_SECONDS = 5.0  # between two times that a gauge is set


@dataclass(frozen=True)
class Metric:
    """What Prometheus knows of a metric; `labels` come after LABELS."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    "rskd_heartbeat_timestamp_seconds": Metric("gauge", "Unix time at which the stage began or last got on"),
    "rskd_progress_ratio": Metric("gauge", "Share of the stage's present work that is done, 0 to 1"),
    "rskd_storage_free_ratio": Metric("gauge", "Share of the disk of storage.root that is free; of a local one alone"),
    "rskd_attempts_total": Metric(
        "counter", "Attempts at a stage that were started, and that finished, failed or were stopped", ("state",)
    ),
    "rskd_failures_total": Metric("counter", "Attempts that failed, by the class of the error", ("error",)),
    "rskd_retries_total": Metric("counter", "Workers that were lost and started again, their work repeated"),
    "rskd_tokens_total": Metric("counter", "Positions of windows that were packed, cached, trained or evaluated on"),
    "rskd_written_bytes_total": Metric("counter", "Bytes of outputs, without checkpoints and manifests"),
    "rskd_parts_total": Metric("counter", "Parts of the corpus whose targets were committed"),
    "rskd_tokens_per_second": Metric(
        "gauge", "Tokens/s: mean since the first inference (cache), of the last step (train)"
    ),
    "rskd_stall_seconds": Metric(
        "gauge", "Seconds that the teacher's workers waited for storage or work, all together"
    ),
    "rskd_step": Metric("gauge", "Optimizer steps done"),
    "rskd_loss_nats": Metric("gauge", "Loss of the last step, nats per token"),
    "rskd_learning_rate": Metric("gauge", "Learning rate of the last step"),
    "rskd_gradient_norm": Metric("gauge", "Norm of the last step's gradient, before clipping"),
    "rskd_data_wait_ratio": Metric("gauge", "Share of the last step's time that went on waiting for its batch"),
}
_OF_TRAINER = {  # the metrics of rskd.student.trainer
    "loss": "rskd_loss_nats",
    "lr": "rskd_learning_rate",
    "grad_norm": "rskd_gradient_norm",
    "data_wait": "rskd_data_wait_ratio",
    "tokens_per_s": "rskd_tokens_per_second",
}


@dataclass(frozen=True)
class Live:
    """The live metrics of one stage, which any process of its Ray may set: it can be pickled."""

    distillation: str
    stage: str
    student: str
    gauges: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def labels(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in LABELS}

    def set(self, name: str, value: float) -> None:
        """Set a gauge, for as long as the stage is at work; where Ray begins later, it has it then."""
        self.gauges[name] = value
        if _ray_runs():
            _made(name).set(value, self.labels)

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        if value > 0 and _ray_runs():
            _made(name).inc(value, self.labels | labels)

    def beat(self) -> None:
        """The stage gets on."""
        self.set("rskd_heartbeat_timestamp_seconds", time.time())

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the trainer says of the last of so many steps."""
        self.set("rskd_step", step)
        for name, metric in _OF_TRAINER.items():
            self.set(metric, metrics[name])

    def restarted(self) -> None:
        """Called by an actor that begins: counts it where it takes the place of one that was lost."""
        if _ray_runs():
            import ray

            if ray.get_runtime_context().was_current_actor_reconstructed:
                self.add("rskd_retries_total")


@contextmanager
def exported(distillation: str, stage: str, student: str | None, *, disk: str | None) -> Iterator[Live]:
    """A stage at work, whose attempt and progress are exported; `disk` is a folder on the disk that it fills."""
    live = Live(distillation, stage, student or "")
    began_on_ray = _ray_runs()  # some stages start it later

    def get_on(standing: Standing | None = None) -> None:
        live.beat()
        if standing is not None and standing.total:
            live.set("rskd_progress_ratio", standing.done / standing.total)
        if disk is not None and _ray_runs():
            with suppress(OSError):
                usage = shutil.disk_usage(disk)
                live.set("rskd_storage_free_ratio", usage.free / usage.total)

    live.add("rskd_attempts_total", state="started")
    get_on()
    state = "stopped"
    try:
        with _kept(live), watched_by(get_on):
            yield live
        state = "finished"
    except Exception as error:
        state = "failed"
        live.add("rskd_failures_total", error=type(error).__name__)
        raise
    finally:
        if not began_on_ray:
            live.add("rskd_attempts_total", state="started")
        live.add("rskd_attempts_total", state=state)


@contextmanager
def _kept(live: Live) -> Iterator[None]:
    """Within it the gauges are set again every few seconds, to what they are."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(_SECONDS):
            for name in list(live.gauges):
                if _ray_runs():
                    _made(name).set(live.gauges[name], live.labels)

    thread = threading.Thread(target=keep, name="live-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")  # a stage without Ray does not import it
    return ray is not None and ray.is_initialized()


@functools.cache
def _made(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    metric = METRICS[name]
    kinds = {"counter": Counter, "gauge": Gauge}
    return kinds[metric.kind](name, metric.help, LABELS + metric.labels)
