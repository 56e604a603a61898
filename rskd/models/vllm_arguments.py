"""Arguments that a configuration hands on to vLLM, for teachers and for models that answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rskd.errors import ConfigError

CPU_CACHE_BYTES = 2**30  # of keys and values, on a CPU, where vLLM would take a share of the machine's memory


def check_engine_args(given: Mapping[str, Any], own: Collection[str], known: Collection[str], section: str) -> None:
    """ConfigError for an argument in `section` that rskd sets itself (`own`), or that vLLM does not have (`known`)."""
    for name in given:
        if name in own:
            raise ConfigError(f"{section}.engine_args.{name} is set by rskd: remove it")
        if name not in known:
            raise ConfigError(f"{section}.engine_args.{name} is no argument of vLLM's LLM class: correct its name")
