"""The last verify and audit of a cache, kept beside it: <uri>.verify.json and <uri>.audit.json, sealed.

The cache's own files are never touched, so that a check changes nothing of what it checks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

from rskd import records
from rskd.cache.manifest import newest_manifest
from rskd.errors import ConfigError, OutputError, RskdError, first_line
from rskd.storage import Store

Check = Literal["verify", "audit"]
CHECKS: tuple[Check, ...] = ("verify", "audit")

_logger = logging.getLogger(__name__)


def keep_check(uri: str, check: Check, report: Mapping[str, Any], *, manifest: str | None) -> None:
    """Keep what a check of the cache at `uri` found; a folder that may only be read costs a warning alone.

    `manifest` is the `manifest_digest` of before the check: a cache may grow meanwhile.
    """
    content = {"report": dict(report), "manifest": manifest, "checked": time.time()}
    try:
        folder, name = _beside(uri)
        records.write(folder, f"{name}.{check}.json", content)
    except RskdError as error:
        _logger.warning("this %s is not kept beside the cache: %s", check, first_line(error))


def kept_checks(uri: str) -> dict[str, dict[str, Any]]:
    """What the last checks found, by check: report, manifest (its digest then; None: unfinished), checked (UTC).

    Raises CorruptPartError for a file that was changed.
    """
    folder, name = _beside(uri)
    found = {check: records.read(folder, f"{name}.{check}.json") for check in CHECKS}
    return {check: kept for check, kept in found.items() if kept is not None}


def manifest_digest(uri: str) -> str | None:
    """The digest of a cache's newest manifest; None where there is none, or a damaged one, which a report says."""
    try:
        manifest = newest_manifest(Store(uri))
    except OutputError:
        return None
    return manifest and manifest.digest


def _beside(uri: str) -> tuple[Store, str]:
    """The folder that a cache lies in, and its name there. Raises ConfigError for a cache that is a whole bucket."""
    folder, _, name = Store(uri).absolute_uri.rpartition("/")
    if folder == "s3:/":
        raise ConfigError(f"{uri} is a whole bucket: move the cache to a prefix in it")
    return Store(folder or "/"), name
