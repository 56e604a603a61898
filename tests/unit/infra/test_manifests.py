"""The manifests fit each other and the code that they start."""

import re

from cluster_manifests import COMPONENT, DOCKERFILE, ROOT, containers, environment, of_component, of_kind, pods, ports

from infra.stack.settings import StackSettings


def test_every_container_has_requests_limits_and_no_rights(objects):
    for container in containers(objects):
        resources = container["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= resources[kind].keys(), container["name"]
        assert resources["requests"].get("nvidia.com/gpu") == resources["limits"].get("nvidia.com/gpu")
        security = container["securityContext"]
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_every_pod_runs_as_nobody_in_particular(objects):
    for pod in pods(objects):
        spec = pod["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        mounts = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
        assert mounts == {volume["name"] for volume in spec["volumes"]}
    accounts = of_kind(objects, "ServiceAccount")
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    used = {pod["metadata"]["labels"][COMPONENT]: pod["spec"]["serviceAccountName"] for pod in pods(objects)}
    assert used == dict.fromkeys(used, "rskd") | {"ray-head": "ray-head"}
    assert set(used.values()) == accounts.keys()
    holders = [c["name"] for c in containers(objects) if any("token" in m["name"] for m in c["volumeMounts"])]
    assert holders == ["autoscaler"]


def test_what_serves_has_probes_of_a_port_that_it_has(objects):
    serving = [container for container in containers(objects) if container.get("ports")]
    assert {container["name"] for container in serving} == {
        *("prefect-server", "prefect-worker", "mlflow", "ray-head", "ray-worker"),
    }
    for container in serving:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports(container)


def test_every_key_of_a_secret_is_documented(objects):
    used = {("ray", "auth_token")}  # KubeRay's own, by authOptions.secretName
    (cluster,) = of_kind(objects, "RayCluster").values()
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "ray"}
    for container in containers(objects):
        for entry in container.get("env", []):
            if (key := entry.get("valueFrom", {}).get("secretKeyRef")) is not None:
                used.add((key["name"], key["key"]))
            assert "value" not in entry or not re.search("TOKEN$|PASSWORD|SECRET|AUTH_STRING", entry["name"])
    readme = (ROOT / "infra" / "README.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \| `([a-z_-]+)` \|", readme, re.M)) == used
    assert of_kind(objects, "Secret") == {}


def test_every_key_of_a_config_map_exists(objects):
    there = of_kind(objects, "ConfigMap")
    used = set()
    for container in containers(objects):
        for entry in container.get("env", []):
            if (key := entry.get("valueFrom", {}).get("configMapKeyRef")) is not None:
                used.add(key["key"])
                assert key["key"] in there[key["name"]]["data"]
        assert all(source["configMapRef"]["name"] == "object-store" for source in container.get("envFrom", []))
    assert used == there["settings"]["data"].keys()
    assert all(name.startswith("AWS_") for name in there["object-store"]["data"])


def test_ports_are_those_of_the_stack(objects):
    """As `make up` has them, so that documentation and a port-forward name the same ones."""
    stack = StackSettings()
    assert ports(of_component(objects, "prefect-server")) == {"http": stack.prefect.port}
    assert ports(of_component(objects, "prefect-worker")) == {"health": stack.prefect.worker_port}
    assert ports(of_component(objects, "mlflow")) == {"http": stack.mlflow.port}
    ray = {"metrics": stack.ray.metrics_port, "agent": stack.ray.agent_port}
    assert ports(of_component(objects, "ray-head")) == ray | {
        "gcs-server": stack.ray.port,
        "dashboard": stack.ray.dashboard_port,
    }
    services = {name: each["spec"]["ports"][0] for name, each in of_kind(objects, "Service").items()}
    assert {name: (port["port"], port["targetPort"]) for name, port in services.items()} == {
        "prefect-server": (stack.prefect.port, "http"),
        "mlflow": (stack.mlflow.port, "http"),
    }


def test_addresses_are_those_of_the_services(objects):
    worker = environment(of_component(objects, "prefect-worker"))
    assert worker["PREFECT_API_URL"] == "http://prefect-server:4200/api"
    assert worker["PREFECT_WORKER_WEBSERVER_PORT"] == "4201"
    assert worker["RAY_AUTH_MODE"] == "token"
    for component in ("prefect-worker", "ray-head"):
        assert environment(of_component(objects, component))["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    (cluster,) = of_kind(objects, "RayCluster")
    (register,) = of_kind(objects, "StatefulSet")["prefect-worker"]["spec"]["template"]["spec"]["initContainers"]
    assert f"--set=ray.address=http://{cluster}-head-svc:8265" in register["args"]
    assert "--tracking-uri=http://mlflow:5000" in register["args"]
    hosts = environment(of_component(objects, "mlflow"))["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert hosts.split(",") == ["mlflow:5000", "localhost:5000", "127.0.0.1:5000"]


def test_the_worker_works_for_the_pool_that_is_registered(objects):
    pool = StackSettings().prefect.pool
    assert f"--pool={pool}" in of_component(objects, "prefect-worker")["args"]
    assert f'\nPOOL = "{pool}"\n' in (ROOT / "flows" / "deployments.py").read_text()


def test_servers_have_the_settings_of_the_stack(objects):
    """What `make up` sets for a server is set here, too, or in the image."""
    from infra.stack.services import server_environment_of

    image = dict(re.findall(r"([A-Z_]+)=(\S+)", "".join(re.findall(r"^ENV (?:.*\\\n)*.*", DOCKERFILE, re.M))))
    server = environment(of_component(objects, "prefect-server"))
    mlflow = environment(of_component(objects, "mlflow"))
    wanted = server_environment_of(StackSettings())
    for name in (
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "MLFLOW_DISABLE_TELEMETRY",
        "RAY_USAGE_STATS_ENABLED",
        "SPT_NOENV",
    ):
        assert image[name] == wanted[name]
    lease = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    assert server[lease] == wanted[lease]
    assert mlflow["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == wanted["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= mlflow.keys()


def test_the_autoscaled_cluster(objects):
    (cluster,) = of_kind(objects, "RayCluster").values()
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu"}
    assert groups["gpu"]["minReplicas"] == groups["gpu"]["replicas"] == 0
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (group["groupName"] == "gpu")
