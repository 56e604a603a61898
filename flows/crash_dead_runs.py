"""Set right what Prefect believes alive: runs whose process is gone and that nobody is left to report.

A worker reports how its runs end. Where it died with them, or with its machine, they stay Running for ever and hold the
places of their deployments. Every few minutes each unfinished run of a deployment tagged `rskd` is looked at:

    has it a process on this machine? ── yes ─► it lives
            │ no
    how long has it been silent: neither a heartbeat nor another state?
            ├─ two minutes, and the worker of this machine had taken it ─► dead
            ├─ ten minutes, and still silent at a second look           ─► dead
            └─ less, or it never sent a heartbeat from elsewhere         ─► let it be

A dead run becomes Crashed, or Cancelled if that was asked for, with the subflow and task runs within it. A job that it
submitted to a cluster goes on, and a run of the same configuration finds it; one whose run was cancelled is stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psutil
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.client.schemas.responses import OrchestrationResult
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.states import Cancelled, Crashed, State

from rskd.config import validate_config
from rskd.errors import ConfigError, first_line
from rskd.jobs.cluster.stage import jobs_address

TAG = "rskd"  # of every deployment of ours
HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_SECONDS = 60  # between those that a run sends
_SECONDS_HERE = 2 * HEARTBEAT_SECONDS  # a run that has just begun has a process by then
_SECONDS_ELSEWHERE = 10 * HEARTBEAT_SECONDS
_SECONDS_UNTIL_HEARD = 2.5 * HEARTBEAT_SECONDS  # after the server was away
_UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_ENDED_EARLY = [StateType.CRASHED, StateType.CANCELLED]
_WHY = "its process is gone, and with it the worker or the machine that would have said so: start it again, it resumes"


@dataclass(frozen=True)
class Sighting:
    """What is known of an unfinished run: `taken_here` by the worker of this machine, the one place for its process."""

    state: StateType
    silent_seconds: float
    has_process: bool
    taken_here: bool
    has_heartbeat: bool


def verdict(seen: Sighting) -> State | None:
    """The state that a run should have; None where it lives, or may."""
    silence = _SECONDS_HERE if seen.taken_here else _SECONDS_ELSEWHERE
    if seen.has_process or seen.silent_seconds < silence:
        return None
    if seen.state == StateType.PENDING:
        return Crashed(message="a worker took it and died before it began: start it again")
    if not seen.taken_here and not seen.has_heartbeat:
        return None
    if seen.state == StateType.CANCELLING:
        return Cancelled(message="its process is gone, and with it the worker that would have said so")
    return Crashed(message=_WHY)


@flow(name="crash-dead-runs", flow_run_name="crash-dead-runs")
def crash_dead_runs() -> dict[str, str]:
    """Mark runs as Crashed, or Cancelled, whose process is gone and whose worker or machine can no longer say so.

    A run that has a process on this machine, or sends heartbeats from another, is left alone. Returns the states that
    were set, by the names of the runs.
    """
    with get_client(sync_client=True) as client:
        dead = _dead_runs(client)
        if not all(_taken_here(run) for run, _ in dead):
            time.sleep(_SECONDS_UNTIL_HEARD)
            still = {run.id for run, _ in _dead_runs(client)}
            dead = [(run, state) for run, state in dead if run.id in still]
        changed = {run.name: _set(client.set_flow_run_state, run, state) for run, state in dead}
        for run, state in dead:
            if state.is_cancelled():
                _stop_jobs(run)
        _end_what_is_within(client)
        _forget_old_looks(client)
    if not changed:
        get_run_logger().info("no dead runs")
    return changed


def _dead_runs(client: SyncPrefectClient) -> list[tuple[FlowRun, State]]:
    """Unfinished runs of our deployments that are dead, and the state that each should have."""
    alive = runs_with_process()
    found = []
    for run in _runs_of_ours(client, FlowRunFilter(state=_state_is(_UNFINISHED))):
        state = verdict(_sighting(client, run, has_process=str(run.id) in alive))
        if state is not None:
            found.append((run, state))
    return found


def _sighting(client: SyncPrefectClient, run: FlowRun, *, has_process: bool) -> Sighting:
    assert run.state is not None  # it has one of _UNFINISHED
    heartbeat = _newest_heartbeat(client, run)
    newest = max(filter(None, [heartbeat, run.state.timestamp]))
    return Sighting(
        state=run.state.type,
        silent_seconds=(datetime.now(UTC) - newest).total_seconds(),
        has_process=has_process,
        taken_here=_taken_here(run),
        has_heartbeat=heartbeat is not None,
    )


def _stop_jobs(run: FlowRun) -> None:
    """Those of its stages, on the cluster that a configuration among its parameters names."""
    logger = get_run_logger()
    for parameter in filter(lambda value: isinstance(value, dict), run.parameters.values()):
        with suppress(ConfigError):  # no configuration
            address = jobs_address(validate_config(parameter).ray)
            if address is None:
                continue
            from rskd.jobs.cluster.submit import stop_jobs_of

            try:
                stop_jobs_of(address, str(run.id), logger.warning)
            except Exception as error:
                logger.warning("%s: its jobs may still be at work, %s", run.name, first_line(error))


def _taken_here(run: FlowRun) -> bool:
    """By the worker that runs this flow: names of workers have the machine's in them."""
    worker = os.environ.get("PREFECT__WORKER_NAME")
    return worker is not None and run.labels.get("prefect.worker.name") == worker


