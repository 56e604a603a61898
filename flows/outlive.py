"""A run outlives the worker that started it, and a server that is away: each is back soon, and the run is the work."""

from __future__ import annotations

import os
import select
import threading
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease

_OUTPUTS = (1, 2)


def outlive_worker_and_server() -> None:
    """Have this process do so; to be called before its flow begins."""
    flow_engine.maintain_concurrency_lease = _maintain_lease
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # a worker reads what this process prints
        threading.Thread(target=_print_into_nothing_when_nobody_reads, name="outlive-worker", daemon=True).start()


def _maintain_lease(lease_id: UUID, lease_duration: float, **_: Any) -> AbstractContextManager[None]:
    """Of the place that a run has in its deployment: Prefect would end a run whose lease it could not renew.

    A server that was away for five minutes has given the place away; the run goes on (Prefect's issues 21064, 18802).
    """
    return maintain_concurrency_lease(lease_id, lease_duration)


def _print_into_nothing_when_nobody_reads() -> None:
    """Once the worker is dead, the next line of the log would be a broken pipe, and end the run."""
    poll = select.poll()
    for output in _OUTPUTS:
        poll.register(output, 0)  # a reader that went away is told unasked
    poll.poll()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for output in _OUTPUTS:
        os.dup2(nothing, output)
