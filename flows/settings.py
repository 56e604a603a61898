"""Prefect as rskd runs it, wherever a flow is started: no telemetry, a minute to start its server, no ctrl-C for it.

A terminal sends ctrl-C to every process in its foreground. Prefect's own server has to outlive the flow, which tells it
how it ended and stops it; without it that takes minutes, and the run stays Running.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_HOME,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from rskd import cli, environment

_OURS: dict[Any, Any] = {
    PREFECT_SERVER_ANALYTICS_ENABLED: False,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 60,
}


@contextmanager
def prefect_settings() -> Iterator[None]:
    """Our settings, but for those that the environment names. Processes that Prefect starts inherit them."""
    environment.prepare()
    ours = {setting: value for setting, value in _OURS.items() if setting.name not in os.environ}
    if "PREFECT_HOME" in os.environ:  # set after Prefect was imported, where HOME cannot be written
        ours[PREFECT_HOME] = Path(os.environ["PREFECT_HOME"])
    start = SubprocessASGIServer._run_uvicorn_command

    def start_spared(self: SubprocessASGIServer) -> subprocess.Popen[Any]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server inherits
        try:
            return start(self)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    SubprocessASGIServer._run_uvicorn_command = start_spared
    try:
        with temporary_settings(ours):
            yield
    finally:
        SubprocessASGIServer._run_uvicorn_command = start


def run_app(app: typer.Typer) -> NoReturn:
    """`rskd.cli.run_app` with our settings."""
    with prefect_settings():
        cli.run_app(app)
