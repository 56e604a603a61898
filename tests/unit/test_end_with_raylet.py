"""A worker whose exit hangs ends with the process that started it."""

import subprocess
import sys
import time

import psutil

WORKER = """
import threading
from rskd.jobs.training.end_with_raylet import end_with_raylet
end_with_raylet()
threading.Thread(target=threading.Event().wait).start()  # for which the exit waits
print("ready", flush=True)
"""
RAYLET = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}])
print(worker.pid, flush=True)
worker.wait()
"""


def test_a_worker_whose_exit_hangs_ends_with_its_raylet():
    raylet = subprocess.Popen([sys.executable, "-c", RAYLET], stdout=subprocess.PIPE, text=True)
    assert raylet.stdout is not None
    worker = psutil.Process(int(raylet.stdout.readline()))
    assert raylet.stdout.readline() == "ready\n"
    time.sleep(1.5)
    assert worker.is_running()
    raylet.kill()
    raylet.wait()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
