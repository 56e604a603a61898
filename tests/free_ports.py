"""Free ports for servers that tests start."""

import os
import socket

from infra.stack.settings import GRPC_OFFSET


def free_ports(number: int) -> list[int]:
    """Ports of this machine that are free, and so are those that SeaweedFS takes for gRPC."""
    ports: list[int] = []
    for port in range(21_000 + os.getpid() % 20_000, 65_000 - GRPC_OFFSET):
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
