import subprocess
import sys
import time

import psutil

from infra.stack.leftovers import end, left_of

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
]


def start(folder: str, service: str, command=SLEEP) -> subprocess.Popen:
    """In a session of its own, as a run is."""
    marks = {"RSKD_STACK": folder, "RSKD_STACK_SERVICE": service}
    return subprocess.Popen(command, env=marks, start_new_session=True, stdout=subprocess.PIPE)


def test_processes_are_found_by_their_marks_and_ended(tmp_path):
    ours, others = str(tmp_path / "ours"), str(tmp_path / "others")
    worker, server, other = start(ours, "worker"), start(ours, "server", DEAF), start(others, "worker")
    try:
        assert server.stdout
        server.stdout.readline()
        _wait_until_started(worker, other)
        assert {process.pid for process in left_of(ours)} == {worker.pid, server.pid}
        assert [process.pid for process in left_of(ours, "worker")] == [worker.pid]
        end(left_of(ours), seconds=1)  # the server does not hear SIGTERM
        assert left_of(ours) == []
        assert not psutil.pid_exists(worker.pid)
        assert not psutil.pid_exists(server.pid)
        assert other.poll() is None
    finally:
        for process in (worker, server, other):
            process.kill()
            process.communicate()


def _wait_until_started(*started: subprocess.Popen) -> None:
    """Between fork and exec a process still has the environment of this one."""
    deadline = time.monotonic() + 30
    while not all(psutil.Process(process.pid).environ().get("RSKD_STACK") for process in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
