"""One Ray for all stages of a process: started on this machine the first time, or joined."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from rskd import interrupts
from rskd.config import RayConfig
from rskd.config.cluster import is_jobs_api
from rskd.cores import usable_cores
from rskd.environment import ray_temporary_folder
from rskd.errors import ConfigError, first_line
from rskd.full_disk import full_disk_explained


def ensure_ray(config: RayConfig) -> None:
    """Start a local Ray, or connect to `config.address`, unless this process already has one or is to do without.

    A local Ray declares at least 4 logical CPUs, so that workers and data tasks fit together on a small machine.
    Nothing of Ray is printed on stdout, which belongs to --json. Raises ConfigError if the address does not answer.
    """
    if not config.enabled:
        return
    if config.address is not None and is_jobs_api(config.address):
        raise ConfigError(
            f"ray.address={config.address} takes stages as jobs, and this is none: set ray.address=auto on a node of "
            "that cluster, or remove the key"
        )
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = (
            {}
            if config.address
            else {"num_cpus": max(4, usable_cores()), "include_dashboard": False, "_temp_dir": ray_temporary_folder()}
        )
        folder = Path(local.get("_temp_dir") or tempfile.gettempdir())
        try:
            with interrupts.handlers_kept(), full_disk_explained(folder, "set RAY_TMPDIR to a larger folder"):
                ray.init(
                    address=config.address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **local,
                )
        except SystemExit:  # Ray's own answer to SIGTERM
            signal.raise_signal(signal.SIGTERM)
        except ConnectionError as error:
            raise ConfigError(
                f"ray.address={config.address} does not answer ({first_line(error)}): start it, or remove the key"
            ) from None
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # Ray's own loses its cause between processes
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # what fails is raised to the caller, who tells it in one line
            handler.setLevel(logging.CRITICAL)


def parallel_tasks(config: RayConfig) -> int:
    """How many tasks of one core run side by side: one without Ray, else as many as it has cores."""
    if not config.enabled:
        return 1
    if config.address is None:
        return usable_cores()
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)))  # nodes may still have to come
