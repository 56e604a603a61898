"""The MLflow that a configuration names: URI, client, experiment, and one line for whatever is wrong with it."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rskd.config import DistillConfig
from rskd.errors import ConfigError, first_line
from rskd.file_lock import file_lock
from rskd.storage import Store
from rskd.tracking import views

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"


def tracking_uri_of(config: DistillConfig) -> str:
    """The configured URI, or sqlite beside the outputs (beside the working directory where those are on S3)."""
    uri = config.tracking.uri
    if uri is None:
        return tracking_uri_of_root(config.storage.root)
    path = sqlite_path(uri)  # relative to this process, not to a worker elsewhere
    return _sqlite_uri(path) if path and "?" not in uri else uri


def tracking_uri_of_root(root: str) -> str:
    """The sqlite database beside the outputs under a storage root."""
    store = Store(root)
    return _sqlite_uri(Path(store.path if store.is_local else ".rskd") / "mlflow.db")


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a sqlite database; None for anything else. Raises ConfigError for one in memory."""
    if not tracking_uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(tracking_uri).database
    if database in (None, "", ":memory:"):
        raise ConfigError(f"tracking.uri {tracking_uri} would lose its runs with the process: name sqlite:///FILE")
    return Path(database)


def is_absent(tracking_uri: str) -> bool:
    """Whether the database is a file that does not exist: MLflow would make one for a question."""
    file = sqlite_path(tracking_uri)
    return file is not None and not file.exists()


def _sqlite_uri(path: Path) -> str:
    """URI of a file, quoted only where SQLAlchemy would read another path from it: `%20` in a folder's name."""
    from sqlalchemy.engine import URL

    plain, whole = f"{_SQLITE}{path.resolve()}", path.resolve()
    return plain if sqlite_path(plain) == whole else URL.create("sqlite", database=str(whole)).render_as_string()


@functools.cache
def client_of(tracking_uri: str) -> MlflowClient:
    """A quiet client: no usage statistics leave the machine, and a server that is down is noticed in seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri)


def experiment_of(client: MlflowClient, config: DistillConfig) -> str:
    """Id of the configured experiment, which is created the first time. Raises ConfigError for one that was deleted."""
    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"tracking.experiment {name} was deleted: restore it (mlflow experiments restore --experiment-id "
                f"{found.experiment_id}, with MLFLOW_TRACKING_URI={client.tracking_uri}), or name another"
            )
        if views.are_missing(found.tags):
            for key, value in views.TAGS.items():
                client.set_experiment_tag(found.experiment_id, key, value)
        return found.experiment_id
    own = config.tracking.uri is None  # else artifacts go where the server puts them
    return client.create_experiment(name, artifact_location=_artifacts_uri(config) if own else None, tags=views.TAGS)


def _artifacts_uri(config: DistillConfig) -> str:
    store = Store(f"{config.storage.root.rstrip('/')}/mlartifacts")
    location = store.absolute_uri
    if store.is_local and unquote(location) != location:  # MLflow unquotes a path, too
        return Path(location).as_uri()
    return location


@contextmanager
def explained(tracking_uri: str, *, writing: bool = True) -> Iterator[None]:
    """Within it, whatever MLflow and its database raise is a ConfigError; the database is tried first."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if path := sqlite_path(tracking_uri):
            _try_sqlite(path, writing=writing)
        yield
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, OSError, ImportError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"tracking.uri {tracking_uri} cannot be used ({reason}): {_advice(tracking_uri, reason)}"
        ) from None


def _advice(tracking_uri: str, reason: str) -> str:
    if "database schema" in reason:
        return f"back it up and run mlflow db upgrade {tracking_uri}, or name another database"
    if reason.startswith("No module named"):
        return "install that module, or correct tracking.uri"
    if sqlite_path(tracking_uri):
        return "permit it, move that file away, or correct tracking.uri"
    return "start that server, or correct tracking.uri"


def _try_sqlite(path: Path, *, writing: bool) -> None:
    """Read, or write and take it back; MLflow would try again for hours where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60)) as database:
        if not writing:
            database.execute("PRAGMA schema_version")
            return
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE rskd_probe (value)")
        database.rollback()


def created_once(tracking_uri: str):
    """Keep processes apart that would create the same sqlite tables, experiment and parent run."""
    path = sqlite_path(tracking_uri)
    return nullcontext() if path is None else file_lock(path.with_name(f"{path.name}.lock"))