def runs_with_process() -> set[str]:
    """Ids of the flow runs that have a process of Prefect's engine on this machine.

    What a run started, such as Ray, has its id too; it does not keep the run alive.
    """
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()[:5]
            if any(word.startswith("prefect.") or "/prefect/runner/" in word for word in words):
                found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found


def _runs_of_ours(client: SyncPrefectClient, chosen: FlowRunFilter) -> list[FlowRun]:
    """The newest 200: more are never unfinished at once."""
    return client.read_flow_runs(
        flow_run_filter=chosen,
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )


def _state_is(types: list[StateType]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=types))


def _newest_heartbeat(client: SyncPrefectClient, run: FlowRun) -> datetime | None:
    wanted = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
    )
    events = client.read_events(wanted, limit=1).events
    return events[0].occurred if events else None


def _end_what_is_within(client: SyncPrefectClient) -> None:
    """Subflow and task runs of what ended early within a day: neither a worker nor the server ends these."""
    ended = FlowRunFilter(state=_state_is(_ENDED_EARLY), end_time=_a_day_ago("after_"))
    alive = runs_with_process()
    parents = [run for run in _runs_of_ours(client, ended) if str(run.id) not in alive]
    while parents:
        for state_type in _ENDED_EARLY:
            _end_within(client, [run.id for run in parents if run.state_type == state_type], State(type=state_type))
        parents = client.read_flow_runs(flow_run_filter=_children([run.id for run in parents]))
        parents = [run for run in parents if run.state_type in _ENDED_EARLY]


def _a_day_ago(side: Literal["before_", "after_"]) -> FlowRunFilterEndTime:
    return FlowRunFilterEndTime.model_validate({side: datetime.now(UTC) - timedelta(days=1)})


def _end_within(client: SyncPrefectClient, parents: list[UUID], state: State) -> None:
    if not parents:
        return
    state.message = "the flow run that it belonged to ended"
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=parents)),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED))),
    )
    for task in tasks:
        _set(client.set_task_run_state, task, state)
    for run in client.read_flow_runs(flow_run_filter=_children(parents, _UNFINISHED)):
        _set(client.set_flow_run_state, run, state)


def _children(parents: Iterable[UUID], states: list[StateType] | None = None) -> FlowRunFilter:
    within = FlowRunFilterParentFlowRunId(any_=list(parents))
    return FlowRunFilter(parent_flow_run_id=within, state=_state_is(states) if states else None)


def _set(set_state: Callable[[UUID, State], OrchestrationResult[Any]], run: FlowRun | TaskRun, state: State) -> str:
    """Set it, and say so; the server refuses where the run has ended meanwhile. The state that it has then."""
    result = set_state(run.id, state)
    name = (result.state and result.state.name) or result.status.value
    get_run_logger().warning("%s: %s, %s", run.name, name, state.message)
    return name


def _forget_old_looks(client: SyncPrefectClient) -> None:
    """Delete runs of this flow, of which there are hundreds a day: what they did is told by the runs that they set."""
    old = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[crash_dead_runs.name])),
        flow_run_filter=FlowRunFilter(state=_state_is([StateType.COMPLETED]), end_time=_a_day_ago("before_")),
    )
    for run in old:
        client.delete_flow_run(run.id)
