"""How many cores this process may use: its affinity and the CPU quotas of its control groups, not the host's cores."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

_logger = logging.getLogger(__name__)


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1. A quota of 1.5 cores counts as 2: threads may wait, cores are not left idle."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *map(math.ceil, _quotas(cgroups, membership))]))


def warn_of_threads(setting: str, threads: int) -> None:
    """Warn where a setting asks for more threads than cores; it is kept, since results may depend on it bit by bit."""
    cores = usable_cores()
    if threads > cores:
        _logger.warning(
            "%s=%d, but this process may use %d %s: set it to %d to be faster",
            *(setting, threads, cores, "core" if cores == 1 else "cores", cores),
        )


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Cores that each control group of the process, up to the root, may use; those without a limit are left out."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            roots = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        for root in roots:
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):  # in a container the path may be the host's: the root is looked at
                yield from _quota(folder)
                if folder == root:
                    break


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
