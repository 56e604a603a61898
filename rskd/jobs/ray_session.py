"""One Ray for all stages of a process: started on this machine the first time, or joined."""

from __future__ import annotations

import logging
import os

import ray
from ray.data import DataContext

from rskd.config import RayConfig
from rskd.errors import ConfigError


def ensure_ray(config: RayConfig) -> None:
    """Start a local Ray, or connect to `config.address`, unless this process already has one.

    A local Ray declares at least 4 logical CPUs, so that workers and data tasks fit together on a small machine.
    Nothing of Ray is printed on stdout, which belongs to --json. Raises ConfigError if the address does not answer.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"num_cpus": max(4, os.cpu_count() or 1), "include_dashboard": False}
        try:
            ray.init(
                address=config.address or "local",
                logging_level=logging.WARNING,
                log_to_driver=False,
                **({} if config.address else local),
            )
        except ConnectionError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"ray.address={config.address} does not answer ({reason}): start it, or remove the key"
            ) from None
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its progress bars are off
