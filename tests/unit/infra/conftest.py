import pytest
from cluster_manifests import KUBERNETES, with_vllm

from infra.kubernetes.lint import Object, folders, render


@pytest.fixture(scope="session")
def base() -> list[Object]:
    return render(folders()[0])


@pytest.fixture(scope="session")
def small() -> list[Object]:
    return render(KUBERNETES / "overlays" / "small")


@pytest.fixture(scope="session")
def small_with_vllm(tmp_path_factory) -> list[Object]:
    return render(with_vllm(tmp_path_factory.mktemp("vllm")))


@pytest.fixture(params=["base", "small", "small_with_vllm"])
def objects(request) -> list[Object]:
    return request.getfixturevalue(request.param)
