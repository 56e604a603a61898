"""Tracking in MLflow: one parent run for a distillation, and under it a child for each time that a stage works.

    stage(config, "train", student) ─► Run.metrics, .params, .figure, .dataset, .model ─► MLflow (sqlite by default)

A stage that cannot reach MLflow does not start. Once it works, tracking never stops it: what MLflow refuses is warned
about once, and metrics are kept and sent again later. This is the only module that imports mlflow.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rskd.config import DistillConfig
from rskd.errors import ConfigError
from rskd.storage import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from plotly.graph_objects import Figure

FLUSH_SECONDS = 5.0
RETRY_SECONDS = 60.0
LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow server` serves a store that is no server itself
_DISTILLATION, _STAGE, _STUDENT = "rskd.distillation", "rskd.stage", "rskd.student"
_SPEED = "tokens_per_s"
_METRICS_PER_BATCH, _PARAMS_PER_BATCH, _DIGEST_LENGTH = 1000, 100, 36  # MLflow's limits
_REFUSED_IN_NAMES = r"[/:.%\"']"  # of models

logger = logging.getLogger(__name__)


class Run:
    """One MLflow run to log to; it can be pickled, and used from several threads.

    Metrics are buffered: logging one costs microseconds, and a batch is sent every few seconds and by `flush`.
    """

    def __init__(self, tracking_uri: str, experiment_id: str, run_id: str):
        self.tracking_uri = tracking_uri
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._pending: list[tuple[str, float, int, int]] = []  # key, value, time in ms, step
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        self._lock = threading.Lock()
        self._warned = False

    def __reduce__(self):
        return Run, (self.tracking_uri, self.experiment_id, self.run_id)

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI: the server's, or a local one's on its default port."""
        server = self.tracking_uri if self.tracking_uri.startswith("http") else LOCAL_UI
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        now = int(time.time() * 1000)
        with self._lock:
            self._pending += [(key, float(value), now, step) for key, value in values.items()]
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send the buffered metrics; they stay buffered if MLflow does not take them."""
        from mlflow.entities import Metric

        with self._lock:
            self._next_flush = time.monotonic() + RETRY_SECONDS
            with self._forgiving("metrics"):
                while self._pending:
                    batch = [Metric(*metric) for metric in self._pending[:_METRICS_PER_BATCH]]
                    self._client.log_batch(self.run_id, metrics=batch)
                    del self._pending[:_METRICS_PER_BATCH]
                self._next_flush = time.monotonic() + FLUSH_SECONDS

    def params(self, values: Mapping[str, Any]) -> None:
        """Log a nested mapping as params named `section.key`; what is None is left out."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)) for key, value in _flatten(values) if value is not None]
        with self._forgiving("params"):
            for start in range(0, len(flat), _PARAMS_PER_BATCH):
                self._client.log_batch(self.run_id, params=flat[start : start + _PARAMS_PER_BATCH])

    def figure(self, figure: Figure, name: str) -> None:
        """Log a plotly figure as `figures/<name>.html`, which needs no network to be shown."""
        with self._forgiving(f"figure {name}"):
            self._client.log_text(self.run_id, figure.to_html(include_plotlyjs=True), f"figures/{name}.html")

    def dataset(self, uri: str, manifest: Mapping[str, Any], *, name: str, context: str = "training") -> None:
        """Log what the run reads as a dataset input; `manifest` has a `digest`, and `totals` become its profile."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        store = Store(uri)
        entity = Dataset(
            name=name,
            digest=manifest["digest"][:_DIGEST_LENGTH],
            source_type="local" if store.is_local else "s3",
            source=json.dumps({"uri": store.absolute_uri}),
            profile=json.dumps({"manifest_digest": manifest["digest"]} | manifest.get("totals", {})),
        )
        with self._forgiving(f"dataset {name}"):
            tags = [InputTag("mlflow.data.context", context)]
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags)])

    def model(self, uri: str, *, name: str) -> None:
        """Log a Hugging Face directory as a logged model of this run.

        The model's artifacts are the directory itself, for `AutoModelForCausalLM.from_pretrained`: mlflow 3.17's own
        transformers flavour does not load local checkpoints under Transformers 5.
        """
        from mlflow.entities import LoggedModelOutput

        name = re.sub(_REFUSED_IN_NAMES, "-", name)
        with self._forgiving(f"model {name}"), Store(uri).local_copy() as directory:
            model = self._client.create_logged_model(
                self.experiment_id,
                name=name,
                source_run_id=self.run_id,
                model_type="transformers",
                tags={"uri": uri},
            )
            self._client.log_model_artifacts(model.model_id, directory)
            self._client.finalize_logged_model(model.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])

    def close(self, status: str) -> None:
        """Send what is buffered and set the status: FINISHED, FAILED or KILLED."""
        self.flush()
        with self._forgiving("status"):
            self._client.set_terminated(self.run_id, status)

    @property
    def _client(self) -> MlflowClient:
        return _client(self.tracking_uri)

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """Warn, the first time, instead of stopping work of days for its record."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                reason = next(iter(str(error).splitlines()), "")
                logger.warning(f"MLflow does not take the {what} of run {self.run_id} ({reason}): going on without")
            self._warned = True


class _Untracked(Run):
    """A run that logs nothing."""

    def __init__(self) -> None:
        super().__init__("", "", "")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def figure(self, figure: Figure, name: str) -> None: ...
    def dataset(self, uri: str, manifest: Mapping[str, Any], *, name: str, context: str = "training") -> None: ...
    def model(self, uri: str, *, name: str) -> None: ...


