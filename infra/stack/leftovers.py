"""Processes that a stack started, found by two variables of their environment wherever they have gone.

RSKD_STACK is the stack's folder, RSKD_STACK_SERVICE the service; children inherit both, also in sessions of their own.
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

_SECONDS_TO_END = 10


def left_of(folder: str, service: str | None = None) -> list[psutil.Process]:
    """Processes of the stack in `folder`, of one service or of all; not this one and those that started it."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marks = process.environ()
            named = service is None or marks.get("RSKD_STACK_SERVICE") == service
            if process.pid not in own and named and marks.get("RSKD_STACK") == folder:
                found.append(process)
    return found


def end(processes: list[psutil.Process], seconds: float = _SECONDS_TO_END) -> None:
    """SIGTERM, and SIGKILL for what is still there after `seconds`."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=seconds)
