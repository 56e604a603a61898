"""Prefect as rskd runs it, wherever a flow is started: no telemetry, and a minute to start its server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
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
    with temporary_settings(ours):
        yield


def run_app(app: typer.Typer) -> NoReturn:
    """`rskd.cli.run_app` with our settings."""
    with prefect_settings():
        cli.run_app(app)
