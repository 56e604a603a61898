"""Replies that were paid for: committed one by one, gathered, and read again by whoever goes on."""

import threading
from pathlib import Path

import pytest

from rskd.errors import CorruptPartError
from rskd.evaluation.judge_client import Reply
from rskd.evaluation.ratings import PaidReplies
from rskd.storage import Store


def request(number: int) -> str:
    return f"{number:064x}"


def test_a_reply_is_there_for_the_next_process_at_once(tmp_path: Path):
    PaidReplies(Store(str(tmp_path))).add(request(1), Reply("8 6", 70))
    found = PaidReplies(Store(str(tmp_path)))
    assert request(1) in found
    assert request(2) not in found
    assert found[request(1)] == Reply("8 6", 70)
    assert found.tokens == 70


def test_many_replies_share_a_file(tmp_path: Path):
    paid = PaidReplies(Store(str(tmp_path)))

    def add(first: int) -> None:
        for number in range(first, 320, 4):
            paid.add(request(number), Reply("1 2", 3))

    threads = [threading.Thread(target=add, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list((tmp_path / "pending").iterdir())) == 320 - 256
    assert len(list(tmp_path.glob("replies-*.parquet"))) == 1
    paid.gather()
    paid.gather()
    assert not list((tmp_path / "pending").iterdir())
    assert len(list(tmp_path.glob("replies-*.parquet"))) == 2
    found = PaidReplies(Store(str(tmp_path)))
    assert found.tokens == 3 * 320
    assert all(request(number) in found for number in range(320))


def test_a_kill_between_the_files_of_gathering_loses_and_doubles_nothing(tmp_path: Path):
    paid = PaidReplies(Store(str(tmp_path)))
    paid.add(request(1), Reply("8 6", 70))
    [pending] = (tmp_path / "pending").iterdir()
    data = pending.read_bytes()
    paid.gather()
    pending.write_bytes(data)
    again = PaidReplies(Store(str(tmp_path)))
    assert again.tokens == 70
    again.gather()
    assert PaidReplies(Store(str(tmp_path))).tokens == 70


@pytest.mark.parametrize("gathered", [True, False])
def test_a_damaged_file_is_named(tmp_path: Path, gathered: bool):
    paid = PaidReplies(Store(str(tmp_path)))
    paid.add(request(1), Reply("8 6", 70))
    if gathered:
        paid.gather()
    [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptPartError, match=file.name):
        PaidReplies(Store(str(tmp_path)))
