from rskd.progress import Standing, progress_bar, watched_by


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


def test_time_left_is_at_the_mean_speed():
    assert Standing("work", 2, 10, seconds=4.0).seconds_left == 16.0
    assert Standing("work", 0, 10, seconds=4.0).seconds_left is None
    assert Standing("work", 10, 10, seconds=4.0).seconds_left == 0
