"""Tracking in MLflow: one parent run for a distillation, and under it a child for each time that a stage works.

    stage(config, "train", student) ─► Run.metrics, .params, .figure, .dataset, .model ─► MLflow (sqlite by default)

A stage that cannot reach MLflow does not start. Once it works, tracking never stops it: what MLflow refuses is warned
about once, and metrics are kept and sent again later.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from rskd import interrupts
from rskd.config import DistillConfig
from rskd.config.distillation import merge
from rskd.errors import first_line
from rskd.storage import Store
from rskd.tracking import started_by, views
from rskd.tracking.connection import (
    client_of,
    created_once,
    experiment_of,
    explained,
    is_absent,
    tracking_uri_of,
)
from rskd.tracking.names import escaped, model_name, shortened
from rskd.tracking.system_metrics import monitored

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from plotly.graph_objects import Figure

FLUSH_SECONDS = 5.0
RETRY_SECONDS = 60.0
LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow server` serves a store that is no server itself
DISTILLATION, STAGE, _STUDENT = "rskd.distillation", "rskd.stage", "rskd.student"
DIGEST = "rskd.digest"  # of a model's files
_SPEED = "tokens_per_s"
_WORST_FIRST = ("KILLED", "FAILED", "FINISHED")
_METRICS_PER_BATCH, _PARAMS_PER_BATCH, _DIGEST_LENGTH = 1000, 100, 36  # MLflow's limits

_ended: ContextVar[list[tuple[Run, str]] | None] = ContextVar("ended", default=None)  # parents, with what a stage was

logger = logging.getLogger(__name__)


class Run:
    """One MLflow run to log to; it can be pickled, and used from several threads.

    Metrics are buffered: logging one costs microseconds, and a batch is sent every few seconds and by `flush`.
    """

    def __init__(self, tracking_uri: str, experiment_id: str, run_id: str):
        self.tracking_uri = tracking_uri
        self.experiment_id = experiment_id
        self.run_id = run_id
        self.parent: Run | None = None  # of a stage, where it began
        self._pending: list[tuple[str, float, int, int]] = []  # key, value, time in ms, step
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        self._lock = threading.Lock()
        self._warned = False

    def __reduce__(self):
        return Run, (self.tracking_uri, self.experiment_id, self.run_id)

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI: the server's, or a local one's on its default port."""
        return f"{self._server}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{views.OPENED_WITH}"

    @property
    def view_url(self) -> str:
        """The page of all distillations of the experiment."""
        return views.distillations_url(self._server, self.experiment_id)

    @property
    def _server(self) -> str:
        return (self.tracking_uri if self.tracking_uri.startswith("http") else LOCAL_UI).rstrip("/")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step; what is none is warned about and left out."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            with self._forgiving(f"metric {key}"), self._lock:
                self._pending.append((escaped(key), float(value), now, step))
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
                    self._send("metrics", batch)
                    del self._pending[:_METRICS_PER_BATCH]
                self._next_flush = time.monotonic() + FLUSH_SECONDS

    def params(self, values: Mapping[str, Any]) -> None:
        """Log a nested mapping as params named `section.key`; what is None is left out."""
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in _params(values).items()]
        with self._forgiving("params"):
            for start in range(0, len(params), _PARAMS_PER_BATCH):
                self._send("params", params[start : start + _PARAMS_PER_BATCH])

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

    def text(self, name: str, content: str) -> None:
        """Log text as the artifact `name`."""
        with self._forgiving(f"artifact {name}"):
            self._client.log_text(self.run_id, content, name)

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page begins with."""
        with self._forgiving("description"):
            self._client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def model_metrics(self, digest: str, values: Mapping[str, float], *, dataset: str, dataset_digest: str) -> None:
        """Log numbers of the model whose files have this digest, so that the Models page compares models by them."""
        from mlflow.entities import Metric

        with self._forgiving("metrics of a model"):
            model = self.logged_model(digest)
            if model is None:  # it was trained without tracking
                return
            now = int(time.time() * 1000)
            named = {"dataset_name": dataset, "dataset_digest": dataset_digest[:_DIGEST_LENGTH]}
            batch = [Metric(escaped(key), value, now, 0, model.model_id, **named) for key, value in values.items()]
            self._client.log_batch(self.run_id, metrics=batch)

    def logged_model(self, digest: str) -> LoggedModel | None:
        """The newest logged model of the experiment whose files have this digest."""
        found = self._client.search_logged_models([self.experiment_id], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
        return next(iter(found), None)

    def model(self, uri: str, *, name: str, digest: str) -> None:
        """Log a Hugging Face directory, whose files have this digest, as a logged model of this run.

        The model's artifacts are the directory itself, for `AutoModelForCausalLM.from_pretrained`: mlflow 3.17's own
        transformers flavour does not load local checkpoints under Transformers 5.
        """
        from mlflow.entities import LoggedModelOutput

        name = model_name(name)
        with self._forgiving(f"model {name}"), Store(uri).local_copy() as directory:
            model = self._client.create_logged_model(
                self.experiment_id,
                name=name,
                source_run_id=self.run_id,
                model_type="transformers",
                tags={"uri": uri, DIGEST: digest},
            )
            self._client.log_model_artifacts(model.model_id, directory)
            self._client.finalize_logged_model(model.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])

    def _send(self, kind: Literal["metrics", "params"], batch: list[Any]) -> None:
        """Send a batch; of one that MLflow refuses, all that it does not."""
        from mlflow.exceptions import MlflowException

        try:
            if kind == "metrics":
                self._client.log_batch(self.run_id, metrics=batch)
            else:
                self._client.log_batch(self.run_id, params=batch)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(batch) == 1:
                self._warn(f"{kind.removesuffix('s')} {batch[0].key}", error)
                return
            middle = len(batch) // 2
            self._send(kind, batch[:middle])
            self._send(kind, batch[middle:])

    def close(self, status: str) -> None:
        """Send what is buffered and set the status: FINISHED, FAILED or KILLED."""
        self.flush()
        with self._forgiving("status"):
            self._client.set_terminated(self.run_id, status)

    @property
    def _client(self) -> MlflowClient:
        return client_of(self.tracking_uri)

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """Warn, the first time, instead of stopping work of days for its record."""
        try:
            yield
        except Exception as error:
            self._warn(what, error)

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            logger.warning(f"MLflow refuses the {what} of run {self.run_id} ({first_line(error)}): going on without")
        self._warned = True


class _Untracked(Run):
    """A run that logs nothing."""

    def __init__(self) -> None:
        super().__init__("", "", "")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def figure(self, figure: Figure, name: str) -> None: ...
    def dataset(self, uri: str, manifest: Mapping[str, Any], *, name: str, context: str = "training") -> None: ...
    def text(self, name: str, content: str) -> None: ...
    def model_metrics(self, digest: str, values: Mapping[str, float], *, dataset: str, dataset_digest: str) -> None: ...
    def model(self, uri: str, *, name: str, digest: str) -> None: ...


def distillation(config: DistillConfig) -> Run:
    """The parent run of a distillation, found again by its tag, or made the first time.

    Raises ConfigError if MLflow cannot be reached.
    """
    tracking_uri = tracking_uri_of(config)
    with explained(tracking_uri), created_once(tracking_uri):
        client = client_of(tracking_uri)
        experiment_id = experiment_of(client, config)
        run_id = _find_distillation(client, config, experiment_id)
        if run_id is None:
            tags = {DISTILLATION: Store(config.home).absolute_uri, STAGE: "distillation"}
            run_id = client.create_run(experiment_id, run_name=config.name, tags=tags).info.run_id
            Run(tracking_uri, experiment_id, run_id).params(_sections(config, None))
    return Run(tracking_uri, experiment_id, run_id)


@contextmanager
def stage(
    config: DistillConfig, name: str, student: str | None = None, planned: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """A child run for one stage (of one student); its params are `config`, with that student's own sections.

    `planned` are those that take the place of `auto`, and more.

    Ends as FINISHED, as FAILED after an exception, as KILLED after an interrupt, and its parent with it. Logs nothing
    where `tracking.enabled` is false. Raises ConfigError if MLflow cannot be reached.
    """
    if not config.tracking.enabled:
        yield _Untracked()
        return
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    params = merge(_sections(config, student), dict(planned or {}))
    runs: list[Run] = []
    status = "KILLED"
    try:
        with interrupts.deferred():
            parent = distillation(config)
            client = client_of(parent.tracking_uri)
            tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, STAGE: name} | started_by.tags()
            tags |= {_STUDENT: student} if student else {}
            run_name = " ".join(filter(None, (config.name, name, student)))
            with explained(parent.tracking_uri):
                client.update_run(parent.run_id, status="RUNNING")
                created = client.create_run(parent.experiment_id, run_name=run_name, tags=tags)
            run = Run(parent.tracking_uri, parent.experiment_id, created.info.run_id)
            run.parent = parent
            runs += [run, parent]
            run.params(params)
        with interrupts.recognised(), monitored(run, by_node=config.ray.address is not None):
            yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        with interrupts.deferred():
            for opened in runs:
                if opened.parent is None and (ended := _ended.get()) is not None:
                    opened.flush()
                    ended.append((opened, status))
                else:
                    opened.close(status)


@contextmanager
def one_end() -> Iterator[None]:
    """Within it, stages one after another or side by side: their parent ends with the block, as the worst of them."""
    ended: list[tuple[Run, str]] = []
    token = _ended.set(ended)
    try:
        yield
    finally:
        _ended.reset(token)
        with interrupts.deferred():
            for parent in {run.run_id: run for run, _ in ended}.values():
                statuses = {status for run, status in ended if run.run_id == parent.run_id}
                parent.close(next(status for status in _WORST_FIRST if status in statuses))


def measured_speed(config: DistillConfig, name: str, student: str | None, params: Mapping[str, Any]) -> float | None:
    """Median tokens_per_s of the newest finished run of a stage whose params have these values; None without one.

    Creates nothing: no database, no experiment. Raises ConfigError if a tracking server cannot be reached.
    """
    if not config.tracking.enabled:
        return None
    tracking_uri = tracking_uri_of(config)
    if is_absent(tracking_uri):
        return None
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    with explained(tracking_uri, writing=False):
        client = client_of(tracking_uri)
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        parent = _find_distillation(client, config, experiment.experiment_id) if experiment else None
        if experiment is None or parent is None:
            return None
        tags = {MLFLOW_PARENT_RUN_ID: parent, STAGE: name} | ({_STUDENT: student} if student else {})
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = client.search_runs(
            [experiment.experiment_id],
            f"attributes.status = 'FINISHED' and {wanted}",
            order_by=["attributes.start_time DESC"],
        )
        same = _params(params)
        for run in runs:
            if _SPEED in run.data.metrics and same.items() <= run.data.params.items():
                return median(metric.value for metric in client.get_metric_history(run.info.run_id, _SPEED))
    return None


def _find_distillation(client: MlflowClient, config: DistillConfig, experiment_id: str) -> str | None:
    """Id of the parent run of a distillation."""
    found = client.search_runs(
        [experiment_id], f"attributes.run_name = '{config.name}' and tags.`{STAGE}` = 'distillation'"
    )
    home = Store(config.home).absolute_uri
    return next((run.info.run_id for run in found if run.data.tags[DISTILLATION] == home), None)


def _sections(config: DistillConfig, student: str | None) -> dict[str, Any]:
    whole = config.model_dump(mode="json")
    sections = {key: whole[key] for key in ("name", "storage", "corpus", "teacher", "evaluate")}
    sections["samplings"] = {key: value.model_dump(mode="json") for key, value in config.cache_samplings.items()}
    sections |= {key: whole[key] for key in ("generate", "judge") if whole[key] is not None}
    spec = config.student_specs.get(student or "")  # a teacher that answers prompts is none
    return sections | (spec.model_dump(mode="json") if spec else {})


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    """A nested mapping as MLflow's params, `section.key`, without what is None."""
    return {escaped(key): shortened(str(value)) for key, value in _flatten(values) if value is not None}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
