"""What the manifests start, started: by another user, on a read-only root, with the probes of a kubelet."""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator

import pytest
from cluster_manifests import KUBERNETES, containers, of_component
from sandboxed_pods import Pods, can_sandbox

from infra.kubernetes.lint import Object, render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_sandbox(), reason="namespaces and another user need root"),
]
VALUES = {
    "prefect-database": "sqlite+aiosqlite:////prefect/prefect.db",
    "mlflow-database": "sqlite:////tmp/mlflow.db",
    "mlflow-artifacts": "/tmp/artifacts",
    "storage-root": "s3://rskd",
    "auth-string": "somebody:secret",
    "auth_token": "0123456789abcdef" * 4,
    **dict.fromkeys(["prefect-password", "mlflow-password", "access-key-id", "secret-access-key"], "unused"),
}
# As KubeRay 1.7 makes it of rayStartParams and limits.
RAY_START = "ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0"
RAY_START += " --metrics-export-port=8080 --no-monitor --num-cpus=0 --memory=6442450944"


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(KUBERNETES / "overlays" / "small")


@pytest.fixture(scope="module")
def pods(tmp_path_factory) -> Iterator[Pods]:
    services = ["prefect-server", "mlflow", "rskd-head-svc"]
    with Pods(tmp_path_factory.mktemp("pods"), services, VALUES) as pods:
        yield pods


def wait_until(true: Callable[[], bool], pods: Pods, name: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, pods.log(name)
        assert pods.processes[name].poll() in (None, 0), pods.log(name)
        time.sleep(1)


def start(pods: Pods, container: Object) -> None:
    """Until its probes say that it is well."""
    pods.start(container)
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        wait_until(lambda kind=kind: pods.probe(container, kind) == 200, pods, container["name"])


def test_a_container_writes_to_its_volumes_alone(pods, objects):
    command = "id -u; touch /tmp/x /work/x && ! touch /etc/x /home/x && grep CapBnd /proc/self/status"
    client = {**of_component(objects, "prefect-worker"), "name": "writes"}
    assert pods.start(client, ["sh", "-c", command]).wait(60) == 0, pods.log("writes")
    said = pods.log("writes").splitlines()
    assert said[0] == "10001"
    assert said[-1].split() == ["CapBnd:", "0000000000000000"]
    assert pods.log("writes").count("Read-only file system") == 2


def authorization(name_and_password: str) -> str:
    return "Basic " + b64encode(name_and_password.encode()).decode()


def test_prefect_registers_and_runs_a_deployment(pods, objects):
    start(pods, of_component(objects, "prefect-server"))
    assert pods.status(4200, "/api/flows/count") == 401
    assert pods.status(4200, "/api/admin/version", Authorization=authorization("somebody:wrong")) == 401
    assert pods.status(4200, "/api/admin/version", Authorization=authorization("somebody:secret")) == 200
    assert pods.status(4200, "/") == 200
    (register,) = [each for each in containers(objects) if each["name"] == "register-deployments"]
    assert pods.start(register).wait(240) == 0, pods.log("register-deployments")
    worker = of_component(objects, "prefect-worker")
    start(pods, worker)
    ask = {**worker, "name": "client"}
    command = ["prefect", "deployment", "run", "crash-dead-runs/crash-dead-runs", "--watch"]
    assert pods.start(ask, command).wait(240) == 0, pods.log("client")
    assert "Flow run finished successfully" in pods.log("client").replace("\n", " ")
    show = ["prefect", "deployment", "inspect", "pack-corpus/pack-corpus", "--output", "json"]
    assert pods.start({**worker, "name": "form"}, show).wait(120) == 0, pods.log("form")
    form = pods.log("form")
    assert '"address": "http://rskd-head-svc:8265"' in form
    assert '"root": "s3://rskd"' in form
    assert '"uri": "http://mlflow:5000"' in form
    assert '"working_dir": "/work"' in form


def test_mlflow_answers_to_its_names_alone(pods, objects):
    (migrate,) = [each for each in containers(objects) if each["name"] == "migrate"]
    assert pods.start(migrate).wait(240) == 0, pods.log("migrate")
    start(pods, of_component(objects, "mlflow"))
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    for host in ("mlflow:5000", "127.0.0.1:5000", "localhost:5000"):
        assert pods.status(5000, search, Host=host) == 200
    for host in ("mlflow", "elsewhere:5000", "10.1.2.3:5000"):
        assert pods.status(5000, search, Host=host) == 403


def test_rays_head_asks_for_the_token(pods, objects):
    head = of_component(objects, "ray-head")
    token = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "ray", "key": "auth_token"}}}
    added = [{"name": "RAY_AUTH_MODE", "value": "token"}, token]  # by KubeRay, of authOptions
    head = {**head, "args": ["bash", "-c", f"ulimit -n 65536; {RAY_START}"], "env": head["env"] + added}
    start(pods, head)
    assert pods.status(8265, "/api/jobs/") == 401
    assert pods.status(8265, "/api/jobs/", Authorization="Bearer wrong") == 403
    assert pods.status(8265, "/api/jobs/", Authorization=f"Bearer {VALUES['auth_token']}") == 200
    worker = next(each for each in containers(objects) if each["name"] == "ray-worker")
    wait = {**worker, "name": "wait-gcs-ready", "env": worker["env"] + added}
    assert pods.start(wait, ["ray", "health-check", "--address", "rskd-head-svc:6379"]).wait(120) == 0
