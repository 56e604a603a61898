"""Submit a stage as a job and follow it to its end; or find the job that is at it already.

    jobs of the cluster at the same work ─┬─ none ────────────► submit ─┐
                                          ├─ same settings ─────────────┴─► follow ─► its result, or its error
                                          └─ other settings ──► wait for its end, look again

A job's name is stage, digest of the settings, flow run, attempt. A flow that died and starts again under its id finds
the job that it submitted, also one that has ended with a result meanwhile. After one that failed or was stopped comes
the next attempt, which goes on from what was committed. Without a flow run, only jobs at work are found.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus

import rskd
from rskd import interrupts, records
from rskd.config import RayConfig
from rskd.errors import ConfigError, RskdError, first_line
from rskd.jobs.cluster.client import JobsApi, RefusedError
from rskd.jobs.cluster.log import JobLog
from rskd.jobs.cluster.records import Call, Outcome, known_jobs, read_outcome, write_call
from rskd.jobs.cluster.stage import Caller
from rskd.storage import Store
from rskd.tracking import started_by

STOP_SECONDS = 120  # that a job gets to end in order when it is stopped; Ray's own default is 3
_SECONDS_BETWEEN_LOOKS = 1.0
_WORK, _SETTINGS = "rskd_work", "rskd_settings"  # in a job's metadata


def run_as_job(address: str, stage: Callable[..., Any], args: list[Any], caller: Caller) -> Any:
    """The result of `stage(*args)`, run as a job of the cluster at `address`; `args` begin with a configuration.

    Raises what the stage does; ConfigError for a cluster that does not answer, refuses the token or has no rskd;
    RskdError for a job that was lost or stopped. An interrupt stops the job, and waits until it has ended.
    """
    ray: RayConfig = args[0].ray
    call = Call.of(stage, args, started_by.tags())
    Store(args[0].storage.root).check_writable()
    api = JobsApi(address, caller.say)
    while True:
        busy = _at_work(api, call)
        if busy is None:
            job, outcome = _next_attempt(api, call, caller.run())
            if outcome is not None:
                caller.say(f"job {job} has ended meanwhile: its result is taken")
                return outcome.value()
            with _stopped_if_interrupted(api, job, caller.say):
                if _submit(api, call, job, ray):
                    caller.say(f"job {job} on {api.address}")
                    return _follow(api, call, job, caller.say)
        elif (busy.metadata or {}).get(_SETTINGS) == call.digest:
            job = str(busy.submission_id)
            caller.say(f"job {job} on {api.address} is at work on {call.doing}: following it")
            with _stopped_if_interrupted(api, job, caller.say):
                return _follow(api, call, job, caller.say)
        else:
            caller.say(f"job {busy.submission_id} is at work on {call.doing} with other settings: waiting for its end")
            _wait(api, str(busy.submission_id))


def stop_jobs_of(address: str, run: str, say: Callable[[str], None]) -> list[str]:
    """Ask for the end of the jobs of a flow run that are at work, and do not wait for it; their names."""
    api = JobsApi(address, say)
    jobs = [str(job.submission_id) for job in api.list_jobs() if _WORK in (job.metadata or {})]
    found = [job for job in jobs if f"-{run}-" in job and api.stop_job(job)]
    for job in found:
        say(f"job {job} is stopped, its run was cancelled")
    return found


def _at_work(api: JobsApi, call: Call) -> JobDetails | None:
    """The first job that has not ended, of those at the same work of the same distillation."""
    work = _digest(call.doing)
    jobs = [job for job in api.list_jobs() if (job.metadata or {}).get(_WORK) == work and not job.status.is_terminal()]
    return min(jobs, key=lambda job: (job.start_time, job.submission_id), default=None)


def _next_attempt(api: JobsApi, call: Call, run: str | None) -> tuple[str, Outcome | None]:
    """The job to submit; or the last one, with its outcome, if the same run submitted it and it succeeded."""
    stem = "-".join(["rskd", call.stage.partition(":")[2], call.digest[:12], *([run] if run else []), ""])
    known = known_jobs(call.home) | {str(job.submission_id) for job in api.list_jobs()}
    attempts = [int(job.removeprefix(stem)) for job in known if re.fullmatch(rf"{re.escape(stem)}\d+", job)]
    last = max(attempts, default=0)
    outcome = read_outcome(call.home, f"{stem}{last}") if run and last else None
    if outcome is not None and outcome.result is not None:
        return f"{stem}{last}", outcome
    return f"{stem}{last + 1}", None


def _submit(api: JobsApi, call: Call, job: str, ray: RayConfig) -> bool:
    """False, and nothing is at work, if somebody else was first: with this job, or with another one at this work."""
    uri = write_call(call, job)
    runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    if ray.code == "sent":
        runtime_env |= {"py_modules": [str(Path(rskd.__file__).parent)], "excludes": ["**/__pycache__"]}
    try:
        api.submit_job(
            # -P: not the rskd of the folder in which the node was started
            entrypoint=f"exec python -P -m rskd.jobs.cluster.job {shlex.quote(uri)}",
            submission_id=job,
            runtime_env=runtime_env,
            metadata={"job_name": call.doing, _WORK: _digest(call.doing), _SETTINGS: call.digest},
            entrypoint_num_cpus=ray.driver_cpus or None,
        )
    except RefusedError as error:
        if "already exists" in str(error):
            return True
        raise
    first = _at_work(api, call)
    if first is None or first.submission_id == job:
        return True
    _stop(api, job)
    return False


def _follow(api: JobsApi, call: Call, job: str, say: Callable[[str], None]) -> Any:
    log = JobLog(api, job, say)
    try:
        details = _wait(api, job, log.show)
        log.finish()
    finally:
        log.close()
    outcome = read_outcome(call.home, job)
    if outcome is not None:
        return outcome.value()
    raise _without_outcome(job, details, call)


def _wait(api: JobsApi, job: str, meanwhile: Callable[[], None] = lambda: None) -> JobDetails | None:
    """Until it has ended; None where the cluster no longer knows it."""
    while True:
        details = api.find(job)
        meanwhile()
        if details is None or details.status.is_terminal():
            return details
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _without_outcome(job: str, details: JobDetails | None, call: Call) -> RskdError:
    """Why a job ended and left no outcome."""
    again = "run it again, it goes on from what was finished"
    if details is None:
        return RskdError(f"job {job} is gone, its cluster has been restarted: {again}")
    if details.status == JobStatus.STOPPED:
        return RskdError(f"job {job} was stopped: {again}")
    said = details.message or ""
    last = first_line((said.strip().splitlines() or [""])[-1])
    if details.driver_exit_code == 127:
        return ConfigError(f"job {job} found no python ({last}): put that of rskd on the PATH of the cluster's nodes")
    if re.search("No module named '?rskd", said):
        return ConfigError(f"job {job} found no rskd: install it on the cluster, or set ray.code=sent")
    if details.driver_exit_code == ConfigError.exit_code:
        return ConfigError(f"job {job} could not read its call in {call.home}/jobs: {last.removeprefix('rskd: ')}")
    return RskdError(f"job {job} failed ({last}): {again}")


@contextmanager
def _stopped_if_interrupted(api: JobsApi, job: str, say: Callable[[str], None]) -> Iterator[None]:
    """A second interrupt does not keep it from waiting for the job's end; a third does."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        with interrupts.deferred():
            say(f"stopping job {job}, which has {STOP_SECONDS} s to end in order")
            _stop(api, job)
        raise


def _stop(api: JobsApi, job: str) -> None:
    """Ask for its end, and wait for it."""
    try:
        api.stop_job(job)
    except RefusedError as error:  # it has ended, or was never there
        if error.status != 404:
            raise
    _wait(api, job)


def _digest(text: str) -> str:
    return records.digest({"": text})
