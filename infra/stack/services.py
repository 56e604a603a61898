"""Each server of the stack as a value: its command, ports and environment, and how it is asked whether it is well."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import yaml

from flows.dashboard import SERVED_AT, SERVED_ROOT
from infra.stack.settings import StackSettings
from rskd.cores import usable_cores
from rskd.errors import ConfigError
from rskd.storage import Store

WORKER = "prefect-worker"
_SECONDS = 5  # for an answer
# The configuration that Ray writes names the file of one session: a Prometheus that runs would miss Ray's next one.
_RAY_TARGETS = "prom_metrics_service_discovery.json"
_PROMETHEUS = Path(__file__).parents[2] / "dashboards" / "prometheus"
_OWN_STORE = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")


@dataclass(frozen=True)
class Service:
    """A supervised process, and whether it answers."""

    name: str
    command: list[str]
    address: str
    answers: Callable[[], bool]
    ports: Mapping[str, int] = field(default_factory=dict)  # by the key of stack.toml that sets them
    stops_its_own: bool = False  # the first process ends the others, faster than if each is asked


def services_of(settings: StackSettings) -> list[Service]:
    """The services to start, in this order; an optional one that is not installed is left out."""
    for module in ("supervisor", "prefect", "mlflow"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module} is not installed in {sys.prefix}: make install")
    makers = (_prefect, _worker, _mlflow, _dashboard, _object_store, _ray, _prometheus)
    services = [service for make in makers if (service := make(settings)) is not None]
    _refuse_one_port_twice(services)
    return services


def missing_services(settings: StackSettings) -> list[str]:
    """Optional services that are wanted and not installed."""
    present = {service.name for service in services_of(settings)}
    return [name for name in settings.optional if name not in present]


def environment_of(settings: StackSettings) -> dict[str, str]:
    """What runs, and a shell beside them, need to reach the services; `credentials_of` has the keys."""
    ours = {
        "PREFECT_API_URL": f"http://127.0.0.1:{settings.prefect.port}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{settings.mlflow.port}",
        SERVED_AT: f"http://127.0.0.1:{settings.dashboard.port}",
        SERVED_ROOT: Store(settings.dashboard.root).absolute_uri,
    }
    if _ray(settings):
        ours |= {
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{settings.ray.dashboard_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(settings.folder / "ray-token"),
            # Despite its name: without it Ray takes another address than 127.0.0.1, and then listens on all.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
    return ours


def server_environment_of(settings: StackSettings) -> dict[str, str]:
    """Settings of the servers themselves."""
    folder = settings.folder
    ours = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Leases that a restart of the server keeps: else two stages could hold one place.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(settings.prefect.worker_port),
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow.database or f"sqlite:///{folder}/mlflow/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": settings.mlflow.artifacts or str(folder / "mlflow" / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # evaluations of language models by MLflow: four more processes
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A job's entrypoint is `python`.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",  # titles of processes leave the environment readable, by which they are found
    }
    if settings.prefect.database:
        ours["PREFECT_API_DATABASE_CONNECTION_URL"] = settings.prefect.database
    return ours


def credentials_of(settings: StackSettings) -> dict[str, str]:
    """How to reach the stack's object store; nothing where the environment already leads to another one."""
    store = _object_store(settings)
    if store is None or any(name in os.environ for name in _OWN_STORE):
        return {}
    identity = json.loads(_s3_identities(settings).read_text())["identities"][0]["credentials"][0]
    return {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": identity["accessKey"],
        "AWS_SECRET_ACCESS_KEY": identity["secretKey"],
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def make_folders(settings: StackSettings) -> None:
    """The folders, and secrets that are made once: Ray's token and the keys of the object store."""
    for name in ("logs", "prefect", "mlflow/artifacts", "object-store", "ray", "prometheus"):
        (settings.folder / name).mkdir(parents=True, exist_ok=True)
    settings.folder.chmod(0o700)
    root = Store(settings.dashboard.root)
    if root.is_local:
        Path(root.path).mkdir(parents=True, exist_ok=True)
    _write_once(settings.folder / "ray-token", secrets.token_hex(32))
    credentials = {"accessKey": f"RSKD{secrets.token_hex(8)}", "secretKey": secrets.token_hex(32)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = {"identities": [{"name": "rskd", "credentials": [credentials], "actions": actions}]}
    _write_once(_s3_identities(settings), json.dumps(identities))
    _prometheus_config(settings).write_text(_own_prometheus(settings))
    link = short_ray_folder(settings)
    if not link.is_symlink():
        link.symlink_to(settings.folder / "ray")


def _write_once(path: Path, text: str) -> None:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(text)


def _s3_identities(settings: StackSettings) -> Path:
    return settings.folder / "s3.json"


def _prometheus_config(settings: StackSettings) -> Path:
    return settings.folder / "prometheus" / "prometheus.yml"


def _own_prometheus(settings: StackSettings) -> str:
    """The configuration of dashboards/prometheus for the stack's Ray, and with the rules that lie there."""
    config = yaml.safe_load((_PROMETHEUS / "prometheus.yml").read_text())
    config["rule_files"] = [str(_PROMETHEUS / name) for name in config["rule_files"]]
    (ray,) = config["scrape_configs"]
    (targets,) = ray["file_sd_configs"]
    targets["files"] = [str(settings.folder / "ray" / _RAY_TARGETS)]
    return yaml.safe_dump(config, sort_keys=False)


def short_ray_folder(settings: StackSettings) -> Path:
    """A short name for folder/ray: Ray's sockets lie 75 characters below it, and their paths may have 107."""
    name = sha256(bytes(settings.folder)).hexdigest()[:8]
    return Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 16 else "/tmp", f"rskd-{os.getuid()}-{name}")


def _prefect(settings: StackSettings) -> Service:
    port = settings.prefect.port
    address = f"http://127.0.0.1:{port}"
    command = _module("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    return Service("prefect", command, address, lambda: _is_well(f"{address}/api/health"), {"prefect.port": port})


def _worker(settings: StackSettings) -> Service:
    pool, limit, port = settings.prefect.pool, settings.prefect.runs_at_once, settings.prefect.worker_port
    options = {"--pool": pool, "--type": "process", "--name": f"stack-{os.uname().nodename}", "--limit": str(limit)}
    command = _module("prefect", "worker", "start", "--with-healthcheck")
    command += [word for option in options.items() for word in option]
    health = f"http://127.0.0.1:{port}/health"
    return Service(WORKER, command, health, lambda: _is_well(health), {"prefect.worker_port": port})


def _mlflow(settings: StackSettings) -> Service:
    port = settings.mlflow.port
    address = f"http://127.0.0.1:{port}"
    command = _module("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2")
    return Service("mlflow", command, address, lambda: _is_well(f"{address}/health"), {"mlflow.port": port})


def _dashboard(settings: StackSettings) -> Service:
    port = settings.dashboard.port
    address = f"http://127.0.0.1:{port}"
    command = _module("rskd", "dashboard", Store(settings.dashboard.root).absolute_uri, "--serve", str(port))
    return Service("dashboard", command, address, lambda: _is_well(f"{address}/health"), {"dashboard.port": port})


def _object_store(settings: StackSettings) -> Service | None:
    binary = _binary("weed")
    if "object-store" not in settings.optional or binary is None:
        return None
    store = settings.object_store
    address = f"http://127.0.0.1:{store.port}"
    master, volume, filer = store.internal_ports
    command = [
        *(binary, "server", f"-dir={settings.folder / 'object-store'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-s3", f"-s3.port={store.port}", f"-s3.config={_s3_identities(settings)}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.electionTimeout=1s"),
        *("-master.volumeSizeLimitMB=1024", "-volume.max=500", "-volume.preStopSeconds=1"),
    ]
    keys = ("object_store.port", *("object_store.internal_ports",) * 3, *("a gRPC port of object_store",) * 4)
    ports = {f"{key} {index}" if index else key: port for index, (key, port) in enumerate(zip(keys, store.ports))}
    return Service("object-store", command, address, lambda: _is_well(f"{address}/healthz"), ports)


def _ray(settings: StackSettings) -> Service | None:
    if "ray" not in settings.optional or importlib.util.find_spec("ray") is None:
        return None
    ray = settings.ray
    address = f"http://127.0.0.1:{ray.dashboard_port}"
    options = {
        "--node-ip-address": "127.0.0.1",
        "--port": ray.port,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": ray.dashboard_port,
        "--dashboard-agent-listen-port": ray.agent_port,
        "--metrics-export-port": ray.metrics_port,
        "--ray-client-server-port": ray.client_port,
        "--min-worker-port": 0,  # any
        "--max-worker-port": 0,
        "--num-cpus": max(4, usable_cores()),  # so that workers and data tasks fit together, as in a local Ray
        "--temp-dir": short_ray_folder(settings),
    }
    command = _module("ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats")
    command += [f"{option}={value}" for option, value in options.items()]

    ports = {f"ray.{key}": port for key, port in ray.model_dump().items()}
    return Service("ray", command, address, lambda: _is_well(f"{address}/api/gcs_healthz"), ports, stops_its_own=True)


def _prometheus(settings: StackSettings) -> Service | None:
    """Reads the metrics of Ray and of what runs on it; without Ray there is nothing to read."""
    binary = _binary("prometheus")
    if "prometheus" not in settings.optional or binary is None or _ray(settings) is None:
        return None
    port = settings.prometheus.port
    address = f"http://127.0.0.1:{port}"
    config = _prometheus_config(settings)
    command = [
        *(binary, f"--config.file={config}", f"--storage.tsdb.path={config.parent}"),
        *(f"--storage.tsdb.retention.time={settings.prometheus.keep}", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    return Service("prometheus", command, address, lambda: _is_well(f"{address}/-/ready"), {"prometheus.port": port})


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _binary(name: str) -> str | None:
    return shutil.which(name, path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS):
            return True
    except OSError:  # refused, not in time, or an HTTP status of failure
        return False


def _refuse_one_port_twice(services: list[Service]) -> None:
    owners: dict[int, str] = {}
    for service in services:
        for key, port in service.ports.items():
            if port in owners:
                raise ConfigError(f"{owners[port]} and {key} are both {port}: give each a port of its own")
            owners[port] = key
