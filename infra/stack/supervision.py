"""supervisord over the services: its configuration, starting, waiting until each answers, and stopping all of it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from infra.stack import leftovers
from infra.stack.services import WORKER, Service, credentials_of, environment_of, server_environment_of
from infra.stack.settings import StackSettings
from rskd.errors import ConfigError, first_line

_SECONDS_TO_ANSWER = 300  # it takes 20 on two idle cores
_MOST_STARTS = 3  # while it is waited for
_SECONDS_TO_STOP = 40  # more than the 30 that a worker gives a run
_ALREADY_STARTED, _NOT_RUNNING = 60, 70  # faults of supervisord


def configuration(settings: StackSettings, services: Iterable[Service]) -> str:
    """supervisord.conf. It differs where a setting differs, and holds no secret."""
    lines = [
        f"; {settings.model_dump_json()}",
        *("[unix_http_server]", f"file={_escaped(settings.socket)}", "chmod=0700"),
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        *("[supervisord]", f"directory={_escaped(Path.cwd())}"),
        f"pidfile={_escaped(settings.folder / 'supervisord.pid')}",
        f"logfile={_escaped(settings.logs / 'supervisord.log')}",
        *("logfile_maxbytes=10MB", "logfile_backups=3"),
    ]
    for service in services:
        run = [sys.executable, "-m", "infra.stack.run_service", service.name, *service.command]
        lines += [
            f"[program:{service.name}]",
            f"command={_escaped(shlex.join(run))}",
            f'environment=RSKD_STACK_SERVICE="{service.name}"',
            # What ends within 20 s is started again after a pause that grows each time.
            *("autostart=false", "autorestart=true", "startsecs=20", "startretries=1000"),
            f"stopasgroup={str(not service.stops_its_own).lower()}",
            *("killasgroup=true", f"stopwaitsecs={_SECONDS_TO_STOP}"),
            *("redirect_stderr=true", f"stdout_logfile={_escaped(log_of(settings, service.name))}"),
            *("stdout_logfile_maxbytes=20MB", "stdout_logfile_backups=3"),
        ]
    return "\n".join(lines) + "\n"


def log_of(settings: StackSettings, service: str) -> Path:
    return settings.logs / f"{service}.log"


def _escaped(value: str | Path) -> str:
    return str(value).replace("%", "%%")


class Supervisor:
    """The running supervisord of a stack, asked over its socket."""

    def __init__(self, settings: StackSettings):
        self._settings = settings

    @property
    def _rpc(self) -> Any:
        """A new connection each time: one that was refused is of no more use."""
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self._settings.socket}")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    @property
    def is_running(self) -> bool:
        try:
            self._rpc.getState()
        except (OSError, Fault):
            return False
        return True

    def processes(self) -> dict[str, dict[str, Any]]:
        """What supervisord knows of each service: statename, pid, start, …"""
        return {info["name"]: info for info in self._rpc.getAllProcessInfo()}

    def launch(self, services: Sequence[Service]) -> None:
        """Start supervisord, which starts nothing yet. Raises ConfigError where a port is in use."""
        leftovers.end(leftovers.left_of(str(self._settings.folder)))  # of a supervisord that was killed
        for service in services:
            for key, port in service.ports.items():
                _refuse_used(key, port)
        self._settings.socket.unlink(missing_ok=True)
        ours = environment_of(self._settings) | server_environment_of(self._settings) | credentials_of(self._settings)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration_path(self._settings))]
        environment = os.environ | ours | {"RSKD_STACK": str(self._settings.folder), "PYTHONPATH": _python_path()}
        started = subprocess.run(command, env=environment, capture_output=True, text=True)
        if started.returncode:
            said = first_line(started.stderr or started.stdout)
            raise ConfigError(f"supervisord did not start ({said}): correct that, and make up again")
        _wait(lambda: self.is_running, 60, "supervisord did not start", self._settings.logs / "supervisord.log")

    def start(self, service: Service) -> None:
        """Start it unless it runs."""
        try:
            self._rpc.startProcess(service.name, False)
        except Fault as fault:
            if fault.faultCode != _ALREADY_STARTED:
                raise

    def wait_for(self, service: Service) -> None:
        """Until it answers. Raises ConfigError where it does not in time, or keeps ending."""
        starts, log = set(), log_of(self._settings, service.name)

        def is_up() -> bool:
            info = self.processes()[service.name]
            starts.add(info["start"])
            if info["statename"] == "FATAL" or len(starts) > _MOST_STARTS:
                raise ConfigError(f"{service.name} keeps ending ({_last_line(log)}): correct that, see {log}")
            return info["statename"] in ("STARTING", "RUNNING") and service.answers()

        _wait(is_up, _SECONDS_TO_ANSWER, f"{service.name} does not answer at {service.address}", log)

    def stop(self) -> None:
        """Stop every service, the worker and its runs first, and supervisord; leave nothing that the stack started."""
        folder = str(self._settings.folder)
        if self.is_running:
            supervisord = psutil.Process(self._rpc.getPID())
            with suppress(Fault):
                self._rpc.stopProcess(WORKER)
            leftovers.end(leftovers.left_of(folder, WORKER), _SECONDS_TO_STOP)  # while Prefect can hear how they ended
            self._rpc.stopAllProcesses()
            self._rpc.shutdown()
            psutil.wait_procs([supervisord], timeout=_SECONDS_TO_STOP)
        leftovers.end(leftovers.left_of(folder))


def configuration_path(settings: StackSettings) -> Path:
    return settings.folder / "supervisord.conf"


def _python_path() -> str:
    """The working directory first: run_service and the flows are imported from it, whatever is installed."""
    return os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))


def _wait(condition: Callable[[], bool], seconds: float, problem: str, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ConfigError(f"{problem} within {seconds:.0f} s ({_last_line(log)}): see {log}, and make up again")
        time.sleep(0.5)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return first_line(next((line for line in reversed(lines) if line.strip()), "its log is empty"))


def _refuse_used(key: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"{key}={port} is in use{_holder(port)}: end that, or set another port") from None


def _holder(port: int) -> str:
    """By which process, where this user may know."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
