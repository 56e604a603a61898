"""Progress of a running stage in Prefect: an artifact that the UI shows while it runs, and a line in the log."""

from __future__ import annotations

import logging
import time
from contextvars import copy_context
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from rskd.errors import first_line
from rskd.progress import Standing

_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_BETWEEN_LINES = 30.0


class LiveProgress:
    """Shows the work of one stage; a server that is away costs its picture and nothing else."""

    def __init__(self, logger: Any):
        self._logger: logging.Logger = logger
        self._context = copy_context()  # the run's, also where a thread of the stage tells how far it is
        self._artifacts: dict[str, UUID] = {}  # by description
        self._next_update = self._next_line = 0.0
        self._warned = False

    def __call__(self, standing: Standing) -> None:
        """Show how far it is, unless it was shown just now."""
        now = time.monotonic()
        if now < self._next_update and standing.done < standing.total:
            return
        self._next_update = now + _SECONDS_BETWEEN_UPDATES
        text = told(standing)
        if now >= self._next_line or standing.done >= standing.total:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            self._logger.info(text)
        try:
            self._context.copy().run(self._show, standing, text)
        except Exception as error:
            if not self._warned:
                self._logger.warning("Prefect does not take the progress (%s): going on without", first_line(error))
            self._warned = True

    def _show(self, standing: Standing, text: str) -> None:
        percent = 100.0 * standing.done / max(1, standing.total)
        known = self._artifacts.get(standing.description)
        if known is None:
            created = create_progress_artifact(progress=percent, key="progress", description=text)
            self._artifacts[standing.description] = cast(UUID, created)
        else:
            update_progress_artifact(artifact_id=known, progress=percent, description=text)


def told(standing: Standing) -> str:
    """As one line: `cache windows: 96 of 512, 1200 tokens/s, 3 min left`."""
    left = standing.seconds_left
    time_left = "" if left is None or standing.done >= standing.total else f"{_rounded(left)} left"
    parts = [f"{standing.done:,} of {standing.total:,}", standing.status, time_left]
    return f"{standing.description}: {', '.join(filter(None, parts))}"


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
