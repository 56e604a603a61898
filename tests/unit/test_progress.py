from threading import Barrier, Thread

import pytest

from rskd.progress import Pace, Standing, progress_bar, watched_by


def test_who_watches_is_told_of_each_advance_within_the_block_alone():
    seen: list[Standing] = []
    with watched_by(seen.append), progress_bar("work", 4) as advance:
        advance()
        advance(3, "fast")
    with progress_bar("unwatched", 1) as advance:
        advance()
    assert [(one.description, one.done, one.total, one.status) for one in seen] == [
        ("work", 1, 4, ""),
        ("work", 4, 4, "fast"),
    ]


def test_who_watches_a_block_within_does_not_replace_who_watches_it_all():
    outer: list[Standing] = []
    inner: list[Standing] = []
    with watched_by(outer.append), progress_bar("work", 3) as advance:
        with watched_by(inner.append), progress_bar("part", 1) as advance_part:
            advance_part()
        advance()
    assert [one.description for one in outer] == ["part", "work"]
    assert [one.description for one in inner] == ["part"]


def test_time_left_does_not_count_the_start():
    """A first step after 100 s, then one each second: nine steps are left after the second."""
    pace = Pace()
    assert pace.seconds_left(100.0, 1, 11) is None
    assert pace.seconds_left(101.0, 2, 11) == 9.0
    assert pace.seconds_left(110.0, 11, 11) == 0


def test_units_that_were_done_before_say_nothing_of_the_speed():
    pace = Pace()
    pace.seconds_left(0.0, 900, 1000)
    assert pace.seconds_left(10.0, 910, 1000) == 90.0


def test_time_left_follows_the_last_minute():
    """Ten units a second for an hour, then one a second: a minute later the past is forgotten."""
    pace = Pace()
    for second in range(3600):
        pace.seconds_left(second, 10 * second, 100_000)
    for second in range(3600, 3661):
        left = pace.seconds_left(second, 36_000 + second - 3600, 100_000)
    assert left == pytest.approx(100_000 - 36_060, rel=0.2)


def test_steps_of_minutes_have_a_speed_too():
    pace = Pace()
    pace.seconds_left(0.0, 1, 10)
    assert pace.seconds_left(300.0, 2, 10) == 2400.0
    assert pace.seconds_left(900.0, 3, 10) == 4200.0  # the last took ten minutes


def test_bars_side_by_side_stand_below_each_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    monkeypatch.setenv("COLUMNS", "200")

    def work(name: str) -> None:
        with progress_bar(f"train {name}", 2) as advance:
            both.wait()
            advance(2, f"loss of {name}")
            both.wait()

    both = Barrier(2, timeout=10)
    threads = [Thread(target=work, args=(name,)) for name in ("ce", "kd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    *_, first, second = [line for line in capsys.readouterr().err.splitlines() if "loss of" in line]
    assert {"ce" in first, "ce" in second} == {True, False}
    assert {"kd" in first, "kd" in second} == {True, False}
