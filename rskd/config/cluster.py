"""Where the stages run: in this process, on a Ray that it starts or joins, or as jobs on a cluster."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from rskd.config.section import Section, Uri


class RayConfig(Section):
    enabled: bool = Field(
        default=True,
        description="False runs every stage in the driver's process, where there is no Ray, on its first GPU if there "
        "is one; train.workers is then 0.",
    )
    address: Uri | None = Field(
        default=None,
        description="A Ray cluster. http(s)://HEAD:8265: stages run there as jobs of its Jobs API. HOST:PORT or auto: "
        "this process joins it. By default RAY_ADDRESS if that is http(s)://, else a local Ray is started. Workers "
        "that are auto are as many as it has room for when a stage begins: give numbers where it grows on demand.",
    )
    code: Literal["installed", "sent"] = Field(
        default="installed",
        description="The rskd that a job runs: the one that is installed on the cluster, or this one, sent along.",
    )
    driver_cpus: float = Field(
        default=0.0,
        ge=0,
        description="CPUs that the driver of a job reserves, on any node; with 0 it runs on the head, as Ray's do.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        elsewhere = not self.enabled or (self.address is not None and not is_jobs_api(self.address))
        if elsewhere:
            used_by = "ray.enabled=false" if not self.enabled else f"address={self.address}, where no job is submitted"
            self._refuse_unused(used_by, set(), ("code", "driver_cpus"))
        elif self.address is not None and not _has_host(self.address):
            raise ValueError(f"address={self.address} names no head: write http://HEAD:8265")
        return self


def is_jobs_api(address: str) -> bool:
    """Whether an address of a Ray cluster is that of its Jobs API."""
    return address.lower().startswith(("http://", "https://"))


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False