def distillation(config: DistillConfig) -> Run:
    """The parent run of a distillation, found again by its tag, or made the first time.

    Raises ConfigError if MLflow cannot be reached.
    """
    tracking_uri = _tracking_uri(config)
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with _explained(tracking_uri), _one_at_a_time(tracking_uri):
        client = _client(tracking_uri)
        experiment_id = _experiment(client, config)
        run_id = _find_distillation(client, config, experiment_id)
        if run_id is None:
            tags = {_DISTILLATION: Store(config.home).absolute_uri, _STAGE: "distillation"}
            run_id = client.create_run(experiment_id, run_name=config.name, tags=tags).info.run_id
    return Run(tracking_uri, experiment_id, run_id)


@contextmanager
def stage(config: DistillConfig, name: str, student: str | None = None) -> Iterator[Run]:
    """A child run for one stage (of one student); its params are `config`, with that student's own sections.

    Ends as FINISHED, as FAILED after an exception, as KILLED after an interrupt, and its parent with it. Logs nothing
    where `tracking.enabled` is false. Raises ConfigError if MLflow cannot be reached.
    """
    if not config.tracking.enabled:
        yield _Untracked()
        return
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    params = _sections(config, student)
    parent = distillation(config)
    client = _client(parent.tracking_uri)
    tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, _STAGE: name} | ({_STUDENT: student} if student else {})
    with _explained(parent.tracking_uri):
        client.update_run(parent.run_id, status="RUNNING")
        created = client.create_run(parent.experiment_id, run_name=f"{name} {student or ''}".strip(), tags=tags)
    run = Run(parent.tracking_uri, parent.experiment_id, created.info.run_id)
    run.params(params)
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        run.close(status)
        parent.close(status)


def measured_speed(config: DistillConfig, name: str, student: str | None, params: Mapping[str, Any]) -> float | None:
    """Median tokens_per_s of the newest finished run of a stage whose params have these values; None without one.

    Creates nothing: no database, no experiment. Raises ConfigError if a tracking server cannot be reached.
    """
    tracking_uri = _tracking_uri(config)
    database = tracking_uri.removeprefix("sqlite:///")
    if not config.tracking.enabled or (tracking_uri.startswith("sqlite:///") and not Path(database).exists()):
        return None
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    with _explained(tracking_uri):
        client = _client(tracking_uri)
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        parent = _find_distillation(client, config, experiment.experiment_id) if experiment else None
        if experiment is None or parent is None:
            return None
        tags = {MLFLOW_PARENT_RUN_ID: parent, _STAGE: name} | ({_STUDENT: student} if student else {})
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = client.search_runs(
            [experiment.experiment_id],
            f"attributes.status = 'FINISHED' and {wanted}",
            order_by=["attributes.start_time DESC"],
        )
        same = {key: str(value) for key, value in _flatten(params) if value is not None}
        for run in runs:
            if _SPEED in run.data.metrics and same.items() <= run.data.params.items():
                return median(metric.value for metric in client.get_metric_history(run.info.run_id, _SPEED))
    return None


def _find_distillation(client: MlflowClient, config: DistillConfig, experiment_id: str) -> str | None:
    """Id of the parent run of a distillation."""
    found = client.search_runs(
        [experiment_id], f"attributes.run_name = '{config.name}' and tags.`{_STAGE}` = 'distillation'"
    )
    home = Store(config.home).absolute_uri
    return next((run.info.run_id for run in found if run.data.tags[_DISTILLATION] == home), None)


def _sections(config: DistillConfig, student: str | None) -> dict[str, Any]:
    whole = config.model_dump(mode="json")
    sections = {key: whole[key] for key in ("name", "storage", "corpus", "teacher", "evaluate")}
    sections["samplings"] = {key: value.model_dump(mode="json") for key, value in config.cache_samplings.items()}
    return sections | (config.student_specs[student].model_dump(mode="json") if student else {})


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tracking_uri(config: DistillConfig) -> str:
    """The configured URI, or sqlite beside the outputs (beside the working directory where those are on S3)."""
    uri = config.tracking.uri
    if uri is None:
        root = Store(config.storage.root)
        folder = Path(root.path if root.is_local else ".rskd").resolve()
        return f"sqlite:///{folder}/mlflow.db"
    if uri.startswith("sqlite:///"):  # relative to this process, not to a worker elsewhere
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def _experiment(client: MlflowClient, config: DistillConfig) -> str:
    found = client.get_experiment_by_name(config.tracking.experiment)
    if found is not None:
        return found.experiment_id
    store = Store(f"{config.storage.root.rstrip('/')}/mlartifacts")
    location = store.absolute_uri if config.tracking.uri is None else None  # else the server's own
    return client.create_experiment(config.tracking.experiment, artifact_location=location)


@functools.cache
def _client(tracking_uri: str) -> MlflowClient:
    """A quiet client: no usage statistics leave the machine, and a server that is down is noticed in seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri)


@contextmanager
def _explained(tracking_uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"tracking.uri {tracking_uri} cannot be used ({reason}): start that server, or correct tracking.uri"
        ) from None


def _one_at_a_time(tracking_uri: str):
    """Keep processes apart that would create the same sqlite tables, experiment and parent run."""
    if not tracking_uri.startswith("sqlite:///"):
        return nullcontext()
    return _file_lock(Path(f"{tracking_uri.removeprefix('sqlite:///')}.lock"))


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
