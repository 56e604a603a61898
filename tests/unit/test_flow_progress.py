"""A running stage in Prefect: what is shown, how often, and that a server which is away costs nothing but that."""

import logging

import pytest

from flows import progress
from flows.progress import LiveProgress, told
from rskd.progress import Standing


@pytest.mark.parametrize(
    ("standing", "line"),
    [
        (
            Standing("cache windows", 96, 512, 260.0, "1200 tokens/s"),
            "cache windows: 96 of 512, 1200 tokens/s, 4 min left",
        ),
        (Standing("train ce", 1, 3, 20.0), "train ce: 1 of 3, 20 s left"),
        (Standing("train ce", 1, 1001, 10_000.0), "train ce: 1 of 1,001, 2.8 h left"),
        (Standing("train ce", 3, 3, 0.0), "train ce: 3 of 3"),
        (Standing("train ce", 1, 3), "train ce: 1 of 3"),
    ],
)
def test_one_line(standing: Standing, line: str):
    assert told(standing) == line


def test_an_update_every_few_seconds_and_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    calls = []

    def refuse(**given):
        calls.append(given)
        raise OSError("connection refused")

    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    show = LiveProgress(logging.getLogger("stage"))
    with caplog.at_level(logging.INFO, "stage"):
        for done in range(1, 101):
            show(Standing("work", done, 100))
    assert [call["progress"] for call in calls] == [1.0, 100.0]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"]
