"""A job's log, here: its lines as they come, and its progress as bars.

    job: progress_bar ─► `told` ─► a line of its log ─► stream ─┬─► lines ─► say
                                                                └─► Bars ─► progress_bar here

The stream is read in a thread. It may end or fall silent at any time, and is then opened again, from the log's first
character: those that were read are skipped. When the job has ended, what is missing is fetched at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from rskd.jobs.cluster.client import JobsApi
from rskd.progress import Standing, progress_bar

_MARK = "rskd-progress "
_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # Ray's own lines have some
_SECONDS_BETWEEN_PROGRESS = 2.0
_SECONDS_OF_SILENCE = 60.0
_SECONDS_BEFORE_REOPENING = 2.0


class Told:
    """In the job: how far its work is, on a line of its log every few seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, standing: Standing) -> None:
        """Print it, unless something was printed just now."""
        now = time.monotonic()
        if now >= self._next or standing.done >= standing.total:
            self._next = now + _SECONDS_BETWEEN_PROGRESS
            facts = [standing.description, standing.done, standing.total, standing.status]
            print(_MARK + json.dumps(facts), flush=True)


class JobLog:
    """The log of a job from its beginning; `show` and `finish` hand its lines to `say`."""

    def __init__(self, api: JobsApi, job: str, say: Callable[[str], None]):
        self._api, self._job, self._say = api, job, say
        self._lock = threading.Lock()
        self._read, self._text, self._is_closed = 0, "", False
        self._bars = _Bars()
        threading.Thread(target=self._stream, name="job-log", daemon=True).start()

    def show(self) -> None:
        """The lines that are whole."""
        with self._lock:
            lines, newline, self._text = self._text.rpartition("\n")
        for line in (lines + newline).splitlines():
            self._show(_COLOUR.sub("", line))

    def finish(self) -> None:
        """The rest of an ended job's log, where it can be had."""
        self._end_stream()
        with suppress(Exception):  # it went with its node
            self._text += self._api.get_job_logs(self._job)[self._read :]
        if self._text:
            self._text += "\n"
        self.show()

    def close(self) -> None:
        """No more lines, and no bar."""
        self._end_stream()
        self._bars.close()

    def _end_stream(self) -> None:
        with self._lock:
            self._is_closed = True

    def _show(self, line: str) -> None:
        if not line.startswith(_MARK):
            self._say(line)
            return
        with suppress(ValueError, TypeError):  # the job's own log may hold anything
            self._bars.show(*json.loads(line.removeprefix(_MARK)))

    def _stream(self) -> None:
        while not self._is_closed:
            with suppress(Exception):  # whatever ends a stream; how the job is, is asked elsewhere
                asyncio.run(self._follow())
            time.sleep(_SECONDS_BEFORE_REOPENING)

    async def _follow(self) -> None:
        skipped = self._read
        chunks = self._api.tail_job_logs(self._job)
        while not self._is_closed:
            async with asyncio.timeout(_SECONDS_OF_SILENCE):
                chunk = await anext(chunks)
            new, skipped = chunk[skipped:], max(0, skipped - len(chunk))
            with self._lock:
                if not self._is_closed:
                    self._text += new
                    self._read += len(new)


class _Bars:
    """One at a time, as a stage shows them."""

    def __init__(self) -> None:
        self._stack, self._description, self._done = ExitStack(), "", 0
        self._advance: Callable[..., None] = lambda *_: None

    def show(self, description: str, done: int, total: int, status: str) -> None:
        if description != self._description:
            self.close()
            self._advance = self._stack.enter_context(progress_bar(description, total))
            self._description, self._done = description, 0
        self._advance(done - self._done, status)
        self._done = done

    def close(self) -> None:
        self._stack.close()
        self._description = ""
