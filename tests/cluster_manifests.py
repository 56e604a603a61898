"""The manifests of a cluster as its tests see them: rendered, and looked at by pod, container and label."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from infra.kubernetes.lint import Object, pod_templates

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "infra" / "kubernetes"
DOCKERFILE = (ROOT / "infra" / "images" / "Dockerfile").read_text()
COMPONENT = "app.kubernetes.io/component"


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "infra" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def with_vllm(folder: Path) -> Path:
    """The small overlay as its comment says how to have vLLM."""
    copy = shutil.copytree(KUBERNETES, folder / "kubernetes")
    file = copy / "overlays" / "small" / "kustomization.yaml"
    text = file.read_text()
    file.write_text(text.replace("# components:", "components:").replace("#   - ../../comp", "  - ../../comp"))
    assert file.read_text() != text
    return file.parent


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pods(objects: list[Object]) -> list[Object]:
    return list(chain.from_iterable(map(pod_templates, objects)))


def containers(objects: list[Object]) -> Iterator[Object]:
    for pod in pods(objects):
        yield from pod["spec"].get("initContainers", [])
        yield from pod["spec"]["containers"]


def of_component(objects: list[Object], component: str) -> Object:
    """The first container of the pod that has this label."""
    (pod,) = [pod for pod in pods(objects) if pod["metadata"]["labels"][COMPONENT] == component]
    return pod["spec"]["containers"][0]


def environment(container: Object) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def ports(container: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(labels.get(expression["key"]) in expression["values"] for expression in expressions)
