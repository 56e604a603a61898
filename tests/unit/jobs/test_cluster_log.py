"""A job's log through streams that end, and its progress on the way to bars here."""

import time
from typing import Any

import pytest

from rskd.jobs.cluster import log
from rskd.jobs.cluster.log import JobLog, Told
from rskd.progress import Standing, watched_by

LINES = [f"line {number}" for number in range(20)]
TEXT = "\n".join(LINES) + "\n"


class Streams:
    """Each stream begins anew, and ends after some more chunks, as Ray's do at times."""

    def __init__(self, text: str):
        self._text, self.opened = text, 0

    async def tail_job_logs(self, job: str):
        self.opened += 1
        for start in range(0, min(len(self._text), 30 * self.opened), 7):
            yield self._text[start : start + 7]
        raise RuntimeError("closed")

    def get_job_logs(self, job: str) -> str:
        return self._text


def _log(streams: Any, said: list[str]) -> JobLog:
    return JobLog(streams, "job-1", said.append)


def test_no_line_is_lost_or_shown_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "_SECONDS_BEFORE_REOPENING", 0.01)
    streams, said = Streams(TEXT + "the last"), []
    shown = _log(streams, said)
    deadline = time.monotonic() + 20
    while streams.opened < 4:
        shown.show()
        assert time.monotonic() < deadline
    shown.show()
    assert said == LINES[: len(said)]
    shown.finish()
    assert said == [*LINES, "the last"]
    shown.close()


def test_a_log_that_went_with_its_node(monkeypatch: pytest.MonkeyPatch):
    class Gone(Streams):
        def get_job_logs(self, job: str) -> str:
            raise RuntimeError("no agent")

    streams, said = Gone(TEXT), []
    shown = _log(streams, said)
    while not streams.opened:
        time.sleep(0.01)
    shown.finish()
    shown.close()
    assert said[:-1] == LINES[: len(said) - 1]  # the last may be cut


def test_progress_is_shown_here(capsys: pytest.CaptureFixture[str]):
    told = Told()
    for standing in (Standing("cache", 1, 3), Standing("cache", 2, 3), Standing("cache", 3, 3, None, "5 tokens/s")):
        told(standing)
    told(Standing("train", 8, 8))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # the second came at once after the first
    said: list[str] = []
    seen: list[tuple[str, int, int, str]] = []
    shown = _log(Streams(""), said)
    with watched_by(
        lambda standing: seen.append((standing.description, standing.done, standing.total, standing.status))
    ):
        for line in [*lines, "a line", "rskd-progress [1", "rskd-progress 1"]:
            shown._show(line)
    shown.close()
    assert seen == [("cache", 1, 3, ""), ("cache", 3, 3, "5 tokens/s"), ("train", 8, 8, "")]
    assert said == ["a line"]
