"""A run goes on without its worker, which read what it prints, and without the server, which keeps its place."""

import os
import subprocess
import sys
import time
from uuid import uuid4

import pytest
from free_ports import free_ports
from prefect import flow_engine
from prefect._internal.concurrency.cancellation import CancelledError
from prefect.concurrency._leases import maintain_concurrency_lease
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.stage  # noqa: F401 (every flow imports it)

_PRINTS = """
import sys, time
import flows.stage
print("begun", flush=True)
sys.stdin.read()
time.sleep(1)
print("unread", flush=True)
print("unread", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("went on")
"""


@pytest.mark.parametrize(("run", "goes_on"), [({"PREFECT__FLOW_RUN_ID": "a-run"}, True), ({}, False)])
def test_a_print_that_nobody_reads(tmp_path, run, goes_on):
    """Of a run, and of a command, which ends as any other in a pipe does."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT__FLOW_RUN_ID"} | run
    command = [sys.executable, "-c", _PRINTS, str(tmp_path / "end")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"begun\n"
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        process.wait(timeout=60)
    assert (tmp_path / "end").exists() == goes_on


def test_a_run_outlives_a_server_that_does_not_renew_its_place(monkeypatch: pytest.MonkeyPatch):
    """Prefect's own way would end it."""
    monkeypatch.setattr("prefect.concurrency._leases._RENEWAL_RETRY_BASE_DELAY", 0.1)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_ports(1)[0]}/api"}):
        with pytest.raises(CancelledError):
            _work_under(maintain_concurrency_lease, seconds=60)
        _work_under(flow_engine.maintain_concurrency_lease, seconds=3)


def _work_under(maintain, seconds: float) -> None:
    with maintain(uuid4(), 300, raise_on_lease_renewal_failure=True):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
