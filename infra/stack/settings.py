"""What infra/stack.toml says: ports, the folder, and databases that a team has elsewhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from rskd.config.section import Section, Uri
from rskd.errors import ConfigError, first_line

Port = Annotated[int, Field(ge=1024, le=65535)]
OptionalName = Literal["object-store", "ray", "prometheus"]

GRPC_OFFSET = 10_000  # where SeaweedFS puts the second port of each of its services
_LONGEST_SOCKET = 107  # bytes of the path of a Unix socket, on Linux


class PrefectSettings(Section):
    port: Port = 4200
    worker_port: Port = 4201
    pool: str = "rskd"
    runs_at_once: int = Field(default=4, ge=1)
    database: Uri | None = None


class MlflowSettings(Section):
    port: Port = 5000
    database: Uri | None = None
    artifacts: Uri | None = None


class ObjectStoreSettings(Section):
    port: Port = 8333
    internal_ports: tuple[Port, Port, Port] = (9333, 9340, 8888)

    @property
    def ports(self) -> tuple[int, ...]:
        plain = (self.port, *self.internal_ports)
        return (*plain, *(port + GRPC_OFFSET for port in plain))


class RaySettings(Section):
    port: Port = 6379
    dashboard_port: Port = 8265
    metrics_port: Port = 8080
    agent_port: Port = 52365
    client_port: Port = 10001


class PrometheusSettings(Section):
    port: Port = 9090
    keep: str = Field(default="30d", pattern=r"^\d+[hdwy]$")


class DashboardSettings(Section):
    port: Port = 4202
    root: Uri = ".rskd"


class StackSettings(Section):
    folder: Path = Path(".rskd/stack")
    optional: tuple[OptionalName, ...] = ("object-store", "ray", "prometheus")
    prefect: PrefectSettings = PrefectSettings()
    mlflow: MlflowSettings = MlflowSettings()
    object_store: ObjectStoreSettings = ObjectStoreSettings()
    ray: RaySettings = RaySettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    dashboard: DashboardSettings = DashboardSettings()

    @property
    def socket(self) -> Path:
        return self.folder / "supervisor.sock"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"


def load_settings(path: Path) -> StackSettings:
    """Read a file like infra/stack.toml; the folder becomes absolute. ConfigError, one line, for what is wrong."""
    try:
        settings = StackSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a file like infra/stack.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML ({first_line(error)}): correct it") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error)}") from None
    settings = settings.model_copy(update={"folder": settings.folder.absolute()})
    if len(bytes(settings.socket)) > _LONGEST_SOCKET:
        raise ConfigError(f"folder={settings.folder} is too long a path for a Unix socket: shorten it in {path}")
    return settings


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key, remove it or correct its spelling"
    if first["type"] == "value_error":  # which says what to do, and keeps a password to itself
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}: correct it"
