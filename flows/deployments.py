"""Serve every flow as a deployment, so that it can be started and scheduled from the Prefect UI.

    make serve     # or: python -m flows.deployments

With PREFECT_API_URL set, that server gets the deployments; otherwise one is started on http://127.0.0.1:4200.
The form of each deployment is the documented configuration, filled in with flows/configs/demo.yaml; that of
`reproduce-paper` its scale and text. The weekly schedule of `distill` is an example and starts switched off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from prefect import serve
from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows.adapt_teacher import adapt_teacher
from flows.cache_logits import cache_logits
from flows.distill import distill
from flows.evaluate_student import evaluate_student
from flows.pack_corpus import pack_corpus
from flows.reproduce_paper import reproduce_paper
from flows.settings import prefect_settings
from flows.train_student import train_student
from rskd import interrupts
from rskd.config import load_config

EXAMPLE = Path(__file__).parent / "configs" / "demo.yaml"
REPRODUCTION = {"scale": "cpu-small", "source": {"kind": "python_docs"}, "home": ".rskd/paper-cpu-small"}
STARTUP_SECONDS = 120


def serve_deployments() -> None:
    """Serve the deployments until interrupted."""
    parameters = {"config": load_config(EXAMPLE).model_dump(mode="json", exclude_unset=True)}
    weekly = Cron("0 3 * * 0", timezone="UTC", active=False)
    deployments = [
        distill.to_deployment("distill", parameters=parameters, schedules=[weekly]),
        pack_corpus.to_deployment("pack-corpus", parameters=parameters),
        cache_logits.to_deployment("cache-logits", parameters=parameters),
        train_student.to_deployment("train-student", parameters=parameters | {"student": "rskd"}),
        evaluate_student.to_deployment("evaluate-student", parameters=parameters),
        adapt_teacher.to_deployment("adapt-teacher", parameters=parameters),
        reproduce_paper.to_deployment("reproduce-paper", parameters=REPRODUCTION),
    ]
    serve(*cast("list[RunnerDeployment]", deployments))  # to_deployment returns a coroutine in async code alone


@contextmanager
def local_server(host: str = "127.0.0.1", port: int = 4200) -> Iterator[None]:
    """A Prefect server and its UI on loopback, for as long as the context lasts."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    server = subprocess.Popen(command, env=os.environ | settings)
    try:
        with temporary_settings({PREFECT_API_URL: f"http://{host}:{port}/api"}):
            _wait_until_healthy(server)
            yield
    finally:
        server.terminate()
        server.wait()


def _wait_until_healthy(server: subprocess.Popen) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    with get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the Prefect server did not start: see its messages above")
            time.sleep(1)


if __name__ == "__main__":
    with interrupts.stoppable(), prefect_settings():
        if get_current_settings().api.url:
            serve_deployments()
        else:
            with local_server():
                serve_deployments()
