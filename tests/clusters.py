"""Ray clusters of several nodes on this machine, by `ray start`: each node a tree of processes that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from free_ports import free_ports
from stacks import ROOT

_SECONDS = 90.0
_HEAD = "127.0.0.2"  # of 127.0.0.1 Ray would make another address, which others reach, too


@dataclass
class Node:
    """What `ray start --block` started."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """SIGKILL all of it, as a machine that loses its power."""
        tree = [self.process.pid]
        with suppress(psutil.NoSuchProcess):
            tree += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for pid in tree:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait()


@dataclass
class Cluster:
    """A head, which has no CPUs for work, and nodes with logical ones; it may be stopped and started again."""

    folder: Path
    environment: dict[str, str]
    _ports: Iterator[int] = field(default_factory=lambda: iter(free_ports(24)))
    nodes: dict[str, Node] = field(default_factory=dict)
    _started: int = 0
    _begin: dict[str, int] = field(default_factory=dict)  # of each node's output since it started last

    def __post_init__(self) -> None:
        self.port, self.dashboard_port, self._client_port = (next(self._ports) for _ in range(3))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self) -> None:
        """Begin with no memory of an earlier one; waits until it takes jobs."""
        self._start(
            "head",
            *("--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--num-cpus=0"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"),
            f"--ray-client-server-port={self._client_port}",
        )
        self._wait("head", self._takes_jobs)

    def add_node(self, name: str, *, cpus: int) -> None:
        """Join a node, which has one of the resource `name`; waits until it is there.

        Two that start at once would take the same names for their sockets, in the folder that they share.
        """
        resources = json.dumps({name: 1})
        self._start(name, f"--address={_HEAD}:{self.port}", f"--num-cpus={cpus}", f"--resources={resources}")
        self._wait(name, lambda: "Ray runtime started" in self._output(name))

    def kill(self, name: str) -> None:
        self.nodes.pop(name).kill()

    def kill_all(self) -> None:
        for name in list(self.nodes):
            self.kill(name)

    def _address_of(self, name: str) -> str:
        """A loopback address for each node, as if it were a machine."""
        if name == "head":
            return _HEAD
        self._started += 1
        return f"127.0.0.{2 + self._started}"

    def _start(self, name: str, *options: str) -> None:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={self._address_of(name)}", "--min-worker-port=0", "--max-worker-port=0"),
            *(f"--dashboard-agent-listen-port={next(self._ports)}", f"--metrics-export-port={next(self._ports)}"),
            *("--object-store-memory=100000000", *options),
        ]
        with (self.folder / f"{name}.out").open("ab") as out:
            self._begin[name] = out.tell()
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self.nodes[name] = Node(process)

    def _output(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()[self._begin[name] :]

    def _wait(self, name: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SECONDS
        while not is_so():
            is_starting = self.nodes[name].process.poll() is None and time.monotonic() < deadline
            assert is_starting, self._output(name)[-3000:]
            time.sleep(0.2)

    def _takes_jobs(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.address}/api/gcs_healthz", timeout=5):
            return True
        return False


@contextmanager
def cluster_up(folder: Path) -> Iterator[Cluster]:
    """A head and what the block adds to it; nothing of it is left afterwards.

    It notices within seconds that a node or the head is gone, for which Ray takes a minute.
    """
    ours = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    }
    cluster = Cluster(folder, os.environ | ours)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.kill_all()
