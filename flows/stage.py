"""What every flow does around a stage: show what is there, wait for its turn, retry what may pass, publish results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from flows.outlive import outlive_worker_and_server
from flows.progress import LiveProgress
from rskd.config import DistillConfig
from rskd.errors import ConfigError, OutputError, explained_by
from rskd.jobs.cluster.stage import Caller, submitted_by
from rskd.progress import ToStderr, show_announcements, watched_by
from rskd.tracking.started_by import started_by

T = TypeVar("T")

SHARED_LIMIT = "rskd-stages"  # a global concurrency limit of the Prefect server: how many stages run at once
_has_turn: ContextVar[bool] = ContextVar("has_turn", default=False)
_NEVER_WAIT = ("pack", "students", "report", "check", "tables")  # stages without a model to run


class _OneLine(logging.Filter):
    """No traceback above what rskd explains in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and explained_by(error) is not None:
            record.exc_info = record.exc_text = None
        return True


class _InFlowLog(ToStderr):
    """To the log of whichever run a line comes from."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            get_run_logger().info(record.getMessage())
        except MissingContextError:  # outside of runs
            super().emit(record)


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_OneLine())
show_announcements(_InFlowLog())
outlive_worker_and_server()


def _may_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Retry a lost worker or a store that went away; never a wrong config or a corrupt output."""
    try:
        state.result()
    except Exception as error:
        return not isinstance(explained_by(error), ConfigError | OutputError)
    return False


@task(
    task_run_name="{name}",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def _stage(name: str, stage: Callable[..., Any], *args: Any) -> Any:
    logger = get_run_logger()
    caller = Caller(run=lambda: flow_run.root_flow_run_id, say=logger.info)
    with _its_turn(name), _linked_from_mlflow(), watched_by(LiveProgress(logger)), submitted_by(caller):
        return stage(*args)


def _linked_from_mlflow() -> AbstractContextManager[None]:
    """Have the stage's run in MLflow lead to the page of this one, where a server outlives it."""
    if get_current_settings().api.url is None:
        return nullcontext()
    return started_by(f"Prefect's {flow_run.name}", str(flow_run.ui_url))


def _its_turn(name: str) -> AbstractContextManager[None]:
    """Wait for a place under SHARED_LIMIT: stages of one server share a GPU. Without a server there is no limit.

    A stage outlives a server that is away for a while: a lease that could not be renewed does not end it.
    """
    if name in _NEVER_WAIT or _has_turn.get() or get_current_settings().api.url is None:
        return nullcontext()
    return concurrency(SHARED_LIMIT, raise_on_lease_renewal_failure=False)


@contextmanager
def one_turn(name: str) -> Iterator[None]:
    """One place under SHARED_LIMIT for all stages of the block, in any thread."""
    with _its_turn(name):
        token = _has_turn.set(True)
        try:
            yield
        finally:
            _has_turn.reset(token)


def run_stage(name: str, stage: Callable[..., T], *args: Any) -> T:
    """Run one stage of `rskd.jobs` as a task; a stage resumes from what it committed, so a retry loses nothing."""
    return cast(T, _stage(name, stage, *args))


def show_status(config: DistillConfig) -> None:
    """Show the state of each output, as `rskd status`, when a flow starts that no other flow has started."""
    if flow_run.parent_flow_run_id is not None:
        return
    from rskd.lineage.status import status

    rows = [
        {"output": one.output, "state": one.state, "then": one.then, "reason": one.reason} for one in status(config)
    ]
    for row in rows:
        get_run_logger().info("%(output)s: %(state)s, %(then)s %(reason)s", row)
    create_table_artifact(key="status", table=rows, description=f"State of {config.name} when this run began")


def publish(key: str, description: str, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Show summaries as a table artifact, one row for each, and say in the log which were skipped.

    Of what a summary nests, its costs alone are shown: `cost.money`.
    """
    logger = get_run_logger()
    for name, summary in summaries.items():
        if summary.get("skipped"):
            logger.info("%s: already there and matching, skipped", name)
    rows = [
        {"name": name}
        | {column: value for column, value in summary.items() if not isinstance(value, dict | list | None)}
        | {f"cost.{column}": value for column, value in (summary.get("cost") or {}).items()}
        for name, summary in summaries.items()
    ]
    create_table_artifact(key=key, table=rows, description=description)
