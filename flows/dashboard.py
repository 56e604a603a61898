"""The dashboard of everything under a storage root: written anew after a stage that changed something, and linked."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlencode

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact

from rskd.config import DistillConfig
from rskd.errors import first_line
from rskd.storage import Store

SERVED_AT, SERVED_ROOT = "RSKD_DASHBOARD_URL", "RSKD_DASHBOARD_ROOT"  # set by the stack (infra/stack)


def show_dashboard(config: DistillConfig) -> None:
    """Write the page, log it to the distillation's run in MLflow and link it here; a stage is done without it, too."""
    from rskd import tracking
    from rskd.dashboard.publish import FILE, write_dashboard
    from rskd.tracking.connection import tracking_uri_of

    root = Store(config.storage.root)
    try:
        written = write_dashboard(config.storage.root, tracking_uri=tracking_uri_of(config))
        if config.tracking.enabled:
            tracking.distillation(config).text(FILE, root.read(FILE).decode())
    except Exception as error:
        get_run_logger().warning("the dashboard is not up to date: %s", first_line(error))
        return
    link = _served(root, config.name) or address(written["dashboard"])
    create_link_artifact(key="dashboard", link=link, description="Dashboard of all distillations")


def _served(root: Store, name: str) -> str | None:
    """Where the stack serves this page, opened on the students of one distillation."""
    served = os.environ.get(SERVED_AT)
    if served is None or os.environ.get(SERVED_ROOT) != root.absolute_uri:
        return None
    return f"{served}/#{urlencode({'view': 'students', 'q': name})}"


def address(file: str) -> str:
    """A file, local or of an object store, as a link."""
    return file if "://" in file else Path(file).as_uri()
