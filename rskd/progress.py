"""Progress of what takes more than a few seconds: a bar on stderr where that is a terminal, and whoever watches.

progress_bar ─► advance ─┬─► bar
                         └─► the functions given to `watched_by` (a flow shows it in Prefect, a stage exports it)
announce ─► a line, on stderr or, in a flow, in its log
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_OF_PACE = 60
_announcements = logging.getLogger(f"{__name__}.announcements")


class ToStderr(logging.Handler):
    """Lines on what is stderr when they come."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


def announce(line: str) -> None:
    """Say what is about to be done."""
    _announcements.info(line)


def show_announcements(handler: logging.Handler | None = None) -> None:
    """From here on they are shown by `handler`, or on stderr; the first call counts."""
    if not _announcements.handlers:
        _announcements.setLevel(logging.INFO)
        _announcements.addHandler(handler or ToStderr())
        _announcements.propagate = False


@dataclass(frozen=True)
class Standing:
    """How far some work is: `done` of `total` units; `status` says what else there is to say."""

    description: str
    done: int
    total: int
    seconds_left: float | None = None
    status: str = ""


class Pace:
    """The speed of some work over the last minute, without the time that it took to begin."""

    def __init__(self) -> None:
        self._reports: deque[tuple[float, int]] = deque()  # time and units done, a second apart at least

    def seconds_left(self, now: float, done: int, total: int) -> float | None:
        """Report `done` units at the time `now`; None for the first report, which may be of units done long before."""
        while len(self._reports) > 1 and self._reports[1][0] <= now - _SECONDS_OF_PACE:
            self._reports.popleft()
        since, before = self._reports[0] if self._reports else (now, done)
        if not self._reports or now - self._reports[-1][0] >= 1:
            self._reports.append((now, done))
        return (now - since) / (done - before) * (total - done) if done > before else None


Watch = Callable[[Standing], None]
_watches: ContextVar[tuple[Watch, ...]] = ContextVar("watches", default=())


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Call `watch`, and those of blocks around this one, whenever work within advances, from whatever thread."""
    token = _watches.set((*_watches.get(), watch))
    try:
        yield
    finally:
        _watches.reset(token)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show `total` units of work; yields `advance(units, status="")`, where `status` stands beside the bar.

    Bars of work side by side, in several threads, stand below each other.
    """
    watches = _watches.get()
    pace, done = Pace(), 0
    with _display() as progress:
        task = progress.add_task(description, total=total, status="")

        def advance(units: int = 1, status: str = "") -> None:
            nonlocal done
            done += units
            progress.update(task, advance=units, status=status)
            if watches:
                left = pace.seconds_left(time.monotonic(), done, total)
                for watch in watches:
                    watch(Standing(description, done, total, left, status))

        yield advance


class _Shared:
    """The display that all bars are in, for as long as there is one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bars = 0
        self.progress: Progress | None = None


_shared = _Shared()


@contextmanager
def _display() -> Iterator[Progress]:
    """The display, which begins with the first of the bars and ends with the last."""
    with _shared.lock:
        if _shared.progress is None:
            _shared.progress = _new_display()
            _shared.progress.start()
        progress = _shared.progress
        _shared.bars += 1
    try:
        yield progress
    finally:
        with _shared.lock:
            _shared.bars -= 1
            if _shared.bars == 0:
                _shared.progress = None
                progress.stop()


def _new_display() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
