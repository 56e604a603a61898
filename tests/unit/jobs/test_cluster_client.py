"""The client of the Jobs API against a server that is away, broken, or not Ray's."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from free_ports import free_ports

from rskd.errors import ConfigError, RskdError
from rskd.jobs.cluster import client
from rskd.jobs.cluster.client import JobsApi, RefusedError

VERSION = (200, json.dumps({"ray_version": "2.60.0"}))
JOB = (200, json.dumps({"type": "SUBMISSION", "entrypoint": "true", "status": "RUNNING", "submission_id": "job-1"}))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(client, "_SECONDS_BETWEEN", 0.01)


@contextmanager
def served(*answers: tuple[int, str]) -> Iterator[str]:
    """The address of a server with these answers, of which it repeats the last."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_address_it_is_given_wins(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_ports(1)[0]}")
    with served(VERSION, JOB) as address:
        found = JobsApi(f"{address}/", print).find("job-1")
    assert found is not None
    assert found.submission_id == "job-1"


def test_what_never_answered_is_a_wrong_address():
    port = free_ports(1)[0]
    with pytest.raises(ConfigError, match=rf"ray.address=http://127.0.0.1:{port} does not answer \(ConnectionError\)"):
        JobsApi(f"http://127.0.0.1:{port}", print)


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, "[]"), (200, "{}"), (404, "{}")])
def test_another_server_is_a_wrong_address(answer: tuple[int, str]):
    with served(answer) as address, pytest.raises(ConfigError, match="answers, but is no Ray dashboard"):
        JobsApi(address, print)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token(status: int):
    with served((status, "")) as address, pytest.raises(ConfigError, match=r"refuses the token .*RAY_AUTH_TOKEN"):
        JobsApi(address, print)


def test_an_outage_is_waited_for_and_said_once():
    said: list[str] = []
    away = (503, "Traceback\nTimeoutError: no agent\n")
    with served(VERSION, away, away, JOB) as address:
        found = JobsApi(address, said.append).find("job-1")
    assert found is not None
    assert said == [
        f"{address} does not answer (TimeoutError: no agent): waiting for it, 10 min at most",
        f"{address} answers again",
    ]


def test_an_outage_has_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "PATIENCE", 0.05)
    with served(VERSION, (500, "")) as address, pytest.raises(RskdError, match="has not answered for") as caught:
        JobsApi(address, print).find("job-1")
    assert caught.value.exit_code == 1


def test_a_job_that_is_unknown_and_a_request_that_is_refused():
    with served(VERSION, (404, "no such job"), (400, "Traceback\nValueError: bad\n")) as address:
        api = JobsApi(address, print)
        assert api.find("job-1") is None
        with pytest.raises(RefusedError, match=r"refuses \(400, ValueError: bad\)"):
            api.find("job-1")
