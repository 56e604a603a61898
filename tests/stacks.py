"""Stacks of one machine that tests start: on free ports, told what to do by their command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from free_ports import free_ports
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.stack.leftovers import left_of
from infra.stack.services import services_of
from infra.stack.settings import StackSettings, load_settings
from infra.stack.supervision import Supervisor

ROOT = Path(__file__).parents[1]
SECONDS = 300  # a process comes back, a stage begins: 20 on an idle machine


class Stack:
    """One stack, told what to do by its command line."""

    def __init__(self, file: Path, environment: dict[str, str] | None = None):
        self.file = file
        self.environment = os.environ | (environment or {})

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "infra.stack", *command, "--file", str(self.file)]
        return subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, text=True)

    @property
    def settings(self) -> StackSettings:
        return load_settings(self.file)

    @property
    def left(self) -> list[psutil.Process]:
        return left_of(str(self.settings.folder))

    def pids(self) -> dict[str, int]:
        return {name: info["pid"] for name, info in Supervisor(self.settings).processes().items()}


def stack_file(folder: Path) -> Path:
    """A stack.toml in `folder` with ports that are free now."""
    ports = iter(free_ports(16))
    text = f"""
    folder = "{folder / "stack"}"
    prefect = {{port = {next(ports)}, worker_port = {next(ports)}}}
    mlflow = {{port = {next(ports)}}}
    object_store = {{port = {next(ports)}, internal_ports = [{next(ports)}, {next(ports)}, {next(ports)}]}}
    prometheus = {{port = {next(ports)}}}
    dashboard = {{port = {next(ports)}, root = "{folder / "store"}"}}
    [ray]
    port = {next(ports)}
    dashboard_port = {next(ports)}
    metrics_port = {next(ports)}
    agent_port = {next(ports)}
    client_port = {next(ports)}
    """
    file = folder / "stack.toml"
    file.write_text(text)
    return file


@contextmanager
def stack_up(file: Path) -> Iterator[Stack]:
    """The stack of a file, up within the block; afterwards nothing of it is left."""
    stack = Stack(file)
    started = stack("up")
    try:
        assert started.returncode == 0, started.stderr
        yield stack
    finally:
        stack("down")
        assert stack.left == []


@contextmanager
def api_of(stack: Stack) -> Iterator[SyncPrefectClient]:
    url = f"http://127.0.0.1:{stack.settings.prefect.port}/api"
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        yield client


def answers(stack: Stack, name: str) -> bool:
    return next(service for service in services_of(stack.settings) if service.name == name).answers()


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing of one that has ended meanwhile."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)
