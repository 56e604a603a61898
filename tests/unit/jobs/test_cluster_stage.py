"""Where a stage runs: in this process, or as a job."""

import pytest

from rskd.config import RayConfig
from rskd.errors import ConfigError
from rskd.jobs.cluster.stage import jobs_address
from rskd.jobs.ray_session import ensure_ray

HEAD, OTHER = "http://head:8265", "https://other:8265"


@pytest.mark.parametrize(
    ("ray", "environment", "address"),
    [
        ({}, None, None),
        ({}, HEAD, HEAD),
        ({}, "10.0.0.1:6379", None),
        ({}, "auto", None),
        ({"address": OTHER}, None, OTHER),
        ({"address": OTHER}, HEAD, OTHER),
        ({"address": "auto"}, HEAD, None),
        ({"address": "10.0.0.1:6379"}, HEAD, None),
        ({"enabled": False}, HEAD, None),
    ],
)
def test_the_configuration_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, ray: dict, environment: str | None, address: str | None
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert jobs_address(RayConfig(**ray)) == address


def test_work_that_is_no_stage_does_not_join_a_jobs_api():
    with pytest.raises(ConfigError, match="takes stages as jobs, and this is none"):
        ensure_ray(RayConfig(address=HEAD))
