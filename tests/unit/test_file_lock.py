import subprocess
import sys
import time
from pathlib import Path

from rskd.file_lock import file_lock

_HOLD = """
import sys, time
from pathlib import Path
from rskd.file_lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
_COUNT = """
import sys
from pathlib import Path
from rskd.file_lock import file_lock
counter = Path(sys.argv[2])
for _ in range(50):
    with file_lock(Path(sys.argv[1])):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", _COUNT, tmp_path / "lock", counter]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait() for process in processes] == [0] * 8
    assert counter.read_text() == "400"
    assert [file.name for file in tmp_path.iterdir()] == ["counter"]


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waited = []

    def kill() -> None:
        waited.append(True)
        holder.kill()

    started = time.monotonic()
    with file_lock(path, on_wait=kill):
        assert time.monotonic() - started < 30
    assert waited == [True]
    assert not path.exists()
    holder.wait()
