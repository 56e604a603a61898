"""Free ports for servers that tests start."""

import os
import socket

from infra.stack.settings import GRPC_OFFSET

_APART = 8  # processes of pytest-xdist that look at once, each among ports of its own; divides GRPC_OFFSET


def free_ports(number: int) -> list[int]:
    """Ports of this machine that are free, and so are those that SeaweedFS takes for gRPC."""
    ports: list[int] = []
    first = 21_000 + os.getpid() % 2_500 * _APART + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _APART
    for port in range(first, 65_000 - GRPC_OFFSET, _APART):
        if is_free(port) and is_free(port + GRPC_OFFSET):
            ports.append(port)
        if len(ports) == number:
            return ports
    raise RuntimeError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
