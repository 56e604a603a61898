"""Progress of what takes more than a few seconds: a bar on stderr where that is a terminal, and whoever watches.

progress_bar ─► advance ─┬─► bar
                         └─► the function given to `watched_by` (a flow shows it in Prefect)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Standing:
    """How far some work is: `done` of `total` units after `seconds`; `status` says what else there is to say."""

    description: str
    done: int
    total: int
    seconds: float
    status: str = ""

    @property
    def seconds_left(self) -> float | None:
        """At the mean speed so far; None before the first unit."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


Watch = Callable[[Standing], None]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Call `watch` whenever work within the block advances, from whatever thread."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show `total` units of work; yields `advance(units, status="")`, where `status` stands beside the bar."""
    console, watch = Console(stderr=True), _watch.get()
    started, done = time.monotonic(), 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, status="")

        def advance(units: int = 1, status: str = "") -> None:
            nonlocal done
            done += units
            progress.update(task, advance=units, status=status)
            if watch is not None:
                watch(Standing(description, done, total, time.monotonic() - started, status))

        yield advance
