"""make lint-manifests: what a cluster and a build would refuse, found without either, within seconds.

    folder ─► kubectl kustomize ─► objects ─┬─► schemas of Kubernetes, unknown fields refused (kubernetes-validate)
                                            └─► RayCluster ─┬─► its pod templates: the same
                                                            └─► the rest: raycluster-schema.yaml, or --crd KubeRay's own
    infra/images/Dockerfile ─► hadolint

    python -m infra.kubernetes.lint [FOLDER…] [--crd FILE]

Schemas know fields and types. That the objects fit each other (ports, secrets, policies) is in tests/unit/infra.
"""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import kubernetes_validate
import typer
import yaml

from rskd.cli import Outcome, run_app
from rskd.errors import ConfigError, first_line

KUBERNETES = ("1.35", "1.37")  # the oldest that is supported, and the newest
IMAGES = Path(__file__).parents[1] / "images"
_FOLDER = Path(__file__).parent
_SCHEMA = _FOLDER / "raycluster-schema.yaml"

Object = dict[str, Any]


def folders() -> list[Path]:
    """What can be applied: the base, and each overlay."""
    return [_FOLDER / "base", *sorted(path.parent for path in _FOLDER.glob("overlays/*/kustomization.yaml"))]


def render(folder: Path) -> list[Object]:
    """The objects that `kubectl apply --kustomize` would send; ConfigError where kustomize refuses the folder."""
    done = subprocess.run([_tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise ConfigError(f"{folder} cannot be rendered: {first_line(done.stderr)}")
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def pod_templates(found: Object) -> Iterator[Object]:
    """Of an object that makes pods, the template of each kind of pod.

    The head of a RayCluster gets the autoscaler's container, as KubeRay adds it.
    """
    kind, spec = found["kind"], found.get("spec", {})
    if kind in ("Deployment", "StatefulSet"):
        yield spec["template"]
    elif kind == "RayCluster":
        head = spec["headGroupSpec"]["template"]
        yield head | {"spec": head["spec"] | {"containers": [*head["spec"]["containers"], _autoscaler(spec)]}}
        yield from (group["template"] for group in spec.get("workerGroupSpecs", []))


def _autoscaler(spec: Object) -> Object:
    options = spec.get("autoscalerOptions", {})
    given = {key: options[key] for key in ("resources", "securityContext", "volumeMounts") if key in options}
    return {"name": "autoscaler", "image": spec["headGroupSpec"]["template"]["spec"]["containers"][0]["image"], **given}


def problems(found: Object, ray_cluster: Object) -> list[str]:
    """What the schemas refuse of an object, one line each; a RayCluster is checked by the schema `ray_cluster`."""
    if found["kind"] != "RayCluster":
        checked = [found]
        refused = []
    else:
        checked = [
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
            for template in pod_templates(found)
        ]
        refused = list(jsonschema.Draft202012Validator(ray_cluster).iter_errors(found))
    for version in KUBERNETES:
        for each in checked:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except jsonschema.ValidationError as error:
                refused.append(error)
            except kubernetes_validate.SchemaNotFoundError as error:
                return [f"{_name(found)}: {error.message}"]
    return list(dict.fromkeys(f"{_name(found)}: {_explained(error)}" for error in refused))


def _name(found: Object) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def _explained(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    return f"{where}: {first_line(error.message)}"


def own_schema() -> Object:
    return yaml.safe_load(_SCHEMA.read_text())


def schema_of_crd(file: Path) -> Object:
    """The JSON schema in a CustomResourceDefinition of RayCluster, with unknown fields refused as Kubernetes' are."""
    try:
        crd = yaml.safe_load(file.read_text())
        (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
        schema = version["schema"]["openAPIV3Schema"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{file} is no CRD with a version v1: name KubeRay's ray.io_rayclusters.yaml") from None
    schema["properties"]["metadata"] = {"type": "object"}
    return _strict(schema)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: _strict(value) for key, value in schema.items()}
    if known.get("x-kubernetes-int-or-string"):
        known["type"] = ["integer", "string"]
    if isinstance(known.get("properties"), dict) and not known.get("x-kubernetes-preserve-unknown-fields"):
        known.setdefault("additionalProperties", False)
    return known


def lint_dockerfile(file: Path = IMAGES / "Dockerfile") -> list[str]:
    """What hadolint says of a Dockerfile, one line each."""
    command = [_tool("hadolint"), "--no-color", "--config", str(IMAGES / "hadolint.yaml"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    return said or ([] if done.returncode == 0 else [f"{file}: hadolint ended with {done.returncode}"])


def _tool(name: str) -> str:
    """The one that is installed beside this Python, so that its version is the pinned one."""
    path = Path(sysconfig.get_path("scripts"), name)
    if not path.exists():
        raise ConfigError(f"{name} is not installed in {path.parent}: make install")
    return str(path)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    chosen: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="All of this folder by default.")
    ] = None,
    crd: Annotated[Path | None, typer.Option(metavar="FILE", help="KubeRay's ray.io_rayclusters.yaml.")] = None,
) -> Outcome:
    """Check manifests by the schemas of Kubernetes and of KubeRay, and the Dockerfile by hadolint."""
    schema = schema_of_crd(crd) if crd else own_schema()
    rows, refused = {}, lint_dockerfile()
    for folder in chosen or folders():
        objects = render(folder)
        refused += [f"{folder.name}: {line}" for each in objects for line in problems(each, schema)]
        rows[folder.name] = f"{len(objects)} objects"
    for line in refused:
        typer.echo(line, err=True)
    rows["problems"] = len(refused)
    return Outcome(rows, "manifests and images", exit_code=ConfigError.exit_code if refused else 0)


if __name__ == "__main__":
    run_app(app)
