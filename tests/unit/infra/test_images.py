"""The Dockerfile agrees with the pins, the manifests and with where rskd looks for things."""

import re
import tomllib

from cluster_manifests import DOCKERFILE, ROOT, containers, of_kind, pins

from rskd.jobs import vllm_environment

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_images_are_those_of_the_dockerfile_at_this_version(objects):
    targets = set(re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.M))
    for container in containers(objects):
        name, tag = container["image"].removeprefix("registry.example/").split(":")
        assert name.removeprefix("rskd-") in targets
        assert tag == VERSION
    assert f"rskd-cpu:{VERSION}" in DOCKERFILE
    assert "latest" not in DOCKERFILE


def test_with_vllm_the_drivers_have_its_environment_too(small, small_with_vllm):
    def images(found):
        (cluster,) = of_kind(found, "RayCluster").values()
        spec = cluster["spec"]
        groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
        templates = {"head": spec["headGroupSpec"]["template"], **groups}
        return {name: pod["spec"]["containers"][0]["image"].split("/")[1] for name, pod in templates.items()}

    tags = {kind: f"rskd-{kind}:{VERSION}" for kind in ("cpu", "gpu", "vllm")}
    assert images(small) == {"head": tags["cpu"], "cpu": tags["cpu"], "gpu": tags["gpu"]}
    assert images(small_with_vllm) == {"head": tags["vllm"], "cpu": tags["cpu"], "gpu": tags["vllm"]}


def test_versions_agree(objects):
    """Of Ray, torch and Python, between both environments, the images and the cluster."""
    ours, theirs = pins("constraints.txt"), pins("constraints-vllm.txt")
    for package in ("ray", "torch", "pyarrow", "pydantic", "cloudpickle"):
        assert ours[package] == theirs[package]
    (cluster,) = of_kind(objects, "RayCluster").values()
    assert cluster["spec"]["rayVersion"] == ours["ray"]
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim-\w+$", DOCKERFILE, re.M)
    for name in ("constraints.txt", "constraints-vllm.txt"):
        comment = (ROOT / "infra" / name).read_text().splitlines()[0]
        assert re.findall(r"run together on Python (\d+\.\d+)", comment) == [python]


def test_every_image_has_the_pins_and_a_user():
    """One base image, every installation constrained, and what starts is not root."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    named = {re.match(r".* AS (\S+)", stage)[1]: stage for stage in stages}
    assert [name for name, stage in named.items() if stage.startswith("${")] == ["base"]
    for name in ("cpu", "gpu", "vllm"):
        assert named[name].rstrip().endswith("USER 10001:10001")
    for line in re.findall(r"pip install (.*)", DOCKERFILE):
        assert line.startswith("--constraint constraints") or "--no-deps" in line
    lines = re.findall(r"pip install --constraint constraints.txt (.*)", DOCKERFILE)
    installed = {line.removesuffix(" \\").split()[-1] for line in lines}
    assert installed == {"torch", "psycopg2-binary", "nvidia-ml-py"}
    assert installed <= pins("constraints.txt").keys()


def test_copied_files_are_sent_to_the_builder():
    ignore = (ROOT / "infra" / "images" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.M) for word in line.split()[:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_vllm_is_where_rskd_looks_for_it():
    """Beside the environment that runs: <its parent>/.venv-vllm."""
    assert "python -m venv /opt/rskd " in DOCKERFILE
    assert f"python -m venv /opt/{vllm_environment._NAME} " in DOCKERFILE
