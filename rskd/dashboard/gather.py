"""Everything under a storage root as rows of plain JSON, each read from what the stages left behind."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from rskd.cache.histogram import LABELS
from rskd.dashboard.distillation import is_distillation, read_distillation
from rskd.dashboard.passages import newest_passages
from rskd.errors import ConfigError, OutputError
from rskd.storage import Store
from rskd.tracking.connection import tracking_uri_of_root
from rskd.tracking.history import champions, failures

_READERS = 16  # small files read at once
_KINDS = ("distillations", "caches", "students", "evaluations")


def gather(root: str, tracking_uri: str | None = None) -> dict[str, Any]:
    """Distillations, caches, students, evaluations, and passages under `root`, and the registry of its MLflow.

    A distillation that cannot be read has its reason in place of its rows. An MLflow that does not answer costs the
    champions and the last failures; `notes` says so.

    Raises ConfigError for a root that does not exist.
    """
    store = Store(root)
    if not store.exists():
        raise ConfigError(f"{root} does not exist: name the storage.root of a configuration")
    with ThreadPoolExecutor(_READERS) as pool:
        found = [one for one in pool.map(lambda name: _read(store, name), store.folders()) if one]
    rows: dict[str, Any] = {kind: [row for one in found for row in one.get(kind, ())] for kind in _KINDS}
    readable = [row for row in rows["distillations"] if "error" not in row]
    newest = [row["name"] for row in sorted(readable, key=lambda row: -row["modified"])]
    passages, unreadable = newest_passages(store, newest)
    mlflow, notes = _from_mlflow(tracking_uri or tracking_uri_of_root(root))
    for distillation in rows["distillations"]:
        distillation["failed"] = mlflow["failures"].get(Store(f"{root}/{distillation['name']}").absolute_uri)
    return {
        "root": store.absolute_uri,
        "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "rskd": version("rskd"),
        "labels": LABELS,
        **rows,
        "passages": passages,
        "champions": mlflow["champions"],
        "notes": [*notes, *unreadable],
    }


def _read(store: Store, name: str) -> Mapping[str, Sequence[Mapping[str, Any]]] | None:
    home = store.child(name)
    if not is_distillation(home):
        return None
    try:
        return read_distillation(home, name)
    except OutputError as error:
        return {"distillations": [{"name": name, "error": str(error), "stages": []}]}


def _from_mlflow(tracking_uri: str) -> tuple[dict[str, Any], list[str]]:
    try:
        return {"champions": champions(tracking_uri), "failures": failures(tracking_uri)}, []
    except ConfigError as error:
        return {"champions": [], "failures": {}}, [str(error)]
